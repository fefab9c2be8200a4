"""Whether automatic scores tell what people will say of an explanation.

What people say is the majority of those who reviewed it blind: accept, or not (reject or edit); who is unsure has no
say, and a tie leaves the explanation out. Reliability: the explanations in order of their score, in bins of about equal
numbers, and how many of each were accepted, with Wilson's interval. AUROC: the share of pairs of an accepted and
another one in which the accepted one scores higher, with a bootstrap over explanations.
"""

from typing import Any

import numpy as np

from ..tools import stats
from ..tools.stats import Flags, Floats
from .agreement import RIGHT, rated, said
from .findings import Findings

BINS = 5
FULL = 5                 # explanations in a bin, at least

_SCORES = """
    SELECT hypothesis AS item, metric, value FROM scores
    WHERE side = 'score' AND value IS NOT NULL AND hypothesis IN (SELECT unnest($items::VARCHAR[]))
    QUALIFY row_number() OVER (
        PARTITION BY hypothesis, metric ORDER BY judge IS NOT NULL, created_at DESC, id DESC) = 1
    ORDER BY metric, item
"""


def calibration(findings: Findings, audit: bool = False, bins: int = BINS) -> dict[str, Any]:
    """{audit, explanations, accepted, ties, not_blind, metrics}: how each metric fares beside what people said.

    metrics, by name: {metric, n, accepted, auroc, low, high, reason, bins}, see `judge_metric`. audit: only the random
    share, which alone speaks for all explanations: the others were chosen for being doubtful.
    """
    rows, not_blind = said(findings, audit)
    votes = rated(rows, lambda row: RIGHT.get(row["verdict"]))
    people = {item: majority(list(by.values())) for item, by in votes.items()}
    known = {item: right for item, right in people.items() if right is not None}
    scores: dict[str, dict[str, float]] = {}
    for row in findings.sql(_SCORES, {"items": list(known)}):
        scores.setdefault(row["metric"], {})[row["item"]] = row["value"]
    return {
        "audit": audit, "explanations": len(known), "accepted": sum(known.values()),
        "ties": len(people) - len(known), "not_blind": not_blind,
        "metrics": [
            {"metric": metric} | judge_metric(
                np.array([known[item] for item in by], dtype=np.bool_), np.array(list(by.values())), bins)
            for metric, by in scores.items()
        ],
    }  # fmt: skip


def majority(votes: list[str]) -> bool | None:
    """Whether more said that it is right than that it is not; None for a tie."""
    right = votes.count("right")
    return None if 2 * right == len(votes) else 2 * right > len(votes)


def judge_metric(accepted: Flags, scores: Floats, bins: int = BINS, seed: int = 0) -> dict[str, Any]:
    """{n, accepted, auroc, low, high, reason, bins} of the scores [N] of explanations that were accepted or not.

    auroc: undefined, with the reason, where people said the same of all, or all scores are equal; its interval also
    below 8 accepted or 8 others. bins: {low, high, mean, n, accepted, share, share_low, share_high}, where equal scores
    share a bin.
    """
    count, right = len(scores), int(accepted.sum())
    found: dict[str, Any] = {"n": count, "accepted": right, "auroc": None, "low": None, "high": None, "reason": None}
    if right in (0, count):
        found["reason"] = f"people accepted {'all' if count and right else 'none'} of the {count}"
    elif len(np.unique(scores)) == 1:
        found["reason"] = f"all {count} have the same score"
    else:
        found["auroc"] = float(stats.auroc(accepted, scores, np.ones(count))[0])
        draws = np.concatenate([stats.auroc(accepted, scores, times) for times in stats.times_drawn(count, seed)])
        found["low"], found["high"] = stats.interval(draws, min(right, count - right))
    return found | {"bins": reliability(accepted, scores, bins)}


def reliability(accepted: Flags, scores: Floats, bins: int = BINS) -> list[dict[str, Any]]:
    """How many explanations were accepted in each of at most `bins` bins of about equal numbers, by rising score."""
    order = np.argsort(scores, kind="stable")
    ranked, right, count = scores[order], accepted[order], len(scores)
    wanted = min(bins, max(1, count // FULL))
    cuts = [int(np.searchsorted(ranked, ranked[place * count // wanted])) for place in range(wanted)] if count else []
    edges = [*dict.fromkeys(cuts), count]
    rows = []
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        n, taken = b - a, int(right[a:b].sum())
        low, high = stats.wilson(taken, n)
        rows.append({
            "low": float(ranked[a]), "high": float(ranked[b - 1]), "mean": float(ranked[a:b].mean()), "n": n,
            "accepted": taken, "share": taken / n, "share_low": low, "share_high": high,
        })  # fmt: skip
    return rows


__all__ = ["calibration", "judge_metric", "majority", "reliability"]
