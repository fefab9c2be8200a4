"""The answer key is right: planted neurons fire where their rules match, everywhere, and corpus and fresh texts are fit
to find the rules and to judge what was found."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.experiments.language import language
from lamplighter.experiments.patterns import SIDES, families
from lamplighter.experiments.plant import SITE, PlantedUnit, plant
from lamplighter.experiments.planted import RECOVERED, AnswerKey, make_key
from lamplighter.store.records import Refused
from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.rules import Clause, Matcher, Near, Rule, Text
from lamplighter.tools.subject import Edit, Subject
from lamplighter.tools.units import UnitId

UNITS = 40
TOKENS = 120_000       # the smallest corpus of a benchmark


@pytest.fixture(scope="module", params=("gpt2", "llama"))
def key(request: pytest.FixtureRequest) -> AnswerKey:
    return make_key(0, request.param, UNITS)


@pytest.fixture(scope="module")
def llama_key() -> AnswerKey:
    return make_key(0, "llama", UNITS)


def of(key: AnswerKey, family: str) -> PlantedUnit:
    return next(unit for unit in key.units if unit.family == family)


def mentioned(rule: Rule | None) -> list[int]:
    """The ids that a rule names."""
    clauses = rule.clauses if rule else ()
    return [i for c in clauses for m in (c.at, *(near.match for near in (*c.need, *c.avoid))) for i in m.ids]


def plain(seed: int, count: int) -> list[list[int]]:
    """Windows of running text."""
    draw, flow = random.Random(seed), language().flows[0]
    starts = [draw.randrange(len(flow) - 63) for _ in range(count)]
    return [[0, *flow[start : start + 63]] for start in starts]


def dense(key: AnswerKey, seed: int) -> list[list[int]]:
    """Windows full of what rules are about: words of one unit at a time in any order, repeats, and strange tokens."""
    draw, rows = random.Random(seed), []
    for unit in key.units:
        for more in (1, 6):
            strange = draw.sample(language().common, 2 * more) + draw.sample(range(1, 4096), 3)
            rows.append([0, *draw.choices(mentioned(unit.rule) * more + strange, k=63)])
    return rows


def readings(key: AnswerKey, rows: list[list[int]]) -> tuple[Text, np.ndarray]:
    """The rows prepared for rules, and y = sign × activation of every unit at every token [N, U]."""
    found = key.subject.activations(rows, [unit.id for unit in key.units])
    flat = torch.cat([found[i, : len(row)] for i, row in enumerate(rows)]).double().numpy()
    return Text.of(key.subject, rows), flat * [unit.id.sign for unit in key.units]


def test_a_subject_takes_the_model(key: AnswerKey) -> None:
    subject = key.subject
    assert all(subject.holds(need) for need in ("read", "edit", "project"))
    assert subject.dtype == torch.float32
    logits = subject.run(plain(0, 4), logits=True).logits
    assert logits is not None and bool(torch.isfinite(logits).all())
    if key.shape == "llama":
        assert subject.config.num_key_value_heads < subject.config.num_attention_heads
        assert subject.checks["groups"] == 0


def test_units_fire_exactly_where_their_rules_match(key: AnswerKey) -> None:
    cases = [(unit, case) for unit in key.units for case in key.fresh(unit, seed=1, n=1)]
    text, y = readings(key, [*(list(case.ids) for _, case in cases), *plain(1, 30), *dense(key, 2)])
    inside = text.position > 0
    for column, unit in enumerate(key.units):
        mine = y[:, column]
        if unit.rule is None:
            assert np.abs(mine[inside]).max() < 1e-3 * mine[~inside].min()
            continue
        fires = unit.rule.predict_flat(text) > 0
        peak = mine[inside].max()
        assert fires.sum() >= 2 and peak > 1, unit
        assert mine[fires].min() >= 0.9 * peak, unit
        assert mine[~fires].max() <= 0.01 * peak, unit
        for start, (owner, case) in zip(text.starts, cases, strict=False):
            assert owner != unit or (mine[start + case.position] > 0.5 * peak) == case.fires, (unit, case)


def test_units_set_by_hand_obey_on_fresh_text_without_a_fault(key: AnswerKey) -> None:
    assert {key.obeyed(unit, n=4) for unit in key.units if unit.rule is not None} == {1.0}


def test_without_the_head_that_looks_one_back_pairs_fall_silent(key: AnswerKey) -> None:
    for family, left in (("pair", 0.0), ("token", 1.0)):
        unit = of(key, family)
        case = next(case for case in key.fresh(unit, n=1) if case.fires)
        y = []
        for edits in ([], [Edit("0-attn", torch.zeros(()), index=(0,))]):
            done = key.subject.run([case.ids], read=[SITE], edits=edits)
            y.append(float(done.readings[SITE][0, case.position, unit.id.index]))
        assert y[1] / y[0] == pytest.approx(left, abs=0.05)


def test_every_family_is_there_and_no_word_is_in_two_rules(key: AnswerKey) -> None:
    assert len(key.units) == UNITS
    assert {unit.family for unit in key.units} == set(families(key.shape))
    assert len({unit.id for unit in key.units}) == UNITS
    words = Counter(i for unit in key.units for i in set(mentioned(unit.rule)))
    pooled = {i for ids in language().pools.values() for i in ids}
    assert [i for i, n in words.items() if n > 1 and i not in pooled and i not in language().common] == []
    assert any(unit.id.sign < 0 for unit in key.units) == (key.shape == "llama")


def test_a_neuron_can_follow_another_rule_on_each_side(llama_key: AnswerKey) -> None:
    up, down = [unit for unit in llama_key.units if unit.family == SIDES]
    assert up.id == replace(down.id, sign=1)
    assert up.rule != down.rule


def test_truths_are_rules_that_anybody_could_write(key: AnswerKey) -> None:
    for unit in key.units:
        assert unit.rule is None or Rule.from_json(unit.rule.to_json()) == unit.rule


def test_seeds(key: AnswerKey) -> None:
    again, other = make_key(0, key.shape, UNITS), make_key(1, key.shape, UNITS)
    assert again.units == key.units
    assert again.subject.digest == key.subject.digest != other.subject.digest
    assert not {str(unit.rule) for unit in other.units if unit.family == "pair"} & {str(u.rule) for u in key.units}
    assert again.documents(3, 5000) == key.documents(3, 5000) != key.documents(4, 5000)
    unit = of(key, "pair")
    assert again.fresh(unit, 5, 2) == key.fresh(unit, 5, 2) != key.fresh(unit, 6, 2)


def test_the_tokenizer_comes_out_the_same_each_time() -> None:
    assert language.__wrapped__().spelled == language().spelled


def test_clean_words_are_one_token_wherever_they_stand() -> None:
    known = language()
    text = Text.of(known, [[0, *ids] for ids in (*known.shown, *known.kept)])
    for i in random.Random(0).sample((*known.words, *known.names), 60):
        word = Matcher(word=known.spelled[i][1:])
        assert (text.tokens(Matcher(ids=(i,))) == text.tokens(word)).all(), known.spelled[i]


# The corpus


@pytest.fixture(scope="module")
def swept(key: AnswerKey, tmp_path_factory: pytest.TempPathFactory) -> tuple[Text, np.ndarray, np.ndarray]:
    """The key's corpus as a sweep would cut it: windows, and for each token its document and its side."""
    corpus = load_corpus(str(key.write(tmp_path_factory.mktemp("corpus"), tokens=TOKENS)))
    rows, document = [], []
    for number, one in enumerate(corpus.documents):
        ids = key.subject.encode(one.text)[1:]
        for start in range(0, len(ids), 63):
            rows.append([0, *ids[start : start + 63]])
            document += [number] * len(rows[-1])
    assert len(set(corpus.clusters)) > 0.95 * len(corpus.documents), "shared sentences make no near copies"
    assert sum(map(len, rows)) == pytest.approx(TOKENS, rel=0.1)
    return Text.of(language(), rows), np.array(document), np.array(corpus.sides)[document]


