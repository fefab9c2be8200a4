"""Token-level input scores: does the rule say where the unit fires, on text that nobody has seen?

The rule is run on every window of the score side. Precision p comes from up to 300 of the predicted places, recall r
from up to 300 of the firings (both the places of smallest position hash), and the headline is F1 = 2pr / (p + r).
A rule that predicts nothing has no precision; its F1 is 0, the limit of 2 TP / (predicted + firing). Predictions that
are equal everywhere still have an F1 (always-on is a floor), but neither AUPRC nor Pearson.

Interval: near-copy clusters of the side are resampled, once for everything; a draw weighs the judged predictions, the
sampled firings, the counts behind the floors and the near misses of a cluster by how often it was drawn. So p, r, F1
and every floor move together, and F1 − highest floor (the highest within each draw) is a paired difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..store.records import Evidence, Refused, Score
from . import measures, stats
from .floors import Floors, always_on, hit_f1, references, shift_floor
from .labels import Judged, ScoreSide, Truth, kept_exemplars, per_stratum, score_provenance, stratified
from .near_misses import NearMiss
from .rules import Clause, Rule, Tokens
from .stats import Floats
from .subject import Subject
from .sweep import Sweep
from .units import UnitId

METRICS = ("f1", "f1_at_prevalence", "auprc", "pearson", "coverage", "boundary_rejection", "hm")

Claim = Callable[[str], bool]
NearMisses = Callable[[], Sequence[NearMiss]]
Columns = Mapping[str, Floats]


@dataclass(frozen=True)
class _Case:
    """One rule on one unit's score side, and `record`, which makes a score of it."""

    sweep: Sweep
    unit: UnitId
    side: ScoreSide
    truth: Truth
    judged: Judged
    prediction: Floats
    seed: int
    record: Callable[..., Score]

    def interval(self, draws: Floats) -> dict[str, float | None]:
        return dict(zip(("low", "high"), stats.interval(draws, self.truth.positive_clusters), strict=True))


def score_input(
    subject: Subject, sweep: Sweep, unit: UnitId, rule: Rule, *, hypothesis: str, claim: Claim, floor_rules: Floors,
    evidence: Sequence[Evidence] = (), near_misses: NearMisses | None = None, seed: int = 0,
) -> list[Score]:  # fmt: skip
    """Scores a submitted rule on the score side: one record for each of METRICS, in that order.

    hypothesis: the explanation's id; claim(hypothesis) says, and remembers beyond this call, whether this is the first
    read of the sweep's score side for it; floor_rules: see `floors.floor_rules`; evidence: the unit's own, whose rows'
    `ids` must not be scored on: a window sharing 13 tokens in a row with one is dropped; near_misses: makes them, after
    the claim; where it makes none or refuses, boundary rejection and HM are undefined, with the reason.

    `f1` carries floors, references and, in details, precision, recall, counts, what was dropped, the cost, `margin` =
    F1 − highest floor with its interval, and `p`: of "F1 > .5 and F1 > every floor", the larger of the two one-sided
    bootstrap p values (an intersection–union test), and `clauses`: precision, recall and F1 of each clause as a rule of
    its own, from the same places. Every score is undefined, with the reason, if fewer than 10
    firings or 8 clusters with one are left. Raises Refused at a second read. With each score stand the digests of the
    sides, the share of their 13-token runs that stand in explain as well, and the version of the constants.
    """
    if not claim(hypothesis):
        raise Refused(
            f"the score side was already read for explanation {hypothesis} and is read once; submit a new explanation."
        )
    keys = score_provenance(sweep, seed)
    record = partial(
        Score, unit=unit.bare, sign=unit.sign, hypothesis=hypothesis, side="score", provenance=keys
    )
    with subject.metered() as cost:
        side = ScoreSide.of(subject, sweep, evidence)
        truth = Truth.of(subject, sweep, unit, side)
        details: dict[str, Any] = {"dropped_windows": side.dropped_windows, "dropped_tokens": len(side.dropped)}
        if truth.shortage:
            none = unscored(unit, hypothesis, truth.shortage)
            scores = [replace(score, n=len(truth.rows), details=details, provenance=keys) for score in none]
        else:
            prediction = rule.predict_flat(side.text.text)
            judged = Judged.of(subject, sweep, unit, side, truth, prediction)
            case = _Case(sweep, unit, side, truth, judged, prediction, seed, record)
            shown = _references(subject, case)
            scores = [*_matches(case, floor_rules, shown, details), *_graded(case)]
            details["clauses"] = [_clause(subject, case, clause) for clause in rule.clauses]
            scores += _coverage(case, subject, rule, near_misses)
    details["cost"] = cost
    return scores


def unscored(unit: UnitId, hypothesis: str, reason: str) -> list[Score]:
    """Every metric of the score side, undefined for one reason."""
    told: dict[str, Any] = {"hypothesis": hypothesis, "side": "score", "value": None, "reason": reason}
    return [Score(unit=unit.bare, sign=unit.sign, metric=metric, **told) for metric in METRICS]


# F1, its interval and its floors


