"""Limits on steps and minutes: asked before a step is taken, so that reaching one ends a unit with what it has."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

STEPS = 24       # tool calls a unit
REVISIONS = 1    # rounds of revision a unit


@dataclass
class Budget:
    """What one run may spend. `minutes` None means no limit on time; the clock can be replaced in tests."""

    minutes: float | None = None
    steps: int = STEPS
    revisions: int = REVISIONS
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.started

    @property
    def out_of_time(self) -> bool:
        return self.minutes is not None and self.elapsed >= 60 * self.minutes

    def spent(self, steps: int) -> str | None:
        """Why a unit that has taken `steps` tool calls must wrap up now, or None."""
        if self.out_of_time:
            return f"the run's {self.minutes:g} minutes are spent"
        return f"{steps} steps are spent" if steps >= self.steps else None
