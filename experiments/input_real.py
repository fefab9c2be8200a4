"""Minimal examples and substitutes on real units, beside the published loop.

Same exemplars, threshold, proposer and number of proposals. Cost: padded tokens × layers run.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..agent.config import MASKED_LM
from ..tools import stats
from ..tools.corpus import load_corpus
from ..tools.frames import filler_pool, make_frame
from ..tools.masked import MaskedLM
from ..tools.measures import BOOTSTRAP, KEEP
from ..tools.spelled import Spelled
from ..tools.subject import Subject
from ..tools.substitute import substitute, swap_word
from ..tools.sweep import Sweep, make_sweep
from ..tools.units import UnitId
from .published import PROPOSALS, Loop, published_loop
from .report import Part, Progress, at_least, at_most

MODEL, LAYERS, EXEMPLARS, UNITS = "smollm2-135m", (1, 4, 8, 12, 17, 23), 5, 60
TOKENS = 240_000
COUNTED = ("ours", "loop", "loop, rejected too")
CONFIRMED = 2          # other exemplars in which a substitute must do the same


@dataclass(frozen=True)
class _Label:
    """Whether a substitute of the pivot's word keeps the unit firing, by the exemplar of that number."""

    keeps: bool
    exemplar: int


@dataclass
class _Tried:
    """One unit: for each method the kept tokens of each exemplar, its labelled substitutes, and its cost."""

    unit: UnitId
    certified: list[bool] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=lambda: {"ours": [], "loop": []})
    cost: dict[str, float] = field(default_factory=lambda: {"ours": 0.0, "loop": 0.0})
    labels: dict[str, dict[str, "_Label"]] = field(default_factory=lambda: {name: {} for name in COUNTED})
    confirmed: dict[str, int] = field(default_factory=dict)
    failed: int = 0