def _tally(case: _Case, floor_rules: Floors) -> dict[str, Floats]:
    """Per-cluster totals [C] of everything that F1 and the floors are made of."""
    side, judged, rows = case.side, case.judged, case.truth.rows
    flat = np.flatnonzero(side.keep)
    at = np.searchsorted(flat, rows)
    shifted = shift_floor(side.text.document[flat], judged.predicted[flat], at, case.seed)
    tally = match_totals(side, case.truth, judged) | {"shifted hit": side.sums(rows, shifted)}
    for name, rule in floor_rules.rules.items():
        predicted = (rule.predict_flat(side.text.text) > 0) & side.keep
        if np.array_equal(predicted, judged.predicted):
            tally[f"twin {name}"] = np.zeros(side.clusters)
            continue
        tally[f"predicted {name}"] = side.sums(np.flatnonzero(predicted))
        tally[f"hit {name}"] = side.sums(rows[predicted[rows]])
    return tally


def _summed(tally: Columns, seed: int) -> tuple[Columns, Columns]:
    """Per-cluster totals [C] summed over all clusters, and over those of each bootstrap draw [B]."""
    draws = stats.resampled(np.stack(list(tally.values()), axis=1), seed)
    return {name: column.sum() for name, column in tally.items()}, dict(zip(tally, draws.T, strict=True))


def match_totals(side: ScoreSide, truth: Truth, judged: Judged) -> dict[str, Floats]:
    """Per-cluster totals [C] of everything that `match_scores` is made of."""
    return {
        "tokens": side.sums(np.flatnonzero(side.keep)),
        "predicted": side.sums(np.flatnonzero(judged.predicted)),
        "judged": side.sums(judged.rows),
        "judged fires": side.sums(judged.rows[judged.fires]),
        "firings": side.sums(truth.rows),
        "hit": side.sums(truth.rows[judged.predicted[truth.rows]]),
    }


def match_scores(t: Columns, scale: float) -> dict[str, Floats]:
    """Precision, recall, F1 and F1 at prevalence from summed totals, each a number or [B]; see `Truth.scale`.

    F1 at prevalence .01: p' = .01 r / (.01 r + .99 FPR), with FPR = (1 − p) predicted / (tokens − firings).
    """
    positives = scale * t["firings"]
    precision, recall = stats.ratio(t["judged fires"], t["judged"]), stats.ratio(t["hit"], t["firings"])
    some = np.nan_to_num(precision)
    fpr = stats.ratio((1 - some) * t["predicted"], t["tokens"] - positives)
    rare = measures.PREVALENCE
    common = np.nan_to_num(stats.ratio(rare * recall, rare * recall + (1 - rare) * fpr))
    return {
        "precision": precision, "recall": recall, "f1": stats.f1(some, recall),
        "f1_at_prevalence": stats.f1(common, recall),
    }  # fmt: skip


def _statistics(t: Columns, scale: float) -> dict[str, Floats]:
    """`match_scores` and the floors; a floor rule that predicts the very same places has this rule's F1."""
    out, positives = match_scores(t, scale), scale * t["firings"]
    out["floor always_on"] = always_on(stats.ratio(positives, t["tokens"]))
    out["floor shifted"] = hit_f1(scale * t["shifted hit"], positives, t["predicted"])
    for name in t:
        if name.startswith("hit "):
            key = name.removeprefix("hit ")
            out[f"floor {key}"] = hit_f1(scale * t[name], positives, t[f"predicted {key}"])
        elif name.startswith("twin "):
            out[f"floor {name.removeprefix('twin ')}"] = out["f1"]
    highest = np.max(np.stack([v for name, v in out.items() if name.startswith("floor ")]), axis=0)
    return out | {"margin": out["f1"] - highest}


def _matches(
    case: _Case, floor_rules: Floors, shown: dict[str, float | None], details: dict[str, Any]
) -> list[Score]:
    """F1 and F1 at prevalence .01; fills `details`."""
    truth, judged = case.truth, case.judged
    tally = _tally(case, floor_rules)
    point, spread = (_statistics(totals, truth.scale) for totals in _summed(tally, case.seed))
    half, floor = stats.p_value(spread["f1"], measures.ACCEPT), stats.p_value(spread["margin"], 0.0)
    details |= {
        "precision": stats.number(point["precision"]),
        "recall": stats.number(point["recall"]),
        "tokens": int(case.side.keep.sum()),
        "clusters": case.side.clusters,
        "positive_clusters": truth.positive_clusters,
        "firings": truth.firings,
        "firings_sampled": len(truth.rows),
        "predicted": int(judged.predicted.sum()),
        "predicted_sampled": len(judged.rows),
        "margin": {"value": stats.number(point["margin"]), **case.interval(spread["margin"])},
        "p": max(half, floor),
        "p_half": half,
        "p_floor": floor,
        "floor_units": floor_rules.counts(),
    }
    floors = {name.removeprefix("floor "): stats.number(v) for name, v in point.items() if name.startswith("floor ")}
    more = {"f1": {"floors": floors, "references": shown, "details": details}}
    more["f1_at_prevalence"] = {"details": {"prevalence": measures.PREVALENCE}}
    return [
        case.record(
            metric=name, value=stats.number(point[name]), n=len(judged.rows) + len(truth.rows),
            **case.interval(spread[name]), **rest,
        )
        for name, rest in more.items()
    ]  # fmt: skip


