"""Units an hour one by one, by one worker and by six; what shared passes gain; whether memory stays flat.

60 units of `smollm2-135m`, drawn as in `bench_input --only real`, by the playbook, from one sweep that is there before.
Every home is new, but for the sweep and the masked LM's mode, so that nothing is recalled and units alone count. Torch
has as many threads as it takes by itself.

Units an hour: units / seconds of all processes, from their start to their end. `apart`: each unit in a process of its
own, one after the other; `one worker` and `six workers`: all of them in one process.

Forward tokens a second of pruning and substitution, the claim: the playbook's `top_examples`, `minimal_example` and
`substitute` of the units and nothing else, on one loaded subject with nothing recalled; tokens that the two latter had
passed for them / seconds from the first call to the end of the last. One worker and six take turns on the same units;
the ratio of each two turns side by side, its interval over turns. Beside it the same of the whole runs: tokens / the
seconds in which at least one such call was under way, whatever else was done in them.

Memory: resident bytes of the process with six workers after each unit that ends. Flat: from the line through all points
from the tenth unit on, the upper end of the 95 % interval of its slope, over so many units as there are points, is at
most 5 % of the line's height at the tenth.

What is measured is kept in `throughput/` of the experiments folder, by units and code, way by way: a bench that was
stopped goes on with the way (for `apart`, the unit; for turns, the turn) that it was at, from its beginning.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter
from scipy.stats import linregress
from scipy.stats import t as student

from ..agent.config import Home
from ..agent.playbook import experiments, undone
from ..agent.workers import Workers
from ..store.records import Evidence, Refused
from ..tools.masked import MaskedLM
from ..tools.measures import CONFIDENCE
from ..tools.subject import Subject
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox, code_digest
from ..tools.units import UnitId
from .input_real import MODEL, TOKENS, real_units
from .night_process import Process, the_run
from .night_same import Night
from .report import Claim, Part, Progress, at_least, at_most

SIX = 6
TURNS, TURN_UNITS = 6, 12      # pairs of turns, and units of a turn
FIRST = 10                     # unit from which memory is to be flat
FLAT, GAIN = 0.05, 1.5
SMALL = ("minimal_example", "substitute")
RESAMPLED = 2000

T = TypeVar("T")


@dataclass(frozen=True)
class Ran:
    """One process, or several in a row: seconds, exit codes that were not 0, and after each unit resident bytes (None
    where they cannot be read) and forward tokens and seconds of SMALL calls in it."""

    units: int
    seconds: float
    failed: int
    memory: list[int | None]
    tokens: float
    under_way: float


@dataclass(frozen=True)
class Turn:
    """SMALL calls of some units by so many workers."""

    workers: int
    tokens: float
    seconds: float


def throughput(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """The drawn units by every way; takes hours, and may be stopped and begun again."""
    subject = Subject.load(MODEL)
    sweep, units = real_units(subject, folder, seed, size, progress)
    asked = Night(MODEL, "builtin", [str(unit) for unit in units], TOKENS, folder / "sweeps")
    return measured(asked, subject, sweep, units, folder / "throughput", max(2, round(size * TURNS)), seed, progress)


def measured(
    asked: Night, subject: Subject, sweep: Sweep, units: Sequence[UnitId], folder: Path, turns: int, seed: int,
    progress: Progress,
) -> Part:  # fmt: skip
    """Every way of the units in turn, or what is kept of it."""
    named = sha256(json.dumps([asked.units, seed]).encode()).hexdigest()[:12]
    place = folder / f"{named}-{code_digest('agent', 'store', 'tools')}"
    place.mkdir(parents=True, exist_ok=True)
    fresh = Home(place / "fresh")
    _prepare(fresh, subject.name)
    played = _turns(subject, sweep, fresh, _few(units, TURN_UNITS), turns, place, progress)
    apart = [
        _kept(place / f"apart-{n}.json", Ran, partial(_ran, asked, fresh, [unit], 1, place, progress))
        for n, unit in enumerate(asked.units)
    ]
    alone, six = (
        _kept(place / f"workers-{n}.json", Ran, partial(_ran, asked, fresh, asked.units, n, place, progress))
        for n in (1, SIX)
    )
    ways = {"apart": _joined(apart), "one worker": alone, "six workers": six}
    return _tables(ways, played, seed)


def _kept(file: Path, kind: type[T], measure: Callable[[], T]) -> T:
    """What the file holds, or what is measured now and kept there."""
    form = TypeAdapter[T](kind)
    if not file.exists():
        draft = file.with_suffix(".new")
        draft.write_bytes(form.dump_json(measure()))
        os.replace(draft, file)
    return form.validate_json(file.read_bytes())


def _prepare(fresh: Home, model: str) -> None:
    """Has the masked LM's mode chosen and noted in the home that every other is a copy of."""
    with suppress(Refused):          # without a masked LM, `substitute` is refused in every way alike
        fresh.toolbox(model).masked()
    fresh.work.close()


