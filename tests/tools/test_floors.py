"""Floors by the identity against floors by counting, and tables against tables made by hand."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.records import Refused
from lamplighter.tools import floors
from lamplighter.tools.labels import Labelled, ScoreSide, Truth
from lamplighter.tools.rules import Rule, side_text
from lamplighter.tools.units import UnitId

STEP = 63
RULE = Rule.from_json({"clauses": [{"at": {"ids": [5]}}]})


class Words:
    """Documents of token numbers, all on one side, cut into windows; as much of a subject and a sweep as is needed."""

    sink = 0

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self.rows = [list(ids) for ids in documents]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [f" w{i}" for i in ids]

    def windows(self, side: str) -> Iterator[tuple[int, int, list[int]]]:
        for number, ids in enumerate(self.rows):
            for first in range(0, len(ids), STEP):
                yield number, first, [self.sink, *ids[first : first + STEP]]


def f1_of(predicted: np.ndarray, fires: np.ndarray) -> float:
    return 2 * float((predicted & fires).sum()) / float(predicted.sum() + fires.sum())


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_f1_from_recall_and_counts_is_f1_by_counting(rows: list[tuple[bool, bool]]) -> None:
    predicted, fires = (np.array(column) for column in zip(*rows, strict=True))
    if fires.any():
        recall = predicted[fires].mean()
        found = floors.hit_f1(recall * fires.sum(), fires.sum(), predicted.sum())
        assert found == pytest.approx(f1_of(predicted, fires))
        assert floors.always_on(fires.mean()) == pytest.approx(f1_of(np.ones_like(fires), fires))


def test_an_estimate_of_more_hits_than_predictions_is_cut_off() -> None:
    assert floors.hit_f1(9.0, 10, 3) == pytest.approx(6 / 13) and floors.hit_f1(0, 10, 0) == 0


def test_in_documents_of_two_places_a_shift_is_a_swap() -> None:
    generator = np.random.default_rng(0)
    document = np.repeat(np.arange(200), 2)
    fires, predicted = generator.random(400) < 0.3, generator.random(400) < 0.4
    swapped = fires.reshape(-1, 2)[:, ::-1].ravel()
    met = floors.shift_floor(document, predicted, np.flatnonzero(fires), seed=0)
    expected = f1_of(predicted, swapped)
    assert floors.hit_f1(met.sum(), fires.sum(), predicted.sum()) == pytest.approx(expected)


def test_shifted_recall_gives_the_f1_of_rolled_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many shifts the mean is that of np.roll by every distance, document by document."""
    monkeypatch.setattr(floors, "SHIFTS", 6000)
    generator = np.random.default_rng(1)
    lengths = (1, 5, 8, 13)
    document = np.repeat(np.arange(4) * 3, lengths)
    fires, predicted = generator.random(27) < 0.4, generator.random(27) < 0.4
    met = floors.shift_floor(document, predicted, np.flatnonzero(fires), seed=0)
    expected = 0.0
    for number, length in zip(np.unique(document), lengths, strict=True):
        y, p = fires[document == number], predicted[document == number]
        rolled = [np.roll(y, s) for s in range(1, length)] or [y]
        expected += float(np.mean([(r & p).sum() for r in rolled]))
    assert met.sum() == pytest.approx(expected, rel=0.03)


def test_a_shift_breaks_the_tie_to_the_text_and_stays_in_the_document() -> None:
    document = np.repeat([0, 1], 500)
    fires = np.zeros(1000, dtype=bool)
    fires[np.random.default_rng(0).choice(500, 20, replace=False)] = True
    assert f1_of(fires, fires) == 1
    met = floors.shift_floor(document, fires, np.flatnonzero(fires), seed=0)
    assert met.mean() < 0.1
    assert floors.shift_floor(document, document == 0, np.flatnonzero(fires), seed=0).min() == 1
    assert floors.shift_floor(document, document == 1, np.flatnonzero(fires), seed=0).max() == 0


class Exemplars:
    """A sweep of which only the question is asked whether a unit has exemplars."""

    def __init__(self, without: Sequence[int] = ()) -> None:
        self.without = set(without)

    def exemplars(self, unit: UnitId, side: str, band: str) -> list[int]:
        assert (side, band) == ("explain", "top")
        return [] if unit.index in self.without else [1]


def sweep(without: Sequence[int] = ()) -> Any:
    return Exemplars(without)


