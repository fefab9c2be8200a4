"""Snapshots of the findings: copies that nobody writes, for free SQL and for the pages.

A snapshot is one DuckDB file that any number of processes read at a time while a run writes the findings. In it the
views are tables, so that a query on `explanations` reads what it needs and derives nothing, and the schema `pages` has
what the pages read (snapshot.sql). Its name says which state of the findings it holds, so that two processes that make
one at a time make the same one.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import duckdb

from .confined import Answer, Limits, ask
from .excerpt import derive, views
from .findings import Findings, schema_of, upgrade, writer
from .one_select import first_line
from .records import Busy, Refused

FORMAT = 3               # of what a snapshot holds beside the tables of the findings
PACE = 10_000_000        # bytes of findings for each of which a snapshot may lag a second behind them
SPARE = 100_000_000      # bytes that a snapshot leaves free on the disk
MEMORY = "2GB"           # that making one takes, before it spills to disk
LEFT_SECONDS = 3_600     # a draft so old was left by a process that was killed
TRIES = 5                # of opening the newest one, while others replace it
AT_A_TIME = 2            # queries of one process
WAIT_SECONDS = 2.0       # for one of them to end

T = TypeVar("T")

_NAME = re.compile(r"findings-(?P<format>\d+)-(?P<written>\d{20})-(?P<bytes>\d+)\.duckdb")
_MADE = Path(__file__).with_name("snapshot.sql")


@dataclass(frozen=True)
class Snapshot:
    """A file, and how fresh it is. state: that of the findings that it holds; behind: they were written again since;
    why: what kept a newer one from being made, if anything did."""

    path: Path
    state: tuple[int, int]
    behind: bool = False
    why: str | None = None

    @property
    def as_of(self) -> str:
        """When the findings that it holds were written (UTC, ISO 8601)."""
        when = datetime.fromtimestamp(self.state[0] / 1e9, UTC)
        return when.isoformat(timespec="milliseconds").removesuffix("+00:00")


@dataclass(frozen=True)
class Told:
    """The answer to one query, and the snapshot that it is of."""

    answer: Answer
    snapshot: Snapshot


class Snapshots:
    """The folder of a home's snapshots. Methods raise Refused as `Findings` does, and where there is no room."""

    def __init__(self, findings: Findings, folder: Path) -> None:
        self.findings, self.folder = findings, Path(folder).absolute()
        self._queries = threading.BoundedSemaphore(AT_A_TIME)

    def sql(self, query: str, limits: Limits | None = None, old: bool = False) -> Told:
        """Runs one SELECT on a snapshot that is fresh enough; see `confined.ask` for what is refused.

        old: any snapshot will do, as somebody else keeps them fresh. Raises Busy where AT_A_TIME others are run.
        """
        if not self._queries.acquire(timeout=WAIT_SECONDS):
            raise Busy(f"{AT_A_TIME} other queries are being run, which is all that may be at a time; try again soon.")
        try:
            return self.reading(
                lambda snapshot: Told(ask(snapshot.path, query, limits), snapshot), self.newest if old else self.current
            )
        finally:
            self._queries.release()

    def reading(self, read: Callable[[Snapshot], T], which: Callable[[], Snapshot] | None = None) -> T:
        """What `read` gives for a snapshot (`which`; by default `current`), asked again where it was removed meanwhile.

        `read` raises FileNotFoundError for one that is no longer there.
        """
        for _ in range(TRIES):
            snapshot = (which or self.current)()
            with suppress(FileNotFoundError):      # a newer one has just taken its place
                return read(snapshot)
        raise Busy(f"snapshots in {self.folder} are removed as they are made; try again.")

    def newest(self) -> Snapshot:
        """The newest snapshot that there is, however old; the first is made now."""
        state, known = self.findings.state(), self._all()
        newest = _newest(known, state)
        return self.current() if newest is None else Snapshot(known[newest], newest, behind=newest != state)

    def current(self, now: bool = False) -> Snapshot:
        """The newest snapshot, made now unless it is fresh enough.

        Fresh enough: it holds what the findings hold or, unless `now`, the findings are large and it lags behind by
        less than a second for each 10 MB of them. Where none can be made, because the findings are in use or the disk
        is full, an older one is still good and is said to be behind.
        """
        state, known = self.findings.state(), self._all()
        newest = _newest(known, state)
        if newest == state:
            return Snapshot(known[state], state)
        if newest is not None and not now and time.time() - newest[0] / 1e9 < state[1] / PACE:
            return Snapshot(known[newest], newest, behind=True)
        try:
            made = self._make(state)
        except (Busy, _NoRoom) as why:
            if newest is None or not known[newest].exists():
                raise
            return Snapshot(known[newest], newest, behind=True, why=str(why))
        self._clear(made)
        return Snapshot(made, state)

    def _all(self) -> dict[tuple[int, int], Path]:
        """Every snapshot of this format, by the state that it holds."""
        if not self.folder.is_dir():
            return {}
        named = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return {
            (int(name["written"]), int(name["bytes"])): path
            for name, path in named if name and int(name["format"]) == FORMAT
        }  # fmt: skip

    def _make(self, state: tuple[int, int]) -> Path:
        """Puts a snapshot in place, whole. The findings are held only while they are copied."""
        path = self.folder / f"findings-{FORMAT}-{state[0]:020}-{state[1]}.duckdb"
        draft = self.folder / f".{uuid4().hex}"
        try:
            draft.mkdir(parents=True)
            self._check_room(state[1])
            self.findings.copy_to(draft, durable=False)
            _derive(draft / self.findings.path.name)
            os.replace(draft / self.findings.path.name, path)
        except (OSError, duckdb.IOException) as error:
            why = first_line(error)
            raise _NoRoom(f"no snapshot can be made in {self.folder} ({why}); make room or give access.") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return path

    def _check_room(self, size: int) -> None:
        left = shutil.disk_usage(self.folder).free
        if left < 2 * size + SPARE:
            raise _NoRoom(
                f"a snapshot takes up to {2 * size / 1e6:,.0f} MB, and of the {left / 1e6:,.0f} MB free on the disk of "
                f"{self.folder} {SPARE / 1e6:,.0f} MB are kept free; make room."
            )

    def _clear(self, newest: Path) -> None:
        """Removes what `newest` replaces, and what killed processes left.

        A process that reads a file goes on reading it after it was removed.
        """
        for path in self.folder.iterdir():
            with suppress(OSError):
                if _NAME.fullmatch(path.name) and path != newest:
                    path.unlink()
                elif path.name.startswith(".") and time.time() - path.stat().st_mtime > LEFT_SECONDS:
                    shutil.rmtree(path)


class _NoRoom(Refused):
    """No snapshot can be written."""


def _newest(known: Iterable[tuple[int, int]], state: tuple[int, int]) -> tuple[int, int] | None:
    """The newest of these that findings of that state can have come from."""
    return max((one for one in known if one <= state), default=None)


def _derive(path: Path) -> None:
    """Turns the views of a copied file into tables of the same names and columns, and adds those of the pages."""
    with writer(path, memory_limit=MEMORY, temp_directory=str(path.with_name("spill"))) as con:
        upgrade(con, schema_of(con))
        derive(con, views(con))
        con.execute(_MADE.read_text("utf-8"))
        con.execute("CHECKPOINT")
