"""A process that writes results to a home as a run does, so many a second: `python -m … HOME FIRST SEED RATE`.

A result is a record: those of new whole units, one after another. They go into the outbox ten times a second and on
into the findings once a second. Each second it says on a line of JSON what it has posted and moved.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..agent.config import Home
from ..store.findings import drain
from ..store.records import Busy, Record
from .store_made import WHOLE, Maker

RATE = 50                # results a second
TICKS = 10               # posts a second


def write(home: Home, first: int, seed: int, rate: int) -> None:
    """Writes until it is told to stop."""
    ended = False

    def stop(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, stop)
    coming = _records(Maker(seed, WHOLE), first)
    posted = moved = busy = 0
    began = time.monotonic()
    while not ended:
        due = int((time.monotonic() - began) * TICKS) + 1
        wanted = due * rate // TICKS
        if wanted > posted:
            home.work.post([next(coming) for _ in range(wanted - posted)])
            posted = wanted
        if due % TICKS == 0:
            try:
                moved += drain(home.work, home.findings)
            except Busy:
                busy += 1
            seconds = round(time.monotonic() - began, 2)
            print(json.dumps({"posted": posted, "moved": moved, "busy": busy, "seconds": seconds}), flush=True)
        time.sleep(max(0.0, began + due / TICKS - time.monotonic()))


def _records(maker: Maker, first: int) -> Iterator[Record]:
    while True:
        yield from maker.records(first)
        first += 1


@contextmanager
def writing(home: Home, first: int, seed: int, rate: int = RATE) -> Iterator[dict[str, Any]]:
    """A writer at work while the block lasts; afterwards the dictionary has what it said last, and `a second`."""
    command = [sys.executable, "-P", "-m", __name__, str(home.path), str(first), str(seed), str(rate)]
    said: dict[str, Any] = {"posted": 0, "moved": 0, "busy": 0, "seconds": 0.0, "results a second": 0.0}
    log = home.path / "writer.jsonl"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out)
        deadline = time.monotonic() + 60
        while not log.stat().st_size and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            yield said
        finally:
            process.terminate()
            process.wait(30)
            lines = log.read_text().splitlines()
            said |= json.loads(lines[-1]) if lines else {}
            said["results a second"] = said["moved"] / said["seconds"] if said["seconds"] else 0.0


if __name__ == "__main__":
    write(Home(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
