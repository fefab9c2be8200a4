"""Times of many small uses: their middle and their 95th percentile, with an interval, beside the bar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, TypeVar

import numpy as np

from .report import Claim, at_most

DRAWS = 2000

T = TypeVar("T")


@dataclass
class Times:
    """Seconds that uses of one kind took; worked: seconds of this process's CPUs meanwhile, all threads together."""

    name: str
    seconds: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)

    def of(self, use: Callable[[], T]) -> T:
        """Does it and notes what it took."""
        began, worked = perf_counter(), process_time()
        made = use()
        self.seconds.append(perf_counter() - began)
        self.worked.append(process_time() - worked)
        return made

    def row(self, seed: int, bar: float | None = None, **more: Any) -> dict[str, Any]:
        """Milliseconds; bar: what the 95th percentile must not reach above.

        The CPU's time tells what a use takes where nothing else is at work; where this process did the work.
        """
        p95, low, high = percentile(self.seconds, seed)
        middle = 1000 * float(np.median(self.seconds)) if self.seconds else None
        longest = 1000 * max(self.seconds) if self.seconds else None
        worked = [1000 * float(value) for value in np.quantile(self.worked, [0.5, 0.95])] if self.worked else None
        return {
            "what": self.name, "n": len(self.seconds), "p50 ms": middle, "p95 ms": p95, "low": low, "high": high,
            "longest ms": longest, "bar ms": "none" if bar is None else bar,
            **({} if worked is None else {"p50 CPU ms": worked[0], "p95 CPU ms": worked[1]}), **more,
        }  # fmt: skip

    def claim(self, seed: int, bar: float) -> Claim:
        """That the 95th percentile is at most `bar` milliseconds."""
        p95, low, high = percentile(self.seconds, seed)
        return at_most(f"{self.name}: p95 ms", p95, bar, len(self.seconds), low, high)


def percentile(
    seconds: Sequence[float], seed: int, of: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """The 95th percentile in milliseconds with its 95 % interval by bootstrap; three times None of nothing."""
    if not seconds:
        return None, None, None
    values = 1000 * np.asarray(seconds)
    draws = np.random.default_rng(seed).choice(values, size=(DRAWS, len(values)))
    low, high = np.quantile(np.quantile(draws, of, axis=1), [0.025, 0.975])
    return float(np.quantile(values, of)), float(low), float(high)


__all__ = ["Times", "percentile"]
