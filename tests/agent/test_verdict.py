"""Verdicts by measures 5, from scores alone."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.agent.verdict import NO_RULE, conclude, decide
from lamplighter.store.records import VERDICTS, Score


def scores(f1: tuple[float, float, float] = (0.8, 0.7, 0.9), margin: tuple[float, float, float] = (0.5, 0.4, 0.6),
           p: float = 0.0005, **other: Any) -> list[Score]:  # fmt: skip
    keys = ("value", "low", "high")
    details = {"margin": dict(zip(keys, margin, strict=True)), "p": p}
    values = dict(zip(keys, f1, strict=True)) | {"floors": {"always_on": 0.02, "nearest_1": f1[0] - margin[0]}}
    f1_score = Score(hypothesis="h", metric="f1", side="score", details=details, **(values | other))
    rest = [Score(hypothesis="h", metric=metric, side="score", value=0.9) for metric in ("auprc", "pearson")]
    tune = Score(hypothesis="h", metric="f1", side="tune", value=0.1)
    judge = Score(hypothesis="h", metric="f1", side="score", value=0.1, judge="someone")
    return [tune, *rest, f1_score, judge]


def undefined(reason: str) -> list[Score]:
    return [Score(hypothesis="h", metric="f1", side="score", value=None, reason=reason)]


@pytest.mark.parametrize(
    ("f1", "margin", "q", "verdict", "said"),
    [
        ((0.8, 0.5, 0.9), (0.5, 0.001, 0.6), 0.05, "accepted", "q = 0.05"),
        ((0.8, 0.7, 0.9), (0.5, 0.4, 0.6), 0.0501, "unclear", "q = 0.050"),
        ((0.8, 0.7, 0.9), (0.5, 0.4, 0.6), None, "unclear", "run's end"),
        ((0.8, 0.499, 0.9), (0.5, 0.4, 0.6), 0.001, "unclear", "0.80 (0.50 to 0.90) reaches below"),
        ((0.8, 0.7, 0.9), (0.2, 0.0, 0.6), 0.001, "unclear", "does not lie above 0"),
        ((0.4, 0.3, 0.499), (0.3, 0.2, 0.4), 0.001, "rejected", "0.40 (0.30 to 0.50) lies below 0.5"),
        ((0.4, 0.3, 0.5), (0.3, 0.2, 0.4), 0.001, "unclear", "reaches below"),
        ((0.8, 0.7, 0.9), (-0.1, -0.2, -0.01), 0.001, "rejected", "nearest_1 0.90) -0.10 (-0.20 to -0.01)"),
        ((0.8, 0.7, 0.9), (-0.1, -0.2, 0.0), 0.001, "unclear", "does not lie above 0"),
    ],
)  # fmt: skip
def test_the_bounds_are_those_of_the_measures(
    f1: tuple[float, float, float], margin: tuple[float, float, float], q: float | None, verdict: str, said: str
) -> None:
    found, reason = decide(scores(f1, margin), q)
    assert found == verdict and said in reason and found in VERDICTS


def test_what_cannot_be_measured_is_kept_apart() -> None:
    few = "too few positives: 4 firings in 3 clusters of the score side, and 10 in 8 are needed"
    assert decide(undefined(few), None) == ("unclear", few)
    assert decide(undefined("the explanation has no rule"), None) == ("undefined", "the explanation has no rule")
    assert decide(scores(low=None, high=None), 0.01)[0] == "undefined"
    with pytest.raises(ValueError, match="there are 0"):
        decide([], None)
    with pytest.raises(ValueError, match="there are 2"):
        decide(scores() + scores(), 0.01)


def test_only_scored_explanations_enter_the_false_discovery_rate() -> None:
    run = [
        ("submitted", scores(p=0.01)), ("abstained", []), ("submitted", undefined("too few positives: 0 firings")),
        ("submitted", scores(p=0.04)), ("failed", []),
    ]  # fmt: skip
    found = conclude(run)
    assert [verdict for verdict, _, _ in found] == ["accepted", "abstained", "unclear", "accepted", "failed"]
    assert [q for _, _, q in found] == [pytest.approx(0.02), None, None, pytest.approx(0.04), None]
    # Sixty units without anything to find: what one unit alone would pass, the run does not.
    crowd = [("submitted", scores(p=0.04)), *[("submitted", scores((0.2, 0.1, 0.3), p=0.9))] * 60]
    assert conclude(crowd[:1])[0][0] == "accepted" and conclude(crowd)[0][0] == "unclear"
    assert conclude([]) == []


endings = st.one_of(
    st.tuples(st.just("submitted"), st.floats(0.0005, 1).map(lambda p: scores(p=p))),
    st.sampled_from([("abstained", []), ("failed", []), ("submitted", undefined("too few positives: 1"))]),
)


@given(st.lists(endings, max_size=12), st.integers(0, 100))
def test_the_order_of_the_units_changes_nothing(run: list[Any], seed: int) -> None:
    order = list(range(len(run)))
    random.Random(seed).shuffle(order)
    found = conclude(run)
    for (verdict, reason, q), i in zip(conclude([run[i] for i in order]), order, strict=True):
        assert (verdict, reason, q) == found[i]


# Judges, and the output side


def judged(metric: str, f1: tuple[float, float, float], margin: tuple[float, float, float], qualified: bool = True,
           **other: Any) -> Score:  # fmt: skip
    """A judge's F1, in a set of which half fires: always-on reaches two thirds there."""
    keys = ("value", "low", "high")
    details = {"margin": dict(zip(keys, margin, strict=True)), "p": 0.001, "qualified": qualified}
    values = dict(zip(keys, f1, strict=True)) | {"floors": {"always_on": 2 / 3}} | other
    return Score(hypothesis="h", metric=metric, side="score", details=details, judge="someone", **values)


