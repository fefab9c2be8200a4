"""Is the headline a score that a wrong explanation cannot have? True rules beside the same ones spoilt on purpose.

The test of Oikarinen et al. (2025, arXiv:2506.05774): of the places where a true explanation says "fires", a share is
dropped, or as many places are added at random. A metric that does not fall is no metric.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..tools import stats
from ..tools.collect import position_key
from ..tools.labels import Flags, Judged, ScoreSide, Truth
from ..tools.score_input import match_scores, match_totals
from ..tools.sweep import Sweep
from .input_planted import planted_models
from .plant import PlantedUnit
from .planted import AnswerKey
from .report import Part, Progress, at_least

SHARE = 0.25
HEADLINES = ("f1", "f1_at_prevalence")
KINDS = ("dropped", "added")


@dataclass(frozen=True)
class _Unit:
    """One unit: for each metric and kind the lower bound of score(true) − score(corrupted); None where undefined."""

    family: str
    low: dict[tuple[str, str], float | None]


def corrupted(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Every planted unit that can be scored, with its true rule."""
    found: list[_Unit] = []
    for key, sweep in planted_models(folder, seed, size):
        side = ScoreSide.of(key.subject, sweep, [])
        for done, unit in enumerate(key.units):
            progress(f"{key.shape} {key.seed}", done, len(key.units))
            truth = Truth.of(key.subject, sweep, unit.id, side)
            if unit.rule is not None and truth.shortage is None:
                found.append(_spoilt(key, sweep, side, truth, unit, seed))
    rows, claims = [], []
    for metric in HEADLINES:
        for kind in KINDS:
            lows = [low for u in found if (low := u.low[metric, kind]) is not None]
            falls = sum(low > 0 for low in lows)
            share = falls / len(found) if found else None      # an undefined difference is none that falls
            rows.append({
                "metric": metric, "places": f"25 % {kind}", "units": len(found), "falls": falls,
                "undefined": len(found) - len(lows), "median lower bound": float(np.median(lows)) if lows else None,
            })  # fmt: skip
            claims.append(at_least(f"units whose {metric} falls, 25 % {kind}", share, 0.9, len(found)))
    return {"corrupted": rows}, claims


def _spoilt(
    key: AnswerKey, sweep: Sweep, side: ScoreSide, truth: Truth, unit: PlantedUnit, seed: int
) -> _Unit:
    assert unit.rule is not None
    prediction = unit.rule.predict_flat(side.text.text)
    said = (prediction > 0) & side.keep
    totals = []
    for flags in (said, *spoil(said, side.keep, seed)):
        judged = Judged.of(key.subject, sweep, unit.id, side, truth, flags.astype(np.float64))
        totals.append(match_totals(side, truth, judged))
    # One call for all three, so that the same clusters are drawn for each.
    draws = stats.resampled(np.stack([column for columns in totals for column in columns.values()], axis=1), seed)
    parts = np.split(draws, len(totals), axis=1)
    scores = [match_scores(dict(zip(totals[0], part.T, strict=True)), truth.scale) for part in parts]
    low = {}
    for metric in HEADLINES:
        for k, kind in enumerate(KINDS, start=1):
            span = stats.interval(scores[0][metric] - scores[k][metric], truth.positive_clusters)
            low[metric, kind] = span[0]
    return _Unit(unit.family, low)


def spoil(said: Flags, keep: Flags, seed: int) -> tuple[Flags, Flags]:
    """The predictions without a quarter of them, and with a quarter as many more places, each drawn by hash."""
    places = np.flatnonzero(said)
    count = round(SHARE * len(places))
    dropped, added = said.copy(), said.copy()
    dropped[_drawn(places, count, seed)] = False
    added[_drawn(np.flatnonzero(keep & ~said), count, seed)] = True
    return dropped, added


def _drawn(places: stats.Ints, count: int, seed: int) -> stats.Ints:
    return places[np.argsort(position_key(places + seed), kind="stable")[:count]]


__all__ = ["corrupted", "spoil"]
