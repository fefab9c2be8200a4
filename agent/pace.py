"""How a run goes, in one line: units an hour, tokens a second, what was recalled, spend and time left."""

from collections.abc import Callable

from ..store.work import Work
from .budget import Budget


class Pace:
    """Counts from where it is made. `passed` gives the subject's tokens so far, `done` the units ended before.

    Units that other processes of the same run end meanwhile count as well; tokens are those of this process.
    """

    def __init__(self, budget: Budget, work: Work, run: str, passed: Callable[[], int], done: int) -> None:
        self._budget, self._work, self._run, self._passed, self._done = budget, work, run, passed, done
        self._began, self._before = budget.elapsed, passed()

    def line(self, done: int, total: int) -> str:
        """The line for `done` of `total` units."""
        hours = max(self._budget.elapsed - self._began, 1e-9) / 3600
        speed, ended = (self._passed() - self._before) / hours / 3600, done - self._done
        recalled, asked = self._work.recalls
        parts = [
            f"{ended / hours:,.1f} units an hour" if ended else "no unit ended yet", f"{speed:,.0f} tokens a second",
            f"{recalled / asked:.0%} recalled" if asked else "nothing recalled", self._spend(),
        ]  # fmt: skip
        if ended and total > done:
            parts.append(f"about {_span((total - done) * hours / ended)} left")
        return ", ".join(parts)

    def _spend(self) -> str:
        spent = self._work.spent(self._run)
        if not spent.calls:
            return "no language model asked"
        dollars = f"${spent.usd:,.2f}" + (f" and {spent.unpriced} calls without a price" if spent.unpriced else "")
        return f"{spent.tokens:,} tokens of language model, {dollars}"


def _span(hours: float) -> str:
    minutes = round(60 * hours)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"


__all__ = ["Pace"]