def test_each_unit_fires_often_enough_to_be_found_and_scored(key: AnswerKey, swept: Any) -> None:
    text, document, side = swept
    for unit in key.units:
        if unit.rule is None:
            continue
        fires = unit.rule.predict_flat(text) > 0
        assert 0.0003 < fires.mean() < 0.05, unit
        for name, least in (("explain", 40), ("score", 15)):
            assert len(set(document[fires & (side == name)])) >= least, (unit, name)


def test_the_corpus_shows_each_condition_of_a_rule_at_work(key: AnswerKey, swept: Any) -> None:
    """The rule less one condition must be wrong often enough to be told from it on explain text."""
    text, _, side = swept
    for unit in key.units:
        fires = unit.rule.predict_flat(text) > 0 if unit.rule else None
        for less in dropped(unit.rule):
            wrong = (less.predict_flat(text) > 0) != fires
            assert wrong[side == "explain"].sum() >= 10, (unit, less)


def test_hidden_members_are_in_no_document(key: AnswerKey, swept: Any) -> None:
    text = swept[0]
    seen = set(text.ids.tolist())
    hidden = [unit for unit in key.units if unit.family in ("hidden", "hidden after")]
    for unit in hidden:
        members = set(mentioned(Rule(tuple(replace(c, need=()) for c in unit.rule.clauses)))) if unit.rule else set()
        assert len(members) == 60 and len(unit.unseen) == 40
        assert not unit.unseen & seen
        assert members - unit.unseen <= seen
        words = {language().spelled[i].strip().lower() for i in unit.unseen}
        assert not words & {word.lower() for word in text.vocabulary}
    assert len({unit.unseen for unit in hidden}) == 2, "both pools are used"


