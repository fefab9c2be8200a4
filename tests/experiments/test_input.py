"""The parts of bench_input, on the answer key: the oracle, the published loop, and what counts as confirmed."""

from pathlib import Path
from typing import Any

import pytest

from lamplighter.experiments import input_planted, input_real
from lamplighter.experiments.input_planted import is_smallest, playbook_rule
from lamplighter.experiments.input_real import _confirmed, _Label
from lamplighter.experiments.language import language
from lamplighter.experiments.plant import SITE, PlantedUnit, plant
from lamplighter.experiments.published import BEHIND, published_loop
from lamplighter.experiments.report import at_least
from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.prune import minimal_example
from lamplighter.tools.rules import Rule
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import make_sweep
from lamplighter.tools.units import UnitId


class Masked:
    """Stands for a masked LM: proposes the same words everywhere."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def choose_mode(self, subject: Any) -> dict[str, Any]:
        return {"mode": "masked"}

    def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
        return [w for w in self.words if w != text[slice(*span)]][:n]


A, B, C, D = language().words[:4]
FILL = language().common


def unit_of(index: int) -> UnitId:
    return UnitId("own", SITE, index)


@pytest.fixture(scope="module")
def own() -> Subject:
    """0 fires on A or D, 2 on A right after B."""
    rules = (
        {"clauses": [{"at": {"ids": [A, D]}}]},
        {"clauses": [{"at": {"ids": [A]}, "need": [{"match": {"ids": [B]}, "within": [1, 1], "unit": "tokens"}]}]},
    )
    units = [PlantedUnit(unit_of(2 * n), "own", Rule.from_json(rule)) for n, rule in enumerate(rules)]
    return Subject.wrap(plant("gpt2", units), language().tokenizer, "own")


def text(subject: Subject, *tokens: int) -> list[int]:
    return [subject.sink, *tokens]


def word(token: int) -> str:
    return language().spelled[token].strip()


def test_a_minimal_example_that_could_be_smaller_is_found_out(own: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text(own, *FILL[:4], B, A)
    assert is_smallest(own, unit_of(2), ids) and is_smallest(own, unit_of(0), ids)

    def lazy(*args: Any, **options: Any) -> Any:
        found = minimal_example(*args, **options)
        found.rows[0]["kept"] = [4, 5, 6]
        return found

    monkeypatch.setattr(input_planted, "minimal_example", lazy)
    assert not is_smallest(own, unit_of(2), ids) and not is_smallest(own, unit_of(0), ids)


def test_the_loop_keeps_six_tokens_where_one_is_enough(own: Subject) -> None:
    ids = text(own, *FILL[:20], A, *FILL[20:30])
    loop = published_loop(own, Masked(word(D), word(C)), unit_of(0), ids, 21)  # type: ignore[arg-type]
    assert loop.passed and loop.tokens == 6 and loop.ids[loop.pivot] == A
    assert len(loop.ids) == 1 + 6 + BEHIND
    assert set(loop.important) == {loop.pivot}
    assert (loop.accepted, loop.rejected) == (((word(A), word(D)),), ((word(A), word(C)),))
    assert minimal_example(own, unit_of(0), ids=ids).rows[0]["kept"] == [21]


def test_the_loop_says_when_no_suffix_passes(own: Subject) -> None:
    far = {"clauses": [{"at": {"ids": [A]}, "need": [{"match": {"ids": [B]}, "within": [1, 63], "unit": "tokens"}]}]}
    subject = Subject.wrap(
        plant("gpt2", [PlantedUnit(unit_of(0), "own", Rule.from_json(far))]), language().tokenizer, "own"
    )
    ids = text(subject, B, *FILL[:40], A)
    loop = published_loop(subject, Masked(word(C)), unit_of(0), ids, len(ids) - 1)  # type: ignore[arg-type]
    assert not loop.passed
    assert minimal_example(subject, unit_of(0), ids=ids).rows[0]["kept"] == [1, len(ids) - 1]


def test_the_loop_counts_every_padded_token_that_it_runs(own: Subject) -> None:
    ids = text(own, *FILL[:20], A)
    loop = published_loop(own, Masked(), unit_of(0), ids, 21)  # type: ignore[arg-type]
    peak, suffixes, importance = 22, 4 * 22, 7 * 7
    assert loop.cost == peak + suffixes + importance


def test_a_label_is_confirmed_by_two_other_exemplars(own: Subject) -> None:
    exemplars = [(text(own, *FILL[n : n + 5], A), 6) for n in range(3)]
    labels = {word(D): _Label(True, 0), word(C): _Label(False, 1)}
    assert _confirmed(own, unit_of(0), exemplars, labels) == 2
    wrong = {word(D): _Label(False, 0), word(C): _Label(True, 1)}
    assert _confirmed(own, unit_of(0), exemplars, wrong) == 0
    assert _confirmed(own, unit_of(0), exemplars[:2], labels) == 0, "one other exemplar is not enough"


def test_the_playbook_finds_a_planted_pair(tmp_path: Path) -> None:
    from lamplighter.experiments.planted import make_key

    key = make_key(0, "gpt2", 5)
    sweep = make_sweep(key.subject, load_corpus(str(key.write(tmp_path, tokens=60_000).parent)), [SITE], tmp_path)
    masked: Any = Masked(*(word(t) for t in FILL[:5]))
    (pair,) = [unit for unit in key.units if unit.family == "pair"]
    assert key.recovered(playbook_rule(key.subject, sweep, masked, pair.id), pair) >= 0.99


def test_units_are_drawn_by_the_seed_evenly_over_the_sites(own: Subject, tmp_path: Path) -> None:
    from lamplighter.experiments.planted import make_key

    key = make_key(1, "gpt2", 3)
    corpus = load_corpus(str(key.write(tmp_path, tokens=60_000).parent))
    sweep = make_sweep(key.subject, corpus, ["1-mlp", SITE], tmp_path)
    first, again, other = (input_real.draw_units(sweep, 7, seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 7
    assert sorted([sum(u.site == s for u in first) for s in sweep.sites]) == [3, 4]
    assert at_least("n", float(len(first)), 7, 7).holds
