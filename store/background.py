"""Something done again and again beside all else."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IDLE = 9                 # the thread rests so many times as long as it worked
END_SECONDS = 5.0        # at its end it is waited for so long


@contextmanager
def repeated(act: Callable[[], object], every: float, name: str) -> Iterator[None]:
    """Does `act` in a thread while the block lasts: at once, then after `every` seconds each time or, where it takes
    long, so that it rests most of the time. What goes wrong `act` tells itself."""
    over = threading.Event()

    def work() -> None:
        pause = 0.0
        while not over.wait(pause):
            began = time.monotonic()
            act()
            pause = max(every, IDLE * (time.monotonic() - began))

    thread = threading.Thread(target=work, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(END_SECONDS)
