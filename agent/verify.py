"""Whether a home, or a backup of one, holds together: its files, its records, and what the queue says of them.

Nothing is written, and a run may be at work meanwhile: the queue is read first, what waits in the outbox counts as
there, and units that were open then are left alone.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..store import findings as findings_module
from ..store import work as work_module
from ..store.findings import Findings
from ..store.records import PERSON, TABLES, Busy, Refused, signed
from .backup import FINDINGS, MANIFEST, WORK, findings_rows, findings_version, read_only, sha256, work_rows

NAMED = 3            # of what is wrong, so many are named
_PARTS = ("units", "exemplars", "evidence", "turns", "hypotheses", "scores", "verdicts")
_FIELDS = ("id", "run", "investigation", "unit", "sign")
_MORE = {"hypotheses": ("author",)}


@dataclass(frozen=True)
class Check:
    """One thing that must hold: at how many places it was looked, and what was wrong, in words."""

    name: str
    looked_at: int
    wrong: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """As a row of the report."""
        more = len(self.wrong) - NAMED
        told = "; ".join(self.wrong[:NAMED]) + (f"; and {more} more" if more > 0 else "")
        return {"check": self.name, "looked_at": self.looked_at, "wrong": len(self.wrong), "told": told}


@dataclass(frozen=True)
class _Queue:
    """What a work file says: statuses of runs and of units, the ledger's ids, and the records that wait, by table."""

    runs: dict[str, str]
    jobs: list[tuple[str, str, str]]
    calls: list[str]
    waiting: dict[str, list[dict[str, Any]]]


def verify(folder: Path) -> dict[str, Any]:
    """Every check of a folder: {of: home | backup, folder, ok, checks}. Raises Refused where there is neither."""
    backup = (folder / MANIFEST).exists()
    if not backup and not (folder / WORK).exists() and not (folder / FINDINGS).exists():
        raise Refused(f"{folder} holds neither a home nor a backup; name one, or the home with --home.")
    checks = [*_manifest(folder)] if backup else []
    queue = None
    if backup or (folder / WORK).exists():      # a home whose queue was moved away begins another
        queue, found = _work(folder / WORK, still=backup)
        checks += found
    findings = Findings(folder / FINDINGS)
    readable = findings.path.exists()
    if readable or (backup and FINDINGS in _listed(folder)):
        found = _opened(findings)
        checks += found
        readable = not found[0].wrong
    records = _Records(findings if readable else None, queue)
    if readable:
        checks += [_ids(findings)]
    if queue is not None and (readable or not findings.path.exists()):
        checks += [_done(queue, records), _failed(queue, records), _runs(queue, records), _calls(queue, records)]
    if readable:
        checks += [*_parts(records), _reviews(records), *_whole(records)]
        checks += [] if backup else [_sweeps(folder, findings)]
    rows = [check.facts() for check in checks]
    ok = not any(row["wrong"] for row in rows)
    return {"of": "backup" if backup else "home", "folder": str(folder), "ok": ok, "checks": rows}


# The files


