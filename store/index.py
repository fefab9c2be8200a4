"""The index of a home: what stands for each unit, ready to be searched, and kept up with what the findings gain."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import duckdb

from .background import repeated
from .cards import State, empty, gain
from .findings import Findings
from .kept import keep, kept
from .one_select import Connection
from .records import Refused, utc_now

KEPT_FROM = 5_000        # changed cards that make it worth keeping the index on disk
KEPT_SHARE = 5           # … or a fifth of all, where that is more


class Index:
    """The cards of the findings. Any number of threads may read it while one refreshes it.

    `embedder` names the model whose vectors are read. `folder`: where a large index is kept between processes. Methods
    raise Refused as `Findings` does.
    """

    def __init__(self, findings: Findings, embedder: str, folder: Path | None = None) -> None:
        self.findings, self.embedder = findings, embedder
        self.folder = None if folder is None else Path(folder).absolute()
        self.as_of: str | None = None          # when it was last seen to hold all that the findings do (UTC)
        self.trouble: str | None = None        # why it could not be kept fresh, if so
        self._state: State | None = None
        self._seen: tuple[int, int] | None = None
        self._turn = threading.Lock()

    def refresh(self) -> int:
        """Reads what the findings have gained; returns how many cards are new or changed."""
        with self._turn:
            began, seen = utc_now(), self.findings.state()
            changed = 0 if self._state is not None and seen == self._seen else self._read()
            self._seen, self.as_of = seen, began
            return changed

    @contextmanager
    def reading(self) -> Iterator[tuple[Connection, State]]:
        """The index as of one moment, whoever refreshes it meanwhile; the first use reads it."""
        if self._state is None:
            self.refresh()
        state = self._state
        assert state is not None
        with state.con.cursor() as con:
            con.execute("BEGIN")
            yield con, state
            con.execute("ROLLBACK")

    def kept_fresh(self, every: float = 2.0) -> AbstractContextManager[None]:
        """Refreshes in a thread while a block lasts; see `background.repeated`.

        What cannot be refreshed just now stays as it is; `as_of` and `trouble` tell.
        """
        return repeated(self._try, every, "index")

    def _try(self) -> None:
        try:
            self.refresh()
            self.trouble = None
        except Refused as refused:
            self.trouble = str(refused)

    def _read(self) -> int:
        """Brings the index up to date: from nothing where it is of other findings, or most of its vectors are stale."""
        state = self._state
        if state is None and self.folder is not None:
            state = kept(self.embedder, self.folder)
        made = None
        if state is not None and state.vectors <= 2 * state.cards + KEPT_FROM:
            made = gain(state, self.findings, self.embedder)
        if state is None or made is None:
            state = empty()
            made = gain(state, self.findings, self.embedder)
            assert made is not None
        self._state = state
        if self.folder is not None and state.gained >= max(KEPT_FROM, state.cards // KEPT_SHARE):
            state.gained = 0
            with suppress(OSError, duckdb.Error):      # nothing but time is lost where it cannot be kept
                keep(state, self.embedder, self.folder)
        return made