def by_hand(subject: Any, unit: UnitId) -> list[tuple[int, int]]:
    """(index, sign) of every side of the other units, by cosine with the unit's side."""
    own = subject.write_direction(unit)
    cosine = {}
    for index in range(subject.count(unit.site)):
        for sign in (1, -1):
            other = subject.write_direction(UnitId(unit.model, unit.site, index, sign))
            cosine[index, sign] = float(own @ other / own.norm() / other.norm())
    return sorted((key for key in cosine if key[0] != unit.index), key=lambda key: -cosine[key])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_nearest_units_write_alike_and_units_without_a_rule_are_replaced(llama: Any, sign: int) -> None:
    unit = UnitId("tiny-llama", "1-mlp", 4, sign)
    order = by_hand(llama, unit)
    found = floors.floor_rules(llama, sweep(), unit, lambda other: RULE)
    names = [str(UnitId(unit.model, unit.site, *key)) for key in order]
    assert list(found.nearest_units) == names[:5] and found.skipped == {"nearest": 0, "random": 0}
    assert len(set(found.random_units) - set(found.nearest_units)) == 5 and len(found.rules) == 10
    assert not {str(unit), unit.bare, unit.bare + "-"} & {*found.nearest_units, *found.random_units}
    assert str(floors.nearest_unit(llama, sweep(), unit, lambda other: RULE)) == names[0]
    asked: list[UnitId] = []

    def make(other: UnitId) -> Rule | None:
        asked.append(other)
        return None if other.index == order[1][0] else RULE

    less = floors.floor_rules(llama, sweep([order[0][0]]), unit, make)
    left = [name for name, key in zip(names, order, strict=True) if key[0] not in (order[0][0], order[1][0])]
    assert list(less.nearest_units) == left[:5] and less.skipped["nearest"] == names.index(left[4]) - 4
    assert order[0][0] not in {other.index for other in asked}
    assert less.counts()["nearest"] == left[:5]


def test_the_search_for_floor_rules_ends(llama: Any) -> None:
    unit = UnitId("tiny-llama", "0-mlp", 0)
    found = floors.floor_rules(llama, sweep(), unit, lambda other: None)
    assert found.rules == {} and found.skipped == {"nearest": floors.TRIES, "random": floors.TRIES}
    assert floors.nearest_unit(llama, sweep(), unit, lambda other: None) is None
    with pytest.raises(Refused):
        floors.floor_rules(llama, sweep(), UnitId("tiny-llama", "0-attn", 0), lambda other: RULE)


def test_dimensions_of_the_stream_are_near_where_they_move_the_same_logits(tiny: Any) -> None:
    unit = UnitId(tiny.name, "0-resid", 5, -1)
    head = tiny.model.get_output_embeddings().weight.T
    cosine = {
        (i, sign): -sign * float(head[i] @ head[5] / head[i].norm() / head[5].norm())
        for i in range(len(head)) if i != 5 for sign in (1, -1)
    }  # fmt: skip
    best = sorted(cosine, key=lambda key: -cosine[key])[:5]
    found = floors.floor_rules(tiny, sweep(), unit, lambda other: RULE)
    assert list(found.nearest_units) == [str(UnitId(tiny.name, "0-resid", *key)) for key in best]
    assert len(found.random_units) == 5


def test_random_units_depend_on_the_seed_and_are_shared_by_a_site(llama: Any) -> None:
    def drawn(index: int, seed: int) -> floors.Floors:
        return floors.floor_rules(llama, sweep(), UnitId("tiny-llama", "0-mlp", index), lambda other: RULE, seed)

    assert drawn(7, 0) == drawn(7, 0) and drawn(7, 0).random_units != drawn(7, 1).random_units
    assert drawn(7, 0).nearest_units == drawn(7, 1).nearest_units
    signs = set()
    for seed in range(12):
        found = drawn(7, seed)
        assert not set(found.random_units) & set(found.nearest_units) and len(set(found.random_units)) == 5
        assert not any(UnitId.parse(name).index == 7 for name in found.random_units)
        signs |= {UnitId.parse(name).sign for name in found.random_units}
    assert signs == {1, -1}
    # Over all units of the site few rules have to be made besides those of the neighbours.
    others = {name for index in range(12) for name in drawn(index, 0).random_units}
    assert len(others) < 12


documents = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=90), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(documents, st.integers(1, 4))
def test_keys_are_equal_exactly_for_equal_runs_inside_a_window(rows: list[list[int]], n: int) -> None:
    words = Words(rows)
    text = side_text(words, words, "score")
    keys, whole = floors.ngram_keys(text, n)
    runs: dict[tuple[int, ...], int] = {}
    for start, end in zip(text.text.starts[:-1], text.text.starts[1:], strict=True):
        ids = text.text.ids[start:end].tolist()
        for position in range(len(ids)):
            assert whole[start + position] == (position >= n)
            if position >= n:
                run = tuple(ids[position - n + 1 : position + 1])
                assert runs.setdefault(run, int(keys[start + position])) == keys[start + position]
    assert len(set(runs.values())) == len(runs)


