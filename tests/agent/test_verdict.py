"""Verdicts by measures 5, from scores alone."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.agent.verdict import conclude, decide
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
