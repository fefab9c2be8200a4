"""What a caller from outside may have investigated: one unit at a time, under what is left of one budget."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..store.records import Refused
from ..tools.units import UnitId
from .config import Home
from .nodes import Drained
from .request import Outcome, Request

Tell = Callable[[str], None]


@dataclass
class Allowance:
    """The limits over all units together, None where there is none, and how a run is asked for.

    What an unfinished run of the same unit spent before counts towards `llm_tokens` and `usd`.
    """

    minutes: float | None = None
    llm_tokens: int | None = None
    usd: float | None = None
    planner: str = "auto"
    endpoint: str | None = None
    corpus: str = "builtin"
    device: str | None = None
    _one: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.minutes is None and self.llm_tokens is None and self.usd is None:
            raise Refused("whoever may run experiments needs a budget; give --minutes, --llm-tokens or --usd.")

    @property
    def left(self) -> dict[str, Any]:
        """What is left: minutes, llm_tokens, usd; None for what has no limit."""
        return {"minutes": self.minutes, "llm_tokens": self.llm_tokens, "usd": self.usd}

    def investigate(self, home: Home, unit: str, stopped: Callable[[], bool], tell: Tell) -> Outcome:
        """Runs one unit to its end, or until `stopped()`, and takes what that cost off the budget.

        Raises Refused for what is no unit, where nothing is left, while another unit is in hand, and as `run_night`.
        """
        named = UnitId.parse(unit)
        for what, rest in self.left.items():
            if rest is not None and rest <= 0:
                raise Refused(f"the budget is spent ({what} {rest:g}); begin a server with another one.")
        if not self._one.acquire(blocking=False):
            raise Refused("another unit is being investigated; ask again when it is done.")
        began, before = time.monotonic(), _spent(home, unit)
        try:
            from .night import run_night

            return run_night(home, self._request(named), _Told(stopped, tell))
        except Drained:
            raise Refused(f"{unit} was stopped on the way; ask again to go on.") from None
        finally:
            tokens, usd = (after - then for after, then in zip(_spent(home, unit), before, strict=True))
            self.minutes = _less(self.minutes, (time.monotonic() - began) / 60)
            self.llm_tokens = None if self.llm_tokens is None else max(0, self.llm_tokens - round(tokens))
            self.usd = _less(self.usd, usd)
            self._one.release()

    def _request(self, unit: UnitId) -> Request:
        return Request(
            model=unit.model, corpus=self.corpus, sites=(), units=str(unit), planner=self.planner,
            endpoint=self.endpoint, device=self.device, minutes=self.minutes, llm_tokens=self.llm_tokens, usd=self.usd,
        )  # fmt: skip


@dataclass(frozen=True)
class _Told:
    """A Progress that stops the run at the next step once it is asked to."""

    stopped: Callable[[], bool]
    tell: Tell

    def _say(self, line: str) -> None:
        if self.stopped():
            raise Drained
        self.tell(line)

    def sweeping(self, what: str, done: int, total: int) -> None:
        self._say(f"{what}: {done} of {total}")

    def picked(self, unit: str, why: str) -> None:
        self._say(f"{unit}: {why}")

    def begins(self, done: int, total: int) -> None:
        self._say(f"{done} of {total} done")

    def step(self, unit: str, what: str) -> None:
        self._say(f"{unit}: {what}")

    def pace(self, line: str) -> None:
        self._say(line)

    def ended(self, unit: str, how: str, done: int, total: int) -> None:
        if not self.stopped():       # what is at its end is not stopped any more
            self.tell(f"{unit}: {how}")


def _spent(home: Home, unit: str) -> tuple[float, float]:
    """Tokens and dollars that runs of this unit alone can have cost at most, so far."""
    runs = [home.work.spent(run.id) for run in home.work.runs() if run.units == [unit]]
    return sum(run.tokens_most for run in runs), sum(run.usd_most for run in runs)


def _less(limit: float | None, used: float) -> float | None:
    return None if limit is None else max(0.0, limit - used)