def _few(units: Sequence[UnitId], count: int) -> list[UnitId]:
    """So many units, evenly spread over the list, which goes by layers."""
    places = np.linspace(0, len(units) - 1, min(count, len(units))).round().astype(int)
    return [units[place] for place in places]


def _in_turn(pairs: int) -> Iterator[int]:
    """One and six in turn; who begins changes, so that what drifts is shared."""
    for number in range(pairs):
        yield from (1, SIX) if number % 2 == 0 else (SIX, 1)


# Pruning and substitution alone


def _turns(
    subject: Subject, sweep: Sweep, fresh: Home, units: Sequence[UnitId], pairs: int, place: Path, progress: Progress
) -> list[Turn]:
    """Every turn, or what is kept of it."""
    toolbox, played, warm = Toolbox(subject, lambda _: sweep, _lender(fresh, subject)), [], False
    for number, workers in enumerate(_in_turn(pairs)):
        progress("turns", number, 2 * pairs)
        file = place / f"turn-{number}.json"
        if not file.exists() and not warm:       # what is read or made once is no part of any turn
            _turn(toolbox, units[:1], 1)
            warm = True
        played.append(_kept(file, Turn, partial(_turn, toolbox, units, workers)))
    return played


def _lender(fresh: Home, subject: Subject) -> Callable[[], MaskedLM]:
    """Gives the masked LM, in the mode that was chosen; refuses where there is none."""
    try:
        masked = fresh.masked(subject.digest)
    except Refused:
        return lambda: fresh.masked(subject.digest)
    fresh.work.close()
    return lambda: masked


def _turn(toolbox: Toolbox, units: Sequence[UnitId], workers: int) -> Turn:
    """The units by so many workers, who take them in order."""
    left, guard, spent = list(units), threading.Lock(), [0.0]

    def work() -> None:
        while True:
            with guard:
                if not left:
                    return
                unit = left.pop(0)
            tokens = _tokens(_small(toolbox, unit))
            with guard:
                spent[0] += tokens

    began = time.monotonic()
    Workers(workers).run(work, lambda: None)
    return Turn(workers, spent[0], time.monotonic() - began)


def _small(toolbox: Toolbox, unit: UnitId) -> list[Evidence]:
    """The playbook's first experiments in its order, without all others."""
    evidence: list[Evidence] = []
    while (call := next(undone(experiments(evidence), evidence, ("top_examples", *SMALL)), None)) is not None:
        evidence.append(toolbox.call(call.tool, unit, call.arguments))
    return evidence


def _tokens(evidence: Sequence[Evidence]) -> float:
    return float(sum(e.cost.get("forward_tokens", 0) for e in evidence if e.tool in SMALL))


# Whole runs


def _ran(
    asked: Night, fresh: Home, units: Sequence[str], workers: int, place: Path, progress: Progress
) -> Ran:
    """A new home and a process over these units."""
    home = Home(place / "home")
    shutil.rmtree(home.path, ignore_errors=True)
    home.path.mkdir()
    fresh.work.close()               # what was written is in the one file then
    shutil.copy(fresh.work.path, home.path)
    if asked.sweeps is not None:
        (home.path / "sweeps").symlink_to(asked.sweeps.absolute(), target_is_directory=True)
    some = Night(asked.model, asked.corpus, list(units), asked.tokens, asked.sweeps)
    memory: list[int | None] = []
    began = time.monotonic()
    with Process(some.arguments(home.path, workers), place / "err") as run:

        def over() -> bool:
            while len(memory) < run.done:
                memory.append(_resident(run.process.pid))
            progress("units", run.done, len(units))
            return False

        run.until(over)
        code = run.end()
    seconds = time.monotonic() - began
    evidence = home.findings.read(Evidence, run=the_run(home, run.last))
    return Ran(len(units), seconds, int(code != 0), memory, _tokens(evidence), _under_way(evidence))


