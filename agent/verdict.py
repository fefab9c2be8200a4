"""The verdict on an explanation, by rule from its scores: nobody who proposed it has a say.

Accepted: low(F1) ≥ .5, low(F1 − highest floor) > 0, and a false-discovery rate over the run of at most .05. Rejected:
high(F1) < .5 or high(F1 − highest floor) < 0. Else unclear. F1 is the rule's; of a sentence without a rule that of
`detection` by a judge that has qualified. What could not be measured is kept apart: too few positives is unclear by
definition, any other undefined headline is undefined, and an investigation that abstained or failed stays what it is.

Scores that contradict each other are for a person to look at: what passes is unclear where a qualified judge's score of
the sentence fails by the same bounds, or where what is said of the output is refuted (high(AUC) < .5); what is rejected
is unclear where a qualified judge's `detection` and `fuzzing` both pass.
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
NO_RULE = "it has no rule, and a sentence alone takes a judge to score"
JUDGED = ("detection", "fuzzing")     # the judged scores that are F1, as the rule's is
CHANCE = 0.5                          # AUC of a claim about the output that says nothing


def headline(scores: Sequence[Score]) -> Score:
    """The F1 by rule on the score side; of a sentence without a rule, a qualified judge's detection where there is one.

    Raises ValueError unless there is exactly one F1 by rule.
    """
    found = [s for s in scores if s.metric == "f1" and s.side == "score" and s.judge is None]
    if len(found) != 1:
        raise ValueError(f"a verdict needs one F1 by rule on the score side, and there are {len(found)}")
    judged = next((s for s in qualified(scores) if s.metric == "detection"), None)
    return judged if found[0].reason == NO_RULE and judged is not None else found[0]


def qualified(scores: Sequence[Score]) -> list[Score]:
    """The judged F1 that may enter a verdict: defined, with an interval, and by a judge that has qualified for it."""
    return [
        s for s in scores
        if s.metric in JUDGED and s.judge is not None and s.low is not None and s.details.get("qualified") is True
    ]  # fmt: skip


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
        return "undefined", f"{_named(score)} has no interval: too few clusters with a sampled firing"
    word, reason = _weigh(score, q)
    against = _contradiction(score, scores)
    return (word, reason) if against is None else ("unclear", f"disagreement: {against}; {reason}")


def _named(score: Score) -> str:
    what = "F1" if score.judge is None else f"{score.metric} by {score.judge}: F1"
    return f"{what} {score.value:.2f}"


def _weigh(score: Score, q: float | None) -> Decision:
    margin = score.details["margin"]
    name, floor = max(((n, v) for n, v in score.floors.items() if v is not None), key=lambda pair: pair[1])
    spread = f"{_named(score)} ({score.low:.2f} to {score.high:.2f})"
    beside = (
        f"F1 − highest floor ({name} {floor:.2f}) {margin['value']:.2f} "
        f"({margin['low']:.2f} to {margin['high']:.2f})"
    )
    word, why = _bounds(score)
    if word != "accepted":
        return word, f"{beside if why == 'margin' else spread} {_WHY[word, why]}"
    if q is None:
        return "unclear", f"{spread} passes; the false-discovery rate is known at the run's end"
    if q > measures.FALSE_DISCOVERY:
        return "unclear", f"{spread} passes, but q = {q:.3f} over the run exceeds {measures.FALSE_DISCOVERY}"
    return "accepted", f"{spread}; {beside}; q = {q:.4f}"


_WHY = {
    ("rejected", "value"): f"lies below {measures.ACCEPT}",
    ("rejected", "margin"): "lies below 0",
    ("unclear", "value"): f"reaches below {measures.ACCEPT}",
    ("unclear", "margin"): "does not lie above 0",
}


def _bounds(score: Score) -> tuple[str, str]:
    """What the bounds of one F1 say by themselves, and which of the two says it: its value, or its margin."""
    low, high, margin = float(score.low or 0), float(score.high or 0), score.details["margin"]
    if high < measures.ACCEPT:
        return "rejected", "value"
    if margin["high"] < 0:
        return "rejected", "margin"
    if low < measures.ACCEPT:
        return "unclear", "value"
    return ("unclear", "margin") if margin["low"] <= 0 else ("accepted", "")


def _contradiction(score: Score, scores: Sequence[Score]) -> str | None:
    """What speaks against the headline, in words; None where nothing does."""
    word = _bounds(score)[0]
    beside = [s for s in qualified(scores) if s is not score and s.details["margin"]["low"] is not None]
    says = {s.metric: _bounds(s)[0] for s in beside}
    refuted = next((s for s in scores if s.metric == "output_auc" and s.high is not None and s.high < CHANCE), None)
    if word == "accepted":
        failing = next((s for s in beside if says[s.metric] == "rejected"), None)
        if failing is not None:
            return f"{_named(failing)} ({failing.low:.2f} to {failing.high:.2f}) fails"
        if refuted is not None:
            return f"what it is said to push is refuted (AUC {refuted.value:.2f}, at most {refuted.high:.2f})"
    if word == "rejected" and [says.get(metric) for metric in JUDGED] == ["accepted"] * len(JUDGED):
        return f"{beside[0].judge} finds the sentence right ({', '.join(_named(s) for s in beside)})"
    return None


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


__all__ = ["NO_RULE", "conclude", "decide", "headline", "qualified"]
