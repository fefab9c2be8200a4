"""What a run waits for: said once, for as long as it takes, and left where the run is asked to stop."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..store.records import Busy
from ..store.work import Work, worker_id
from . import log
from .nodes import Drained
from .request import Progress

WAIT = 0.5             # seconds between looks at what is waited for
SAID_AGAIN = 60.0      # seconds after which it is said again that work.sqlite cannot be used


class Waits:
    """The waiting of one run's workers. `beat` is called meanwhile, so that what they hold stays theirs.

    `until` and `alone` raise Drained where `asked_to_stop` is true meanwhile.
    """

    def __init__(
        self, work: Work, progress: Progress, asked_to_stop: Callable[[], bool], beat: Callable[[], None]
    ) -> None:
        self._work, self._progress, self._asked_to_stop, self._beat = work, progress, asked_to_stop, beat
        self._now: list[str] = []           # what workers wait for just now

    def until(self, keeps: Callable[[], str | None], what: str) -> None:
        """Waits as long as `keeps` names something that keeps the run from going on, and says so once."""
        said = None
        try:
            while (why := keeps()) is not None:
                if said is None:
                    said = why
                    self._say(what, why)
                if self._asked_to_stop():
                    raise Drained
                time.sleep(WAIT)
                self._beat()
        finally:
            if said is not None:
                self._now.remove(said)

    def _say(self, what: str, why: str) -> None:
        """Says why work stands still; not again for each worker that waits for the same."""
        if why not in self._now:
            log.event("waits", level=logging.WARNING, why=why)
            self._progress.step(what, why)
        self._now.append(why)

    @contextmanager
    def alone(self, name: str, what: str) -> Iterator[str]:
        """What no two processes do at a time. Gives the holder, who keeps the lock where it takes long."""
        me, another = worker_id(), "another process does this just now; waiting for it"
        self.until(lambda: None if self._work.lock(name, me) else another, what)
        try:
            yield me
        finally:
            self._work.unlock(name, me)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Where work.sqlite cannot be used for a while, work stands still and says so now and then."""
        said = -math.inf

        def patience(busy: Busy) -> bool:
            nonlocal said
            if time.monotonic() - said > SAID_AGAIN:
                said = time.monotonic()
                log.event("waits", level=logging.WARNING, why=str(busy))
                self._progress.step("waiting", str(busy))
            time.sleep(WAIT)
            return not self._asked_to_stop()

        before, self._work.patience = self._work.patience, patience
        try:
            yield
        finally:
            self._work.patience = before


__all__ = ["WAIT", "Waits"]
