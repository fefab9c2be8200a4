"""Minimal examples and substitutes on real units, beside the published loop.

Same exemplars, threshold, proposer and number of proposals. Cost: padded tokens × layers run; ours share prefixes, the
loop's rows are run whole, as published. Kept tokens are those of `minimal_example`, whose own cost, with its random
orders and other modes, stands beside; the cost of substitutes is that of `substitute`, its one search included.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..agent.config import MASKED_LM
from ..tools import stats
from ..tools.corpus import load_corpus
from ..tools.frames import filler_pool, make_frame
from ..tools.masked import MaskedLM
from ..tools.measures import BOOTSTRAP, KEEP, WINDOW
from ..tools.prune import minimal_example
from ..tools.spelled import Spelled, Word
from ..tools.subject import Subject
from ..tools.substitute import substitute, swap_word
from ..tools.sweep import Sweep, make_sweep
from ..tools.units import UnitId
from .by_unit import by_unit
from .published import PROPOSALS, published_loop
from .report import Part, Progress, at_least, at_most

MODEL, LAYERS, EXEMPLARS, UNITS = "smollm2-135m", (1, 4, 8, 12, 17, 23), 5, 60
TOKENS = 240_000
CONFIRMED = 2          # other exemplars in which a substitute must do the same


@dataclass(frozen=True)
class _Label:
    """Whether a substitute of the pivot's word keeps the unit firing, by the exemplar of that number."""

    keeps: bool
    exemplar: int


@dataclass
class _Method:
    """What one method gave for one unit.

    kept: tokens kept of each exemplar; cost: padded tokens × layers; labels: of substitutes of the pivot's word, by
    word; confirmed: the words that do the same in other exemplars.
    """

    kept: list[int] = field(default_factory=list)
    cost: float = 0.0
    labels: dict[str, _Label] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)


@dataclass
class _Tried:
    """One unit. passed: of each exemplar, whether the loop's text fires at all; pruning: cost of `minimal_example`.

    The loop reports the substitutes that it accepts; those that it tried and threw away are among its labels too.
    """

    unit: UnitId
    certified: list[bool] = field(default_factory=list)
    passed: list[bool] = field(default_factory=list)
    pruning: float = 0.0
    ours: _Method = field(default_factory=_Method)
    loop: _Method = field(default_factory=_Method)

    @property
    def reported(self) -> int:
        return sum(self.loop.labels[word].keeps for word in self.loop.confirmed)


