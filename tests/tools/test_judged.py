"""Judged scores on made-up text, where what fires is known: by judges that know, guess, always agree, or fail."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from lamplighter.experiments.agent_sanity import spoiled
from lamplighter.store.records import Evidence, Refused, Score
from lamplighter.tools import answers, measures
from lamplighter.tools.judged import (
    EXPECTED,
    METRICS,
    Qualification,
    Sizes,
    Unanswered,
    Written,
    judged,
    judged_by,
    score_judged,
)
from lamplighter.tools.known_rules import Known, KnownText, draw_rules
from lamplighter.tools.labels import ScoreSide, Truth
from lamplighter.tools.rules import Clause, Matcher, Near, Rule
from lamplighter.tools.snippets import Draw, Ground, Marked, Snippet, balanced, marked
from lamplighter.tools.units import UnitId

WORDS = ("the", "a", "blue", "cold", "of", "in", "went", "saw", "tree", "road", "house", "to", "dog", "river", "and")
TRUE, FALSE = "fires on the word “cat”", "fires on the word “dog”"


def made_text(documents: int = 120, seed: int = 0, rate: float = 0.03) -> KnownText:
    draw = random.Random(seed)
    texts = []
    for _ in range(documents):
        words = draw.choices(WORDS, k=draw.randint(30, 140))
        texts.append(" ".join("cat" if draw.random() < rate else word for word in words))
    return KnownText(texts, range(documents))


def word(pattern: str, **more: Any) -> Rule:
    return Rule((Clause(Matcher(word=pattern), **more),))


CAT = word("cat")
NOT_AFTER = word("cat", avoid=(Near(Matcher(word="the|a|of|in|to|and"), unit="words"),))


@pytest.fixture(scope="module")
def text() -> KnownText:
    return made_text()


@pytest.fixture(scope="module")
def ground(text: KnownText) -> Ground:
    return text.ground(CAT)


class Reading:
    """A judge that runs, on what it is shown, the rule that it knows for a sentence; else it tosses a coin."""

    name, form = "reading", EXPECTED

    def __init__(self, text: KnownText, rules: dict[str, Rule]) -> None:
        self.text, self.rules = text, rules
        self.shown: list[Any] = []

    def predict(self, explanation: str, shown: str) -> np.ndarray:
        from lamplighter.tools.rules import Tokens

        tokens = Tokens.of(self.text, self.text.encode(shown))
        if explanation not in self.rules:
            seed = hashlib.sha256(f"{explanation} {shown}".encode()).digest()[:4]
            return np.random.default_rng(int.from_bytes(seed)).random(len(tokens.ids) - 1) < 0.5 / len(tokens.ids)
        return np.asarray(self.rules[explanation].predict(tokens)[1:] > 0)

    def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        self.shown += texts
        return [bool(self.predict(explanation, one).any()) for one in texts]

    def marks(self, explanation: str, texts: Sequence[Marked]) -> list[bool | None]:
        self.shown += texts
        return [bool(self.predict(explanation, one.snippet.text)[list(one.marks)].all()) for one in texts]

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        self.shown += texts
        return [[9.0 * hit for hit in self.predict(explanation, "".join(one))] for one in texts]

    def writes(self, explanation: str, count: int) -> Written | None:
        own = explanation == TRUE
        lines = [f"{what} {n} in the {'cat' if fires == own else 'dog'} house" for fires in (True, False)
                 for n in range(count) for what in ["went"]]  # fmt: skip
        return Written(tuple(lines[:count]), tuple(lines[count:]))


class Noting(Reading):
    """Notes what it is shown, and guesses."""

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        self.shown += texts
        return [[float(len(token)) for token in one] for one in texts]


class Yes(Reading):
    """Agrees with everything."""

    name = "yes"

    def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        return [True] * len(texts)

    def marks(self, explanation: str, texts: Sequence[Marked]) -> list[bool | None]:
        return [True] * len(texts)

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        return [[9.0] * len(one) for one in texts]


@pytest.fixture
def oracle(text: KnownText) -> Reading:
    return Reading(text, {TRUE: CAT, FALSE: word("dog")})


# Judges


def test_who_knows_the_truth_scores_one(ground: Ground, oracle: Reading) -> None:
    for metric, made in judged(ground, TRUE, oracle, other=FALSE).items():
        assert made["value"] == pytest.approx(1.0), metric
        assert made["low"] == pytest.approx(1.0) == made["high"]
        assert made["details"]["margin"]["low"] > 0 and made["details"]["failed"] == 0
        assert made["n"] >= 20


def test_another_explanation_scores_lower_and_is_the_floor(ground: Ground, oracle: Reading) -> None:
    own, swapped = judged(ground, TRUE, oracle, other=FALSE), judged(ground, FALSE, oracle)
    for metric in METRICS:
        assert own[metric]["floors"]["another"] == swapped[metric]["value"] or metric == "generation"
        assert swapped[metric]["value"] < 0.7 < own[metric]["value"], metric


def test_who_agrees_with_everything_is_worth_the_floor_and_no_more(ground: Ground, text: KnownText) -> None:
    found = judged(ground, TRUE, Yes(text, {}), metrics=("detection", "fuzzing", "simulation"))
    for metric in ("detection", "fuzzing"):
        made = found[metric]
        assert made["value"] == pytest.approx(2 / 3) == made["floors"]["always_on"] == made["floors"]["shuffled"]
        assert made["details"]["margin"]["high"] == pytest.approx(0, abs=1e-12) and made["details"]["p"] == 1
        assert made["details"]["balanced_accuracy"] == 0.5
    assert found["simulation"]["value"] is None and "the same at every token" in found["simulation"]["reason"]
    assert found["fuzzing"]["references"]["text_alone"] == pytest.approx(0.8)


@pytest.mark.parametrize(("dropped", "added"), [(0.25, 0.0), (0.0, 0.25)])
def test_spoilt_labels_lower_each_score(text: KnownText, oracle: Reading, dropped: float, added: float) -> None:
    """On average over draws: of twenty texts, few are ones whose label was spoilt."""
    spoilt = spoiled(text, CAT, dropped, added)
    for metric in ("detection", "fuzzing", "simulation"):
        values = [judged_by(metric, spoilt, TRUE, oracle, seed=seed)["value"] for seed in range(3)]
        assert np.mean(values) < 0.97, metric


@pytest.mark.parametrize("metric", ["detection", "fuzzing", "simulation", "generation"])
def test_a_failed_answer_is_no_answer(ground: Ground, oracle: Reading, metric: str) -> None:
    """Three unread ones are counted, and nothing is scored from the others."""
    for name in ("fires", "marks", "values"):
        plain = getattr(oracle, name)
        setattr(oracle, name, lambda sentence, texts, plain=plain: [None] * 3 + plain(sentence, texts)[3:])
    oracle.writes = lambda sentence, count: None  # type: ignore[method-assign]
    made = judged_by(metric, ground, TRUE, oracle)
    asked = {"detection": 40, "fuzzing": 40, "simulation": 20, "generation": 1}[metric]
    failed = 1 if metric == "generation" else 3
    assert made["value"] is None and made["details"]["failed"] == failed
    assert made["reason"] == f"{failed} of {asked} answers of the judge could not be read"


def test_a_failure_about_the_other_explanation_leaves_no_score_without_its_floor(
    ground: Ground, oracle: Reading
) -> None:
    plain = oracle.fires
    oracle.fires = lambda s, texts: plain(s, texts) if s == TRUE else [None] * len(texts)  # type: ignore[method-assign]
    made = judged_by("detection", ground, TRUE, oracle, other=FALSE)
    assert made["value"] is None and "40 of 40 answers of the judge about another explanation" in made["reason"]


def test_when_no_answers_are_to_be_had_what_is_left_is_undefined(ground: Ground, oracle: Reading) -> None:
    def gone(sentence: str, texts: Sequence[Marked]) -> list[bool | None]:
        raise Unanswered("the server is down.")

    oracle.marks = gone  # type: ignore[method-assign]
    found = judged(ground, TRUE, oracle)
    assert found["detection"]["value"] == 1.0
    for metric in METRICS[1:]:
        assert found[metric]["value"] is None
        assert found[metric]["reason"] == "the judge gave no answer: the server is down."


def test_what_else_goes_wrong_is_not_taken_for_a_score(ground: Ground, oracle: Reading) -> None:
    def gone(sentence: str, texts: Sequence[str]) -> list[bool | None]:
        raise KeyError("budget")

    oracle.fires = gone  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        judged(ground, TRUE, oracle)


def test_too_few_positives_are_asked_about_nobody(text: KnownText, oracle: Reading) -> None:
    few = text.matches(CAT) & (text.cluster < 7)
    ground = replace(text.ground(CAT), places={**text.ground(CAT).places, "firing": np.flatnonzero(few)})
    for metric, made in judged(ground, TRUE, oracle, metrics=METRICS[:3]).items():
        assert made["value"] is None and made["reason"].startswith("too few positives: "), metric
    assert oracle.shown == []


def test_generation_needs_different_texts(ground: Ground, oracle: Reading) -> None:
    oracle.writes = lambda s, count: Written(("a cat",) * count, ("a dog",) * count)  # type: ignore[method-assign]
    made = judged_by("generation", ground, TRUE, oracle)
    assert made["value"] is None and "1 different ones that are to fire and 1" in made["reason"]
    assert made["details"]["repeated"] == 18


# Texts


def test_labels_are_what_was_read_and_texts_are_balanced(text: KnownText, ground: Ground) -> None:
    found = balanced(ground, 20, 0, "detection")
    assert Counter(one.fires for one in found) == {True: 20, False: 20}
    for one in found:
        assert one.fires == ("cat" in one.text.split()) == (one.kind == "firing")
        assert len(one.tokens) == len(one.values) <= measures.SNIPPET and "".join(one.tokens) == one.text
    assert found == balanced(ground, 20, 0, "detection") != balanced(ground, 20, 1, "detection")
    assert [one.fires for one in found] != sorted(one.fires for one in found)


def test_no_window_is_drawn_twice_and_clusters_are_shared_out(ground: Ground) -> None:
    found = balanced(ground, 20, 0, "detection")
    assert len({one.text for one in found}) == 40
    for fires in (True, False):
        assert len({one.cluster for one in found if one.fires == fires}) == 20


def test_hard_texts_hold_a_token_that_fires_elsewhere(text: KnownText) -> None:
    found = balanced(text.ground(NOT_AFTER), 20, 0, "detection")
    kinds = Counter(one.kind for one in found)
    assert kinds == {"firing": 20, "same token": 10, "random": 10}
    for one in found:
        if one.kind == "same token":
            assert one.tokens[one.at].strip() == "cat" and not one.fires


def test_a_place_can_stand_anywhere_in_its_snippet_behind_some_context(ground: Ground) -> None:
    found = [one for seed in range(12) for one in Draw(ground, seed, "x")("firing", 40)]
    at = [one.at for one in found if len(one.tokens) == measures.SNIPPET]
    assert max(at) == measures.SNIPPET - 1 and len(set(at)) > 24
    assert sum(place < measures.CONTEXT for place in at) < 0.3 * len(at)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2**32))
def test_marks_alone_tell_nothing(seed: int, taste: int) -> None:
    """Whatever is made of where the marks stand and of how many there are, right ones and wrong ones get the same."""
    pairs, _ = marked(GROUND, 20, seed, "fuzzing")
    says = [hash((taste, one.marks)) % 2 == 0 for one in pairs]
    by_label = {true: [s for s, one in zip(says, pairs, strict=True) if one.true == true] for true in (True, False)}
    assert Counter(by_label[True]) == Counter(by_label[False])
    assert Counter(one.marks for one in pairs if one.true) == Counter(one.marks for one in pairs if not one.true)


GROUND = made_text().ground(CAT)


def test_who_looks_at_the_marks_alone_is_at_chance(ground: Ground, oracle: Reading) -> None:
    oracle.marks = lambda s, texts: [one.marks[0] > 14 for one in texts]  # type: ignore[method-assign]
    made = judged_by("fuzzing", ground, TRUE, oracle)
    assert made["details"]["balanced_accuracy"] == 0.5 and made["details"]["margin"]["value"] <= 0


def test_marks_are_where_it_fires_or_where_it_is_silent_half_of_these_in_firing_texts(ground: Ground) -> None:
    pairs, mix = marked(ground, 20, 0, "fuzzing")
    assert mix == {"moved": 10, "same token": 0, "silent": 10, "unmatched": 0} and len(pairs) == 40
    for one in pairs:
        levels = [one.snippet.values[i] for i in one.marks]
        assert 1 <= len(levels) <= measures.MARKS
        assert min(levels) >= measures.FIRES if one.true else max(levels) < measures.STRATA[2]
    wrong = [one.snippet.fires for one in pairs if not one.true]
    assert Counter(wrong) == {True: 10, False: 10}


def test_marks_stand_wrongly_on_tokens_that_fire_elsewhere_where_there_are_such(text: KnownText) -> None:
    pairs, mix = marked(text.ground(NOT_AFTER), 20, 0, "fuzzing")
    assert mix == {"moved": 10, "same token": 5, "silent": 5, "unmatched": 0}
    wrong = [one for one in pairs if not one.true and one.snippet.kind == "same token"]
    assert len(wrong) == 5 and len({one.snippet.text for one in wrong}) == 5
    for one in wrong:
        assert not one.snippet.fires and "cat" in [one.snippet.tokens[i].strip() for i in one.marks]


def test_where_nothing_can_be_matched_nothing_is_marked() -> None:
    """Every token of every text fires: no mark could stand wrongly."""
    ground = replace(GROUND, read=lambda windows: [np.ones(len(one)) for one in GROUND.read(windows)])
    pairs, mix = marked(ground, 20, 0, "fuzzing")
    assert pairs == [] and mix["unmatched"] == 20


# Numbers


labelled = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=24, max_size=60).filter(
    lambda rows: sum(fires for fires, _ in rows) >= 8 and not all(fires for fires, _ in rows)
)


@settings(max_examples=40, deadline=None)
@given(labelled)
def test_f1_and_its_floors_are_the_counts(rows: list[tuple[bool, bool]]) -> None:
    fires, said = (np.array(column) for column in zip(*rows, strict=True))
    made = answers.matches(fires, said, said[::-1], ~fires, np.arange(len(fires)), 0)
    assert made["value"] == pytest.approx(f1_score(fires, said, zero_division=0))
    assert made["floors"]["another"] == pytest.approx(f1_score(fires, said[::-1], zero_division=0))
    assert made["floors"]["always_on"] == pytest.approx(f1_score(fires, np.ones_like(fires)))
    generator = np.random.default_rng(0)
    hits = [(fires & generator.permutation(said)).sum() for _ in range(400)]
    assert made["floors"]["shuffled"] == pytest.approx(2 * np.mean(hits) / (said.sum() + fires.sum()), abs=0.04)
    assert made["details"]["margin"]["value"] == pytest.approx(made["value"] - max(made["floors"].values()))


def test_tokens_weigh_as_many_places_as_they_stand_for() -> None:
    values = np.array([0.9, 0.9, 0.3, 0.0, 0.0, 0.0, 0.0])
    weights, sampled = answers._weights(values, (10, 4, 6, 0, 80))
    assert sampled == [2, 0, 1, 0, 4]
    assert weights == pytest.approx([5, 5, 10, 20, 20, 20, 20]) and weights.sum() == 100


def test_graded_is_the_weighted_correlation() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([np.full(40, 0.9), np.zeros(160)])
    predicted, cluster = values + generator.normal(0, 0.2, 200), np.arange(200) // 4
    made = answers.graded(values, predicted, None, cluster, (40, 0, 0, 0, 1600), 0)
    weights = np.where(values > 0, 1, 10)
    assert made["value"] == pytest.approx(np.cov(values, predicted, aweights=weights)[0, 1] / np.sqrt(
        np.cov(values, aweights=weights) * np.cov(predicted, aweights=weights)))
    assert made["low"] < made["value"] < made["high"] and made["floors"] == {"always_on": None, "shuffled": 0.0}


def test_written_texts_are_counted() -> None:
    firing, silent = np.array([0.9] * 8 + [0.3] * 2), np.array([0.0] * 5 + [0.4] * 3 + [0.9] * 2)
    made = answers.written(firing, silent, (silent, silent), 0)
    assert made["details"]["trigger_rate"] == 0.8 and made["details"]["boundary_rejection"] == 0.5
    assert made["value"] == pytest.approx(2 * 0.8 * 0.5 / 1.3)
    assert made["floors"]["another"] == pytest.approx(2 * 0.2 * 0.5 / 0.7) and made["floors"]["always_on"] == 0


# Known rules


def test_known_rules_are_different_and_true_of_their_text() -> None:
    from lamplighter.tools.corpus import filler_text

    parts = [part for part in filler_text().split("\n\n") if len(part) > 100][:700]
    text = KnownText(parts, range(len(parts)))
    rules = draw_rules(text, 9)
    assert len({one.sentence for one in rules}) == 9 and len({one.family for one in rules}) >= 5
    assert rules == draw_rules(text, 9) != draw_rules(text, 9, seed=1)
    masks = [text.matches(one.rule) for one in rules]
    assert all(mask.sum() >= 20 for mask in masks)
    for i, one in enumerate(masks):
        assert all((one & other).sum() <= 0.1 * (one | other).sum() for other in masks[:i])
    with pytest.raises(Refused, match="different rules of 500"):
        draw_rules(made_text(30), 500)


@given(st.text())
def test_pieces_add_up_to_their_text(said: str) -> None:
    known = KnownText(["a text"], [0])
    assert "".join(known.pieces(known.encode(said))) == said


# On a model


@pytest.fixture(scope="module")
def swept(llama: Any, sweep_of: Callable[..., Any]) -> Any:
    return sweep_of(llama, 160, 20, 60)


def busy(subject: Any, sweep: Any) -> UnitId:
    """A unit that fires often enough to be scored, and seldom enough for silent texts."""
    for index in range(subject.count("0-mlp")):
        unit = UnitId(subject.name, "0-mlp", index)
        known = sweep.statistics(unit)
        if known.peak > 0 and 30 < known.firings["score"] < 0.03 * known.tokens["score"]:
            return unit
    raise AssertionError("no unit fires as often as these tests need")


def score(subject: Any, sweep: Any, unit: UnitId, judge: Any, **more: Any) -> list[Score]:
    options: dict[str, Any] = {"hypothesis": "h", "claim": lambda key: True} | more
    return score_judged(subject, sweep, unit, TRUE, judge, **options)


def test_texts_of_a_unit_are_labelled_by_reading_it(llama: Any, swept: Any) -> None:
    unit = busy(llama, swept)
    side = ScoreSide.of(llama, swept, [])
    ground = Ground.of_unit(llama, swept, unit, side, Truth.of(llama, swept, unit, side))
    levels = {}
    for _, _, ids in swept.windows("score"):
        read = unit.sign * llama.activations(ids, [unit])[0, 1:, 0] / swept.statistics(unit).peak
        levels["".join(llama.pieces(ids[1:]))] = read.numpy()
    found: list[Snippet] = balanced(ground, 10, 0, "detection")
    assert Counter(one.fires for one in found) == {True: 10, False: 10}
    for one in found:
        (home,) = [whole for whole in levels if one.text in whole][:1]
        assert any(np.allclose(one.values, levels[home][i : i + len(one.values)], atol=1e-5)
                   for i in range(len(levels[home]) - len(one.values) + 1))  # fmt: skip
    hit = ground.react([one.text for one in found if one.fires])
    assert hit.shape == (10,) and np.isfinite(hit).all()


def test_scores_carry_judge_side_and_versions_and_the_side_is_claimed_once(llama: Any, swept: Any) -> None:
    unit, asked = busy(llama, swept), []
    judge = Yes(made_text(4), {})
    qualified = {"detection": Qualification("detection", 0.9, 0.8, 1.0, 20, 40, 0),
                 "fuzzing": Qualification("fuzzing", 0.6, 0.5, 0.7, 20, 40, 3)}  # fmt: skip
    found = score(llama, swept, unit, judge, qualified=qualified, claim=lambda key: not asked.append(key))
    assert asked == ["h:judged:yes"] and [one.metric for one in found] == list(METRICS)
    for one in found:
        assert one == Score.from_json(one.to_json()) and (one.judge, one.side, one.unit) == ("yes", "score", unit.bare)
        assert one.provenance["judged"] == measures.JUDGED_VERSION and one.provenance["sides"] == swept.side_digests
    standing = {one.metric: one.details["qualified"] for one in found}
    assert standing == {"detection": True, "fuzzing": False, "simulation": None, "generation": None}
    assert found[1].details["qualification"]["low"] == 0.5
    assert found[0].details["cost"]["forward_rows"] > 0 and "cost" not in found[1].details
    assert not any(one.details["judge_is_author"] for one in found)
    (own,) = score(llama, swept, unit, judge, author="yes", metrics=("detection",))
    assert own.details["judge_is_author"] is True
    with pytest.raises(Refused, match="is read once"):
        score(llama, swept, unit, judge, claim=lambda key: False)
    with pytest.raises(Refused, match="no sentence"):
        score_judged(llama, swept, unit, " \n", judge, hypothesis="h", claim=lambda key: True)
    with pytest.raises(Refused, match="no judged score"):
        score(llama, swept, unit, judge, metrics=("f1",))


def test_what_the_evidence_shows_is_shown_to_no_judge(llama: Any, swept: Any) -> None:
    unit = busy(llama, swept)
    windows = [ids for _, _, ids in swept.windows("score") if len(ids) > 20]
    ids = windows[::3]
    evidence = Evidence(tool="activate", summary="seen", rows=[{"ids": list(one)} for one in ids])
    seen = {tuple(one[i : i + measures.LEAK_RUN]) for one in ids for i in range(1, len(one) - measures.LEAK_RUN + 1)}

    def texts(**more: Any) -> list[str]:
        judge = Noting(made_text(4), {})
        found = score(llama, swept, unit, judge, metrics=("detection", "simulation"), **more)
        assert found[0].details["dropped_windows"] >= len(ids) * bool(more)
        return ["".join(one) for one in judge.shown]

    def leaks(shown: list[str]) -> int:
        runs = {"".join(llama.pieces(run)) for run in seen}
        return sum(any(run in one for run in runs) for one in shown)

    assert leaks(texts()) > 0, "the test sees a leak"
    assert leaks(texts(evidence=[evidence])) == 0


def test_a_unit_that_fires_too_rarely_has_no_judged_score(llama: Any, sweep_of: Callable[..., Any]) -> None:
    small = sweep_of(llama, 8, 10, 5)
    judge = Reading(made_text(4), {})
    for one in score(llama, small, UnitId(llama.name, "0-mlp", 0), judge):
        assert one.value is None and one.reason is not None and one.reason.startswith("too few positives: ")
    assert judge.shown == []


def test_sizes_are_what_was_asked_for(ground: Ground, oracle: Reading) -> None:
    sizes = Sizes(9, 8, 8)
    found = judged(ground, TRUE, oracle, sizes=sizes)
    assert [found[m]["n"] for m in ("detection", "fuzzing", "generation")] == [18, 18, 16]
    assert isinstance(Known("word", TRUE, CAT).rule, Rule)