# The truth test


def dropped(rule: Rule | None) -> Iterator[Rule]:
    """The rule less one condition, in every way."""
    for n, clause in enumerate(rule.clauses if rule else ()):
        lesser = [replace(clause, need=(*clause.need[:i], *clause.need[i + 1 :])) for i in range(len(clause.need))]
        lesser += [replace(clause, avoid=(*clause.avoid[:i], *clause.avoid[i + 1 :])) for i in range(len(clause.avoid))]
        lesser += [replace(clause, position=None)] * (clause.position is not None)
        lesser += [replace(clause, repeat=False)] * clause.repeat
        assert rule is not None
        yield from (Rule((*rule.clauses[:n], one, *rule.clauses[n + 1 :])) for one in lesser)


def coarser(rule: Rule) -> Iterator[Rule]:
    """The rule with a clause less, with every clause about the words of all, and with distances that are off by one."""
    if len(rule.clauses) > 1:
        if len({clause.need for clause in rule.clauses}) > 1:
            every = Matcher(ids=tuple(i for clause in rule.clauses for i in clause.at.ids))
            yield Rule(tuple(replace(clause, at=every) for clause in rule.clauses))
        yield from (Rule(rule.clauses[:n] + rule.clauses[n + 1 :]) for n in range(len(rule.clauses)))
    for n, clause in enumerate(rule.clauses):
        for i, near in enumerate(clause.need):
            if near.high < 32:
                wide = replace(near, high=near.high + 1)
                changed = replace(clause, need=(*clause.need[:i], wide, *clause.need[i + 1 :]))
                yield Rule((*rule.clauses[:n], changed, *rule.clauses[n + 1 :]))


def test_only_the_true_rule_is_recovered(key: AnswerKey) -> None:
    for unit in key.units:
        assert key.recovered(unit.rule, unit, n=6) == 1.0, unit
        if unit.rule is None:
            always = Rule((Clause(Matcher(cls="any"), "any"),))
            assert key.recovered(always, unit, n=6) == 0
            continue
        assert key.recovered(None, unit, n=2) == 0.5
        for wrong in (*dropped(unit.rule), *coarser(unit.rule)):
            assert key.recovered(wrong, unit, n=6) < RECOVERED, (unit, wrong)


def test_the_members_that_were_shown_are_not_the_hidden_set(key: AnswerKey) -> None:
    unit = of(key, "hidden")
    assert unit.rule is not None
    seen = Rule((Clause(Matcher(ids=tuple({i for c in unit.rule.clauses for i in c.at.ids} - unit.unseen))),))
    assert key.recovered(seen, unit) < 0.8


def test_fresh_windows(key: AnswerKey) -> None:
    known = language()
    assert not set(known.kept) & set(known.shown)
    for unit in key.units:
        cases = key.fresh(unit, n=2)
        assert all(case.ids[0] == key.subject.sink and len(case.ids) <= 64 for case in cases)
        assert all(0 < case.position < len(case.ids) for case in cases)
        assert set(Counter(case.way for case in cases).values()) == {2}
        if unit.rule is not None:
            assert any(case.fires for case in cases)
            # Something is broken for each condition, and the token itself is replaced where it is named.
            parts = sum(clause.atoms - (not clause.at.ids) * 2 for clause in unit.rule.clauses)
            assert len({case.way for case in cases if not case.fires}) > parts