GOOD = ((0.95, 0.9, 1.0), (0.3, 0.2, 0.4))
BAD = ((0.4, 0.3, 0.49), (-0.3, -0.4, -0.2))
NO_RULE_SCORE = [Score(hypothesis="h", metric="f1", side="score", value=None, reason=NO_RULE)]


def test_a_qualified_judge_that_contradicts_an_accepted_rule_sends_it_to_review() -> None:
    assert decide(scores(), 0.001)[0] == "accepted"
    for metric in ("detection", "fuzzing"):
        found, reason = decide([*scores(), judged(metric, *BAD)], 0.001)
        assert found == "unclear"
        assert reason.startswith(f"disagreement: {metric} by someone: F1 0.40 (0.30 to 0.49) fails; F1 0.80 (0.70 to")
    assert decide([*scores(), judged("detection", *GOOD)], 0.001)[0] == "accepted"
    assert decide([*scores(), judged("generation", *BAD)], 0.001)[0] == "accepted", "no F1 of text that is there"


def test_a_rejected_rule_whose_sentence_two_judged_scores_find_right_goes_to_review() -> None:
    weak = scores((0.4, 0.3, 0.49), (0.3, 0.2, 0.4))
    assert decide(weak, 0.001)[0] == "rejected"
    assert decide([*weak, judged("detection", *GOOD)], 0.001)[0] == "rejected", "one is not enough"
    both = [judged(metric, *GOOD) for metric in ("detection", "fuzzing")]
    found, reason = decide([*weak, *both], 0.001)
    assert found == "unclear" and "someone finds the sentence right" in reason and "lies below 0.5" in reason


def test_a_judge_that_has_not_qualified_or_gave_no_interval_has_no_say() -> None:
    for mute in ({"qualified": False}, {"low": None, "high": None}):
        assert decide([*scores(), judged("detection", *BAD, **mute)], 0.001)[0] == "accepted"
        alone = decide([*NO_RULE_SCORE, judged("detection", *GOOD, **mute)], 0.001)
        assert alone == ("undefined", NO_RULE)


def test_a_sentence_alone_is_decided_by_a_qualified_judges_detection() -> None:
    found, reason = decide([*NO_RULE_SCORE, judged("detection", *GOOD)], 0.001)
    assert found == "accepted" and reason.startswith("detection by someone: F1 0.95 (0.90 to 1.00); F1 − highest floor")
    assert decide([*NO_RULE_SCORE, judged("detection", *BAD)], 0.001)[0] == "rejected"
    found, reason = decide([*NO_RULE_SCORE, judged("detection", *GOOD), judged("fuzzing", *BAD)], 0.001)
    assert found == "unclear" and reason.startswith("disagreement: fuzzing by someone")
    ((_, _, q),) = conclude([("submitted", [*NO_RULE_SCORE, judged("detection", *GOOD)])])
    assert q == pytest.approx(0.001), "it enters the false-discovery rate as a rule does"


def test_a_refuted_claim_about_the_output_sends_an_accepted_unit_to_review() -> None:
    def output(high: float | None) -> Score:
        return Score(hypothesis="o", metric="output_auc", side="score", value=0.4, low=0.3, high=high)

    found, reason = decide([*scores(), output(0.49)], 0.001)
    assert found == "unclear" and reason.startswith("disagreement: what it is said to push is refuted (AUC 0.40")
    assert decide([*scores(), output(0.55)], 0.001)[0] == "accepted"
    assert decide([*scores(), output(None)], 0.001)[0] == "accepted"
