"""What the pages read: the newest snapshot of the findings, kept open, and replaced in the background.

A page must not wait for a run that writes, and DuckDB lets nobody read meanwhile.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import duckdb

from .background import repeated
from .confined import Limits
from .findings import OFFLINE
from .one_select import Connection, fetched
from .records import Busy, Refused
from .snapshot import Snapshot, Snapshots, Told

POLL_SECONDS = 1.0       # between looks at whether the findings were written
QUICK_SECONDS = 1.0      # a snapshot that takes less is made while somebody waits
MEMORY = "1GB"           # of what the pages ask
BEHIND = ("evidence", "exemplars", "turns", "scores", "hypotheses", "units")     # whose rows an investigation has

_READING = OFFLINE | {"memory_limit": MEMORY, "enable_external_access": "false", "temp_directory": ""}

T = TypeVar("T")
Rows = list[dict[str, Any]]


class Copy:
    """One snapshot, open."""

    def __init__(self, snapshot: Snapshot, con: Connection) -> None:
        self.snapshot, self.con = snapshot, con
        self._kept: dict[object, Any] = {}
        self._turn = threading.Lock()

    @property
    def as_of(self) -> str:
        """When the findings that it holds were written (UTC)."""
        return self.snapshot.as_of

    def ask(self, sql: str, given: Sequence[Any] | Mapping[str, Any] = (), unpack: bool = False) -> Rows:
        """The rows of a SELECT of ours, as `Findings.sql` gives them."""
        with self.con.cursor() as cursor:
            return fetched(cursor, sql, given, unpack)

    def behind(self, table: str, investigation: Mapping[str, Any] | None, order: str = "created_at, id") -> Rows:
        """The rows of an investigation (a row of pages.investigations) in one of BEHIND, read from where they lie."""
        if investigation is None or investigation[f"{table}_first"] is None:
            return []
        sql = f"SELECT * FROM {table} WHERE rowid BETWEEN ? AND ? AND investigation = ? ORDER BY {order}"
        lie = [investigation[f"{table}_first"], investigation[f"{table}_last"], investigation["investigation"]]
        return self.ask(sql, lie, unpack=True)

    def once(self, name: object, make: Callable[["Copy"], T]) -> T:
        """What `make` gives for this copy, computed by the first who asks."""
        if name not in self._kept:
            with self._turn:
                if name not in self._kept:
                    self._kept[name] = make(self)
        made: T = self._kept[name]
        return made


class Mirror:
    """Keeps a copy fresh. ready: what is computed of each before anybody sees it."""

    def __init__(self, snapshots: Snapshots, ready: Callable[[Copy], object] = lambda copy: None) -> None:
        self.snapshots, self.ready = snapshots, ready
        self._copy: Copy | None = None
        self._seconds = 0.0                    # that the last refresh took
        self._told = False
        self._turn = threading.Lock()

    @property
    def copy(self) -> Copy:
        """The newest copy. The first is made now; raises Refused where that cannot be."""
        if self._copy is None:
            self.refresh()
        assert self._copy is not None
        return self._copy

    def refresh(self, now: bool = False) -> bool:
        """Opens the newest snapshot, which is made if need be (see `Snapshots.current`); whether there was another.

        False also where another thread does that just now. Raises Refused where there is none and none can be made.
        """
        if not self._turn.acquire(blocking=self._copy is None):
            return False
        try:
            began = time.monotonic()
            found = self.snapshots.reading(self._opened, lambda: self.snapshots.current(now))
            changed, self._copy = found is not self._copy, found
            self._seconds = time.monotonic() - began
            return changed
        finally:
            self._turn.release()

    def retry(self) -> bool:
        """Refreshes for somebody who waits, if that is quick; whether there was another copy."""
        return self._seconds < QUICK_SECONDS and self.refresh(now=True)

    def sql(self, query: str, limits: Limits | None = None) -> Told:
        """Somebody's SELECT, on the newest snapshot; see `Snapshots.sql`."""
        return self.snapshots.sql(query, limits, old=True)

    def kept_fresh(self) -> AbstractContextManager[None]:
        """Refreshes in a thread while a block lasts; see `background.repeated`."""
        return repeated(self._try, POLL_SECONDS, "mirror")

    def _try(self) -> None:
        try:
            self.refresh()
            trouble = None if self._copy is None else self._copy.snapshot.why
        except Busy:                           # somebody writes; the next look comes soon
            return
        except Refused as refused:
            trouble = str(refused)
        if trouble is not None and not self._told:       # once, until it is over
            logging.getLogger("lamplighter").warning("%s", trouble)
        self._told = trouble is not None

    def _opened(self, snapshot: Snapshot) -> Copy:
        """The copy that is open where it is of this snapshot, else a new one."""
        if self._copy is not None and self._copy.snapshot.path == snapshot.path:
            self._copy.snapshot = snapshot
            return self._copy
        try:
            con = duckdb.connect(str(snapshot.path), read_only=True, config=dict(_READING))
        except duckdb.IOException as error:
            if not snapshot.path.exists():
                raise FileNotFoundError(snapshot.path) from error
            raise
        con.execute("SET TimeZone = 'UTC'")
        copy = Copy(snapshot, con)
        self.ready(copy)
        return copy


__all__ = ["BEHIND", "Copy", "Mirror"]
