"""Snapshots of the findings: copies that nobody writes, for free SQL and for whoever reads much.

A snapshot is one DuckDB file that any number of processes read at a time while a run writes the findings. In it the
views are tables, so that a query on `explanations` reads what it needs and derives nothing. Its name says which state
of the findings it holds, so that two processes that make one at a time make the same one.
"""

import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import duckdb

from .confined import Answer, Limits, ask
from .excerpt import derive, views
from .findings import OFFLINE, Findings, schema_of, upgrade
from .one_select import first_line
from .records import Refused
from .work import Busy

FORMAT = 1               # of what a snapshot holds beside the tables of the findings
PACE = 10_000_000        # bytes of findings for each of which a snapshot may lag a second behind them
SPARE = 100_000_000      # bytes that a snapshot leaves free on the disk
LEFT_SECONDS = 3_600     # a draft so old was left by a process that was killed
TRIES = 5                # of opening the newest one, while others replace it

_NAME = re.compile(r"findings-(?P<format>\d+)-(?P<written>\d{20})-(?P<bytes>\d+)\.duckdb")


@dataclass(frozen=True)
class Snapshot:
    """A file, and how fresh it is. as_of: when the findings that it holds were written (UTC, ISO 8601); behind: they
    were written again since."""

    path: Path
    as_of: str
    behind: bool = False


@dataclass(frozen=True)
class Told:
    """The answer to one query, and the snapshot that it is of."""

    answer: Answer
    snapshot: Snapshot


class Snapshots:
    """The folder of a home's snapshots. Methods raise Refused as `Findings` does, and where there is no room."""

    def __init__(self, findings: Findings, folder: Path) -> None:
        self.findings, self.folder = findings, Path(folder).absolute()

    def sql(self, query: str, limits: Limits | None = None) -> Told:
        """Runs one SELECT on a snapshot that is fresh enough; see `confined.ask` for what is refused."""
        for _ in range(TRIES):
            snapshot = self.current()
            with suppress(FileNotFoundError):      # a newer one has just taken its place
                return Told(ask(snapshot.path, query, limits), snapshot)
        raise Busy(f"snapshots in {self.folder} are removed as they are made; try again.")

    def current(self) -> Snapshot:
        """The newest snapshot, made now unless it is fresh enough.

        Fresh enough: it holds what the findings hold, or the findings are large and it lags behind by less than a
        second for each 10 MB of them. Where none can be made, because the findings are in use or the disk is full, an
        older one is still good and is said to be behind.
        """
        written, known = self._written(), self._all()
        if written in known:
            return _snapshot(written, known[written])
        newest = max((state for state in known if state < written), default=None)
        if newest is not None and time.time() - newest[0] / 1e9 < written[1] / PACE:
            return _snapshot(newest, known[newest], behind=True)
        try:
            made = self._make(written)
        except (Busy, _NoRoom):
            if newest is None or not known[newest].exists():
                raise
            return _snapshot(newest, known[newest], behind=True)
        self._clear(made)
        return _snapshot(written, made)

    def _written(self) -> tuple[int, int]:
        """When the findings were last written [ns since 1970], and their size with what a killed writer left beside."""
        try:
            files = [os.stat(self.findings.path)]
        except FileNotFoundError:
            raise self.findings.nothing() from None
        with suppress(FileNotFoundError):
            files.append(os.stat(f"{self.findings.path}.wal"))
        return max(file.st_mtime_ns for file in files), sum(file.st_size for file in files)

    def _all(self) -> dict[tuple[int, int], Path]:
        """Every snapshot of this format, by the state that it holds."""
        if not self.folder.is_dir():
            return {}
        named = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return {
            (int(name["written"]), int(name["bytes"])): path
            for name, path in named if name and int(name["format"]) == FORMAT
        }  # fmt: skip

    def _make(self, written: tuple[int, int]) -> Path:
        """Puts a snapshot in place, whole. The findings are held only while they are copied."""
        path = self.folder / f"findings-{FORMAT}-{written[0]:020}-{written[1]}.duckdb"
        draft = self.folder / f".{uuid4().hex}"
        try:
            draft.mkdir(parents=True)
            self._check_room(written[1])
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


def _snapshot(state: tuple[int, int], path: Path, behind: bool = False) -> Snapshot:
    when = datetime.fromtimestamp(state[0] / 1e9, UTC)
    return Snapshot(path, when.isoformat(timespec="milliseconds").removesuffix("+00:00"), behind)


def _derive(path: Path) -> None:
    """Turns the views of a copied file into tables of the same names and columns."""
    with duckdb.connect(str(path), config=dict(OFFLINE)) as con:
        upgrade(con, schema_of(con))
        derive(con, views(con))
        con.execute("CHECKPOINT")
