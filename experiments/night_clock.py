"""`python -m lamplighter.experiments.night_clock SECONDS run …`: a command whose clock is stepped while it works.

After SECONDS the clock is an hour back, after as many again right, then an hour ahead, then right, and so on. Ids, the
times of records and of the log go by it; leases, and what is waited for, go by clocks that nobody can step.
"""

import datetime
import runpy
import sys
import time
from collections.abc import Callable

HOUR = 3600.0
STEPS = (0.0, -HOUR, 0.0, HOUR)


def stepped(every: float, since: float, real: Callable[[], float], monotonic: Callable[[], float]) -> float:
    """The time that a clock shows which is stepped every so many seconds since `since`, by the monotonic clock."""
    return real() + STEPS[int((monotonic() - since) / every) % len(STEPS)]


def step_clock(every: float) -> None:
    """Puts the stepped clock in place of this process's, before anything has taken hold of the right one."""
    real, since = time.time, time.monotonic()
    time.time = lambda: stepped(every, since, real, time.monotonic)
    time.time_ns = lambda: int(time.time() * 1e9)
    right = datetime.datetime

    class Stepped(right):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return right.fromtimestamp(time.time(), tz)

    from ..store import records

    vars(records)["datetime"] = Stepped


def main() -> None:
    """Steps the clock, then does what `lamplighter` does with the other arguments."""
    every = float(sys.argv.pop(1))
    step_clock(every)
    runpy.run_module(str(__package__).partition(".")[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