def real(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Ours and the loop on the same exemplars, threshold, proposer and number of proposals."""
    subject, masked = Subject.load(MODEL), MaskedLM.load(MASKED_LM)
    sweep, units = real_units(subject, folder, seed, size, progress)
    tried = []
    for number, unit in enumerate(units):
        progress("units", number, len(units))
        tried.append(_try(subject, masked, sweep, unit))
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
    exemplars = []
    for number, e in enumerate(sweep.exemplars(unit, "explain", "top")[:EXEMPLARS]):
        ids, position = sweep.window(e.place)
        exemplars.append((ids, position))
        ours = substitute(
            subject, masked, unit, ids=ids[: position + 1], n=PROPOSALS, proposers=["masked"], kept=None
        )
        tried.cost["ours"] += layers * ours.cost["forward_tokens"]
        tried.kept["ours"].append(len(ours.checks["kept"]))
        tried.certified.append(_certified(subject, unit, ids[: position + 1], ours.checks["kept"]))
        pivot_word = _word_at(Spelled(subject, ids), position)
        for row in ours.rows:
            if row["original"] == pivot_word:
                tried.labels["ours"].setdefault(row["substitute"], _Label(row["ratio"] >= KEEP, number))
        loop = published_loop(subject, masked, unit, ids, position)
        tried.cost["loop"] += layers * loop.cost
        tried.kept["loop"].append(loop.tokens)
        tried.failed += not loop.passed
        _loop_labels(tried, loop, pivot_word, number)
    tried.confirmed = {name: _confirmed(subject, unit, exemplars, labels) for name, labels in tried.labels.items()}
    return tried


def _loop_labels(tried: _Tried, loop: Loop, pivot_word: str, number: int) -> None:
    """What the loop reports is what it accepts; what it tried and threw away is counted apart."""
    if not loop.passed:
        return
    for name, pairs, keeps in (
        ("loop", loop.accepted, True), ("loop, rejected too", loop.accepted, True),
        ("loop, rejected too", loop.rejected, False),
    ):  # fmt: skip
        for original, other in pairs:
            if original == pivot_word:
                tried.labels[name].setdefault(other, _Label(keeps, number))


def _certified(subject: Subject, unit: UnitId, ids: Sequence[int], kept: Sequence[int]) -> bool:
    """Every single further removal read once more, row by row, with nothing shared."""
    frame = make_frame(ids, "resample", filler_pool(subject), 0)
    whole = float(subject.readings([ids], unit)[0])
    sets = [frozenset(kept), *(frozenset(kept) - {i} for i in kept[:-1])]
    values = [float(subject.readings(frame.rows(s), unit).mean()) for s in sets]
    return values[0] >= KEEP * whole and all(v < KEEP * whole for v in values[1:])


def _word_at(spelled: Spelled, position: int) -> str:
    return next((w.text for w in spelled.words() if w.first <= position < w.end), "")


def _confirmed(
    subject: Subject, unit: UnitId, exemplars: Sequence[tuple[list[int], int]], labels: dict[str, _Label]
) -> int:
    """Substitutes that do the same to the pivot's word in at least two exemplars other than their own."""
    agreed = dict.fromkeys(labels, 0)
    for number, (ids, position) in enumerate(exemplars):
        spelled = Spelled(subject, ids[: position + 1])
        word = next((w for w in spelled.words() if w.first <= position < w.end), None)
        if word is None:
            continue
        swaps = {other: swap_word(spelled, word, other, "", position + 1) for other in labels}
        rows = {other: swap.put_in(ids[: position + 1]) for other, swap in swaps.items() if swap.new}
        values = subject.readings([ids[: position + 1], *rows.values()], unit).tolist()
        for other, y in zip(rows, values[1:], strict=True):
            label = labels[other]
            agreed[other] += number != label.exemplar and (y >= KEEP * values[0]) == label.keeps
    return sum(n >= CONFIRMED for n in agreed.values())


def _real_tables(tried: Sequence[_Tried], seed: int) -> Part:
    rows = []
    for layer in sorted({t.unit.layer for t in tried}):
        some = [t for t in tried if t.unit.layer == layer]
        rows.append({
            "layer": layer, "units": len(some),
            **{f"kept, {name}": _mean([k for t in some for k in t.kept[name]]) for name in ("ours", "loop")},
            **{f"confirmed, {name}": sum(t.confirmed[name] for t in some) for name in some[0].confirmed},
            **{f"cost, {name}": sum(t.cost[name] for t in some) for name in ("ours", "loop")},
            "loop's failures": sum(t.failed for t in some),
        })  # fmt: skip
    columns = np.array([
        [np.sum(t.kept["ours"]), np.sum(t.kept["loop"]), t.cost["ours"], t.cost["loop"], *t.confirmed.values()]
        for t in tried
    ], dtype=np.float64)  # fmt: skip
    certified = [ok for t in tried for ok in t.certified]
    claims = [at_least("minimal examples certified anew", _mean(certified), 1.0, len(certified))]
    ways = _ratios(columns, seed)
    for name, key, bar in (("kept tokens", "kept", 0.5), ("cost of a confirmed substitute", "cost", 0.2)):
        for way, ratios in ways.items():
            value, low, high = ratios[key]
            claims.append(at_most(f"{name}, ours / loop's, {way}", value, bar, len(tried), low, high, by="high"))
    what = "cost of a confirmed label, the loop's rejected words counted as labels too"
    strict = [
        {what: way, **dict(zip(("ours / loop's", "low", "high"), ratios["rejected too"], strict=True))}
        for way, ratios in ways.items()
    ]
    return {"real units": rows, "beside": strict}, claims


def _ratios(columns: stats.Floats, seed: int) -> dict[str, dict[str, tuple[float | None, float | None, float | None]]]:
    """Ours / loop's of units' sums [U, 7], with intervals over units: of all units' sums, and of the median unit.

    Of one unit the ratio of costs is 0 where the loop confirms nothing, and ∞ where we do not.
    """
    def ratios(t: stats.Floats) -> dict[str, stats.Floats]:
        costs = {"cost": t[..., 5], "rejected too": t[..., 6]}
        found = {"kept": stats.ratio(t[..., 0], t[..., 1])}
        return found | {name: stats.ratio(t[..., 2] * loop, t[..., 3] * t[..., 4]) for name, loop in costs.items()}

    each = {name: np.where(np.isnan(values), np.inf, values) for name, values in ratios(columns).items()}
    picks = np.random.default_rng(seed).integers(len(columns), size=(BOOTSTRAP, len(columns)))
    ways = {
        "all units": (ratios(columns.sum(axis=0)), ratios(stats.resampled(columns, seed))),
        "median unit": tuple({k: np.median(v[at], axis=-1) for k, v in each.items()} for at in (slice(None), picks)),
    }
    return {
        way: {name: (stats.number(point[name]), *stats.interval(draws[name], len(columns))) for name in point}
        for way, (point, draws) in ways.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


__all__ = ["MODEL", "draw_units", "real", "real_units"]
