"""The verdict on an explanation, by rule from its scores: nobody who proposed it has a say.

Accepted: low(F1) ≥ .5, low(F1 − highest floor) > 0, and a false-discovery rate over the run of at most .05. Rejected:
high(F1) < .5 or high(F1 − highest floor) < 0. Else unclear. What could not be measured is kept apart: too few
positives is unclear by definition, any other undefined headline is undefined, and an investigation that abstained or
failed stays what it is.
"""

from collections.abc import Sequence

from ..store.records import Score
from ..tools import measures
from ..tools.stats import false_discovery

Decision = tuple[str, str]
SUBMITTED = "submitted"
ENDED = {
    "abstained": "the planner submitted no explanation",
    "failed": "the investigation ended in an error, and nothing was scored",
}


def headline(scores: Sequence[Score]) -> Score:
    """The F1 by rule on the score side. Raises ValueError unless there is exactly one."""
    found = [s for s in scores if s.metric == "f1" and s.side == "score" and s.judge is None]
    if len(found) != 1:
        raise ValueError(f"a verdict needs one F1 by rule on the score side, and there are {len(found)}")
    return found[0]


def decide(scores: Sequence[Score], q: float | None) -> Decision:
    """(verdict, reason) for one submitted explanation.

    q: its false-discovery rate over the run; None while the run goes on, when nothing can be accepted yet.
    """
    score = headline(scores)
    if score.value is None:
        reason = score.reason or "the headline F1 is undefined"
        return ("unclear" if reason.startswith("too few positives") else "undefined"), reason
    margin = score.details["margin"]
    if None in (score.low, score.high, margin["low"], margin["high"]):
        return "undefined", f"F1 {score.value:.2f} has no interval: too few clusters with a sampled firing"
    return _weigh(score, q)


def _weigh(score: Score, q: float | None) -> Decision:
    low, high, margin = float(score.low or 0), float(score.high or 0), score.details["margin"]
    name, floor = max(((n, v) for n, v in score.floors.items() if v is not None), key=lambda pair: pair[1])
    spread = f"F1 {score.value:.2f} ({low:.2f} to {high:.2f})"
    beside = (
        f"F1 − highest floor ({name} {floor:.2f}) {margin['value']:.2f} "
        f"({margin['low']:.2f} to {margin['high']:.2f})"
    )
    if high < measures.ACCEPT:
        return "rejected", f"{spread} lies below {measures.ACCEPT}"
    if margin["high"] < 0:
        return "rejected", f"{beside} lies below 0"
    if low < measures.ACCEPT:
        return "unclear", f"{spread} reaches below {measures.ACCEPT}"
    if margin["low"] <= 0:
        return "unclear", f"{beside} does not lie above 0"
    if q is None:
        return "unclear", f"{spread} passes; the false-discovery rate is known at the run's end"
    if q > measures.FALSE_DISCOVERY:
        return "unclear", f"{spread} passes, but q = {q:.3f} over the run exceeds {measures.FALSE_DISCOVERY}"
    return "accepted", f"{spread}; {beside}; q = {q:.4f}"


def conclude(ended: Sequence[tuple[str, Sequence[Score]]]) -> list[tuple[str, str, float | None]]:
    """(verdict, reason, q) for each investigation of a run, in the order given and independent of it.

    ended: how each ended (submitted, abstained or failed) and its scores. q is Benjamini–Hochberg's over the p values
    of the submitted ones whose F1 is defined (details["p"]); the others enter no count and have none.
    """
    heads = [headline(scores) if how == SUBMITTED else None for how, scores in ended]
    tested = [i for i, head in enumerate(heads) if head is not None and head.value is not None]
    rates = false_discovery([heads[i].details["p"] for i in tested])  # type: ignore[union-attr]
    q: dict[int, float] = dict(zip(tested, rates, strict=True))
    return [
        (*(decide(scores, q.get(i)) if how == SUBMITTED else (how, ENDED[how])), q.get(i))
        for i, (how, scores) in enumerate(ended)
    ]


__all__ = ["conclude", "decide", "headline"]
