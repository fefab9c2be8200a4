"""Work in progress, in SQLite: runs, the queue of units, results bound for the findings, the ledger, cached evidence.

A unit is claimed for a time (a lease) and with a token that every claim raises. Whoever finishes must show
the newest token, so a worker that was thought dead and comes back cannot finish a unit a second time. A
result and the end of its unit are one transaction: a process killed at any point leaves the unit either done,
with every record in the outbox, or waiting to be claimed again.
"""

import json
import math
import os
import platform
import re
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, wraps
from hashlib import blake2s
from pathlib import Path
from shutil import disk_usage
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from uuid import uuid4

from .records import TABLES, Busy, Failure, LLMCall, Record, Refused, utc_now, uuid7

VERSION = 7            # of work.sql; kept in the file as SQLite's user_version
MAX_ATTEMPTS = 3
BUSY_SECONDS = 5.0     # how long a use waits for another process's transaction
LOCK_SECONDS = 30.0    # lease of a named lock
ROOM = 2**24           # bytes free on a disk below which an error of writing is taken for a full disk
PACKED = 512           # characters of a cached text from which it is kept packed
SILENT_SECONDS = 600.0   # a process of another machine that has asked for nothing so long is taken for ended
JOB_STATUSES = ("queued", "running", "done", "failed")
RUN_ENDS = ("done", "budget", "drained")

R = TypeVar("R", bound=Record)
T = TypeVar("T")
P = ParamSpec("P")

_DDL = Path(__file__).with_name("work.sql")
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_ACCESS = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR,
)
# Connections made before a fork are the parent's: a child that used or closed one would break its locks.
_INHERITED: list[sqlite3.Connection] = []
_END = "status = ?, worker = NULL, expires = NULL"
_LOST = "status = 'running' AND (expires <= :now OR is_gone(worker))"


class Line(NamedTuple):
    """A record as it lies in the outbox: its table, its id, and `line_of` it."""

    kind: str
    id: str
    body: str


class StaleAttempt(RuntimeError):
    """The job was taken over (or ended) since it was claimed; what this attempt brings is not recorded."""


@dataclass(frozen=True)
class RunState:
    """A run as the queue knows it; `status` is `running`, `done`, `budget` or `drained`.

    Of a `paused` one no unit can be claimed.
    """

    id: str
    key: str
    status: str
    asked: dict[str, Any]
    units: list[str]
    paused: bool = False


@dataclass(frozen=True)
class Job:
    """One claimed unit; `attempt` counts from 1, `token` is what finishing it takes."""

    run: str
    unit: str
    attempt: int
    token: int


@dataclass(frozen=True)
class JobState:
    """One unit of a run: where it stands, and who holds it until when (seconds since 1970).

    rung: how far up the ladder it came, once it is done; digest: of what its result depends on. Both may be unknown.
    """

    unit: str
    status: str
    attempt: int
    priority: float
    worker: str | None
    expires: float | None
    rung: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Worker:
    """A living process that works on a run, as `place/pid/start`, and the units that it holds."""

    process: str
    units: list[str]

    @property
    def pid(self) -> str:
        """Its number on the machine where it is."""
        return self.process.split("/")[1] if "/" in self.process else "?"


@dataclass(frozen=True)
class Spent:
    """What a run has asked of language models: requests, tokens in and out, and dollars.

    `unpriced` counts the calls whose cost is not known; they add nothing to `usd`. tokens_most, usd_most: what all
    calls can have cost at most, lost replies included, which is what limits are held against.
    """

    calls: int
    tokens: int
    usd: float
    unpriced: int
    tokens_most: int
    usd_most: float


def _proc(path: str) -> str:
    """A file or link under /proc as text; empty where there is none: another system, or an ended process."""
    place = Path("/proc", path)
    try:
        return os.readlink(place) if place.is_symlink() else place.read_text()
    except OSError:
        return ""


@cache
def _place() -> str:
    """Digest of machine, boot and process-id space: only in one such place does a number name a process."""
    marks = (platform.node(), _proc("sys/kernel/random/boot_id"), _proc("self/ns/pid"))
    return blake2s("\0".join(marks).encode(), digest_size=8).hexdigest()