def _resident(pid: int) -> int | None:
    """Bytes of a process in memory; None where the system does not tell, or it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") or None


def _under_way(evidence: Sequence[Evidence]) -> float:
    """Seconds in which at least one SMALL call was under way: each ends when its record is made."""
    spans = []
    for e in evidence:
        if e.tool in SMALL and e.ok:
            end = datetime.fromisoformat(e.created_at).timestamp()
            spans.append((end - e.cost.get("seconds", 0.0), end))
    total, until = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return float(total)


def _joined(several: Sequence[Ran]) -> Ran:
    """Processes in a row as one; memory is of none of them."""
    def total(name: str) -> Any:
        return sum(getattr(one, name) for one in several)

    return Ran(total("units"), total("seconds"), total("failed"), [], total("tokens"), total("under_way"))


# Tables


def _tables(ways: dict[str, Ran], turns: Sequence[Turn], seed: int) -> Part:
    rows = [
        {"way": name, "units": ran.units, "hours": round(ran.seconds / 3600, 3),
         "units an hour": 3600 * ran.units / ran.seconds, "processes that failed": ran.failed,
         "tokens a second of pruning and substitution": ran.tokens / ran.under_way if ran.under_way else None,
         "megabytes at unit 10": _height(ran.memory), "growth to the end": _growth(ran.memory)[0]}
        for name, ran in ways.items()
    ]  # fmt: skip
    played = [
        {"turn": n, "workers": turn.workers, "tokens": turn.tokens, "seconds": round(turn.seconds, 2),
         "tokens a second": turn.tokens / turn.seconds}
        for n, turn in enumerate(turns)
    ]  # fmt: skip
    growth, high = _growth(ways["six workers"].memory)
    points = len(_points(ways["six workers"].memory)[0])
    claims = [
        _gain(turns, seed),
        at_most("memory of six workers from unit 10 on, growth", growth, FLAT, points, None, high, by="high"),
        at_most("processes that failed", float(sum(ran.failed for ran in ways.values())), 0, len(ways)),
    ]
    return {"runs": rows, "pruning and substitution alone": played}, claims


def _gain(turns: Sequence[Turn], seed: int) -> Claim:
    """Tokens a second of six workers over one worker's, of turns side by side: the mean of logs, as a ratio."""
    pairs = [sorted(pair, key=lambda turn: turn.workers) for pair in zip(turns[::2], turns[1::2], strict=True)]
    logs = np.array([np.log((b.tokens / b.seconds) / (a.tokens / a.seconds)) for a, b in pairs])
    draws = np.random.default_rng(seed).choice(logs, size=(RESAMPLED, len(logs))).mean(axis=1)
    low, high = np.exp(np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])).tolist()
    name = "tokens a second of pruning and substitution, six workers / one"
    return at_least(name, float(np.exp(logs.mean())), GAIN, len(pairs), low, high)


def _points(memory: Sequence[int | None]) -> tuple[list[int], list[int]]:
    """Units ended, and resident bytes, from the FIRST unit on."""
    known = [(n, size) for n, size in enumerate(memory, start=1) if n >= FIRST and size is not None]
    return [n for n, _ in known], [size for _, size in known]


def _height(memory: Sequence[int | None]) -> float | None:
    return next((round(size / 1e6, 1) for size in _points(memory)[1]), None)


def _growth(memory: Sequence[int | None]) -> tuple[float | None, float | None]:
    """By how much memory grows from the FIRST unit to the last, as a share of what it is at the FIRST, and the upper
    end of that; None with fewer than three points."""
    units, sizes = _points(memory)
    if len(units) < 3:
        return None, None
    line = linregress(units, sizes)
    start, span = line.intercept + line.slope * units[0], units[-1] - units[0]
    steepest = line.slope + student.ppf((1 + CONFIDENCE) / 2, len(units) - 2) * line.stderr
    return float(line.slope * span / start), float(steepest * span / start)


__all__ = ["measured", "throughput"]