def _listed(folder: Path) -> dict[str, Any]:
    """The files that a manifest lists; none where it cannot be read."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text("utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _manifest(folder: Path) -> Iterator[Check]:
    """Each file of a backup as its manifest has it, byte for byte, and as many rows."""
    listed = _listed(folder)
    if not listed:
        yield Check("the manifest can be read", 1, [f"{MANIFEST} is damaged or empty"])
        return
    wrong = []
    for name, known in listed.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != known["bytes"] or sha256(path) != known["sha256"]:
            wrong.append(f"{name} is not as it was written")
    yield Check("files are as the manifest says", len(listed), wrong)
    if not wrong:
        yield Check("as many rows as the manifest says", *_counted(folder))


def _counted(folder: Path) -> tuple[int, list[str]]:
    told = json.loads((folder / MANIFEST).read_text("utf-8"))["rows"]
    with read_only(folder / WORK, still=True) as con:
        found = {WORK: work_rows(con)}
    findings = Findings(folder / FINDINGS)
    found[FINDINGS] = findings_rows(findings) if findings.path.exists() else {}
    wrong = [
        f"{table} in {name} has {found[name].get(table)} rows, not {n}"
        for name in found for table, n in told[name].items() if found[name].get(table) != n
    ]  # fmt: skip
    return sum(map(len, told.values())), wrong


def _work(path: Path, still: bool) -> tuple[_Queue | None, list[Check]]:
    """The queue as of one moment, and whether SQLite finds its file sound."""
    name = f"{WORK} is sound"
    if not path.exists():
        return None, [Check(name, 1, [f"{WORK} is missing"])]
    try:
        with read_only(path, still) as con:
            con.execute("BEGIN")
            wrong = [row[0] for row in con.execute("PRAGMA quick_check") if row[0] != "ok"]
            orphans = con.execute("PRAGMA foreign_key_check").fetchall()
            lost = [f"a row of {row['table']} names no row of {row['parent']}" for row in orphans]
            version = con.execute("PRAGMA user_version").fetchone()[0]
            if not 0 < version <= work_module.VERSION:
                wrong.append(f"its schema is {version}, and this version knows 1 to {work_module.VERSION}")
                return None, [Check(name, 1, wrong)]
            return _read(con), [Check(name, 1, wrong + lost)]
    except (sqlite3.DatabaseError, ValueError, KeyError) as error:
        return None, [Check(name, 1, [f"it cannot be read ({error})"])]


def _read(con: sqlite3.Connection) -> _Queue:
    waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for kind, body in con.execute("SELECT kind, body FROM outbox ORDER BY seq"):
        waiting[kind].append(json.loads(body))
    ledger = con.execute("SELECT count(*) FROM sqlite_master WHERE name = 'llm_calls'").fetchone()[0]
    return _Queue(
        dict(con.execute("SELECT id, status FROM runs").fetchall()),
        [tuple(row) for row in con.execute("SELECT run, unit, status FROM jobs ORDER BY run, position")],
        [row[0] for row in con.execute("SELECT id FROM llm_calls")] if ledger else [],
        waiting,
    )


def _opened(findings: Findings) -> list[Check]:
    """Whether the findings can be opened, and every value in them be read. Raises Busy where others hold them."""
    name, tables = f"{FINDINGS} can be read", []
    try:
        version, tables = findings_version(findings), list(findings_rows(findings))
        for table in tables:      # every value takes part in the hash, so that every block is read
            findings.sql(f'SELECT bit_xor(hash(t)) AS read FROM "{table}" t')
    except Busy:
        raise
    except Refused as refusal:
        return [Check(name, max(1, len(tables)), [str(refusal)])]
    old = [] if version == findings_module.VERSION else [f"schema {version}, which the next run brings up to date"]
    lacks = [f"the table {table} is missing" for table in TABLES if table not in tables and not old]
    return [Check(name, len(tables), lacks)]


# The records


class _Records:
    """Rows of a table in the findings, or on their way there, each id once.

    Of units that were open when the queue was read there are none: they may be on their way just now.
    """

    def __init__(self, findings: Findings | None, queue: _Queue | None) -> None:
        self._findings, self._waiting = findings, queue.waiting if queue is not None else {}
        jobs = queue.jobs if queue is not None else []
        self._open = {(run, unit) for run, unit, status in jobs if status not in ("done", "failed")}
        self._tables = set(findings_rows(findings)) if findings is not None else set()

    def of(self, table: str, *more: str) -> list[dict[str, Any]]:
        """Their ids, stamps and the fields named; oldest first."""
        rows = self.every(table, *more)
        return [row for row in rows if table == "llm_calls" or (row["run"], signed(row)) not in self._open]

    def every(self, table: str, *more: str) -> list[dict[str, Any]]:
        """The same, with those of units that were open."""
        names = (*_FIELDS, *more)
        rows: dict[str, dict[str, Any]] = {}
        if self._findings is not None and table in self._tables:
            columns = ", ".join(f'"{name}"' for name in names)
            for row in self._findings.sql(f'SELECT {columns} FROM "{table}" ORDER BY created_at, id'):
                rows[row["id"]] = row
        for body in self._waiting.get(table, []):
            rows.setdefault(body["id"], {name: body.get(name) for name in names})
        return list(rows.values())


def _ids(findings: Findings) -> Check:
    """No id stands twice in a table of the findings."""
    tables = [table for table in findings_rows(findings) if table != "schema_version"]
    wrong = [
        f"{row['n']} rows of {table} have the id {row['id']}"
        for table in tables
        for row in findings.sql(f'SELECT id, count(*) AS n FROM "{table}" GROUP BY id HAVING n > 1 OR id IS NULL')
    ]
    return Check("no id is there twice", len(tables), wrong)


def _done(queue: _Queue, records: _Records) -> Check:
    """Each unit that the queue calls done has one investigation of its run, whatever was tried before."""
    found = Counter((row["run"], signed(row)) for row in records.of("investigations"))
    done = [(run, unit) for run, unit, status in queue.jobs if status == "done"]
    wrong = [f"{unit} of run {run} has {found[run, unit]}" for run, unit in done if found[run, unit] != 1]
    return Check("units that are done have one investigation", len(done), wrong)


def _failed(queue: _Queue, records: _Records) -> Check:
    found = {(row["run"], signed(row)) for row in records.of("failures")}
    failed = [(run, unit) for run, unit, status in queue.jobs if status == "failed"]
    wrong = [f"{unit} of run {run} has none" for run, unit in failed if (run, unit) not in found]
    return Check("units that failed have a failure", len(failed), wrong)


def _runs(queue: _Queue, records: _Records) -> Check:
    """Runs of which a unit ended are on record; one that was only just opened may not be."""
    found = {row["run"] for row in records.of("runs")}
    begun = dict.fromkeys(run for run, _, status in queue.jobs if status in ("done", "failed"))
    wrong = [f"run {run} has none" for run in begun if run not in found]
    return Check("runs have their record", len(begun), wrong)


def _calls(queue: _Queue, records: _Records) -> Check:
    found = {row["id"] for row in records.of("llm_calls")}
    wrong = [f"request {call} is missing" for call in queue.calls if call not in found]
    return Check("requests of the ledger are recorded", len(queue.calls), wrong)


def _parts(records: _Records) -> Iterator[Check]:
    """What names an investigation or a hypothesis names one that is there.

    What a person wrote has its investigation once it is scored, and none where it was taken back before that.
    """
    parts = {table: records.of(table, *_MORE.get(table, ())) for table in _PARTS}
    scored = [row for row in records.of("scores", "hypothesis") if row["investigation"] is not None]
    decided = [
        row for table in ("verdicts", "import_verdicts") for row in records.of(table, "hypothesis")
        if row["hypothesis"] is not None
    ]  # fmt: skip
    hypotheses = {row["id"] for row in records.of("hypotheses")}
    investigations = {row["id"] for row in records.of("investigations")}
    named = [
        (table, row) for table, rows in parts.items() for row in rows
        if row["investigation"] is not None and not str(row.get("author")).startswith(PERSON)
    ]  # fmt: skip
    yield Check("rows have their investigation", len(named), [
        f"{table} {row['id']} names {row['investigation']}" for table, row in named
        if row["investigation"] not in investigations
    ])  # fmt: skip
    yield Check("scores and verdicts have their hypothesis", len(scored) + len(decided), [
        f"{row['id']} names {row['hypothesis']}" for row in (*scored, *decided) if row["hypothesis"] not in hypotheses
    ])  # fmt: skip


def _reviews(records: _Records) -> Check:
    """Reviews, and what they put in place or take back, name what is there."""
    events = records.every("reviews", "hypothesis", "edit", "undoes")
    known = {row["id"] for row in (*records.every("hypotheses"), *events)}
    wrong = [
        f"review {row['id']} names {row[field]}" for row in events for field in ("hypothesis", "edit", "undoes")
        if row[field] is not None and row[field] not in known
    ]  # fmt: skip
    return Check("reviews have their explanation", len(events), wrong)


def _whole(records: _Records) -> Iterator[Check]:
    """Of each investigation as much is there as was written with it, all in one transaction."""
    ended = records.of("investigations", "status", "steps")

    def per(table: str, *more: str, where: Callable[[dict[str, Any]], bool] = lambda row: True) -> Counter[str]:
        return Counter(row["investigation"] for row in records.of(table, *more) if where(row))

    submitted = [row for row in ended if row["status"] == "submitted"]
    verdicts, units, evidence = per("verdicts"), per("units"), per("evidence")
    kept = per("hypotheses", "kept", "author", where=lambda row: bool(row["kept"]) and row["author"] != "ablate")
    f1 = per("scores", "metric", "side", "judge", where=lambda row: (
        (row["metric"], row["side"], row["judge"]) == ("f1", "score", None)
    ))  # fmt: skip
    yield _each("investigations have their verdict", ended, lambda row: verdicts[row["id"]] >= 1)
    yield _each("investigations have their unit", ended, lambda row: units[row["id"]] == 1)
    yield _each("investigations have the evidence of each step", ended, lambda row: evidence[row["id"]] == row["steps"])
    yield _each("what was submitted is there", submitted, lambda row: kept[row["id"]] == 1)
    yield _each("what was submitted has its F1", submitted, lambda row: f1[row["id"]] == 1)


def _each(name: str, rows: Sequence[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> Check:
    return Check(name, len(rows), [f"{row['id']} of {signed(row)} has not" for row in rows if not holds(row)])


# The sweeps


def _sweeps(folder: Path, findings: Findings) -> Check:
    """Sweeps that a record names and that are on this disk have all their files, which say whose they are."""
    digests = [row["digest"] for row in findings.sql("SELECT DISTINCT digest FROM sweeps ORDER BY digest")]
    here = [digest for digest in digests if (folder / "sweeps" / digest).is_dir()]
    wrong = [f"{digest}: {lack}" for digest in here for lack in _lacks(folder / "sweeps" / digest)]
    return Check("sweeps that are here are whole", len(here), wrong)


def _lacks(folder: Path) -> Iterable[str]:
    """What is wrong with the folder of a sweep, in words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        facts = json.loads((folder / "sweep.json").read_text("utf-8"))
        digest, sites, tokens = facts["digest"], list(facts["sites"]), dict(facts["tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"sweep.json cannot be read ({error})"
        return
    if digest != folder.name:
        yield f"sweep.json is that of {digest}"
    try:
        table = pq.read_table(folder / "documents.parquet", columns=["side", "ids"]).to_pydict()
        found: Counter[str] = Counter()
        for side, ids in zip(table["side"], table["ids"], strict=True):
            found[side] += len(ids)
        if found != Counter(tokens):
            yield "documents.parquet holds another number of tokens than sweep.json says"
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        yield f"documents.parquet cannot be read ({str(error).splitlines()[0]})"
    for site in sites:
        yield from _tensors(folder, f"{site}.safetensors", None)
        yield from _tensors(folder, f"{site}.atlas.safetensors", f"{digest}/{site}")


def _tensors(folder: Path, name: str, atlas: str | None) -> Iterator[str]:
    """What is wrong with a file of tensors: its head says how long it is, and of an atlas whose it is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / name, framework="np") as file:
            mark = (file.metadata() or {}).get("atlas")
    except FileNotFoundError:
        yield f"{name} is missing"
        return
    except (OSError, SafetensorError) as error:
        yield f"{name} cannot be read ({error})"
        return
    if mark != atlas:
        yield f"{name} is that of {mark}"


__all__ = ["Check", "verify"]
