"""Final facts, in DuckDB: every record that was measured, read back exactly, and free SQL over them.

The file is opened for one use and closed again, because DuckDB lets in one writing process or many reading
ones: nobody owns it, and whoever finds it held tries again for WAIT_SECONDS. Writers come through the outbox
of `work.sqlite` (`drain`), so a wait here loses nothing.
"""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import duckdb

from . import one_select
from .one_select import Connection, first_line
from .records import SCHEMA, TABLES, Busy, Record, Refused, utc_now
from .work import LOCK_SECONDS, Line, Work, ddl_after, line_of, worker_id

if TYPE_CHECKING:
    from .index import Index
    from .rank import Directions
    from .search import Embed

VERSION = 9                # of findings.sql; kept in the table schema_version
STORAGE = "v1.5.0"         # the file format of new files: read by DuckDB 1.5 and 2.x
GROUP = 2_048              # rows of a row group: all cores pack a batch, and few rows are packed again by the next
WAIT_SECONDS = 2.0
RETRY_SECONDS = 0.05
MEMORY = "1GB"             # what one query of a user may take before it spills to disk
BATCH = 20_000             # records that a drain moves in one transaction, at most, and
BATCH_TEXT = 32_000_000    # characters of them: about half a second in which nobody reads

R = TypeVar("R", bound=Record)
T = TypeVar("T")

_DDL = Path(__file__).with_name("findings.sql")
OFFLINE = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
_CONFINED = OFFLINE | {
    "enable_external_access": "false", "python_enable_replacements": "false", "memory_limit": MEMORY
}  # fmt: skip
_BEGIN = f'{{"schema":{SCHEMA},'     # of a line of this code
_LAST = {kind: f',"{fields(record)[-1].name}":' for kind, record in TABLES.items()}
_JSON = json.JSONDecoder()
_HELD = re.compile(r"Could not set lock|different configuration than existing|already attached")
_DAMAGED = re.compile(r"not a valid DuckDB database|Could not read enough bytes|Corrupt database|checksum")
_FULL = re.compile(r"No space left on device")
_NEWER = re.compile(r"database file with version number (\d+)")

# DuckDB's file locks are between processes; inside one, uses of the same file take turns.
_turns: dict[str, threading.Lock] = {}