def real(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Ours and the loop on the same exemplars, threshold, proposer and number of proposals."""
    subject, masked = Subject.load(MODEL), MaskedLM.load(MASKED_LM)
    sweep, units = real_units(subject, folder, seed, size, progress)
    file = folder / "units" / "real"
    tried = by_unit(partial(_try, subject, masked, sweep), _Tried, sweep, units, file, progress)
    return _real_tables(tried, seed)


def real_units(
    subject: Subject, folder: Path, seed: int, size: float, progress: Progress
) -> tuple[Sweep, list[UnitId]]:
    """The sweep that this and other parts draw their units from, and the units."""
    sites = [f"{layer}-mlp" for layer in LAYERS]
    sweep = make_sweep(subject, load_corpus("builtin"), sites, folder, TOKENS, progress)
    return sweep, draw_units(sweep, max(2, round(size * UNITS)), seed)


def draw_units(sweep: Sweep, count: int, seed: int) -> list[UnitId]:
    """Sides drawn evenly over the sites, among those with five exemplars of five documents and a positive peak."""
    draw, found = random.Random(seed), []
    for number, site in enumerate(sweep.sites):
        width = len(sweep.mean(site))
        order = [UnitId(sweep.model, site, i, sign) for i in range(width) for sign in (1, -1)]
        draw.shuffle(order)
        wanted = (count + number) // len(sweep.sites)
        known = (u for u in order if len(sweep.exemplars(u, "explain", "top")) >= EXEMPLARS)
        found += [u for _, u in zip(range(wanted), known, strict=False)]
    return found


def _try(subject: Subject, masked: MaskedLM, sweep: Sweep, unit: UnitId) -> _Tried:
    tried, layers = _Tried(unit), unit.layer + 1
    exemplars = [sweep.window(e.place) for e in sweep.exemplars(unit, "explain", "top")[:EXEMPLARS]]
    for number, (ids, position) in enumerate(exemplars):
        pivot = _word_at(Spelled(subject, ids), position)
        minimal = minimal_example(subject, unit, ids=ids, most=WINDOW)
        tried.pruning += layers * minimal.cost["forward_tokens"]
        tried.ours.kept.append(len(minimal.rows[0]["kept"]))
        tried.certified.append(_certified(subject, unit, ids[: position + 1], minimal.rows[0]["kept"]))
        ours = substitute(subject, masked, unit, ids=ids, n=PROPOSALS, proposers=["masked"])
        tried.ours.cost += layers * ours.cost["forward_tokens"]
        loop = published_loop(subject, masked, unit, ids, position)
        tried.loop.cost += layers * loop.cost
        tried.loop.kept.append(loop.tokens)
        tried.passed.append(loop.passed)
        if pivot is None:
            continue
        cut = pivot.first - (position - loop.pivot)      # where the pivot's word begins in the loop's text
        for row in ours.rows:
            if row["places"] == 1 and row["position"] >= pivot.first:
                tried.ours.labels.setdefault(row["substitute"], _Label(row["ratio"] >= KEEP, number))
        for pairs, keeps in ((loop.accepted, True), (loop.rejected, False)) if loop.passed else ():
            for first, other in pairs:
                if first == cut:
                    tried.loop.labels.setdefault(other, _Label(keeps, number))
    for method in (tried.ours, tried.loop):
        method.confirmed = _confirmed(subject, unit, exemplars, method.labels)
    return tried


def _certified(subject: Subject, unit: UnitId, ids: Sequence[int], kept: Sequence[int]) -> bool:
    """Every single further removal read once more, in whole rows, with no prefix shared."""
    frame = make_frame(ids, "resample", filler_pool(subject), 0)
    whole = float(subject.readings([ids], unit)[0])
    sets = [frozenset(kept), *(frozenset(kept) - {i} for i in kept[:-1])]
    values = [float(subject.readings(frame.rows(s), unit).mean()) for s in sets]
    return values[0] >= KEEP * whole and all(v < KEEP * whole for v in values[1:])


def _word_at(spelled: Spelled, position: int) -> Word | None:
    return next((w for w in spelled.words() if w.first <= position < w.end), None)


def _confirmed(
    subject: Subject, unit: UnitId, exemplars: Sequence[tuple[list[int], int]], labels: dict[str, _Label]
) -> list[str]:
    """Substitutes that do the same to the pivot's word in at least two exemplars other than their own."""
    agreed = dict.fromkeys(labels, 0)
    for number, (ids, position) in enumerate(exemplars):
        spelled = Spelled(subject, ids)
        word = _word_at(spelled, position)
        if word is None:
            continue
        swaps = {other: swap_word(spelled, word, other, "", position + 1) for other in labels}
        rows = {other: swap.put_in(ids[: position + 1]) for other, swap in swaps.items() if swap.new}
        values = subject.readings([ids[: position + 1], *rows.values()], unit).tolist()
        for other, y in zip(rows, values[1:], strict=True):
            label = labels[other]
            agreed[other] += number != label.exemplar and (y >= KEEP * values[0]) == label.keeps
    return [other for other, n in agreed.items() if n >= CONFIRMED]


def _real_tables(tried: Sequence[_Tried], seed: int) -> Part:
    rows = []
    for layer in sorted({t.unit.layer for t in tried}):
        some = [t for t in tried if t.unit.layer == layer]
        ours, loop, n = np.sum([_kept(t) for t in some], axis=0)
        rows.append({
            "layer": layer, "units": len(some), "loop passes": int(n),
            "kept, ours": stats.number(stats.ratio(ours, n)), "kept, loop": stats.number(stats.ratio(loop, n)),
            "confirmed, ours": sum(len(t.ours.confirmed) for t in some),
            "confirmed, loop": sum(t.reported for t in some),
            "… with its rejected": sum(len(t.loop.confirmed) for t in some),
            "cost, ours": sum(t.ours.cost for t in some), "cost, loop": sum(t.loop.cost for t in some),
            "cost, minimal_example": sum(t.pruning for t in some),
        })  # fmt: skip
    certified = [ok for t in tried for ok in t.certified]
    claims = [at_least("minimal examples certified anew", float(np.mean(certified)), 1.0, len(certified))]
    kept = [(ours, n, loop, n) for ours, loop, n in map(_kept, tried)]
    costs = [(t.ours.cost, len(t.ours.confirmed), t.loop.cost, t.reported) for t in tried]
    every = [(t.ours.cost, len(t.ours.confirmed), t.loop.cost, len(t.loop.confirmed)) for t in tried]
    for name, bar, parts in (("kept tokens", 0.5, kept), ("cost of a confirmed substitute", 0.2, costs)):
        for way, (value, low, high) in _ratios(parts, seed).items():
            claims.append(at_most(f"{name}, ours / loop's, {way}", value, bar, len(tried), low, high, by="high"))
    name = "cost of a confirmed substitute, ours / loop's with its rejected"
    beside = [{name: way, "ratio": v, "low": low, "high": high} for way, (v, low, high) in _ratios(every, seed).items()]
    return {"real units": rows, "beside": beside}, claims


def _kept(t: _Tried) -> tuple[int, int, int]:
    """Tokens kept, ours and the loop's, of the exemplars on which the loop's text fires, and how many these are."""
    ours, loop, passed = (np.array(values) for values in (t.ours.kept, t.loop.kept, t.passed))
    return int(ours[passed].sum()), int(loop[passed].sum()), int(passed.sum())


def _ratios(
    parts: Sequence[Sequence[float]], seed: int
) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Ours / loop's, with its interval over units, of all units' sums and of the median unit.

    parts [U, 4]: what is spent and what for, ours and the loop's. A unit for which we get nothing has the ratio ∞, one
    for which only the loop gets nothing 0. An infinite end of an interval is None.
    """
    values = np.array(parts, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP, len(values)))

    def ratio(t: stats.Floats) -> stats.Floats:
        return np.nan_to_num(stats.ratio(t[..., 0] * t[..., 3], t[..., 2] * t[..., 1]), nan=np.inf)

    ways = {
        "all units": (ratio(values.sum(axis=0)), ratio(values[picks].sum(axis=1))),
        "median unit": (np.median(ratio(values)), np.median(ratio(values)[picks], axis=1)),
    }
    found = {}
    for way, (value, draws) in ways.items():
        low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
        found[way] = stats.number(value), stats.number(low), stats.number(high)
    return found


__all__ = ["MODEL", "draw_units", "real", "real_units"]
