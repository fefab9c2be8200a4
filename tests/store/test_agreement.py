"""Agreement against figures computed by hand and published, and against plain formulas on random incomplete designs."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store import agreement as module
from lamplighter.store.agreement import Agreement, agreement, alpha, kappa
from lamplighter.store.findings import Findings
from lamplighter.store.records import Review
from lamplighter.tools import stats

Ratings = dict[str, dict[str, str]]


def table(*rows: str) -> Ratings:
    """One row of labels a person, a point where there is none."""
    split = [row.split() for row in rows]
    found: Ratings = {}
    for item in range(len(split[0])):
        found[f"i{item:02}"] = {f"p{n}": row[item] for n, row in enumerate(split) if row[item] != "."}
    return found


# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), sections A (two observers, ten units, binary: .095),
# B (five labels, twelve units: .692) and C (four observers, incomplete: .743).
BINARY = table("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")
TWO = table("a a b b d c c c e d d a", "b a b b b c c c e d d d")
FOUR = table(
    "1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .",
)  # fmt: skip
# The example of the encyclopaedia's article: three coders, fifteen units, .691.
THREE = table(
    ". . . . . 3 4 1 2 1 1 3 3 . 3", "1 . 2 1 3 3 4 3 . . . . . . .", ". . 2 1 3 4 4 . 2 1 1 3 3 . 4",
)  # fmt: skip


@pytest.mark.parametrize(
    ("ratings", "value", "n", "count"),
    [(BINARY, 0.095, 10, 20), (TWO, 0.692, 12, 24), (FOUR, 0.743, 11, 40), (THREE, 0.691, 12, 26)],
)
def test_alpha_is_the_published_one(ratings: Ratings, value: float, n: int, count: int) -> None:
    found = alpha(ratings)
    assert found.value == pytest.approx(value, abs=0.0005)
    assert (found.n, found.ratings) == (n, count), "an item that one person rated counts for nothing"
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def plain_alpha(ratings: Ratings) -> float:
    """Disagreeing pairs within items over disagreeing pairs of all labels that can be paired."""
    items = [list(by.values()) for by in ratings.values() if len(by) > 1]
    every = [label for item in items for label in item]
    within = sum(sum(a != b for a, b in permutations(item, 2)) / (len(item) - 1) for item in items) / len(every)
    between = sum(a != b for a, b in permutations(every, 2)) / (len(every) * (len(every) - 1))
    return 1 - within / between


def plain_kappa(pairs: list[tuple[str, str]]) -> float:
    n = len(pairs)
    same = sum(a == b for a, b in pairs) / n
    labels = {label for pair in pairs for label in pair}
    chance = sum(sum(a == k for a, _ in pairs) * sum(b == k for _, b in pairs) for k in labels) / n**2
    return (same - chance) / (1 - chance)


DESIGNS = st.lists(
    st.dictionaries(st.sampled_from(["ann", "bo", "cy"]), st.sampled_from("xyz"), max_size=3), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None, database=None)
@given(DESIGNS)
def test_alpha_and_its_bootstrap_are_the_plain_formula_whoever_rated_what(design: list[dict[str, str]]) -> None:
    ratings = {f"i{n}": by for n, by in enumerate(design)}
    found, both = alpha(ratings), module.shared(ratings)
    labels = sorted({label for by in both.values() for label in by.values()})
    if len(labels) < 2:
        assert found.value is None and found.reason is not None
        return
    assert found.value == pytest.approx(plain_alpha(ratings))
    totals = sum(module.coincidences(list(by.values()), labels) for by in both.values())
    assert module.alpha_of(np.array([totals]))[0] == pytest.approx(found.value)


@settings(max_examples=60, deadline=None, database=None)
@given(DESIGNS)
def test_kappa_is_the_plain_formula_over_what_both_rated(design: list[dict[str, str]]) -> None:
    ratings = {f"i{n}": by for n, by in enumerate(design)}
    found = kappa(ratings, "ann", "bo")
    pairs = [(by["ann"], by["bo"]) for by in design if {"ann", "bo"} <= by.keys()]
    assert found.n == len(pairs)
    if len({label for pair in pairs for label in pair}) < 2:
        assert found.value is None
        return
    assert found.value == pytest.approx(plain_kappa(pairs))
    assert kappa(ratings, "bo", "ann").value == pytest.approx(found.value)


def test_kappa_by_hand() -> None:
    """20 + 15 of 50 alike; 25 and 30 said yes: (.7 − .5) / (1 − .5)."""
    cells = {"yes yes": 20, "yes no": 5, "no yes": 10, "no no": 15}
    pairs = [cell.split() for cell, count in cells.items() for _ in range(count)]
    found = kappa({f"i{n}": {"a": a, "b": b} for n, (a, b) in enumerate(pairs)}, "a", "b")
    assert found.value == pytest.approx(0.4) and (found.n, found.ratings) == (50, 100)
    assert found.low is not None and found.high is not None and 0.1 < found.low < 0.4 < found.high < 0.7


def test_nltk_itself_breaks_where_somebody_skipped_an_item() -> None:
    """Why each pair is a task of its own."""
    from nltk.metrics.agreement import AnnotationTask

    task = AnnotationTask([("a", "1", "x"), ("b", "1", "x"), ("a", "2", "y"), ("b", "2", "x"), ("a", "3", "y")])
    with pytest.raises((RuntimeError, StopIteration)):
        task.kappa()
    ratings = {"1": {"a": "x", "b": "x"}, "2": {"a": "y", "b": "x"}, "3": {"a": "y"}}
    assert kappa(ratings, "a", "b").value == 0.0


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ({}, "no explanation was reviewed by"),
        ({"i": {"a": "accept"}}, "no explanation was reviewed by"),
        ({str(n): {"a": "accept", "b": "accept"} for n in range(20)}, "only 'accept' was ever said"),
    ],
)
def test_undefined_where_it_is(ratings: Ratings, reason: str) -> None:
    for found in (alpha(ratings), kappa(ratings, "a", "b")):
        assert (found.value, found.low, found.high) == (None, None, None)
        assert found.reason is not None and found.reason.startswith(reason)


def test_one_label_would_be_perfect_agreement_by_nltk() -> None:
    """The negative control of what is called undefined here."""
    from nltk.metrics.agreement import AnnotationTask

    assert AnnotationTask([(who, str(n), "accept") for n in range(20) for who in "ab"]).alpha() == 1


def test_few_explanations_have_a_value_and_no_interval() -> None:
    few = {str(n): {"a": "xy"[n % 2], "b": "xy"[n % 2]} for n in range(7)}
    assert alpha(few) == Agreement(1.0, None, None, 7, 14)
    more = few | {"7": {"a": "x", "b": "x"}}
    assert alpha(more).low == 1.0


def test_labels_dealt_at_random_agree_by_chance_alone() -> None:
    draw = np.random.default_rng(0)
    ratings = {str(n): {who: "xyz"[draw.integers(3)] for who in "abc"} for n in range(300)}
    found = alpha(ratings)
    assert found.low is not None and found.high is not None and found.low < 0 < found.high
    shown = {item: by | {"b": by["a"]} for item, by in ratings.items()}
    better = alpha(shown)
    assert better.low is not None and better.low > found.high, "two of three agreeing is told from that"


# What people said


def said(item: int, who: str, verdict: str, *tags: str, **more: Any) -> Review:
    return Review(
        hypothesis=f"h{item:02}", reviewer=who, verdict=verdict, tags=list(tags), client="c", unit="u", sign=1, **more
    )


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(tmp_path / "findings.duckdb")


def test_agreement_over_all_that_was_said_blind(findings: Findings) -> None:
    ann = ["accept", "accept", "reject", "edit", "unsure", "accept", "reject", "accept", "reject", "accept"]
    bo = ["accept", "reject", "reject", "reject", "accept", "accept", "reject", "accept", "edit", "accept"]
    rows = [said(n, "ann", v, *(["vague"] if v != "accept" else [])) for n, v in enumerate(ann)]
    rows += [said(n, "bo", v, *(["vague"] if n % 2 else [])) for n, v in enumerate(bo)]
    wrong = said(10, "ann", "accept")
    rows += [said(10, "bo", "skip"), wrong, said(11, "ann", "reject", blind=False), said(11, "bo", "reject")]
    rows += [said(12, "cy", "accept"), Review(
        hypothesis="h10", reviewer="ann", verdict="undo", undoes=wrong.id, client="c"
    )]  # fmt: skip
    findings.append(rows)
    found = agreement(findings)
    assert (found["reviews"], found["not_blind"], found["explanations"], found["shared"]) == (22, 1, 12, 10)
    assert found["reviewers"] == ["ann", "bo", "cy"]
    ratings = {f"h{n:02}": {"ann": a, "bo": b} for n, (a, b) in enumerate(zip(ann, bo, strict=True))}
    assert found["verdicts"]["value"] == pytest.approx(plain_alpha(ratings))
    fold = {"accept": "yes", "reject": "no", "edit": "no"}
    folded = {i: {w: fold[v] for w, v in by.items() if v in fold} for i, by in ratings.items()}
    assert found["right"]["value"] == pytest.approx(plain_alpha(folded)) and found["right"]["n"] == 9
    (vague,) = found["tags"]
    tagged = {f"h{n:02}": {"ann": str(ann[n] != "accept"), "bo": str(n % 2 == 1)} for n in range(10)}
    assert (vague["tag"], vague["n"]) == ("vague", 10) and vague["value"] == pytest.approx(plain_alpha(tagged))
    pairs = {(p["a"], p["b"]): p for p in found["pairs"]}
    assert pairs["ann", "bo"]["same"] == 6 and pairs["ann", "bo"]["n"] == 10
    assert pairs["ann", "bo"]["value"] == pytest.approx(plain_kappa(list(zip(ann, bo, strict=True))))
    assert pairs["bo", "cy"]["reason"] == "no explanation was reviewed by bo and cy"


def test_the_random_share_by_itself(findings: Findings) -> None:
    for n in range(6):
        why = ["unclear", "audit"] if n < 2 else ["unclear"]
        findings.append([said(n, who, "accept" if n else "reject", reasons=why) for who in ("ann", "bo")])
    assert agreement(findings)["shared"] == 6
    found = agreement(findings, audit=True)
    assert (found["audit"], found["shared"], found["verdicts"]["value"]) == (True, 2, 1.0)


def test_the_bootstrap_draws_explanations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of one explanation stay together: a draw of them one by one would make intervals too narrow."""
    seen = []
    real = stats.resampled
    monkeypatch.setattr(module.stats, "resampled", lambda totals, seed: seen.append(len(totals)) or real(totals, seed))
    alpha(FOUR)
    assert seen == [11]