class Findings:
    """The file `findings.duckdb` of a home; it is made by the first append.

    Every method raises Refused if the file is damaged, made by a newer version, or cannot be read or written,
    and Busy if somebody else held it for WAIT_SECONDS; reading also if nothing has been recorded yet. A file
    of an older version is read as it is, and brought up to date by the next append.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self._indexes: dict[str, Index] = {}

    def append(self, records: Iterable[Record]) -> int:
        """Adds records in one transaction and returns how many; an id that is already there is skipped."""
        return self.append_lines(Line(record.TABLE, record.id, line_of(record)) for record in records)

    def append_lines(self, lines: Iterable[Line]) -> int:
        """The same of records as they lie in the outbox."""
        tables: dict[str, dict[str, str]] = {}
        for kind, id, body in lines:
            tables.setdefault(kind, {}).setdefault(id, body)
        if not tables:
            return 0
        if not self.path.exists():
            self._make()
        if all(_ours(kind, body) for kind, batch in tables.items() for body in batch.values()):
            with suppress(duckdb.InvalidInputException):
                return self._append(tables)
        # Other code left these in the outbox: older code without a field that is newer, which has its default.
        return self._append({kind: {id: _again(kind, body) for id, body in batch.items()}
                             for kind, batch in tables.items()})  # fmt: skip

    def _append(self, tables: Mapping[str, Mapping[str, str]]) -> int:
        with self._open(write=True) as con:
            con.execute("BEGIN")
            added = sum(_insert(con, table, batch) for table, batch in tables.items())
            con.execute("COMMIT")
        return added

    def bring_up_to_date(self) -> None:
        """Gives a file of an older version what it lacks now, and not at the next append."""
        if not self.path.exists():
            return
        with self._open(write=False) as con:
            current = self._version(con) == VERSION
        if not current:
            with self._open(write=True):
                pass

    def read(self, kind: type[R], **equals: str | int | float | bool | None) -> list[R]:
        """The records of one kind whose fields equal the given values, oldest first, as they were appended.

        Exactly as they were: but `Embedding.vector` holds 32-bit floats.
        """
        names = [field.name for field in fields(kind)]
        if unknown := sorted(equals.keys() - set(names)):
            raise Refused(f"{kind.TABLE} has no field {unknown[0]!r}; its fields are {', '.join(names)}.")
        where = " AND ".join(f'"{name}" IS NOT DISTINCT FROM ?' for name in equals) or "true"
        with self._open(write=False) as con:
            types = _columns(con, kind.TABLE)
            if not types:            # a file from before there was this kind of record
                return []
            names = [name for name in names if name in types]      # one from before there was a field has its default
            columns = ", ".join(f'"{name}"' for name in names)
            sql = f"SELECT {columns} FROM {kind.TABLE} WHERE {where} ORDER BY created_at, id"
            rows = con.execute(sql, list(equals.values())).fetchall()
        return [
            kind(**{n: _field(value, types[n]) for n, value in zip(names, row, strict=True)}) for row in rows
        ]

    def sql(
        self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = (), unpack: bool = False
    ) -> list[dict[str, Any]]:
        """Runs one SELECT, read-only and cut off from files and network; the rows as JSON-ready objects.

        The rows are those of `one_select.objects`. Raises Refused for anything else than one SELECT and for a query
        that DuckDB refuses, with its reason.
        """
        with self._open(write=False) as con:
            try:
                one_select.check_select(con, query)
                return one_select.fetched(con, query, parameters, unpack)
            except duckdb.Error as error:
                if _DAMAGED.search(str(error)):
                    raise
                raise one_select.refusal(error) from error

    def search(
        self, text: str | None = None, embed: "Embed | None" = None, *, embedder: str = "minilm", by: str | None = None,
        like: str | None = None, directions: "Directions | None" = None, top: int = 10, skip: int = 0, **filters: Any,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The explanations nearest to a text, or to that of the unit `like`: see `search.search` and `filters.Filters`.

        `embed` takes texts to vectors by the model that is recorded as `embedder`; without it a text is searched by
        word. What was recorded until now is searched, and kept in memory for the next time.
        """
        from .filters import Filters
        from .index import Index
        from .search import search

        if unknown := sorted(filters.keys() - {field.name for field in fields(Filters)}):
            known = ", ".join(field.name for field in fields(Filters))
            raise Refused(f"a search has no filter {unknown[0]!r}; its filters are {known}.")
        if embedder not in self._indexes:
            self._indexes[embedder] = Index(self, embedder, self.path.parent / "snapshots")
        index = self._indexes[embedder]
        index.refresh()
        return search(
            index, text, embed, by=by, like=like, directions=directions, filters=Filters(**filters), top=top, skip=skip
        )

    def state(self) -> tuple[int, int]:
        """When the file was last written [ns since 1970] and its size, with what a killed writer left beside it."""
        try:
            files = [os.stat(self.path)]
        except FileNotFoundError:
            raise self.nothing() from None
        with suppress(FileNotFoundError):
            files.append(os.stat(f"{self.path}.wal"))
        return max(file.st_mtime_ns for file in files), sum(file.st_size for file in files)

    def copy_to(self, folder: Path, durable: bool = True) -> list[Path]:
        """Copies the file, and the journal that a killed writer left beside it, into `folder`; returns the copies.

        Readers go on meanwhile; writers of other processes wait, as long as the file is held open here. `durable`: the
        copies are on the disk when this returns.
        """
        with self._open(write=False):
            journal = self.path.with_name(f"{self.path.name}.wal")
            try:
                return [_copied(path, folder, durable) for path in (journal, self.path) if path.exists()]
            except OSError as error:
                why = error.strerror or error
                raise Refused(f"{self.path} cannot be copied to {folder} ({why}); make room there.") from error

    # The file

    def _make(self) -> None:
        """Puts an empty database in place, whole: a process killed on the way leaves no half-made one."""
        draft = self.path.with_name(f"{self.path.name}.{uuid4().hex}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _create(draft)
                os.link(draft, self.path)  # unlike a rename, never replaces what another process just made
            finally:
                draft.unlink(missing_ok=True)
        except (OSError, duckdb.IOException) as error:
            if not self.path.exists():     # else another process made it in the meantime
                why = first_line(error)
                raise Refused(f"{self.path} cannot be made ({why}); choose another --home.") from error

    @contextmanager
    def _open(self, write: bool) -> Iterator[Connection]:
        """One connection to an existing file; closing it within a transaction undoes that."""
        with self._held() as deadline, self._connected(write, deadline) as con:
            version = self._version(con)
            if write:
                upgrade(con, version)
            yield con

    @contextmanager
    def attached(self, con: Connection, name: str) -> Iterator[None]:
        """Shows the file, read-only and as `name`, in another connection of this process while the block lasts.

        That connection has its own limits, so that no SQL of anybody else may go there.
        """
        with self._held() as deadline:
            _patiently(lambda: con.execute(f"ATTACH '{quoted(self.path)}' AS {name} (READ_ONLY)"), deadline)
            try:
                self._version(con, f"{name}.")
                yield
            finally:
                con.execute(f"DETACH {name}")

    @contextmanager
    def _held(self) -> Iterator[float]:
        """One use of the file at a time within this process; yields until when to wait for others (monotonic)."""
        if not self.path.exists():
            raise self.nothing()
        deadline = time.monotonic() + WAIT_SECONDS
        turn = _turns.setdefault(os.path.realpath(self.path), threading.Lock())
        if not turn.acquire(timeout=WAIT_SECONDS):
            raise Busy(f"{self.path} is in use by another thread of this process; try again when it is done.")
        try:
            yield deadline
        except duckdb.Error as error:
            refusal = self._refusal(error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            turn.release()

    def _connected(self, write: bool, deadline: float) -> Connection:
        if write:
            return _patiently(lambda: writer(self.path), deadline)
        con = _patiently(lambda: duckdb.connect(str(self.path), read_only=True, config=dict(_CONFINED)), deadline)
        con.execute("SET TimeZone = 'UTC'")    # what every created_at is in
        con.execute("SET lock_configuration = true")
        return con

    def nothing(self) -> Refused:
        """What to tell where there is no file."""
        return Refused(f"Nothing is recorded in {self.path.parent} yet; run `lamplighter run` first.")

    def _version(self, con: Connection, where: str = "") -> int:
        """The schema of an open file; raises Refused for one that is newer than this code or not ours."""
        found = schema_of(con, where)
        if not found:
            raise Refused(f"{self.path} is a database that lamplighter did not make; choose another --home.")
        if found > VERSION:
            raise Refused(self._newer(f"schema is {found}, this one knows {VERSION}"))
        return found

    def _newer(self, what: str) -> str:
        return (
            f"{self.path} was made by a newer version of lamplighter (its {what}); "
            "update lamplighter or choose another --home."
        )

    def _refusal(self, error: duckdb.Error) -> Refused | None:
        """What to tell of a use that the state of the file made fail, else None."""
        text, line = str(error), first_line(error)
        if _HELD.search(text):
            holder = re.search(r"PID (\d+)", text)
            who = f"process {holder[1]}" if holder else "another process"
            return Busy(f"{self.path} is in use by {who}; wait until it is done or end it, then try again.")
        if newer := _NEWER.search(text):
            cannot = f"which DuckDB {duckdb.__version__} cannot read"
            return Refused(self._newer(f"file format is {newer[1]}, {cannot}"))
        if _DAMAGED.search(text):
            return Refused(
                f"{self.path} is damaged ({line}); move it (and its .wal file) away: the sweeps and whatever "
                "waits in the outbox are kept, and the next run makes a new one."
            )
        if _FULL.search(text):
            return Busy(f"{self.path} cannot be written ({line}); make room on its disk, then try again.")
        if isinstance(error, duckdb.IOException):
            return Refused(f"{self.path} cannot be used ({line}); make room or give access, then try again.")
        return None


@contextmanager
def undrained(work: Work) -> Iterator[Callable[[], None]]:
    """Keeps results where they are, outbox or findings, so that both files can be read as of one moment.

    Yields what holds them for LOCK_SECONDS more; it raises Busy where these had run out before, so that somebody may
    have moved results. Raises Busy also if others move them for as long.
    """
    holder = worker_id()
    deadline = time.monotonic() + LOCK_SECONDS
    moving = "another process moves results into the findings just now; try again in a minute."
    while not work.lock("drain", holder):
        if time.monotonic() > deadline:
            raise Busy(moving)
        time.sleep(RETRY_SECONDS)
    held = time.monotonic()

    def hold() -> None:
        nonlocal held
        if time.monotonic() - held > LOCK_SECONDS or not work.lock("drain", holder):
            raise Busy(moving)
        held = time.monotonic()

    try:
        yield hold
    finally:
        work.unlock("drain", holder)


def drain(work: Work, findings: Findings, limit: int = BATCH) -> int:
    """Moves everything in the outbox into the findings, up to `limit` records a transaction; returns how many.

    One drainer works at a time; while another one does, this waits WAIT_SECONDS for its turn and then returns
    0 (what is left is that one's to move; `work.pending()` tells). A killed drainer leaves a lock that frees
    itself and at worst a batch that is in both stores: appending that again adds nothing. Raises Busy, with
    the outbox as it was, while somebody else holds the findings.
    """
    holder = worker_id()
    deadline = time.monotonic() + WAIT_SECONDS
    while not work.lock("drain", holder):
        if time.monotonic() > deadline:
            return 0
        time.sleep(RETRY_SECONDS)
    moved = 0
    try:
        while batch := work.outbox_lines(limit, BATCH_TEXT):
            done, more = _moved(work, findings, batch, limit, holder)
            moved += done
            if not more:
                break            # a batch outlasted the lock, and another drainer goes on from here
        return moved
    finally:
        work.unlock("drain", holder)


def _moved(
    work: Work, findings: Findings, batch: list[tuple[int, Line]], limit: int, holder: str
) -> tuple[int, bool]:
    """Moves a batch and those behind it, and returns how many, and whether the lock is still held.

    While one is appended, the one before is deleted from the outbox and the next is read, by another thread.
    """
    moved, done, held = 0, list[int](), True
    with ThreadPoolExecutor(1) as beside:
        while batch and held:
            ready = beside.submit(_turned, work, done, limit, batch[-1][0])
            findings.append_lines(line for _, line in batch)
            done = [seq for seq, _ in batch]
            gone, batch = ready.result()
            moved += gone
            held = work.lock("drain", holder)
        return moved + work.delivered(done), held


def _turned(work: Work, done: list[int], limit: int, behind: int) -> tuple[int, list[tuple[int, Line]]]:
    try:
        return work.delivered(done) if done else 0, work.outbox_lines(limit, BATCH_TEXT, behind)
    finally:
        work.close()


def _patiently(use: Callable[[], T], deadline: float) -> T:
    """Does what needs the file, trying again until `deadline` while another process holds it."""
    while True:
        try:
            return use()
        except duckdb.Error as error:
            if not _HELD.search(str(error)) or time.monotonic() > deadline:
                raise
        time.sleep(RETRY_SECONDS)


def _copied(path: Path, folder: Path, durable: bool) -> Path:
    """Copies a file into a folder. Closing it ends this process's locks on it (POSIX), so: once."""
    made = folder / path.name
    shutil.copyfile(path, made)
    if durable:
        with open(made, "rb") as file:
            os.fsync(file.fileno())
    return made


def writer(path: Path, options: str = "", **settings: str) -> Connection:
    """A connection that writes a file. A commit puts its rows in place at once, not into a journal first.

    `options` of ATTACH, `settings` of DuckDB.
    """
    own = {"checkpoint_threshold": "1KB", "temp_directory": f"{path}.tmp"}
    con = duckdb.connect(":memory:", config={**OFFLINE, **own, **settings})
    try:
        # Connected to by its path it would get row groups of DuckDB's own size, its old ones too.
        con.execute(f"ATTACH '{quoted(path)}' AS written (ROW_GROUP_SIZE {GROUP}{options})")
        con.execute("USE written")
    except BaseException:
        con.close()
        raise
    return con


def _create(path: Path) -> None:
    with writer(path, f", STORAGE_VERSION '{STORAGE}'") as con:
        upgrade(con, 0)
        con.execute("CHECKPOINT")  # nothing may be left in a journal beside it


def schema() -> str:
    """The SQL that makes every table and view."""
    return ddl_after(_DDL, 0)


def schema_of(con: Connection, where: str = "") -> int:
    """Which version of findings.sql made an open database (`where` is its name with a dot); 0: none did."""
    try:
        return int(con.execute(f"SELECT coalesce(max(version), 0) FROM {where}schema_version").fetchall()[0][0])
    except (duckdb.CatalogException, duckdb.BinderException):
        return 0


def upgrade(con: Connection, version: int) -> None:
    """Runs what findings.sql holds beyond `version`, in one transaction; no other process has the file meanwhile."""
    if version == VERSION:
        return
    con.execute("BEGIN")
    con.execute(ddl_after(_DDL, version))
    con.execute("INSERT INTO schema_version VALUES (?, ?)", [VERSION, utc_now()])
    con.execute("COMMIT")


def _insert(con: Connection, table: str, lines: Mapping[str, str]) -> int:
    """One statement a table: the rows travel as lines of JSON, by id, and are unpacked by the table's own types."""
    types = _columns(con, table)
    columns = ", ".join(f'r."{name}"' for name in types)
    # Ids are in the order of time, so that the bounds spare reading those of old rows.
    sql = f"""INSERT INTO {table} SELECT {columns} FROM (SELECT from_json_strict(line, $types) AS r FROM lines)
              WHERE r.id NOT IN (SELECT id FROM {table} WHERE id BETWEEN $first AND $last)"""
    # Strict is: no column without its key. It still leaves out a key that is no column, see `_ours`, and rounds 1.5 to
    # an integer, which `line_of` has refused before.
    given = {"types": json.dumps({"schema": "BIGINT"} | types), "first": min(lines), "last": max(lines)}
    _show(con, list(lines.values()))
    return int(con.execute(sql, given).fetchall()[0][0])


def _ours(kind: str, body: str) -> bool:
    """Whether a line begins and ends as those of this code do; a field of newer code would come behind its last one."""
    last = _LAST[kind]
    at = body.rfind(last)
    try:
        return at > 0 and body.startswith(_BEGIN) and _JSON.raw_decode(body, at + len(last))[1] == len(body) - 1
    except ValueError:
        return False


def _again(kind: str, body: str) -> str:
    """A line as this code writes it. Raises ValueError for one of another schema."""
    return line_of(TABLES[kind].from_json(body))


def _show(con: Connection, lines: Sequence[str]) -> None:
    """Shows texts as the column `line` of a table `lines`; no copy is made of them, as of a parameter."""
    import pyarrow as pa

    parts = [pa.record_batch({"line": pa.array(lines[k : k + 2048], pa.string())}) for k in range(0, len(lines), 2048)]
    con.register("lines", pa.Table.from_batches(parts))      # several, so that several threads read them


def _columns(con: Connection, table: str) -> dict[str, str]:
    sql = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
    return dict(con.execute(sql, [table]).fetchall())


def _field(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "JSON":
        return json.loads(value)
    return value.isoformat(timespec="microseconds") if kind == "TIMESTAMP" else value


def quoted(path: Path) -> str:
    """A path as it stands between the quotes of an SQL text."""
    return str(path).replace("'", "''")