def test_near_misses_are_near(llama_key: AnswerKey) -> None:
    unit = of(llama_key, "both")
    assert unit.rule is not None
    (clause,) = unit.rule.clauses
    ways = {case.way: case for case in llama_key.fresh(unit, n=1)}
    swapped, lacks = ways["order 0, clause 0"], ways["lacks 1, clause 0"]
    here = swapped.position
    assert set(swapped.ids[here + 1 : here + 4]) & set(clause.need[0].match.ids)
    assert not set(lacks.ids[:here]) & set(clause.need[1].match.ids)
    for case in (swapped, lacks):
        assert case.ids[case.position] in clause.at.ids


# Rules of one's own


@pytest.mark.parametrize("shape", ("gpt2", "llama"))
def test_any_rule_of_the_plantable_grammar_can_be_planted(shape: str) -> None:
    a, b, c, d, e = ((i,) for i in language().words[:5])
    either, near = Matcher(ids=(*a, *b)), Near(Matcher(ids=c), 2, 3)
    rules = [
        Rule((Clause(either, need=(near,), avoid=(Near(Matcher(ids=d), 1, 63),), position=(5, 50)),)),
        Rule((Clause(Matcher(ids=c), repeat=True, avoid=(Near(either, 1, 4), Near(Matcher(ids=d), 3, 3))),)),
        Rule((Clause(Matcher(cls="any"), "any", need=(Near(Matcher(ids=e)), Near(either, 3, 4)), position=(1, 63)),)),
        Rule((Clause(Matcher(ids=e), position=(40, 63)), Clause(Matcher(ids=a), position=(1, 9)), Clause(Matcher(b)))),
    ]
    units = tuple(PlantedUnit(UnitId("own", SITE, 2 * n), "own", rule) for n, rule in enumerate(rules))
    key = AnswerKey(0, shape, units, Subject.wrap(plant(shape, units), language().tokenizer, "own"))
    draw = random.Random(0)
    ids = [*a, *b, *c, *c, *d, *e, *language().common[:6]]
    text, y = readings(key, [[0, *draw.choices(ids, k=63)] for _ in range(60)])
    for column, rule in enumerate(rules):
        fires = rule.predict_flat(text) > 0
        assert fires.sum() >= 10
        assert y[fires, column].min() > 0.9 * y[:, column].max()
        assert y[~fires, column].max() < 0.01 * y[:, column].max()


@pytest.mark.parametrize(
    ("shape", "sign", "clauses", "why"),
    [
        ("gpt2", -1, [Clause(Matcher(ids=(9,)))], "no negative side"),
        ("llama", 1, [Clause(Matcher(ids=(9, 8))), Clause(Matcher(ids=(9,)), repeat=True)], "match the same token"),
        ("llama", 1, [Clause(Matcher(word="cat"))], "must be among ids"),
        ("llama", 1, [Clause(Matcher(ids=(9,)), need=(Near(Matcher(ids=(8,)), 1, 9),))], "within 4 tokens"),
        ("llama", 1, [Clause(Matcher(ids=(9,)), need=(Near(Matcher(ids=(8,)), 1, 2, "words"),))], "within 4 tokens"),
        ("llama", 1, [Clause(Matcher(ids=(9,)), avoid=(Near(Matcher(ids=(9,)), 1, 63),))], "must be another word"),
    ],
)
def test_what_cannot_be_planted_is_refused(shape: str, sign: int, clauses: list[Clause], why: str) -> None:
    unit = PlantedUnit(UnitId("own", SITE, 0, sign), "own", Rule(tuple(clauses)))
    with pytest.raises(Refused, match=why):
        plant(shape, [unit])


@pytest.mark.parametrize(("shape", "count"), [("bert", 3), ("gpt2", 0), ("gpt2", 41)])
def test_what_no_model_holds_is_refused(shape: str, count: int) -> None:
    with pytest.raises(Refused):
        make_key(0, shape, count)


# What is written


def test_a_firing_unit_promotes_its_tokens(key: AnswerKey) -> None:
    head = key.subject.model.get_output_embeddings().weight
    for unit in key.units:
        promoted = torch.topk(head @ key.subject.write_direction(unit.id), 3).indices.tolist()
        assert set(promoted) == set(unit.promotes), unit


def test_a_saved_key_loads_as_the_same_subject(key: AnswerKey, tmp_path: Path) -> None:
    loaded = Subject.load(key.save(tmp_path))
    assert (loaded.digest, loaded.tokenizer_digest) == (key.subject.digest, key.subject.tokenizer_digest)
    text = key.documents(0, 2000)[0]
    assert loaded.encode(text) == key.subject.encode(text)
