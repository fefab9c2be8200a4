"""Whether scores tell what people say: planted data of which the answer is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.calibration import BINS, FULL, calibration, judge_metric, majority, reliability
from lamplighter.store.findings import Findings
from lamplighter.store.records import Review, Score


def test_scores_that_rank_as_people_do_and_scores_that_rank_the_other_way() -> None:
    accepted = np.arange(40) >= 20
    for scores, auroc in ((np.arange(40.0), 1.0), (-np.arange(40.0), 0.0)):
        found = judge_metric(accepted, scores)
        assert (found["auroc"], found["low"], found["high"], found["reason"]) == (auroc, auroc, auroc, None)
        assert (found["n"], found["accepted"]) == (40, 20)
    assert [row["accepted"] for row in judge_metric(accepted, np.arange(40.0))["bins"]] == [0, 0, 4, 8, 8]


def test_scores_that_know_nothing() -> None:
    draw = np.random.default_rng(1)
    found = judge_metric(draw.random(400) < 0.3, draw.random(400))
    assert found["low"] < 0.5 < found["high"] and found["high"] - found["low"] < 0.2
    assert all(row["share_low"] < 0.3 < row["share_high"] for row in found["bins"])


def test_scores_that_are_probabilities_lie_on_the_diagonal() -> None:
    draw = np.random.default_rng(2)
    scores = draw.random(2000)
    rows = reliability(draw.random(2000) < scores, scores)
    assert max(abs(row["share"] - row["mean"]) for row in rows) < 0.06
    wrong = reliability(draw.random(2000) < scores**3, scores)
    assert max(abs(row["share"] - row["mean"]) for row in wrong) > 0.2, "negative control"


@pytest.mark.parametrize(
    ("accepted", "scores", "reason"),
    [
        ([True] * 9, list(range(9)), "people accepted all of the 9"),
        ([False] * 9, list(range(9)), "people accepted none of the 9"),
        ([True, False] * 9, [0.5] * 18, "all 18 have the same score"),
        ([], [], "people accepted none of the 0"),
    ],
)
def test_undefined_where_it_is(accepted: list[bool], scores: list[float], reason: str) -> None:
    found = judge_metric(np.array(accepted, dtype=np.bool_), np.array(scores, dtype=np.float64))
    assert (found["auroc"], found["low"], found["high"], found["reason"]) == (None, None, None, reason)


def test_a_few_have_a_value_and_no_interval() -> None:
    found = judge_metric(np.arange(30) >= 23, np.arange(30.0))
    assert (found["auroc"], found["low"]) == (1.0, None), "7 accepted"
    assert judge_metric(np.arange(30) >= 22, np.arange(30.0))["low"] == 1.0, "8"


@settings(max_examples=80, deadline=None, database=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60), st.integers(1, 8))
def test_bins_hold_each_explanation_once_and_equal_scores_together(pairs: list[tuple[bool, int]], bins: int) -> None:
    accepted = np.array([a for a, _ in pairs], dtype=np.bool_)
    scores = np.array([s for _, s in pairs], dtype=np.float64)
    rows = reliability(accepted, scores, bins)
    assert sum(row["n"] for row in rows) == len(pairs) and sum(row["accepted"] for row in rows) == accepted.sum()
    assert len(rows) <= bins and (len(rows) <= 1 or len(pairs) >= FULL * len(rows))
    for row, after in zip(rows, rows[1:], strict=False):
        assert row["low"] <= row["high"] < after["low"]
    for row in rows:
        inside = (scores >= row["low"]) & (scores <= row["high"])
        assert (inside.sum(), accepted[inside].sum()) == (row["n"], row["accepted"])
        assert row["share_low"] <= row["share"] <= row["share_high"]


def test_bins_are_about_equal() -> None:
    sizes = [row["n"] for row in reliability(np.arange(103) % 2 == 0, np.arange(103.0))]
    assert len(sizes) == BINS and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("votes", "right"),
    [(["right"], True), (["not right"], False), (["right", "not right"], None), (2 * ["right"] + ["not right"], True)],
)
def test_the_majority_decides(votes: list[str], right: bool | None) -> None:
    assert majority(votes) is right


def said(item: int, who: str, verdict: str, **more: Any) -> Review:
    return Review(hypothesis=f"h{item}", reviewer=who, verdict=verdict, client="c", unit="u", sign=1, **more)


def score(item: int, value: float | None, **more: Any) -> Score:
    facts: dict[str, Any] = {"metric": "f1", "side": "score"} | more
    return Score(hypothesis=f"h{item}", value=value, **facts)


def test_of_all_that_was_said_the_newest_score_by_rule_and_the_majority_count(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "findings.duckdb")
    rows: list[Any] = []
    for n in range(20):
        rows += [said(n, "ann", "accept" if n >= 10 else "edit", reasons=["audit"] if n % 2 else [])]
        rows += [score(n, 0.5), score(n, n / 20, created_at="2099-01-01T00:00:00.000000")]
        rows += [score(n, 1 - n / 20, judge="j"), score(n, 0.1, side="tune"), score(n, n / 40, metric="auprc")]
    rows += [said(0, "bo", "unsure"), said(1, "bo", "accept", reasons=["audit"])]
    rows += [said(2, "bo", "skip"), said(3, "bo", "reject")]
    rows += [said(20, "ann", "accept", blind=False), score(20, 0.0), said(21, "ann", "accept"), score(21, None)]
    findings.append(rows)
    found = calibration(findings)
    assert (found["explanations"], found["accepted"], found["ties"], found["not_blind"]) == (20, 11, 1, 1)
    metrics = {row["metric"]: row for row in found["metrics"]}
    assert metrics.keys() == {"f1", "auprc"}
    assert (metrics["f1"]["n"], metrics["f1"]["accepted"], metrics["f1"]["auroc"]) == (19, 10, 1.0)
    audit = calibration(findings, audit=True)
    assert audit["explanations"] == 9 and audit["metrics"][0]["n"] == 9
