"""Real units: the investigator beside the one-shot label of the same language model, scored by the same rules.

60 units of `smollm2-135m`, drawn as in `bench_input --only real`. Both sides give a sentence and a rule. Scored on the
score side: F1 of the rule, and HM of coverage and boundary rejection (measures 5). Failures, abstentions and rules that
predict nothing count 0. The curve: the F1 on the score side of the rule that would have been handed in after so many
tokens of language model a unit, everything that was asked included; the first point is the inducer's rule alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..agent.config import MASKED_LM
from ..agent.planners import ByLLM
from ..tools.floors import NO_FLOORS
from ..tools.labels import ScoreSide, Truth
from ..tools.masked import MaskedLM
from ..tools.near_misses import near_misses
from ..tools.rules import Rule
from ..tools.score_input import score_input
from ..tools.subject import Subject
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from ..tools.units import UnitId
from .agent_asked import Asked, ask_about, planners
from .agent_label import Label, one_shot
from .by_planner import inducer
from .by_unit import by_unit
from .input_real import MODEL, real_units
from .input_rules import f1_of
from .report import Part, Progress, paired

CAPS = (0, 500, 2_000, 10_000, 40_000)     # tokens of language model a unit


@dataclass(frozen=True)
class Compared:
    """One unit: what both made of it, their F1 and HM on the score side, and the F1 at each of CAPS."""

    unit: UnitId
    planner: Asked
    label: Label
    f1: dict[str, float]
    hm: dict[str, float]
    curve: list[float]


def real(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Every unit that can be scored, by both; units that fire too seldom on the score side are left out of both."""
    subject, masked = Subject.load(MODEL), MaskedLM.load(MASKED_LM)
    sweep, units = real_units(subject, folder, seed, size, progress)
    side = ScoreSide.of(subject, sweep, [])
    with planners(folder) as by:
        compare = partial(_compare, by, subject, masked, sweep, side)
        found = by_unit(compare, Compared | None, sweep, units, folder / "units" / "agent-real", progress)
    return _tables([one for one in found if one is not None], len(units), seed)


def _compare(
    by: ByLLM, subject: Subject, masked: MaskedLM, sweep: Sweep, side: ScoreSide, unit: UnitId
) -> Compared | None:
    truth = Truth.of(subject, sweep, unit, side)
    if truth.shortage is not None:
        return None
    known: dict[str, str] = {}
    toolbox = Toolbox(subject, lambda _: sweep, lambda: masked, known.get, known.__setitem__)
    planner = ask_about(by, "planner", toolbox, sweep, inducer(subject, sweep), unit)
    label = one_shot(by.client, by.can, subject, sweep, unit)
    scored = {
        name: _scored(subject, sweep, masked, unit, rule)
        for name, rule in (("planner", planner.rule), ("label", label.rule))
    }

    def f1(rule: dict[str, Any] | None) -> float:
        if rule is None:
            return 0.0
        return f1_of(subject, sweep, unit, side, truth, Rule.from_json(rule).predict_flat(side.text.text))

    return Compared(
        unit, planner, label, {name: s[0] for name, s in scored.items()}, {name: s[1] for name, s in scored.items()},
        [f1(rule) for rule in _at_caps(planner)],
    )  # fmt: skip


def _scored(
    subject: Subject, sweep: Sweep, masked: MaskedLM, unit: UnitId, rule: dict[str, Any] | None
) -> tuple[float, float]:
    """(F1, HM) on the score side; 0 without a rule."""
    if rule is None:
        return 0.0, 0.0
    scores = score_input(
        subject, sweep, unit, Rule.from_json(rule), hypothesis="bench", claim=lambda _: True, floor_rules=NO_FLOORS,
        near_misses=lambda: near_misses(subject, sweep, masked, unit),
    )  # fmt: skip
    found = {score.metric: score.value or 0.0 for score in scores}
    return found["f1"], found["hm"]


def _at_caps(planner: Asked) -> list[dict[str, Any] | None]:
    """The rule at each of CAPS: the last at hand before the tokens exceeded it, at the end the one submitted."""
    points = [*planner.curve, (planner.tokens, planner.rule)]
    inside = [[rule for tokens, rule in points if tokens <= cap] for cap in CAPS]
    return [rules[-1] if rules else None for rules in inside]


def _tables(found: Sequence[Compared], drawn: int, seed: int) -> Part:
    rows = []
    for layer in sorted({one.unit.layer for one in found}):
        some = [one for one in found if one.unit.layer == layer]
        rows.append({"layer": layer, "units": len(some)} | {
            f"{metric}, {name}": float(np.mean([getattr(one, metric)[name] for one in some]))
            for metric in ("f1", "hm") for name in ("planner", "label")
        })  # fmt: skip
    curve = [
        {"tokens a unit": cap, "F1": float(np.mean([one.curve[k] for one in found])),
         "units that had asked": sum(any(0 < t <= cap for t, _ in one.planner.curve) for one in found)}
        for k, cap in enumerate(CAPS)
    ] if found else []  # fmt: skip
    rungs = [_rung(found, rung) for rung in ("induced", "label", "loop")]
    claims = [
        paired(f"{name} on the score side, planner less one-shot label, of {drawn} units drawn",
               [getattr(one, name)["planner"] - getattr(one, name)["label"] for one in found], seed)
        for name in ("f1", "hm")
    ]  # fmt: skip
    return {"by layer": rows, "F1 by tokens of language model": curve, "ladder": rungs}, claims


def _rung(found: Sequence[Compared], rung: str) -> dict[str, Any]:
    """Units whose explanation came on this rung: tokens, and what it gained over the inducer's rule."""
    some = [one for one in found if one.planner.rung == rung]
    tokens = sum(one.planner.tokens for one in some)
    gained = sum(one.f1["planner"] - one.curve[0] for one in some)
    mean = {name: float(value / len(some)) if some else None for name, value in (("t", tokens), ("g", gained))}
    return {
        "rung": rung, "units": len(some), "tokens": mean["t"], "F1 over the inducer's": mean["g"],
        "F1 a thousand tokens": 1000 * gained / tokens if tokens else None,
    }  # fmt: skip


__all__ = ["real"]
