"""What people see while something long runs: live bars on a terminal, plain lines elsewhere. All on stderr."""

import sys
import time
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

PLANNING = "planning"  # the step that chooses the next experiment
LINE_EVERY = 10.0      # seconds between plain lines of the sweep
PACE_EVERY = 60.0      # … of a run's pace
ATLAS = "atlas"        # the part of a sweep that reads the vocabulary, after the text


class Live(AbstractContextManager["Live"]):
    """Bars for the sweep (tokens a second) and the units (what the current one is doing), and a line for the pace."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console)
        self._pace = Text()
        self._live = Screen(Group(self._bars, self._pace), console=console)
        self._tasks: dict[str, TaskID] = {}
        self._began = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def pulling(self, name: str, done: int, total: int, what: str) -> None:
        note = f"{what} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        self._show(name, name, done, total, note)

    def sweeping(self, what: str, done: int, total: int) -> None:
        if what == "tokenise":
            self._show(what, "reading the corpus", done, total, f"{done} of {total} documents")
            self._began = time.monotonic()
            return
        if what == ATLAS and not done:
            self._began = time.monotonic()
        rate = done / max(time.monotonic() - self._began, 1e-9)
        key = ATLAS if what == ATLAS else "sweep"
        self._show(key, key, done, total, f"{what}: {done:,} of {total:,} tokens, {rate:,.0f} a second")

    def counting(self, what: str, done: int, total: int) -> None:
        self._show(what, what, done, total, f"{done} of {total}")

    def picked(self, unit: str, why: str) -> None:
        self._bars.console.print(Text(f"{unit}: {why}"))

    def begins(self, done: int, total: int) -> None:
        self._show("units", "units", done, total, f"{done} of {total} done")

    def step(self, unit: str, what: str) -> None:
        if "units" not in self._tasks:      # something is waited for before the first unit
            self._bars.console.print(Text(f"{unit}: {what}"))
            return
        self._bars.update(self._tasks["units"], note=_plain(f"{unit}  {what}"))

    def pace(self, line: str) -> None:
        self._pace.plain = line

    def ended(self, unit: str, how: str, done: int, total: int) -> None:
        self._bars.console.print(Text(f"{unit}: {how} ({done} of {total})"))
        self._show("units", "units", done, total, f"{done} of {total} done")

    def _show(self, key: str, title: str, done: int, total: int, note: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(title, note="")
        self._bars.update(self._tasks[key], completed=done, total=total, note=_plain(note))


class Lines(AbstractContextManager["Lines"]):
    """One line for each thing that ends, and the sweep's pace every ten seconds."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._began = 0.0

    def __exit__(self, *_: object) -> None:
        return None

    def pulling(self, name: str, done: int, total: int, what: str) -> None:
        self._now_and_then(f"{name} {what}", f"{name}: {what} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

    def sweeping(self, what: str, done: int, total: int) -> None:
        if what == "tokenise" or (what == ATLAS and not done):
            self._began = time.monotonic()
            return
        rate = done / max(time.monotonic() - self._began, 1e-9)
        self._now_and_then("sweep", f"sweep, {what}: {done:,} of {total:,} tokens, {rate:,.0f} a second", done == total)

    def counting(self, what: str, done: int, total: int) -> None:
        self._now_and_then(what, f"{what}: {done} of {total}")

    def picked(self, unit: str, why: str) -> None:
        self._say(f"{unit}: {why}")

    def begins(self, done: int, total: int) -> None:
        self._say(f"{total} units, {done} done before")

    def step(self, unit: str, what: str) -> None:
        if what != PLANNING:      # the experiment that follows it says more
            self._say(f"{unit}: {what}")

    def pace(self, line: str) -> None:
        self._now_and_then("pace", line, every=PACE_EVERY)

    def ended(self, unit: str, how: str, done: int, total: int) -> None:
        self._say(f"{unit}: {how} ({done} of {total})")

    def _now_and_then(self, key: str, line: str, now: bool = False, every: float = LINE_EVERY) -> None:
        if now or time.monotonic() - self._told.get(key, -every) >= every:
            self._told[key] = time.monotonic()
            self._say(line)

    def _say(self, line: str) -> None:
        sys.stderr.write(_plain(line) + "\n")
        sys.stderr.flush()


def _plain(text: str) -> str:
    """Corpus text on one line, with control characters shown and markup switched off."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown.replace("[", "\\[") if sys.stderr.isatty() else shown


def progress() -> Live | Lines:
    """Bars where stderr is a terminal, else lines."""
    return Live() if sys.stderr.isatty() else Lines()
