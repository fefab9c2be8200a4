"""A judge's answers beside what a unit does: the value, its interval and its floors, as fields of a `Score`.

Everything is a function of totals by cluster, and whole clusters are resampled (`stats.py`). The floors are resampled
with the score, so that `margin` = score − highest floor has a paired interval. Three floors: `always_on`, who says
"fires" to everything; `shuffled`, the expectation of the same answers in a random order; `another`, the same judge on
the same texts with another unit's explanation, where one was given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import stats
from .floors import always_on
from .labels import Flags, per_stratum, stratum
from .measures import ACCEPT, FIRES, MIN_CLUSTERS, PREVALENCE, STRATA
from .stats import Floats, Ints

Fields = dict[str, Any]
Columns = Mapping[str, Floats]
QUIET = STRATA[2]


def undefined(reason: str, **details: Any) -> Fields:
    """A score without a value."""
    return {"value": None, "reason": reason, "details": details}


def few(clusters: int, what: str) -> str | None:
    """Why so few clusters of positives bear no score, or None."""
    if clusters >= MIN_CLUSTERS:
        return None
    return f"too few positives: {what} from {clusters} clusters, and {MIN_CLUSTERS} are needed"


# Detection and fuzzing


def matches(fires: Flags, said: Flags, other: Flags | None, easy: Flags, cluster: Ints, seed: int) -> Fields:
    """F1 = 2 TP / (2 TP + FP + FN) of yes-or-no answers [n] to texts [n] of known labels `fires` [n].

    other: the answers with another unit's explanation; easy: the silent ones that were drawn from all text: their
    share that is called firing is the FPR of F1 at prevalence .01, p' = .01 r / (.01 r + .99 FPR).
    Floors: always-on 2π / (1 + π) at the set's share π of firing ones; shuffled: M answers "fires" in random order
    meet M N / n of the N firing ones. details: balanced accuracy, precision, recall, margin, and `p` of "F1 > .5 and
    F1 > every floor" (the larger of two one-sided bootstrap p values).
    """
    clusters, where = _renumbered(cluster)
    held = len(np.unique(cluster[fires]))
    reason = few(held, f"{int(fires.sum())} firing texts")
    if reason is not None:
        return undefined(reason)
    columns = {"tp": fires & said, "fp": ~fires & said, "n": np.ones_like(fires), "firing": fires}
    columns |= {"easy": easy & ~fires, "easy fp": easy & ~fires & said}
    if other is not None:
        columns |= {"other tp": fires & other, "other fp": ~fires & other}
    point, spread = _both(columns, where, clusters, seed, _matched)
    half, floor = stats.p_value(spread["value"], ACCEPT), stats.p_value(spread["margin"], 0.0)
    shown = ("precision", "recall", "balanced_accuracy", "f1_at_prevalence")
    details = {name: stats.number(point[name]) for name in shown}
    details |= {"p": max(half, floor), "p_half": half, "p_floor": floor}
    details |= {"firing": int(fires.sum()), "silent": int((~fires).sum()), "said_firing": int(said.sum())}
    return _fields(point, spread, held, len(fires), details)


def _matched(t: Columns) -> dict[str, Floats]:
    tp, predicted, n, firing = t["tp"], t["tp"] + t["fp"], t["n"], t["firing"]
    recall, rejected = stats.ratio(tp, firing), 1 - stats.ratio(t["fp"], n - firing)
    fpr = stats.ratio(t["easy fp"], t["easy"])
    common = stats.ratio(PREVALENCE * recall, PREVALENCE * recall + (1 - PREVALENCE) * fpr)
    common = np.where((recall == 0) & (fpr == 0), 0.0, common)
    out = {
        "value": stats.ratio(2 * tp, predicted + firing), "recall": recall, "precision": stats.ratio(tp, predicted),
        "balanced_accuracy": (recall + rejected) / 2, "f1_at_prevalence": stats.f1(common, recall),
        "floor always_on": always_on(stats.ratio(firing, n)),
        "floor shuffled": stats.ratio(2 * stats.ratio(predicted * firing, n), predicted + firing),
    }  # fmt: skip
    if "other tp" in t:
        out["floor another"] = stats.ratio(2 * t["other tp"], t["other tp"] + t["other fp"] + firing)
    return out


# Simulation


def graded(
    values: Floats, predicted: Floats, other: Floats | None, cluster: Ints, strata: Sequence[int], seed: int
) -> Fields:
    """Pearson's correlation of predictions [n] with y/P [n] over tokens that stand for the whole side.

    A token weighs N_h / n_h: of the N_h places of its stratum of y/P on the side, n_h are in the sample; the count of a
    stratum of which none is goes to the next lower one. Undefined where the predictions are the same everywhere.
    details: AUPRC for "fires", weighed alike. Floors: in random order the expectation is 0, and what is always on has
    no correlation.
    """
    fires = values >= FIRES
    held = len(np.unique(cluster[fires]))
    weights, sampled = _weights(values, strata)
    details: Fields = {"weights": "strata", "strata": list(strata), "sampled": sampled, "tokens": len(values)}
    pearson = stats.weighted_pearson(predicted, values, weights)
    reason = few(held, f"{int(fires.sum())} firing tokens")
    if reason is None and pearson is None:
        reason, details["constant"] = "the predictions are the same at every token", True
    if reason is not None:
        return undefined(reason, **details)
    details["auprc"] = stats.weighted_auprc(fires.astype(np.float64), predicted, weights)
    clusters, where = _renumbered(cluster)
    each = [predicted] if other is None else [predicted, other]
    tables = [stats.pearson_totals(one, values, weights, where, clusters) for one in each]

    def statistics(totals: Floats) -> dict[str, Floats]:
        found = [stats.pearson_of(part) for part in np.split(totals, len(tables), axis=-1)]
        floors = {"floor another": found[1]} if len(found) > 1 else {}
        return {"value": found[0], "floor shuffled": np.zeros_like(found[0]), **floors}

    columns = np.concatenate(tables, axis=1)
    point = _with_margin(statistics(columns.sum(axis=0, keepdims=True)))
    spread = _with_margin(statistics(stats.resampled(columns, seed)))
    made = _fields({name: v[0] for name, v in point.items()}, spread, held, len(values), details)
    return made | {"floors": {"always_on": None, **made["floors"]}}


def _weights(values: Floats, strata: Sequence[int]) -> tuple[Floats, list[int]]:
    """N_h / n_h of each token [n], and n_h."""
    mine, sampled = stratum(values), per_stratum(values)
    weights, spare = np.zeros(len(values)), 0.0
    for h, count in enumerate(strata):
        spare += count
        if sampled[h]:
            weights[mine == h] = spare / sampled[h]
            spare = 0.0
    return weights, sampled.tolist()


# Generation


def written(firing: Floats, silent: Floats, others: tuple[Floats, Floats] | None, seed: int) -> Fields:
    """2tb / (t + b) of texts that a judge wrote, with y/P of each at its largest.

    Trigger rate t: of those that were to fire [n], the share with y ≥ τ; boundary rejection b: of those that were not
    [m], the share with y < .25 P. Floors: `shuffled`, t and b among all the texts, whichever they were written as;
    `another`, those written for another explanation; to fire on everything is worth 0. Texts are resampled one by one.
    """
    if min(len(firing), len(silent)) < MIN_CLUSTERS:
        return undefined(
            f"too few texts were written: {len(firing)} different ones that are to fire and {len(silent)} that are "
            f"not, and {MIN_CLUSTERS} of each are needed"
        )
    kinds = {"": (firing, silent), "other ": others} if others is not None else {"": (firing, silent)}
    size = max(len(part) for pair in kinds.values() if pair for part in pair)
    columns: dict[str, Floats] = {}
    for name, pair in kinds.items():
        assert pair is not None
        for what, part in zip(("firing", "silent"), pair, strict=True):
            for said, flags in (("n", part > -np.inf), ("fires", part >= FIRES), ("quiet", part < QUIET)):
                columns[f"{name}{what} {said}"] = np.pad(flags.astype(np.float64), (0, size - len(part)))
    point, spread = _both(columns, np.arange(size), size, seed, _rates)
    details = {name: stats.number(point[name]) for name in ("trigger_rate", "boundary_rejection")}
    made = _fields(point, spread, min(len(firing), len(silent)), len(firing) + len(silent), details)
    return made | {"floors": {"always_on": 0.0, **made["floors"]}}


def _rates(t: Columns) -> dict[str, Floats]:
    def rates(name: str) -> tuple[Floats, Floats]:
        trigger = stats.ratio(t[f"{name}firing fires"], t[f"{name}firing n"])
        return trigger, stats.ratio(t[f"{name}silent quiet"], t[f"{name}silent n"])

    both = t["firing n"] + t["silent n"]
    trigger, rejected = rates("")
    fires = stats.ratio(t["firing fires"] + t["silent fires"], both)
    quiet = stats.ratio(t["firing quiet"] + t["silent quiet"], both)
    out = {"value": stats.f1(trigger, rejected), "trigger_rate": trigger, "boundary_rejection": rejected,
           "floor shuffled": stats.f1(fires, quiet)}  # fmt: skip
    return out | ({"floor another": stats.f1(*rates("other "))} if "other firing n" in t else {})


# What they share


def _renumbered(cluster: Ints) -> tuple[int, Ints]:
    """The number of clusters in a sample, and each one's number among them."""
    names, where = np.unique(cluster, return_inverse=True)
    return len(names), where.ravel()