def _clause(subject: Subject, case: _Case, clause: Clause) -> dict[str, Any]:
    """One clause as a rule of its own, judged at those of the rule's judged places that it matches."""
    judged, side, truth = case.judged, case.side, case.truth
    says = judged.predicted & clause.mask(side.text.text)
    own = says[judged.rows]
    alone = Judged(says, judged.rows[own], judged.values[own], judged.fires[own])
    tally = match_totals(side, truth, alone)
    point, spread = (match_scores(totals, truth.scale) for totals in _summed(tally, case.seed))
    found = {name: {"value": stats.number(point[name]), **case.interval(spread[name])}
             for name in ("precision", "recall", "f1")}  # fmt: skip
    return {"clause": clause.text(subject.piece), "predicted": int(says.sum()), "judged": int(own.sum()), **found}


# AUPRC and Pearson


def _graded(case: _Case) -> list[Score]:
    """AUPRC of the graded prediction for "fires", and its correlation with y/P, each over the weighted sample."""
    side = case.side
    rows, values, weights, fires = stratified(case.sweep, case.unit, side, case.truth, case.judged)
    graded, cluster, labels = case.prediction[rows], side.cluster[rows], fires.astype(np.float64)
    auprc = stats.weighted_auprc(labels, graded, weights)
    pearson = stats.weighted_pearson(graded, values, weights)
    computed = (
        ("auprc", auprc, stats.auprc_of, stats.auprc_totals(labels, graded, weights, cluster, side.clusters)),
        ("pearson", pearson, stats.pearson_of, stats.pearson_totals(graded, values, weights, cluster, side.clusters)),
    )
    details = {"strata": list(case.truth.strata), "sampled": per_stratum(values).tolist()}
    out = []
    for name, value, statistic, totals in computed:
        if value is None:
            found: dict[str, Any] = {"reason": "the predictions are the same at every place"}
        else:
            found = case.interval(statistic(stats.resampled(totals, case.seed)))
        out.append(case.record(metric=name, value=value, n=len(rows), details=details, **found))
    return out


# Coverage and near misses


def _coverage(
    case: _Case, subject: Subject, rule: Rule, near_misses: NearMisses | None
) -> list[Score]:
    """Coverage c = P(ŷ > 0 | fires), boundary rejection b = P(ŷ = 0 | near miss), HM = 2cb / (c + b)."""
    side, truth = case.side, case.truth
    made, why = _made(near_misses)
    kept = side.keep
    clusters = dict(zip(side.text.document[kept].tolist(), side.cluster[kept].tolist(), strict=True))
    near = [m for m in made if m.activation < measures.STRATA[2] * truth.peak and m.document in clusters]
    where = np.array([clusters[m.document] for m in near], dtype=np.int64)
    quiet = np.array([rule.predict(Tokens.of(subject, m.ids))[-1] <= 0 for m in near], dtype=np.float64)
    hit = truth.rows[case.judged.predicted[truth.rows]]
    columns = [side.sums(hit), side.sums(truth.rows)]
    columns += [stats.by_cluster(where, side.clusters, values) for values in (quiet, None)]
    totals = np.stack(columns, axis=1)

    def ratios(t: Floats) -> dict[str, Floats]:
        c, b = stats.ratio(t[..., 0], t[..., 1]), stats.ratio(t[..., 2], t[..., 3])
        return {"coverage": c, "boundary_rejection": b, "hm": stats.f1(c, b)}

    point, spread = ratios(totals.sum(axis=0)), ratios(stats.resampled(totals, case.seed))
    firings, missed = truth.positive_clusters, len(set(where.tolist()))
    counts = (
        ("coverage", len(truth.rows), firings),
        ("boundary_rejection", len(near), missed),
        ("hm", len(truth.rows) + len(near) if near else 0, min(firings, missed)),
    )
    out = []
    for name, n, held in counts:
        low, high = stats.interval(spread[name], held)
        value, reason = stats.number(point[name]), None if n else why
        out.append(case.record(metric=name, value=value, low=low, high=high, n=n, reason=reason))
    return out


def _made(near_misses: NearMisses | None) -> tuple[Sequence[NearMiss], str]:
    """Near misses, and the reason if there are none."""
    if near_misses is None:
        return (), "no near misses were given"
    try:
        return near_misses(), "no changed text silences the unit"
    except Refused as refusal:
        return (), str(refusal)


# References


def _references(subject: Subject, case: _Case) -> dict[str, float | None]:
    explain, tune = (kept_exemplars(subject, case.sweep, case.unit, side) for side in ("explain", "tune"))
    firings = case.sweep.statistics(case.unit).firings["tune"]
    return references(explain, tune, case.side, case.truth, firings)
