"""A rule tried on explain or tune text: how often it is right there, and where it is wrong.

This is how a planner learns what its guess got wrong, before anything is submitted. The score side is never touched.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import WithJsonSchema

from ..store.records import Evidence, Refused
from . import measures, stats
from .labels import hash_sample, kept_exemplars, place_row, read_places
from .rules import RULE_SCHEMA, Rule
from .separate import f1_differences
from .subject import Subject
from .sweep import Sweep
from .units import UnitId

MISSES = 5     # of each kind, shown
LEAST = 0.01   # a clause's value where its places read at or below 0: it still predicts, and never 0


def try_rule(
    subject: Subject, sweep: Sweep, unit: UnitId, *, rule: Annotated[dict[str, Any], WithJsonSchema(RULE_SCHEMA)],
    sentence: str = "", side: str = "explain", reads: int = 60,
    against: Annotated[list[dict[str, Any]], WithJsonSchema({"type": "array", "items": RULE_SCHEMA})] = [],  # noqa: B006
) -> Evidence:  # fmt: skip
    """Runs a rule on known text and shows what it gets wrong: tokens it should not predict, and firings it misses.

    Rows: `{kind, document, offset, text, token, ids, activation, ratio}`, kind false positive (weakest first) or false
    negative (strongest first), ratio = activation / P (it fires from 0.5), `text` and `ids` up to the token. checks:
    `f1, precision, recall, firings, firings_sampled, predicted, predicted_sampled` (see `trial`) and `rule`: the same
    rule, each clause's value now its mean y/P over the places read. `against`: for each rule that it is held against
    {difference = F1 of this rule − F1 of that, low, high}, paired (see `separate`). Raises Refused for a malformed
    rule, for reads < 1, and for the score side.

    Args:
        rule: the rule; patterns are RE2 and match a whole word.
        sentence: what the rule says, in words.
        side: explain or tune; the score side is never shown.
        reads: predicted places that are read at most.
        against: other rules of this unit, to say by how much this one is better or worse.
    """
    if side not in ("explain", "tune"):
        raise Refused(f"side {side!r} cannot be shown; choose explain or tune.")
    if reads < 1:
        raise Refused(f"reads = {reads} reads nothing; give at least 1.")
    asked, others = Rule.from_json(rule), [Rule.from_json(other) for other in against]
    with subject.metered() as cost:
        found = trial(subject, sweep, unit, asked, side, reads)
        beside = _beside(subject, sweep, unit, asked, others, side)
    values = found.pop("values")
    fitted = [c if v is None else replace(c, value=max(v, LEAST)) for c, v in zip(asked.clauses, values, strict=True)]
    idle = [str(number) for number, value in enumerate(values, 1) if value is None]
    rows = found.pop("misses")
    return Evidence(
        tool="try_rule", unit=unit.bare, sign=unit.sign, summary=_summary(asked.text(subject.piece), side, found),
        rows=rows, cost=cost,
        checks=found | {"rule": Rule(tuple(fitted)).to_json(), "against": beside},
        warnings=[f"clause {', '.join(idle)} matches nothing that was read on the {side} side."] if idle else [],
    )  # fmt: skip


def _beside(
    subject: Subject, sweep: Sweep, unit: UnitId, rule: Rule, others: Sequence[Rule], side: str
) -> list[dict[str, Any]]:
    """By how much the rule's F1 is above that of each other, with intervals."""
    if not others:
        return []
    sample = kept_exemplars(subject, sweep, unit, side)
    said = np.stack([one.predict_flat(sample.text.text) > 0 for one in (rule, *others)])
    _, pairs = f1_differences(sweep, sample, said, [(0, k) for k in range(1, len(said))])
    return [{key: pair[key] for key in ("difference", "low", "high")} for pair in pairs]


def _summary(rule: str, side: str, found: dict[str, Any]) -> str:
    told = ", ".join(f"{name} {_number(found[name])}" for name in ("f1", "precision", "recall"))
    return f"{rule}: {told} on the {side} side, where it predicts {found['predicted']} tokens."


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def trial(
    subject: Subject, sweep: Sweep, unit: UnitId, rule: Rule, side: str, reads: int = measures.SAMPLE
) -> dict[str, Any]:
    """F1 of a rule on the explain or tune side, with its misses; it may be asked as often as one likes.

    Recall: the kept exemplars ≥ .8 and .5–.8, weighing N_h / n_h; precision: up to `reads` predicted places, read.
    Keys: f1, precision, recall (None where undefined), firings, firings_sampled, predicted, predicted_sampled,
    `values`: each clause's mean y/P over the places read that it matches (None if none), `misses`: up to five false
    positives (lowest y/P first) and five false negatives (highest first), each {kind, document, offset, text up to
    the token, token, ids, activation y, ratio y/P}.
    """
    known = sweep.statistics(unit)
    sample = kept_exemplars(subject, sweep, unit, side)
    text = sample.text.text
    masks = [clause.mask(text) for clause in rule.clauses]
    predicted = np.any(masks, axis=0)
    judged = hash_sample(sweep, sample.text, predicted)[:reads]
    exact = dict(zip(sample.rows.tolist(), sample.values.tolist(), strict=True))
    values = read_places(subject, sweep, unit, sample.text, judged, exact, known.peak)
    fires = sample.values >= measures.FIRES
    rows, weights = sample.rows[fires], sample.weights[fires]
    recall = stats.ratio(weights[predicted[rows]].sum(), weights.sum())
    precision = stats.ratio((values >= measures.FIRES).sum(), len(judged))
    false = sorted((v, row) for v, row in zip(values.tolist(), judged.tolist(), strict=True) if v < measures.FIRES)
    missed = sorted(
        ((v, row) for v, row in zip(sample.values[fires].tolist(), rows.tolist(), strict=True) if not predicted[row]),
        reverse=True,
    )
    return {
        "f1": stats.number(stats.f1(np.nan_to_num(precision), recall)),
        "precision": stats.number(precision),
        "recall": stats.number(recall),
        "firings": known.firings[side],
        "firings_sampled": len(rows),
        "predicted": int(predicted.sum()),
        "predicted_sampled": len(judged),
        "values": [float(values[mask[judged]].mean()) if mask[judged].any() else None for mask in masks],
        "misses": [
            {"kind": kind} | place_row(subject, sweep, sample.text, row, v, known.peak)
            for kind, found in (("false positive", false), ("false negative", missed))
            for v, row in found[:MISSES]
        ],
    }
