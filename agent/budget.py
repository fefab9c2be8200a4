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
    steps: int = STEPS
    revisions: int = REVISIONS
    clock: Callable[[], float] = time.monotonic
    spent_on_llm: Callable[[], Spent] = lambda: Spent(0, 0, 0.0, 0)
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
        """Which limit on the language model is reached, or None. A call whose cost is unknown counts as no money."""
        if self.llm_tokens is None and self.usd is None:
            return None
        spent = self.spent_on_llm()
        if self.llm_tokens is not None and spent.tokens >= self.llm_tokens:
            return f"the run's {self.llm_tokens:,} tokens of language model are spent"
        if self.usd is not None and spent.usd >= self.usd:
            return f"the run's {self.usd:g} dollars are spent"
        return None

    @property
    def reached(self) -> str | None:
        """Which limit of the run is reached, or None."""
        if self.seconds_left == 0:
            return f"the run's {self.minutes:g} minutes are spent"
        return self.asked_enough

    def spent(self, steps: int) -> str | None:
        """Why a unit that has taken `steps` tool calls must wrap up now, or None."""
        return self.reached or (f"{steps} steps are spent" if steps >= self.steps else None)
