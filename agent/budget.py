"""Limits of a run and of a unit: asked before a step is taken, so that reaching one ends a unit with what it has."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..store.work import Spent

STEPS = 24       # tool calls a unit
REVISIONS = 1    # rounds of revision a unit


@dataclass
class Budget:
    """What one run may spend; None means no limit. The clock can be replaced in tests.

    `spent_on_llm` reads the run's ledger, so that what a killed process spent counts as well.
    """

    minutes: float | None = None
    llm_tokens: int | None = None
    usd: float | None = None
    unit_llm_tokens: int | None = None
    unit_usd: float | None = None
    steps: int = STEPS
    revisions: int = REVISIONS
    clock: Callable[[], float] = time.monotonic
    spent_on_llm: Callable[[], Spent] = lambda: Spent(0, 0, 0.0, 0, 0, 0.0)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Of the minutes; None without a limit."""
        return None if self.minutes is None else max(0.0, 60 * self.minutes - self.elapsed)

    @property
    def asked_enough(self) -> str | None:
        """Which limit on the language model is reached, or None. A lost reply counts as the most it can have cost."""
        return _over("run", self.llm_tokens, self.usd, self.spent_on_llm)

    def unit_asked_enough(self, spent: Callable[[], Spent]) -> str | None:
        """The same of one unit's own limits; `spent` reads what it has cost in all attempts of the run."""
        return _over("unit", self.unit_llm_tokens, self.unit_usd, spent)

    @property
    def reached(self) -> str | None:
        """Which limit of the run is reached, or None."""
        if self.seconds_left == 0:
            return f"the run's {self.minutes:g} minutes are spent"
        return self.asked_enough

    def spent(self, steps: int) -> str | None:
        """Why a unit that has taken `steps` tool calls must wrap up now, or None."""
        return self.reached or (f"{steps} steps are spent" if steps >= self.steps else None)


def _over(whose: str, tokens: int | None, usd: float | None, spent: Callable[[], Spent]) -> str | None:
    if tokens is None and usd is None:
        return None
    known = spent()
    if tokens is not None and known.tokens_most >= tokens:
        return f"the {whose}'s {tokens:,} tokens of language model are spent"
    if usd is not None and known.usd_most >= usd:
        return f"the {whose}'s {usd:g} dollars are spent"
    return None