def _process(pid: int) -> tuple[str, str]:
    """State letter and start time of a process, or two empty strings where there is no /proc."""
    fields = _proc(f"{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if fields else ("", "")


def worker_id(name: str = "") -> str:
    """`place/pid/start/name`: names one worker of this process so that its death can be seen by `is_gone`."""
    pid = os.getpid()
    return "/".join((_place(), str(pid), _process(pid)[1], name or uuid4().hex[:8]))


def process_of(worker: str) -> str:
    """The part of a worker id that names its process: `place/pid/start`."""
    return "/".join(worker.split("/")[:3])


def is_gone(worker: str) -> bool:
    """Whether the process behind a worker id has certainly ended.

    False where that cannot be known (another machine, an id of another form): then only the lease decides.
    """
    place, _, rest = worker.partition("/")
    pid, _, rest = rest.partition("/")
    # Where signals are not POSIX's, os.kill with signal 0 would end the process instead of asking after it.
    if place != _place() or not pid.isdecimal() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False             # alive, and somebody else's
    state, start = _process(int(pid))
    return state in ("Z", "X") or start != rest.partition("/")[0]


def line_of(record: Record) -> str:
    """The record as one line of JSON; raises Refused where it could not be read back as it is."""
    try:
        line = record.to_json()
        line.encode()            # a lone surrogate is in no text that a file could hold
    except (TypeError, ValueError) as error:
        raise Refused(f"A record for {record.TABLE} cannot be stored as it is: {error}.") from error
    return line


def ddl_after(path: Path, version: int) -> str:
    """The SQL that brings a store of `version` (0: an empty one) up to date: the later parts of its .sql file."""
    _, *parts = re.split(r"^-- version (\d+)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return "".join(sql for number, sql in zip(parts[::2], parts[1::2], strict=True) if int(number) > version)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one; sqlite3's own `executescript` would end the transaction first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _patient(use: Callable[Concatenate["Work", P], T]) -> Callable[Concatenate["Work", P], T]:
    """Where the file cannot be used just now, a method is tried again for as long as the store's `patience` says."""

    @wraps(use)
    def patiently(work: "Work", /, *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return use(work, *args, **kwargs)
            except Busy as busy:
                if not work.patience(busy):
                    raise

    return patiently


class Work:
    """The file `work.sqlite` of a home; threads and forked processes may share an instance.

    `clock` gives seconds since 1970; the usual one is no further on than others' of this machine, whatever happens to
    the machine's own (`_steady`). Every method raises Refused if the file is damaged, made by a newer version or cannot
    be written, and Busy if another process held it for BUSY_SECONDS or its disk is full. What a unit's work rests on is
    tried again then while `patience` is True of that; it may wait, and it may raise.
    """

    def __init__(self, path: Path, clock: Callable[[], float] | None = None) -> None:
        self.path = Path(path).absolute()
        self.patience: Callable[[Busy], bool] = lambda busy: False
        self._mine = threading.local()
        self._counting = threading.Lock()
        self.recalls = (0, 0)    # of so many keys asked for (second), so many were remembered (first)
        self._clock = clock or self._steady()      # a file that cannot be used is told at once

    def _steady(self) -> Callable[[], float]:
        """What the clock said when the file was first used since the machine started, and the time since then.

        So a clock that is set while units are in hand ends no lease and lengthens none, and all processes agree. Where
        starts of the machine cannot be told apart, or the time since one, it is the machine's clock.
        """
        boot = _proc("sys/kernel/random/boot_id").strip()
        if not boot or not hasattr(time, "CLOCK_BOOTTIME"):
            self.pending()
            return time.time
        with self._use() as con:
            row = con.execute("SELECT began FROM boots WHERE boot = ?", (boot,)).fetchone()
        if row is None:
            with self._change() as con:
                began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
                con.execute("INSERT INTO boots VALUES (?, ?) ON CONFLICT (boot) DO NOTHING", (boot, began))
                row = con.execute("SELECT began FROM boots WHERE boot = ?", (boot,)).fetchone()
        began = float(row["began"])
        return lambda: began + time.clock_gettime(time.CLOCK_BOOTTIME)

    # Runs

    def open_run(
        self, key: str, asked: dict[str, Any], units: Sequence[str], fresh: bool = False
    ) -> RunState:
        """The run of `key` (a digest of what was asked): its newest one, or a new one if there is none.

        An unfinished one is continued with the units it was opened with, a finished one returned as it is
        (status `done`). `fresh` opens a new one in any case.
        """
        with self._change() as con:
            rows = con.execute("SELECT * FROM runs WHERE key = ? ORDER BY rowid DESC LIMIT 1", (key,))
            found = None if fresh else rows.fetchone()
            if found and found["status"] == "done":
                return _run_state(found)
            if found:
                con.execute("UPDATE runs SET status = 'running' WHERE id = ?", (found["id"],))
                return _run_state({**found, "status": "running"})
            new = {"id": uuid7(), "key": key, "status": "running", "paused": 0}
            new |= {"asked": json.dumps(asked), "units": json.dumps(list(units))}
            sql = "INSERT INTO runs (id, key, status, asked, units) VALUES (:id, :key, :status, :asked, :units)"
            con.execute(sql, new)
            return _run_state(new)

    def find_run(self, key: str) -> RunState | None:
        """The newest run of `key` as it stands, or None."""
        with self._use() as con:
            found = con.execute("SELECT * FROM runs WHERE key = ? ORDER BY rowid DESC LIMIT 1", (key,)).fetchone()
            return _run_state(found) if found else None

    def runs(self) -> list[RunState]:
        """Every run, oldest first."""
        with self._use() as con:
            return [_run_state(row) for row in con.execute("SELECT * FROM runs ORDER BY rowid")]

    def begin_run(self, run: str) -> None:
        """Marks a run as one that is worked on; raises Refused if there is no such run."""
        with self._change() as con:
            if con.execute("UPDATE runs SET status = 'running' WHERE id = ?", (run,)).rowcount != 1:
                raise self._no_run(run)

    def close_run(self, run: str, status: str) -> str:
        """Marks a run `done`, `budget` or `drained`, and returns which; only `done` ends it for good.

        `done` while units of it are open (as where some were queued again just now) is `drained`. This process is
        then no worker of the run any more.
        """
        if status not in RUN_ENDS:
            raise ValueError(f"a run ends as one of {RUN_ENDS}, not {status!r}")
        sql = """UPDATE runs SET status = CASE WHEN :status = 'done' AND EXISTS (
                     SELECT 1 FROM jobs WHERE run = :run AND status IN ('queued', 'running')
                 ) THEN 'drained' ELSE :status END WHERE id = :run RETURNING status"""
        with self._change() as con:
            rows = con.execute(sql, {"run": run, "status": status}).fetchall()
            if not rows:
                raise self._no_run(run)
            con.execute("DELETE FROM workers WHERE run = ? AND worker = ?", (run, process_of(worker_id())))
            return str(rows[0]["status"])

    def pause(self, run: str) -> None:
        """From now on no unit of the run can be claimed, by any process."""
        self._set_paused(run, 1)

    def resume(self, run: str) -> None:
        """Units of the run can be claimed again."""
        self._set_paused(run, 0)

    def _set_paused(self, run: str, paused: int) -> None:
        with self._change() as con:
            if con.execute("UPDATE runs SET paused = ? WHERE id = ?", (paused, run)).rowcount != 1:
                raise self._no_run(run)

    @_patient
    def paused(self, run: str) -> bool:
        """Whether the run is paused; raises Refused if there is no such run."""
        with self._use() as con:
            row = con.execute("SELECT paused FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            raise self._no_run(run)
        return bool(row["paused"])

    def workers(self, run: str) -> list[Worker]:
        """The living processes that have asked for units of a run since they began, with the units that they hold."""
        here, now = _place(), self._clock()
        with self._use() as con:
            held = con.execute(
                f"SELECT worker, unit FROM jobs WHERE run = :run AND status = 'running' AND NOT ({_LOST})",
                {"run": run, "now": now},
            ).fetchall()
            known = con.execute("SELECT worker, seen FROM workers WHERE run = ? ORDER BY rowid", (run,)).fetchall()
        living: dict[str, list[str]] = {
            worker: [] for worker, seen in known
            if not is_gone(worker) and (worker.startswith(f"{here}/") or seen > now - SILENT_SECONDS)
        }  # fmt: skip
        for worker, unit in held:
            living.setdefault(process_of(worker), []).append(unit)
        return [Worker(process, units) for process, units in living.items()]

    def _no_run(self, run: str) -> Refused:
        return Refused(f"There is no run {run!r} in {self.path}; `lamplighter status` lists those that there are.")

    # Jobs

    def enqueue(
        self,
        run: str,
        units: Sequence[str],
        priorities: Sequence[float] | None = None,
        digests: Sequence[str | None] | None = None,
    ) -> int:
        """Queues units, highest priority first (by default as listed); returns how many are new to the run.

        digests: of what each unit's result depends on. Units already known to the run stay as they are, but that one
        which could be claimed now takes the digest of now.
        """
        ranks = [0.0] * len(units) if priorities is None else priorities
        marks = [None] * len(units) if digests is None else digests
        sql = """INSERT INTO jobs (run, unit, position, priority, digest) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (run, unit) DO NOTHING"""
        again = f"UPDATE jobs SET digest = :mark WHERE run = :run AND unit = :unit AND (status = 'queued' OR {_LOST})"
        now = self._clock()
        both = [{"mark": mark, "run": run, "unit": unit, "now": now} for unit, mark in zip(units, marks, strict=True)]
        with self._change() as con:
            con.executemany(again, both)
            first = con.execute("SELECT count(*) FROM jobs WHERE run = ?", (run,)).fetchone()[0]
            rows = enumerate(zip(units, ranks, marks, strict=True), start=first)
            return con.executemany(sql, [(run, unit, i, rank, mark) for i, (unit, rank, mark) in rows]).rowcount

    def requeue(self, run: str, units: Sequence[str] | None = None) -> list[str]:
        """Queues failed units of a run again (of `units`, by default all), as if untried; returns which, in order.

        Units that have not failed stay as they are. A run that was done is then `drained`: what began it goes on.
        """
        sql = """UPDATE jobs SET status = 'queued', attempt = 0
                 WHERE run = ? AND status = 'failed' AND (? IS NULL OR unit IN (SELECT value FROM json_each(?)))
                 RETURNING unit, position"""
        chosen = None if units is None else json.dumps(list(units))
        with self._change() as con:
            if con.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone() is None:
                raise self._no_run(run)
            rows = con.execute(sql, (run, chosen, chosen)).fetchall()
            if rows:
                con.execute("UPDATE runs SET status = 'drained' WHERE id = ? AND status = 'done'", (run,))
        return [unit for unit, _ in sorted(rows, key=lambda row: row["position"])]

    @_patient
    def claim(self, run: str, worker: str, lease: float = 60.0) -> Job | None:
        """Takes one unit for `lease` seconds, or None if none can be had now.

        Can be had: what is queued, what outlived its lease, and what a process of this machine held that has
        ended. Fewer tries go first, so a unit that takes its worker down cannot keep the others from their
        turn; one that has lost MAX_ATTEMPTS workers is failed, with a record of it. Of a paused run none can be had.
        """
        with self._change() as con:
            now = self._clock()
            found = con.execute("SELECT paused FROM runs WHERE id = ?", (run,)).fetchone()
            if found is None:
                return None
            self._note(con, run, worker, now)
            if found["paused"]:
                return None
            self._bury(con, run, now)
            rows = con.execute(
                f"""UPDATE jobs SET status = 'running', attempt = attempt + 1, token = token + 1,
                           worker = :worker, lease = :lease, expires = :now + :lease
                    WHERE run = :run AND unit = (
                        SELECT unit FROM jobs WHERE run = :run AND (status = 'queued' OR {_LOST})
                        ORDER BY attempt, priority DESC, position LIMIT 1)
                    RETURNING run, unit, attempt, token""",
                {"run": run, "worker": worker, "lease": lease, "now": now},
            ).fetchall()
            return Job(**rows[0]) if rows else None

    def _note(self, con: sqlite3.Connection, run: str, worker: str, now: float) -> None:
        """Writes down that the worker's process is at work on the run, and forgets those that have ended."""
        con.execute("DELETE FROM workers WHERE run = ? AND is_gone(worker)", (run,))
        sql = """INSERT INTO workers VALUES (?, ?, ?)
                 ON CONFLICT (run, worker) DO UPDATE SET seen = max(seen, excluded.seen)"""
        con.execute(sql, (run, process_of(worker), now))

    def _bury(self, con: sqlite3.Connection, run: str, now: float) -> None:
        """Fails the units that have lost MAX_ATTEMPTS workers."""
        rows = con.execute(
            f"""UPDATE jobs SET status = 'failed', worker = NULL, expires = NULL
                WHERE run = :run AND attempt >= :most AND {_LOST} RETURNING unit, attempt""",
            {"run": run, "most": MAX_ATTEMPTS, "now": now},
        ).fetchall()
        self._post(con, [_lost(run, unit, attempt) for unit, attempt in rows])

    @_patient
    def heartbeat(self, job: Job) -> None:
        """Holds the job for another lease from now; raises StaleAttempt if it is no longer ours."""
        with self._change() as con:
            self._fenced(con, job, "expires = ? + lease", self._clock())

    @_patient
    def finish(self, job: Job, records: Iterable[Record], rung: str | None = None) -> None:
        """Records what was found and ends the unit, both or neither. rung: how far up the ladder it came.

        Raises StaleAttempt, with nothing recorded, if the unit was taken over or has ended.
        """
        lines = list(records)
        with self._change() as con:
            self._fenced(con, job, f"{_END}, rung = ?", "done", rung)
            self._post(con, lines)

    @_patient
    def fail(self, job: Job, failure: Failure, retry: bool) -> bool:
        """Records a failed attempt; True if the unit is queued again: `retry`, and tries are left.

        Raises StaleAttempt, with nothing recorded, if the unit was taken over or has ended.
        """
        again = retry and job.attempt < MAX_ATTEMPTS
        with self._change() as con:
            self._fenced(con, job, _END, "queued" if again else "failed")
            self._post(con, [failure])
        return again

    @_patient
    def release(self, job: Job) -> None:
        """Gives a claimed unit back untried, as at Ctrl-C; raises StaleAttempt if it is no longer ours."""
        with self._change() as con:
            self._fenced(con, job, f"attempt = attempt - 1, {_END}", "queued")

    def _fenced(self, con: sqlite3.Connection, job: Job, change: str, *values: Any) -> None:
        sql = f"UPDATE jobs SET {change} WHERE run = ? AND unit = ? AND token = ? AND status = 'running'"
        if con.execute(sql, (*values, job.run, job.unit, job.token)).rowcount != 1:
            raise StaleAttempt(f"attempt {job.attempt} at {job.unit} was taken over or is over; not recorded")

    @_patient
    def counts(self, run: str) -> dict[str, int]:
        """Units of a run by status: queued, running, done, failed."""
        sql = "SELECT status, count(*) FROM jobs WHERE run = ? GROUP BY status"
        with self._use() as con:
            rows = con.execute(sql, (run,)).fetchall()
        return dict.fromkeys(JOB_STATUSES, 0) | {status: n for status, n in rows}

    @_patient
    def status(self, run: str, unit: str) -> str:
        """Where one unit of a run stands."""
        with self._use() as con:
            row = con.execute("SELECT status FROM jobs WHERE run = ? AND unit = ?", (run, unit)).fetchone()
        return str(row["status"])

    def jobs(self, run: str) -> list[JobState]:
        """Every unit of a run, in the order it was queued."""
        fields = "unit, status, attempt, priority, worker, expires, rung, digest"
        with self._use() as con:
            rows = con.execute(f"SELECT {fields} FROM jobs WHERE run = ? ORDER BY rowid", (run,))
            return [JobState(*row) for row in rows]

    # Outbox

    @_patient
    def post(self, records: Iterable[Record]) -> int:
        """Puts records on their way to the findings, all or none; how many were new (an id is taken once)."""
        lines = list(records)
        with self._change() as con:
            return self._post(con, lines)

    def _post(self, con: sqlite3.Connection, records: list[Record]) -> int:
        rows = [(record.id, record.TABLE, line_of(record)) for record in records]
        sql = "INSERT INTO outbox (id, kind, body) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING"
        return con.executemany(sql, rows).rowcount

    def outbox(self, limit: int) -> list[tuple[int, Record]]:
        """The oldest records not yet delivered, each with the number that `delivered` takes."""
        return [(seq, TABLES[line.kind].from_json(line.body)) for seq, line in self.outbox_lines(limit)]

    def outbox_lines(self, limit: int, most: float = math.inf, behind: int = -1) -> list[tuple[int, Line]]:
        """The same, unread, from behind a number; until their bodies together have `most` characters."""
        found, size = [], 0
        sql = "SELECT seq, kind, id, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._use() as con:
            for seq, kind, id, body in con.execute(sql, (behind, limit)):
                found.append((seq, Line(kind, id, body)))
                size += len(body)
                if size >= most:
                    break
        return found

    def delivered(self, seqs: Iterable[int]) -> int:
        """Forgets outbox records that the findings hold; how many were still there."""
        with self._change() as con:
            sql = "DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?))"
            return con.execute(sql, (json.dumps(list(seqs)),)).rowcount

    def pending(self) -> int:
        """Records that wait in the outbox."""
        with self._use() as con:
            return int(con.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def waiting(self) -> dict[str | None, int]:
        """Records that wait in the outbox, by the run that they are of."""
        sql = "SELECT json_extract(body, '$.run') AS run, count(*) FROM outbox GROUP BY 1"
        with self._use() as con:
            return dict(con.execute(sql).fetchall())

    def waiting_of(self, kind: type[R], run: str) -> list[R]:
        """The records of one kind and run that wait in the outbox, oldest first."""
        sql = "SELECT body FROM outbox WHERE kind = ? AND json_extract(body, '$.run') = ? ORDER BY seq"
        with self._use() as con:
            return [kind.from_json(body) for (body,) in con.execute(sql, (kind.TABLE, run))]

    # Ledger

    @_patient
    def charge(self, call: LLMCall) -> None:
        """Writes a request into the ledger and, in the same transaction, puts its copy on the way to the findings."""
        row = asdict(call) | {"provenance": json.dumps(call.provenance)}
        sql = f"INSERT INTO llm_calls ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
        with self._change() as con:
            con.execute(sql, row)
            self._post(con, [call])

    @_patient
    def spent(self, run: str, unit: str | None = None, sign: int | None = None) -> Spent:
        """The sums of the ledger over a run, or over one unit of it, every process that worked on it included."""
        sql = """SELECT count(*), coalesce(sum(coalesce(tokens_in, 0) + coalesce(tokens_out, 0)), 0), total(usd),
                        count(*) - count(usd),
                        coalesce(sum(coalesce(tokens_most, coalesce(tokens_in, 0) + coalesce(tokens_out, 0))), 0),
                        total(coalesce(usd_most, usd)) FROM llm_calls
                 WHERE run = :run AND (:unit IS NULL OR (unit = :unit AND sign = :sign))"""
        with self._use() as con:
            return Spent(*con.execute(sql, {"run": run, "unit": unit, "sign": sign}).fetchone())

    # Evidence cache

    @_patient
    def recall(self, key: str) -> str | None:
        """The text remembered under `key`, or None."""
        with self._use() as con:
            row = con.execute("SELECT text FROM cache WHERE key = ?", (key,)).fetchone()
        with self._counting:
            self.recalls = self.recalls[0] + (row is not None), self.recalls[1] + 1
        return None if row is None else _unpacked(row[0])

    @_patient
    def claim_once(self, key: str) -> bool:
        """True for the first caller with this key, in any process; False for every later one."""
        with self._change() as con:
            sql = "INSERT INTO cache (key, text) VALUES (?, ?) ON CONFLICT (key) DO NOTHING"
            return con.execute(sql, (key, utc_now())).rowcount == 1

    @_patient
    def remember(self, key: str, text: str) -> None:
        """Keeps `text` under `key`; the first text stays, so that a replay sees what was seen before."""
        with self._change() as con:
            con.execute("INSERT INTO cache VALUES (?, ?) ON CONFLICT (key) DO NOTHING", (key, _packed(text)))

    # Locks

    @_patient
    def lock(self, name: str, holder: str) -> bool:
        """Takes or keeps a named lock for LOCK_SECONDS; False if a living other has it.

        `holder` is a `worker_id()`; a lock whose holder has ended, or has let it run out, is free.
        """
        with self._change() as con:
            now = self._clock()
            row = con.execute("SELECT holder, expires FROM locks WHERE name = ?", (name,)).fetchone()
            if row and row["holder"] != holder and row["expires"] > now and not is_gone(row["holder"]):
                return False
            con.execute("INSERT OR REPLACE INTO locks VALUES (?, ?, ?)", (name, holder, now + LOCK_SECONDS))
            return True

    @_patient
    def unlock(self, name: str, holder: str) -> None:
        """Gives a lock back; somebody else's stays."""
        with self._change() as con:
            con.execute("DELETE FROM locks WHERE name = ? AND holder = ?", (name, holder))

    # The file

    def copy_to(self, path: Path) -> None:
        """Writes the file as it stands now, whole and without a journal, to `path`, which must not be there yet.

        Others may read and write meanwhile: the copy is of one moment. Raises Refused where it cannot be written.
        """
        with self._use() as con:
            con.execute("VACUUM INTO ?", (str(path),))
        with open(path, "rb") as made:
            os.fsync(made.fileno())

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, committed at the end of the block; an exception undoes it."""
        with self._use() as con, con:
            con.execute("BEGIN IMMEDIATE")
            yield con

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection()
        except sqlite3.DatabaseError as error:
            refusal = self._refusal(error)
            if refusal is None:
                raise
            raise refusal from error
        except OSError as error:
            raise Refused(f"{self.path} cannot be made ({error}); choose another --home.") from error

    # For what else is kept in this file (claims.py): one transaction, one look, and records that go with a transaction.
    change, use, post_within = _change, _use, _post

    @property
    def now(self) -> float:
        """Seconds since 1970 by the clock of this store."""
        return self._clock()

    def _held(self) -> sqlite3.Connection | None:
        """This thread's open connection, if it made one since the last fork."""
        pid, con = getattr(self._mine, "held", (None, None))
        if con is not None and pid != os.getpid():
            _INHERITED.append(con)
            return None
        return con

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection: kept, because the last one to close empties the journal to disk (20 ms)."""
        if (held := self._held()) is not None:
            return held
        self.path.parent.mkdir(parents=True, exist_ok=True)
        con = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            con.row_factory = sqlite3.Row
            con.create_function("is_gone", 1, is_gone)
            con.execute("PRAGMA synchronous = NORMAL")
            con.execute("PRAGMA foreign_keys = ON")
            con.execute("PRAGMA secure_delete = OFF")     # Debian's default writes zeros over what was delivered
            self._prepare(con)
        except BaseException:
            con.close()
            raise
        self._mine.held = os.getpid(), con
        return con

    def close(self) -> None:
        """Closes this thread's connection; the next use opens another."""
        if (held := self._held()) is not None:
            held.close()
        self._mine.held = None, None

    def _prepare(self, con: sqlite3.Connection) -> None:
        """Makes the tables in a new file and those that an older one lacks.

        Raises Refused for a file that is newer than this code or not ours.
        """
        # One statement reads both from one moment, while another process may be making the tables.
        state = "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_master)"
        version, tables = con.execute(state).fetchone()
        if version == VERSION:
            return
        if version > VERSION:
            raise Refused(
                f"{self.path} was made by a newer version of lamplighter (its schema is {version}, this one "
                f"knows {VERSION}); update lamplighter or choose another --home."
            )
        if tables and not version:
            raise Refused(f"{self.path} is a database that lamplighter did not make; choose another --home.")
        con.execute("PRAGMA journal_mode = WAL")
        with con:
            con.execute("BEGIN IMMEDIATE")
            version = con.execute("PRAGMA user_version").fetchone()[0]   # another process may have been first
            for statement in _statements(ddl_after(_DDL, version)):
                con.execute(statement)
            con.execute(f"PRAGMA user_version = {max(version, VERSION)}")

    def _refusal(self, error: sqlite3.DatabaseError) -> Refused | None:
        """What to tell of a use that the state of the file made fail, else None."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF      # the low byte is the kind of error
        if code in _BUSY:
            return Busy(
                f"{self.path} has been in use by another process for {BUSY_SECONDS:.0f} seconds; wait for "
                "that one or end it, then run the same command again."
            )
        if code in _DAMAGED:
            return Refused(
                f"{self.path} is damaged ({error}); move it and its -wal file away: the findings and sweeps "
                "are kept, and the next run makes a new one and queues its units again."
            )
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and disk_usage(self.path.parent).free < ROOM):
            return Busy(f"{self.path} cannot be written ({error}); make room on its disk, then try again.")
        if code in _NO_ACCESS:
            return Refused(f"{self.path} cannot be used ({error}); make room or give access, then try again.")
        return None


def _run_state(row: Any) -> RunState:
    asked, units = json.loads(row["asked"]), json.loads(row["units"])
    return RunState(row["id"], row["key"], row["status"], asked, units, bool(row["paused"]))


def _packed(text: str) -> str | bytes:
    """A long text as fewer bytes: about 0.4 of what evidence takes."""
    return zlib.compress(text.encode()) if len(text) >= PACKED else text


def _unpacked(kept: str | bytes) -> str:
    return zlib.decompress(kept).decode() if isinstance(kept, bytes) else kept


def _lost(run: str, unit: str, attempt: int) -> Failure:
    return Failure(
        run=run, unit=unit.removesuffix("-"), sign=-1 if unit.endswith("-") else 1, kind="lost", step="claim",
        attempt=attempt, message=f"the working process ended or fell silent {attempt} times on this unit",
    )
