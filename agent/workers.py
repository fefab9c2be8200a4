"""Several workers of one run, each a thread of this process with units of its own."""

import threading
from collections.abc import Callable

BEAT = 30.0            # seconds between signs of life for the units in hand
POLL = 0.2             # seconds after which a signal is looked for


class Workers:
    """Runs `work` in so many threads. `halted`: one of them ended with an error, and the others are to stop."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.halted = False
        self._errors: list[BaseException] = []

    def run(self, work: Callable[[], None], beat: Callable[[], None]) -> None:
        """Returns once every thread has; `beat` is called in this thread every BEAT seconds meanwhile.

        Raises the first error, after the last thread ended. What this thread is interrupted by is raised at once: the
        threads are daemons, and end with the process.
        """
        threads = [
            threading.Thread(target=self._one, args=(work,), name=f"worker {n}", daemon=True) for n in range(self.count)
        ]
        for thread in threads:
            thread.start()
        waited = 0.0
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(POLL / len(threads))
            waited += POLL
            if waited >= BEAT:
                beat()
                waited = 0.0
        if self._errors:
            raise self._errors[0]

    def _one(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 — raised in the thread that waits
            self._errors.append(error)
            self.halted = True
