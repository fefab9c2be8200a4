"""Induced rules and the published loop's graph on text that neither has seen: whose F1 is higher?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..agent.config import MASKED_LM
from ..agent.state import Submit
from ..tools import stats
from ..tools.floors import references
from ..tools.labels import Judged, ScoreSide, Truth, kept_exemplars
from ..tools.masked import MaskedLM
from ..tools.stats import Floats
from ..tools.subject import Subject
from ..tools.sweep import Sweep
from ..tools.units import UnitId
from .by_planner import playbook_end
from .by_unit import by_unit
from .input_real import MODEL, real_units
from .published import graph_fires, published_loop
from .report import Part, Progress, paired

FIRING = ("top", "high", "mid")     # bands of exemplars that the inducer learns firing from, and so the graph too


@dataclass(frozen=True)
class Scored:
    """F1 of one unit on the score side: of the playbook's rule, of the graph, of a look-up of tokens.

    best: the best rule that was found, 0 where there was none; made: whether it was put forward and not held back as
    too weak.
    """

    unit: UnitId
    best: float
    made: bool
    loop: float
    lookup: float | None


def rules(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """The units of the part `real`; those that fire too seldom on the score side to be scored are left out of both.

    The graph is made of every firing exemplar of the explain side that the inducer learns from. The rule has more to
    go by: places that do not fire, and, where it is put forward, one revision by its misses on tune.
    """
    subject, masked = Subject.load(MODEL), MaskedLM.load(MASKED_LM)
    sweep, units = real_units(subject, folder, seed, size, progress)
    side = ScoreSide.of(subject, sweep, [])
    score = partial(_score, subject, masked, sweep, side)
    found = by_unit(score, Scored | None, sweep, units, folder / "units" / "rules", progress)
    return _tables([scored for scored in found if scored is not None], len(units), seed)


def _score(subject: Subject, masked: MaskedLM, sweep: Sweep, side: ScoreSide, unit: UnitId) -> Scored | None:
    truth = Truth.of(subject, sweep, unit, side)
    if truth.shortage is not None:
        return None
    end = playbook_end(subject, sweep, masked, unit)
    made = isinstance(end, Submit)
    rule = end.rule if isinstance(end, Submit) else end.weak
    places = dict.fromkeys(e.place for band in FIRING for e in sweep.exemplars(unit, "explain", band))
    loops = [published_loop(subject, masked, unit, *sweep.window(place)) for place in places]
    text = side.text.text
    graph = graph_fires(loops, text, subject.piece).astype(np.float64)
    explain, tune = (kept_exemplars(subject, sweep, unit, name) for name in ("explain", "tune"))
    known = references(explain, tune, side, truth, sweep.statistics(unit).firings["tune"])
    ours = np.zeros(len(text.ids)) if rule is None else rule.predict_flat(text)
    best, beside = (f1_of(subject, sweep, unit, side, truth, said) for said in (ours, graph))
    return Scored(unit, best, made, beside, known["token_lookup"])


def f1_of(
    subject: Subject, sweep: Sweep, unit: UnitId, side: ScoreSide, truth: Truth, prediction: Floats
) -> float:
    """F1 of a prediction at every token of the score side, as in `score_input`; 0 where it predicts nothing."""
    judged = Judged.of(subject, sweep, unit, side, truth, prediction)
    precision = judged.fires.mean() if len(judged.rows) else 0.0
    return float(stats.f1(precision, judged.predicted[truth.rows].mean()))


def _tables(scored: Sequence[Scored], drawn: int, seed: int) -> Part:
    rows: list[dict[str, Any]] = []
    for layer in sorted({s.unit.layer for s in scored}):
        some = [s for s in scored if s.unit.layer == layer]
        looked = [s.lookup for s in some if s.lookup is not None]
        rows.append({
            "layer": layer, "units": len(some), "put forward": sum(s.made for s in some),
            "F1, best rule": float(np.mean([s.best for s in some])),
            "F1, put forward": float(np.mean([s.best * s.made for s in some])),
            "F1, graph": float(np.mean([s.loop for s in some])),
            "F1, token look-up": float(np.mean(looked)) if looked else None,
        })  # fmt: skip
    claims = [
        paired(f"held-out F1, best rule less graph, of {drawn} units drawn", [s.best - s.loop for s in scored], seed),
        paired("the same, rules held back as too weak counting 0", [s.best * s.made - s.loop for s in scored], seed),
    ]
    return {"held-out F1": rows}, claims


__all__ = ["Scored", "f1_of", "rules"]
