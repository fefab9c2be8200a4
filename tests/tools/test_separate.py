"""separate: paired differences of F1 are those of a count by hand, and its texts those on which rules disagree."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lamplighter.store.records import Refused
from lamplighter.tools import stats
from lamplighter.tools.labels import kept_exemplars
from lamplighter.tools.measures import FIRES
from lamplighter.tools.rules import Rule, Tokens, side_text
from lamplighter.tools.separate import MOST, f1_differences, separate
from lamplighter.tools.sweep import Sweep
from lamplighter.tools.try_rule import try_rule
from lamplighter.tools.units import UnitId

UNIT = UnitId("tiny-llama", "0-mlp", 7)


def word(*patterns: str) -> dict[str, Any]:
    return {"clauses": [{"at": {"word": pattern}} for pattern in patterns]}


@pytest.fixture(scope="module")
def sweep(llama: Any, sweep_of: Callable[..., Sweep]) -> Sweep:
    return sweep_of(llama, documents=60, shortest=12, spread=20)


@pytest.fixture(scope="module")
def words(llama: Any, sweep: Sweep) -> list[str]:
    """Words on which the unit fires, the commonest first, then one on which it does not."""
    firing = [e.place for band in ("high", "mid") for e in sweep.exemplars(UNIT, "explain", band)]
    text = side_text(llama, sweep, "explain")
    found: dict[str, int] = {}
    for place in firing:
        window, position = sweep.window(place)
        tokens = Tokens.of(llama, window)
        name = tokens.words[tokens.word[position]]
        found[name] = found.get(name, 0) + tokens.last[position]
    assert len(found) >= 2 and len(text.document)
    return sorted(found, key=lambda name: -found[name])


def f1_by_hand(llama: Any, sweep: Sweep, rule: Rule, side: str) -> float:
    """2 TP / (M + N): window by window, N and TP from the kept firings and how many each stands for."""
    text, sample = side_text(llama, sweep, side), kept_exemplars(llama, sweep, UNIT, side)
    marks = np.zeros(len(text.document), dtype=bool)
    for a, b in pairwise(text.text.starts.tolist()):
        marks[a:b] = rule.predict(Tokens.of(llama, text.text.ids[a:b].tolist())) > 0
    fires = sample.values >= FIRES
    hits = float((sample.weights[fires] * marks[sample.rows[fires]]).sum())
    return 2 * min(hits, marks.sum()) / (marks.sum() + sample.weights[fires].sum())


@pytest.mark.parametrize("side", ["explain", "tune"])
def test_f1_and_its_difference_are_those_of_a_count(llama: Any, sweep: Sweep, words: list[str], side: str) -> None:
    rules = [word(*words[:2]), word(words[0]), word("zebra")]
    found = separate(llama, sweep, UNIT, rules=rules, side=side)
    by_hand = [f1_by_hand(llama, sweep, Rule.from_json(rule), side) for rule in rules]
    assert found.checks["f1"] == pytest.approx(by_hand) and by_hand[2] == 0
    assert [(p["first"], p["second"]) for p in found.checks["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    for pair in found.checks["pairs"]:
        assert pair["difference"] == pytest.approx(by_hand[pair["first"]] - by_hand[pair["second"]])
        assert pair["low"] is None or pair["low"] <= pair["difference"] <= pair["high"]
    beside = try_rule(llama, sweep, UNIT, rule=rules[0], side=side, against=rules[1:]).checks["against"]
    assert beside == [{k: p[k] for k in ("difference", "low", "high")} for p in found.checks["pairs"][:2]]


def test_every_row_is_a_place_where_the_rules_disagree_as_the_model_reads_it(
    llama: Any, sweep: Sweep, words: list[str]
) -> None:
    rules = [word(words[0]), word(words[1], "the")]
    found = separate(llama, sweep, UNIT, rules=rules, reads=9)
    assert 0 < len(found.rows) <= 9 and {tuple(row["says"]) for row in found.rows} == {(True, False), (False, True)}
    peak = sweep.statistics(UNIT).peak
    for row in found.rows:
        says = [bool(Rule.from_json(rule).predict(Tokens.of(llama, row["ids"]))[-1] > 0) for rule in rules]
        y = float(llama.activations(row["ids"], [UNIT])[0, -1, 0])
        assert row["says"] == says and row["activation"] == pytest.approx(y, rel=1e-5)
        assert row["fires"] == (y / peak >= FIRES) and row["ratio"] == pytest.approx(y / peak, rel=1e-5)
    assert found.checks["right"] == [sum(row["says"][k] == row["fires"] for row in found.rows) for k in range(2)]


def test_rules_that_say_the_same_differ_nowhere(llama: Any, sweep: Sweep, words: list[str]) -> None:
    found = separate(llama, sweep, UNIT, rules=[word(words[0]), word(words[0], "zebra")])
    (pair,) = found.checks["pairs"]
    assert (found.rows, found.checks["differ"], pair["difference"]) == ([], 0, 0.0)
    assert pair["low"] in (None, 0.0)
    assert found.warnings == ["the rules predict the same on every text of the explain side."]


def test_the_difference_is_paired(llama: Any, sweep: Sweep, words: list[str]) -> None:
    """The naive interval, of two independent bootstraps, is wider: clusters that are hard for one are for both."""
    sample = kept_exemplars(llama, sweep, UNIT, "explain")
    rules = [Rule.from_json(rule) for rule in (word(*words[:3]), word(*words[:2]))]
    said = np.stack([rule.predict_flat(sample.text.text) > 0 for rule in rules])
    _, (pair,) = f1_differences(sweep, sample, said, [(0, 1)])

    from lamplighter.tools.separate import _f1, _tally

    tally, positive = _tally(sweep, sample, said)
    apart = _f1(stats.resampled(tally, 0))[:, 0] - _f1(stats.resampled(tally, 1))[:, 1]
    low, high = stats.interval(apart, positive)
    assert pair["high"] - pair["low"] < 0.8 * (high - low)


@pytest.mark.parametrize("side", ["score", ""])
def test_the_score_side_is_not_shown(llama: Any, sweep: Sweep, side: str) -> None:
    with pytest.raises(Refused, match=f"side {side!r} cannot be shown"):
        separate(llama, sweep, UNIT, rules=[word("a"), word("b")], side=side)


@pytest.mark.parametrize("rules", [[], [word("a")], [word("a")] * (MOST + 1)], ids=len)
def test_it_takes_two_rules_to_differ(llama: Any, sweep: Sweep, rules: list[Any]) -> None:
    with pytest.raises(Refused, match=f"{len(rules)} rules cannot be told apart here; give 2 to {MOST}"):
        separate(llama, sweep, UNIT, rules=rules)
    with pytest.raises(Refused, match="reads nothing"):
        separate(llama, sweep, UNIT, rules=[word("a"), word("b")], reads=0)