def labelled(words: Words, value: Any) -> Labelled:
    """Every place of a text with its y/P, each standing for itself."""
    text = side_text(words, words, "explain")
    rows = np.flatnonzero(text.text.position > 0)
    return Labelled(text, rows, np.array([value(text.text.ids, row) for row in rows]), np.ones(len(rows)))


def pair(ids: np.ndarray, row: int) -> float:
    return 1.0 if ids[row] == 2 and ids[row - 1] == 1 else 0.0


def corpus(seed: int) -> Words:
    generator = np.random.default_rng(seed)
    return Words([generator.integers(1, 6, size=40).tolist() for _ in range(60)])


def shown(explain: Labelled, tune: Labelled, score: Labelled) -> dict[str, float | None]:
    text, fires = score.text, score.values >= 0.5
    keep = text.text.position > 0
    side = ScoreSide(text, keep, text.document, 60, (), 0)
    truth = Truth(1.0, score.rows[fires], score.values[fires], True, int(fires.sum()), (0, 0, 0, 0, 0), 60)
    return floors.references(explain, tune, side, truth, int((tune.values >= 0.5).sum()))


def tables_of(explain: Labelled) -> list[floors._Table]:
    tables: list[floors._Table] = []
    for n in range(1, 5):
        tables.append(floors._Table(explain, n, tables[-1] if tables else None))
    return tables


def test_with_every_place_labelled_the_tables_are_the_usual_ones() -> None:
    explain, tune, score = (labelled(corpus(seed), pair) for seed in (0, 1, 2))
    table = floors._Table(explain, 1, None)
    counts = Counter(explain.text.text.ids[explain.rows].tolist())
    slot, known = table.find(explain.text)
    for row, value in zip(explain.rows, floors._lookup([table], explain.text)[explain.rows], strict=True):
        token = int(explain.text.text.ids[row])
        mean = explain.values[explain.text.text.ids[explain.rows] == token].mean()
        assert known[row] and table.count[slot[row]] == counts[token]
        assert value == pytest.approx(counts[token] * mean / (counts[token] + 5))
    found = shown(explain, tune, score)
    fires = score.values >= 0.5
    token = score.text.text.ids[score.rows] == 2
    assert found["token_lookup"] == pytest.approx(f1_of(token, fires))
    assert found["back_off_ngram"] == pytest.approx(1.0)


def test_the_back_off_trusts_the_longest_run_that_was_seen_twice() -> None:
    explain = labelled(Words([[1, 2], [1, 2], [3, 2], [4, 2, 5]]), pair)
    tables = tables_of(explain)
    words = Words([[1, 2], [3, 2], [9, 2], [4, 2, 5, 9]])
    text = side_text(words, words, "score")
    values = floors._back_off(tables, text)[text.text.position > 0]
    half = 2 / 4
    assert values.tolist() == pytest.approx([0.0, 1.0, 0.0, half, 0.0, half, 0.0, half, 0.0, 0.0])


def test_exemplars_with_weights_give_nearly_the_table_of_all_labels() -> None:
    """A third of the firings kept, each standing for three, and a few random places for the rest."""
    whole = labelled(corpus(0), pair)
    fires, quiet = np.flatnonzero(whole.values >= 0.5), np.flatnonzero(whole.values < 0.1)
    kept = fires[::3]
    chosen = np.concatenate([kept, quiet[:20]])
    weights = np.concatenate([np.full(len(kept), len(fires) / len(kept)), np.full(20, len(quiet) / 20)])
    part = Labelled(whole.text, whole.rows[chosen], whole.values[chosen], weights)
    few, all_of_them = tables_of(part), tables_of(whole)
    assert few[0].mean == pytest.approx(all_of_them[0].mean, abs=0.01)
    # Every table gives the unit as much activation in all as the text does.
    for table, exact in zip(few, all_of_them, strict=True):
        assert (table.mean * table.count).sum() == pytest.approx((exact.mean * exact.count).sum(), rel=0.1)
    score, tune = labelled(corpus(2), pair), labelled(corpus(1), pair)
    found, best = shown(part, tune, score), shown(whole, tune, score)
    assert found["token_lookup"] == pytest.approx(best["token_lookup"]) and best["back_off_ngram"] == pytest.approx(1)
    assert (found["token_lookup"] or 0) + 0.05 < (found["back_off_ngram"] or 0) <= 1
    # Counting the kept exemplars as if they were all there is misses what they stand for.
    naive = Labelled(whole.text, whole.rows[chosen], whole.values[chosen], np.ones(len(chosen)))
    assert tables_of(naive)[0].mean.max() < few[0].mean.max() / 2


def test_without_a_firing_on_tune_there_is_no_threshold() -> None:
    explain, score = labelled(corpus(0), pair), labelled(corpus(2), pair)
    silent = labelled(corpus(1), lambda ids, row: 0.0)
    assert shown(explain, silent, score) == {"token_lookup": None, "back_off_ngram": None}
