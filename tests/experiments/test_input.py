"""The parts of bench_input, on the answer key: the oracle, the published loop, and what counts as confirmed."""

import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.experiments import input_planted, input_real
from lamplighter.experiments.by_planner import playbook_rule
from lamplighter.experiments.input_corrupted import SHARE, spoil
from lamplighter.experiments.input_permuted import permuted_subject
from lamplighter.experiments.input_planted import is_smallest
from lamplighter.experiments.input_real import _confirmed, _Label, _ratios
from lamplighter.experiments.input_rules import Scored, _tables, f1_of
from lamplighter.experiments.input_sides import COPIES, shared_runs
from lamplighter.experiments.input_sweep import _Best, _keep, _own, peaks
from lamplighter.experiments.language import language
from lamplighter.experiments.plant import SITE, PlantedUnit, plant
from lamplighter.experiments.published import BEHIND, _paths, graph_fires, normal, published_loop
from lamplighter.experiments.report import at_least
from lamplighter.tools.collect import Site
from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.labels import ScoreSide, Truth
from lamplighter.tools.prune import minimal_example
from lamplighter.tools.rules import Rule, Text
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import Read, make_sweep
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


def test_a_minimal_example_that_does_not_fire_is_found_out(own: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text(own, *FILL[:4], B, A)

    def bold(*args: Any, **options: Any) -> Any:
        found = minimal_example(*args, **options)
        found.rows[0]["kept"] = [6]
        return found

    monkeypatch.setattr(input_planted, "minimal_example", bold)
    assert not is_smallest(own, unit_of(2), ids) and is_smallest(own, unit_of(0), ids)


def test_the_loop_keeps_six_tokens_where_one_is_enough(own: Subject) -> None:
    ids = text(own, *FILL[:20], A, *FILL[20:30])
    loop = published_loop(own, Masked(word(D), word(C)), unit_of(0), ids, 21)  # type: ignore[arg-type]
    assert loop.passed and loop.tokens == 6 and loop.ids[loop.pivot] == A
    assert len(loop.ids) == 1 + 6 + BEHIND
    assert set(loop.important) == {loop.pivot}
    assert (loop.accepted, loop.rejected) == (((loop.pivot, word(D)),), ((loop.pivot, word(C)),))
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
    assert _confirmed(own, unit_of(0), exemplars, labels) == [word(D), word(C)]
    wrong = {word(D): _Label(False, 0), word(C): _Label(True, 1)}
    assert _confirmed(own, unit_of(0), exemplars, wrong) == []
    assert _confirmed(own, unit_of(0), exemplars[:2], labels) == [], "one other exemplar is not enough"


def test_a_median_unit_and_all_units_are_two_ratios() -> None:
    """Six units spend twice the loop's for six labels against its one, three the same against none, one a lot."""
    units = [[20, 6, 10, 1]] * 6 + [[20, 6, 10, 0]] * 3 + [[400, 6, 10, 1]]
    ways = _ratios(units, 0)
    assert ways["all units"][0] == pytest.approx(580 / 60 / (100 / 7))
    assert ways["median unit"][0] == pytest.approx(1 / 3)
    for value, low, high in ways.values():
        assert value is not None and low is not None and high is not None and low <= value <= high


def test_where_we_get_nothing_our_cost_has_no_upper_end() -> None:
    few, most = ([[20, 6, 10, 1]] * (20 - n) + [[20, 0, 10, 1]] * n for n in (7, 12))
    value, low, high = _ratios(few, 0)["median unit"]
    assert (value, low) == (pytest.approx(1 / 3), pytest.approx(1 / 3)) and high is None
    assert _ratios(most, 0)["median unit"][0] is None


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


def test_a_path_of_the_graph_holds_each_important_token_at_its_distance(own: Subject) -> None:
    """And nothing else: what stands between is ignored, and a path that reaches beyond the window is none."""
    loop = published_loop(own, Masked(), unit_of(2), text(own, *FILL[:6], B, A), 8)
    assert loop.patterns == ((word(A), ((1, word(B)),)),)
    rows = [text(own, B, A), text(own, B, C, A), text(own, A), text(own, D, FILL[0], B, A, A)]
    found = graph_fires([loop, loop], Text.of(own, rows), own.piece)
    assert np.flatnonzero(found).tolist() == [2, 13]
    alone = published_loop(own, Masked(), unit_of(0), text(own, *FILL[:6], A), 7)
    assert alone.patterns == ((word(A), ()),)
    assert np.flatnonzero(graph_fires([alone], Text.of(own, rows), own.piece)).tolist() == [2, 6, 8, 13, 14]


def test_each_firing_token_ends_a_path(own: Subject) -> None:
    """Also one before the pivot; the text it stands in is one exemplar."""
    loop = published_loop(own, Masked(), unit_of(0), text(own, *FILL[:4], D, FILL[4], A), 7)  # type: ignore[arg-type]
    assert loop.patterns == ((word(D), ()), (word(A), ()))


@pytest.mark.parametrize(("piece", "plain"), [
    (" War", "war"), ("War", "war"), ("war", "war"), ("WAR", "WAR"), ("A", "A"), (" I", "i"), ("\n", "\n"),
    (" (", " ("),
])  # fmt: skip
def test_the_graph_compares_tokens_without_a_capital_or_blanks(piece: str, plain: str) -> None:
    assert normal(piece) == plain


def test_accepted_substitutes_are_paths_too(own: Subject) -> None:
    loop = published_loop(own, Masked(word(D), word(C)), unit_of(0), text(own, *FILL[:6], A), 7)
    assert loop.patterns == ((word(A), ()), (word(D), ()))


def test_what_mattered_in_the_text_as_it_was_stays_on_the_path(own: Subject) -> None:
    """A substitute that does not need the context keeps it in the graph, as it is published."""
    weights = np.full((5, 5), -np.inf)
    weights[2, 4] = 0.9
    y, ids = np.array([9.0, 0, 0, 0, 1]), text(own, *FILL[:3], A)
    known, (path,) = _paths(own, ids, 4, weights, y, [])
    assert path == (word(A), ((2, word(FILL[1])),)) and known == [set(), set(), set(), set(), {2}]
    weights[2, 4], longer = 0, text(own, *FILL[:3], C, D)
    wide = np.pad(weights, (0, 1))
    _, (path,) = _paths(own, longer, 5, wide, np.array([9.0, 0, 0, 0, 0, 1]), known)
    assert path == (word(D), ((3, word(FILL[1])),))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lamplighter.experiments.planted import make_key

    folder = tmp_path_factory.mktemp("swept")
    key = make_key(5, "gpt2", 3)
    corpus = load_corpus(str(key.write(folder / "texts", tokens=60_000).parent))
    return key, make_sweep(key.subject, corpus, [SITE], folder)


def test_f1_of_a_prediction_is_that_of_a_count(swept: Any) -> None:
    """The true rule has 1; without half of its places the F1 of a count by hand; nothing has 0."""
    key, sweep = swept
    side = ScoreSide.of(key.subject, sweep, [])
    for unit in key.units[:2]:
        truth = Truth.of(key.subject, sweep, unit.id, side)
        said = unit.rule.predict_flat(side.text.text)
        assert f1_of(key.subject, sweep, unit.id, side, truth, said) == 1
        places = np.flatnonzero(said)
        assert len(places) == truth.firings
        said[places[::2]] = 0
        recall = np.isin(truth.rows, places[1::2]).mean()
        assert f1_of(key.subject, sweep, unit.id, side, truth, said) == pytest.approx(2 * recall / (1 + recall))
        assert f1_of(key.subject, sweep, unit.id, side, truth, np.zeros(len(said))) == 0


def test_a_rule_that_was_held_back_counts_zero_in_the_second_difference_and_as_it_is_in_the_first() -> None:
    """Ten units a tenth better than the graph, half of them held back: better by the first, worse by the second."""
    scored = [Scored(unit_of(n), 0.6, bool(n % 2), 0.5, None) for n in range(10)]
    tables, (best, forward) = _tables(scored, 12, 0)
    assert best.value == pytest.approx(0.1) and best.n == 10 and best.holds is True
    assert forward.value == pytest.approx(-0.2) and forward.n == 10 and forward.holds is False
    (row,) = tables["held-out F1"]
    assert (row["units"], row["put forward"]) == (10, 5)
    assert (row["F1, best rule"], row["F1, put forward"]) == (pytest.approx(0.6), pytest.approx(0.3))
    none = [Scored(unit_of(n), 0.0, False, 0.5, 0.7) for n in range(10)]
    assert [claim.holds for claim in _tables(none, 10, 0)[1]] == [False, False]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_quarter_is_dropped_and_a_quarter_added(seed: int) -> None:
    draw = np.random.default_rng(seed)
    keep = draw.random(5000) < 0.9
    said = keep & (draw.random(5000) < 0.1)
    dropped, added = spoil(said, keep, seed)
    count = round(SHARE * said.sum())
    assert (said & ~dropped).sum() == count and not (dropped & ~said).any()
    assert (added & ~said).sum() == count and not (said & ~added).any() and not (added & ~keep).any()
    assert not np.array_equal(dropped, spoil(said, keep, seed + 1)[0])


def test_permuted_weights_are_the_same_numbers_elsewhere(own: Subject) -> None:
    subject = Subject.wrap(copy.deepcopy(own.model), own.tokenizer, "own")
    mixed = permuted_subject(subject, 3)
    assert mixed.name == "own-permuted" and mixed.digest != own.digest and mixed.holds("read")
    before, after = dict(own.model.named_parameters()), dict(mixed.model.named_parameters())
    for name, weight in before.items():
        assert torch.equal(weight.flatten().sort().values, after[name].flatten().sort().values), name
        alike = bool((weight == weight.flatten()[0]).all())
        assert torch.equal(weight, after[name]) == (weight.dim() < 2 or alike), name
    again = permuted_subject(Subject.wrap(copy.deepcopy(own.model), own.tokenizer, "own"), 3)
    assert again.digest == mixed.digest


def test_best_documents_alone_are_those_of_the_whole_sweep(own: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that keeps less keeps the same of it; every way is fed the same batches."""
    kept: dict[str, list[Site]] = {"best": [], "whole": []}
    rows = [text(own, *np.random.default_rng(n).choice(FILL + (A, B, D), 63).tolist()) for n in range(6)]
    count = 6 * 63
    batch: Any = SimpleNamespace(
        rows=rows, place=torch.arange(count, dtype=torch.int32), key=torch.rand(count),
        document=torch.arange(6).repeat_interleave(63), cluster=torch.arange(6).repeat_interleave(63),
    )  # fmt: skip
    for name, kind in (("best", _Best), ("whole", Site)):
        made = kept[name]

        def make(*given: Any, kind: Any = kind, made: list[Site] = made) -> Site:
            made.append(kind(*given))
            return made[-1]

        _keep(own, [SITE], make, _own(own, [SITE]), [batch])  # type: ignore[arg-type]
    best, whole = (kept[name][0].tensors() for name in ("best", "whole"))
    for name in ("peak", "mean", "std", "explain.best_place"):
        assert torch.equal(best[name], whole[name])
    assert whole["explain.strata"].sum() > 0 == best["explain.strata"].sum()


# Sides and memory


def test_copies_are_other_texts_of_the_same_words() -> None:
    text, draw = "In 1942 the regiment left; " * 20, random.Random(0)
    made = {kind: copied(text, draw) for kind, copied in COPIES.items()}
    assert len({text, *made.values()}) == 4
    assert made["case"].casefold() == text.casefold() and made["digits"] == text.replace("1942", "2053")
    share = len(made["30 % of words deleted"].split()) / len(text.split())
    assert 0.55 < share < 0.85


def test_shared_runs_are_found_where_there_are_some() -> None:
    """The check of `split` can fail: a text on both sides is seen, at the windows that are looked at."""
    one = Read(None, "explain", 0, list(range(200)))
    other = Read(None, "score", 1, [*range(500, 563), *range(40, 60), *range(600, 700)])
    assert shared_runs([one, other], 2) == (20 - 13 + 1, 2, 2)
    assert shared_runs([one, other], 1) == (0, 1, 1), "what is looked at has none"
    assert shared_runs([one, Read(None, "score", 1, list(range(500, 700)))], 9)[0] == 0


def test_the_memory_of_two_sweeps_is_that_of_their_processes(llama: Any, tmp_path: Path) -> None:
    draw = random.Random(0)
    llama.model.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    texts = [" ".join("".join(draw.choices("abcdefgh", k=6)) for _ in range(60)) for _ in range(300)]
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), "utf-8")
    small, large = peaks(30_000, str(tmp_path / "model"), str(tmp_path / "texts.jsonl"), sites=1)
    assert 10**8 < small < large * 1.1 < 10**10