def _both(
    columns: Mapping[str, Any], where: Ints, clusters: int, seed: int, statistics: Any
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Statistics of everything, and of each bootstrap draw [B], from columns [n] summed by cluster."""
    totals = np.stack([stats.by_cluster(where, clusters, np.asarray(c, dtype=np.float64)) for c in columns.values()], 1)
    drawn = stats.resampled(totals, seed)
    both = (dict(zip(columns, sums.T, strict=True)) for sums in (totals.sum(axis=0), drawn))
    point, spread = (_with_margin(statistics(sums)) for sums in both)
    return point, spread


def _with_margin(found: dict[str, Floats]) -> dict[str, Floats]:
    """`margin`: the value less the highest floor that is defined."""
    floors = [value for name, value in found.items() if name.startswith("floor ")]
    return found | {"margin": found["value"] - np.fmax.reduce(np.stack(floors))}


def _fields(point: Columns, spread: Columns, held: int, n: int, details: Fields) -> Fields:
    bounds = {name: dict(zip(("low", "high"), stats.interval(spread[name], held), strict=True))
              for name in ("value", "margin")}  # fmt: skip
    floors = {name.removeprefix("floor "): stats.number(v) for name, v in point.items() if name.startswith("floor ")}
    details = details | {"margin": {"value": stats.number(point["margin"]), **bounds["margin"]}, "clusters": held}
    return {"value": stats.number(point["value"]), **bounds["value"], "n": n, "floors": floors, "details": details}


__all__ = ["few", "graded", "matches", "undefined", "written"]
