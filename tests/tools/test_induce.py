"""The inducer finds planted functions of real words, and finds nothing in noise."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools.collect import position_key
from lamplighter.tools.conditions import Condition
from lamplighter.tools.estimate import Candidate, Known
from lamplighter.tools.induce import COMMON, MIN_F1, Induced, induce
from lamplighter.tools.lexicon import FOLD, KNOWN, called, fitting, matching, merged, spelled
from lamplighter.tools.measures import MAX_ATOMS, MAX_CLAUSES, STRATA
from lamplighter.tools.rules import MAX_IDS, MAX_PATTERN, Clause, Matcher, Near, Rule, Tokens, side_text
from lamplighter.tools.search_rules import ALTERNATIVE, PRICE, READ, Search
from lamplighter.tools.trials import Trials
from lamplighter.tools.units import UnitId

NOUNS = [
    "dog", "cat", "house", "garden", "teacher", "soldier", "river", "ship", "letter",
    "window", "farmer", "child", "doctor", "road", "field", "bird", "king", "queen",
]  # fmt: skip
PLACES = [
    "London", "Paris", "Berlin", "Madrid", "Rome", "Vienna",
    "Oslo", "Dublin", "Lisbon", "Athens", "Prague", "Warsaw",
]  # fmt: skip
NAMES = ["Henry", "Charles", "William", "Edward", "George", "James", "Richard", "Philip", "Louis", "Frederick"]
STEMS = ["walk", "jump", "paint", "climb", "repair", "mend", "open", "clean", "push", "pull"]
ADJECTIVES = ["old", "small", "green", "quiet", "broken", "narrow", "heavy", "bright", "empty", "wooden"]
SPELLED = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "ninth"]
MONTHS = ["January", "March", "April", "June", "July", "August", "October", "December"]
HISTORY = ["war", "treaty", "battle", "siege", "reign", "famine", "flood", "election"]
SIDES = ("explain", "tune", "score")

Fires = Callable[[Tokens], np.ndarray]


class Words:
    """A subject without a model: up to six letters a token, digits one by one and a blank before them by itself."""

    sink, special = 0, frozenset({0})

    def __init__(self) -> None:
        self.known: dict[str, int] = {"<s>": 0}
        self.alikes: list[str] = []

    def encode(self, text: str) -> list[int]:
        return [self.known.setdefault(p, len(self.known)) for p in re.findall(r" ?[A-Za-z]{1,6}|\d| |\n|[^\w\s]", text)]

    def piece(self, token: int) -> str:
        return list(self.known)[token]

    def alike(self, ids: Sequence[int]) -> torch.Tensor:
        """Cosines of random directions; those of `alikes` lie close to each other."""
        drawn = torch.randn(max(len(self.known), 1), 64, generator=torch.Generator().manual_seed(0))
        drawn[[self.known[f" {word}"] for word in self.alikes]] += 3.0
        table = torch.nn.functional.normalize(drawn)
        return table @ table[list(ids)].mean(0)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        names = list(self.known)
        return [names[int(i)] for i in ids]


def sentence(rng: np.random.Generator) -> str:
    """One sentence; the templates hold every planted word also where it must not fire."""

    def one(words: Sequence[str]) -> str:
        return str(rng.choice(words))

    day, year = int(rng.integers(1, 32)), int(rng.integers(1700, 2000))
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day not in (11, 12, 13) else 0, "th")
    verb = one(STEMS) + one(["ed", "ing", "s"])
    noun, other, place, name = one(NOUNS), one(NOUNS), one(PLACES), one(NAMES)
    return str(rng.choice([
        f" On the {day}{ending} of {one(MONTHS)} the {noun} {verb} the {one(ADJECTIVES)} {other}.",
        f" In {year} the {one(HISTORY)} reached {place}, and {name} II left for {one(PLACES)}.",
        f" World War II began in {place} after the {one(SPELLED)} {one(HISTORY)}.",
        f" The {one(SPELLED)} {noun} was {day} years old when {name} {verb} in {place}.",
        f" Part II tells of the {noun} and page {year} of the {other}.",
        f" They {one(['walked', 'sat', 'slept'])} on the river bank near the {one(ADJECTIVES)} {noun}.",
        f" {name} went to the bank in {place} with a {one(ADJECTIVES)} {noun}.",
        f" The bank of {place} {verb} a {noun} for the {other}.",
        f" A judge heard that the{one(['', ' very', ' rather very'])} {noun} {verb}, and{one(['', ' much'])} later "
        f"the court of {place} agreed.",
        f" In the garden a court lay behind the {one(ADJECTIVES)} {noun}, {place} said.",
        f" The Great War and the {name} II {one(HISTORY)} left the {noun} {one(ADJECTIVES)}.",
    ]))  # fmt: skip


@dataclass(frozen=True)
class Document:
    side: str
    cluster: int
    start: int
    length: int


@dataclass(frozen=True)
class Exemplar:
    document: int
    offset: int
    activation: float
    band: str

    @property
    def place(self) -> tuple[int, int]:
        return self.document, self.offset


@dataclass(frozen=True)
class Statistics:
    peak: float
    threshold: float
    firings: dict[str, int]
    strata: dict[str, list[int]]


@dataclass(eq=False)
class World:
    """A sweep of planted functions: the interface of the real one, over a text of about 50,000 tokens."""

    subject: Words
    documents: list[Document] = field(default_factory=list)
    y: dict[UnitId, np.ndarray] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    windows_read: int = 0

    def write(self, count: int, rng: np.random.Generator) -> None:
        rows = []
        for number in range(count):
            text = "".join(sentence(rng) for _ in range(int(rng.integers(8, 12))))
            rows.append(self.subject.encode(text))
            side = SIDES[0] if number % 20 < 10 else SIDES[1] if number % 20 < 13 else SIDES[2]
            self.documents.append(Document(side, number, sum(map(len, rows[:-1])), len(rows[-1])))
        self.tokens = np.concatenate([np.array(row) for row in rows])
        self.owner = np.repeat(np.arange(count), [len(row) for row in rows])
        self.sides = np.array([d.side for d in self.documents])[self.owner]

    def plant(self, name: int, fires: Fires | np.ndarray) -> UnitId:
        """Readings from .7 to 1.3 where it fires, and below .45 elsewhere."""
        rng = np.random.default_rng(name)
        unit = UnitId("words", "0-mlp", name)
        if callable(fires):
            flags = [fires(Tokens.of(self.subject, ids))[1:] for side in SIDES for _, _, ids in self.windows(side)]
            starts = [(d, first) for side in SIDES for d, first, _ in self.windows(side)]
            mask = np.zeros(len(self.tokens), dtype=bool)
            for (d, first), flag in zip(starts, flags, strict=True):
                mask[self.documents[d].start + first :][: len(flag)] = flag
        else:
            mask = fires
        low, high = 0.45 * rng.random(len(mask)) ** 3, 0.7 + 0.6 * rng.random(len(mask))
        self.y[unit] = np.where(mask, high, low)
        return unit

    # What the inducer may ask

    def windows(self, side: str) -> Any:
        self.asked.add(side)
        for number, document in enumerate(self.documents):
            for first in range(0, document.length if document.side == side else 0, 63):
                yield number, first, self.window((number, first))[0]

    def window(self, place: tuple[int, int]) -> tuple[list[int], int]:
        document, first = self.documents[place[0]], place[1] - place[1] % 63
        ids = self.tokens[document.start + first : document.start + min(first + 63, document.length)]
        return [self.subject.sink, *ids.tolist()], place[1] % 63 + 1

    def statistics(self, unit: UnitId) -> Statistics:
        best = [self.y[unit][d.start : d.start + d.length].max() for d in self.documents if d.side == "explain"]
        peak = float(np.sort(best)[-10:].mean())
        strata = {}
        for side in SIDES:
            ratio = self.y[unit][self.sides == side] / peak
            above = [int((ratio >= edge).sum()) for edge in STRATA]
            strata[side] = np.diff([0, *above, len(ratio)]).tolist()
        return Statistics(peak, peak / 2, {side: sum(counts[:2]) for side, counts in strata.items()}, strata)

    def exemplars(self, unit: UnitId, side: str) -> list[Exemplar]:
        self.asked.add(side)
        y, peak = self.y[unit], self.statistics(unit).peak
        found = []
        tops = [d.start + int(y[d.start : d.start + d.length].argmax()) for d in self.documents if d.side == side]
        found += [(i, "top") for i in sorted(tops, key=lambda i: -y[i])[:10]]
        key = position_key(np.arange(len(y)))
        edges = (np.inf, *STRATA)
        for band, low, high in zip(("high", "mid", "boundary", "low"), edges[1:], edges, strict=False):
            inside = np.flatnonzero((self.sides == side) & (y >= low * peak) & (y < high * peak))
            found += [(int(i), band) for i in inside[np.argsort(key[inside])][:12]]
        owners = [int(self.owner[i]) for i, _ in found]
        rows = zip(owners, found, strict=True)
        return [Exemplar(d, i - self.documents[d].start, float(y[i]), band) for d, (i, band) in rows]

    def read(self, subject: Any, unit: UnitId, places: Sequence[tuple[int, int]]) -> np.ndarray:
        assert all(self.documents[d].side == "explain" for d, _ in places)
        self.windows_read += len({(d, offset // 63) for d, offset in places})
        return np.array([self.y[unit][self.documents[d].start + offset] for d, offset in places])


def word_is(pattern: str) -> Fires:
    return lambda t: np.array([bool(re.fullmatch(pattern, t.words[w])) for w in t.word]) & np.array(t.last)


def after(pattern: str, before: str, needed: bool = True, reach: int = 1) -> Fires:
    def fires(t: Tokens) -> np.ndarray:
        near = [any(re.fullmatch(before, w) for w in t.words[max(w_at - reach, 1) : w_at]) for w_at in t.word]
        return word_is(pattern)(t) & (np.array(near) == needed)

    return fires


def repeats(t: Tokens) -> np.ndarray:
    pairs = list(zip(t.ids, t.ids[1:], strict=False))
    return np.array([i >= 2 and pairs[i - 1] in pairs[1 : i - 1] and t.last[i] for i in range(len(t.ids))])


PLANTED: dict[str, Fires] = {
    "ordinals": word_is(r"\d+(st|nd|rd|th)"),
    "II after War": after("II", "War"),
    "forms": word_is("(walk|jump|paint)(s|ed|ing)"),
    "bank, no river": after("bank", "river", needed=False),
    "court after a judge": after("court", "judge", reach=12),
    "repeated pairs": repeats,
    "two ways": lambda t: after(r"\d{4}", "page")(t) | word_is("Vienna|Oslo")(t),
    "places": word_is("|".join(PLACES)),
    "lower case, not after such": after("[a-z]+", "[a-z]+", needed=False),
}


CONTEXT = ("II after War", "bank, no river", "court after a judge", "two ways", "repeated pairs")


@pytest.fixture(scope="module")
def world() -> World:
    world = World(Words())
    world.write(400, np.random.default_rng(7))
    return world


@cache
def _unit(world: World, name: str) -> UnitId:
    return world.plant(sorted(PLANTED).index(name), PLANTED[name])


@cache
def _made(world: World, name: str, reads: int) -> Induced:
    return induce(world.subject, world, _unit(world, name), reads=reads)  # type: ignore[arg-type]


def score_f1(world: World, unit: UnitId, predicted: np.ndarray) -> float:
    """F1 over every token of the score side."""
    side = side_text(world.subject, world, "score")
    starts = np.array([d.start for d in world.documents])
    real = side.offset >= 0
    fires = world.y[unit][starts[side.document[real]] + side.offset[real]] >= world.statistics(unit).threshold
    hit = predicted[real]
    return float(2 * (hit & fires).sum() / (hit.sum() + fires.sum()))


def rule_f1(world: World, unit: UnitId, rule: Rule) -> float:
    return score_f1(world, unit, rule.predict_flat(side_text(world.subject, world, "score").text) > 0)


def lookup_f1(world: World, unit: UnitId) -> float:
    """The best list of tokens, chosen with every label of the explain side, on the score side."""
    explain, score = (side_text(world.subject, world, side) for side in ("explain", "score"))
    starts = np.array([d.start for d in world.documents])
    real = explain.offset >= 0
    ids = explain.text.ids[real]
    fires = world.y[unit][starts[explain.document[real]] + explain.offset[real]] >= world.statistics(unit).threshold
    count, true = np.bincount(ids), np.bincount(ids[fires], minlength=ids.max() + 1)
    order = np.argsort(-true / np.maximum(count, 1), kind="stable")
    f1 = 2 * np.cumsum(true[order]) / (np.cumsum(count[order]) + fires.sum())
    return score_f1(world, unit, np.isin(score.text.ids, order[: int(f1.argmax()) + 1]))


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_planted_functions_are_found_on_text_not_seen(world: World, name: str) -> None:
    made = _made(world, name, 150)
    assert made.rule is not None and made.sentence is not None, made.reason
    assert rule_f1(world, _unit(world, name), made.rule) >= 0.95, str(made.rule)
    assert len(made.rule.clauses) <= MAX_CLAUSES and made.rule.atoms <= MAX_ATOMS
    assert 0 < made.reads <= 150
    assert Rule.from_json(made.rule.to_json()) == made.rule



@pytest.mark.parametrize("name", ["ordinals", *CONTEXT[:3], "repeated pairs"])
def test_exemplars_alone_come_close_and_cost_no_pass(world: World, name: str) -> None:
    before = world.windows_read
    made = _made(world, name, 0)
    assert made.rule is not None and made.reads == 0 and world.windows_read == before
    assert rule_f1(world, _unit(world, name), made.rule) >= 0.9, str(made.rule)


@pytest.mark.parametrize("name", CONTEXT)
def test_the_naive_list_of_tokens_fails_where_context_decides(world: World, name: str) -> None:
    assert lookup_f1(world, _unit(world, name)) < 0.9


def test_only_where_pairs_must_repeat_the_commonest_words_are_named(world: World) -> None:
    text = side_text(world.subject, world, "explain").text
    counts = Counter(text.vocabulary[kind] for kind in text.kind if text.vocabulary[kind].isalpha())
    named = {name: _made(world, name, 150).words.get("repeat") for name in PLANTED}
    words = named.pop("repeated pairs")
    assert words is not None and len(words) == len(set(words)) == COMMON
    least = min(counts[word] for word in words)
    assert all(n <= least for word, n in counts.items() if word not in words)
    assert set(named.values()) == {None}


def test_sentences_say_it_in_words(world: World) -> None:
    said = {name: _made(world, name, 150).sentence for name in PLANTED}
    assert str(said["ordinals"]).startswith("fires on the last piece of numbers with an ordinal ending, such as ")
    assert said["II after War"] == "fires on the word “II” after the word “War”"
    assert re.search("the words “(Oslo|Vienna)” and “(Oslo|Vienna)”", str(said["two ways"]))
    assert "also on the last piece of numbers of 4 digits, such as 1" in str(said["two ways"])
    assert "where the same two tokens have stood together before" in str(said["repeated pairs"])
    assert all(sentence and len(sentence) < 400 and "\n" not in sentence for sentence in said.values())


@pytest.mark.parametrize("share", [0.0015, 0.005, 0.03])
@pytest.mark.parametrize("reads", [0, 150])
def test_nothing_is_found_in_noise(world: World, share: float, reads: int) -> None:
    noise = np.random.default_rng(int(share * 1e4)).random(len(world.tokens)) < share
    unit = world.plant(int(1000 + share * 1e4), noise)
    made = induce(world.subject, world, unit, reads=reads)  # type: ignore[arg-type]
    assert made.rule is None and made.sentence is None
    assert made.explain_f1 is not None and (made.explain_f1 < MIN_F1 / 2 if reads else made.explain_f1 < 0.5)
    assert made.reason.startswith("the best pattern found has F1 0.") and made.reason.endswith("it may be chance.")


def test_a_pattern_too_weak_to_put_forward_is_kept_apart(world: World) -> None:
    """Firing at one in ten of its places, the best there is has F1 .18; part of that is found, and held back."""
    places = world.y[_unit(world, "lower case, not after such")] > 0.5
    fires = places & (np.random.default_rng(11).random(len(world.tokens)) < 1 / 10)
    unit = world.plant(2010, fires)
    made = induce(world.subject, world, unit)  # type: ignore[arg-type]
    assert made.rule is None and made.sentence is None and made.weak is not None
    assert made.explain_f1 is not None and made.explain_f1 < MIN_F1
    assert rule_f1(world, unit, made.weak) > 0.1
    assert _made(world, "ordinals", 150).weak is None


def test_the_naive_list_of_the_exemplars_words_would_look_perfect_in_noise(world: World) -> None:
    rng = np.random.default_rng(5)
    rare = np.flatnonzero(np.bincount(world.tokens)[world.tokens] < 60)
    unit = world.plant(2000, np.isin(np.arange(len(world.tokens)), rng.choice(rare, 60, replace=False)))
    shown = [e for e in world.exemplars(unit, "explain") if e.activation >= world.statistics(unit).threshold]
    own = {int(world.tokens[world.documents[e.document].start + e.offset]) for e in shown}
    score = side_text(world.subject, world, "score")
    assert score_f1(world, unit, np.isin(score.text.ids, list(own))) < 0.2
    assert induce(world.subject, world, unit, reads=0).rule is None  # type: ignore[arg-type]


def test_labels_moved_along_the_text_are_no_pattern(world: World) -> None:
    fires = world.y[_unit(world, "ordinals")] > 0.5
    unit = world.plant(2001, np.roll(fires, 29))
    made = induce(world.subject, world, unit)  # type: ignore[arg-type]
    assert made.rule is None, made.sentence


def test_few_documents_are_refused_with_the_reason(world: World) -> None:
    fires = np.zeros(len(world.tokens), dtype=bool)
    fires[[d.start + 5 for d in world.documents if d.side == "explain"][:7]] = True
    unit = world.plant(2002, fires)
    world.y[unit][~fires] *= 0.3
    made = induce(world.subject, world, unit)  # type: ignore[arg-type]
    assert made == Induced(None, None, made.reason, None, None, None, 0)
    assert made.reason == "it fires in 7 explain documents that are no near copies; a pattern needs 8."


def test_near_copies_count_once() -> None:
    small = World(Words())
    small.write(60, np.random.default_rng(3))
    small.documents = [Document(d.side, d.cluster % 6, d.start, d.length) for d in small.documents]
    made = induce(small.subject, small, small.plant(0, PLANTED["ordinals"]))  # type: ignore[arg-type]
    assert made.rule is None and "explain documents that are no near copies" in made.reason


def test_only_the_explain_side_is_asked_for_and_twice_is_equal() -> None:
    small = World(Words())
    small.write(80, np.random.default_rng(4))
    unit = small.plant(0, PLANTED["ordinals"])
    small.asked.clear()
    first = induce(small.subject, small, unit)  # type: ignore[arg-type]
    assert small.asked == {"explain"} and first.rule is not None
    assert first.reads == small.windows_read <= 150
    assert induce(small.subject, small, unit) == first  # type: ignore[arg-type]


def test_with_everything_read_the_numbers_are_the_true_ones(world: World) -> None:
    name = "places"
    made, unit = _made(world, name, 10**6), _unit(world, name)
    assert made.rule is not None
    side, peak = side_text(world.subject, world, "explain"), world.statistics(unit).peak
    starts = np.array([d.start for d in world.documents])
    ratio = np.where(side.offset >= 0, world.y[unit][starts[side.document] + side.offset] / peak, 0)
    for clause in made.rule.clauses:
        assert clause.value == pytest.approx(ratio[clause.mask(side.text)].mean(), abs=1e-4)
    hit = made.rule.predict_flat(side.text) > 0
    precision, recall = (ratio[hit] >= 0.5).mean(), (hit & (ratio >= 0.5)).sum() / (ratio >= 0.5).sum()
    assert made.explain_precision is not None and made.explain_recall is not None
    # Less what its list owes to words seen firing in few documents.
    assert 0.85 * precision <= made.explain_precision <= precision + 1e-9
    assert 0.85 * recall <= made.explain_recall <= recall + 1e-9


def test_places_read_count_by_the_chance_that_their_window_was_drawn(world: World) -> None:
    """A rare token that always fires and a common one that seldom does: pooled as drawn, they look far too good."""
    rng = np.random.default_rng(11)
    oslo, the = (world.subject.known[piece] for piece in (" Oslo", " the"))
    fires = (world.tokens == oslo) | ((world.tokens == the) & (rng.random(len(world.tokens)) < 0.02))
    unit = world.plant(2003, fires)
    known = Known(world.subject, world, unit)  # type: ignore[arg-type]
    both = np.flatnonzero(np.isin(known.text.ids, [oslo, the]))
    groups = [np.flatnonzero(known.text.ids == token) for token in (oslo, the)]
    known.read(groups, 100)
    hit, fired = np.isin(known.read_at, both), known.read_ratio >= 0.5
    starts = np.array([d.start for d in world.documents])
    y = world.y[unit][starts[known.side.document[both]] + known.side.offset[both]]
    true = float((y >= known.peak / 2).mean())
    clause = Clause(Matcher((oslo, the)))
    precision, recall = known.rates([Candidate(clause, both, known.matched(both).astype(float), 0, "")])
    assert abs(precision - true) < 0.03
    assert abs(recall - 1) < 0.25
    assert float(fired[hit].mean()) > true + 0.04


def test_reading_finds_words_that_exemplars_show_once(world: World) -> None:
    words = [*NOUNS, *ADJECTIVES, *HISTORY]
    unit = world.plant(2005, word_is("|".join(words)))
    alone, read = (induce(world.subject, world, unit, reads=n) for n in (0, 150))  # type: ignore[arg-type]
    missed = [rule_f1(world, unit, made.rule) if made.rule else 0.0 for made in (alone, read)]
    assert missed[1] >= 0.8 and missed[1] > missed[0] + 0.1


# Bare lists


def bare(clause: Clause) -> tuple[str, str] | None:
    """What a clause that is nothing but a list lists, and on which piece; None for any other."""
    if clause.atoms > 1 + (clause.piece != "last" and not clause.at.ids):
        return None
    if clause.at.ids:
        return "tokens", clause.piece
    words = re.sub(r"\(\?i[:)]|\)", "", clause.at.word or "")
    named = clause.at.word in {pattern for _, pattern in KNOWN}
    return ("words", clause.piece) if re.fullmatch(r"\w+(\|\w+)*", words) and not named else None


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_no_two_clauses_are_bare_lists_on_the_same_piece(world: World, name: str) -> None:
    for reads in (0, 150):
        made = _made(world, name, reads)
        lists = [kind for c in (made.rule.clauses if made.rule else ()) if (kind := bare(c))]
        assert len(lists) == len(set(lists)), str(made.rule)


def test_words_found_in_two_rounds_are_one_list(world: World) -> None:
    """Words as they stand come first and forms of them next: walked, …, and walking, walked, … in capitals or not."""
    made = _made(world, "forms", 150)
    assert made.rule is not None and len(made.rule.clauses) == made.rule.atoms == 1
    words = str(made.rule.clauses[0].at.word).removeprefix(FOLD).split("|")
    assert sorted(words) == sorted(f"{stem}{end}" for stem in STEMS[:3] for end in ("s", "ed", "ing"))
    said = re.findall("“([^”]+)”", str(made.sentence))
    assert len(said) == len(set(said)) == 6 and "also on" not in str(made.sentence)


@pytest.fixture(scope="module")
def search(world: World) -> Search:
    unit = world.plant(2006, word_is("Rome|Prague|house|garden"))
    return Search(world.subject, Known(world.subject, world, unit), Trials(world.subject, []))  # type: ignore[arg-type]


def listed(search: Search, names: Sequence[int | str], piece: str = "last") -> Candidate:
    return search.proposals.listed(piece, names, np.full(len(search.known.at), 0.9))


LISTED = ["the", "The", "They", *NOUNS, *PLACES, *SPELLED]
SOME_WORDS = st.lists(st.sampled_from([*LISTED, *(FOLD + w.lower() for w in LISTED)]), min_size=1, max_size=16)
SOME_TOKENS = st.lists(st.integers(1, 40), min_size=1, max_size=16)


@given(st.tuples(SOME_WORDS, SOME_WORDS) | st.tuples(SOME_TOKENS, SOME_TOKENS))
def test_a_union_matches_what_both_lists_do_and_never_lowers_worth(search: Search, two: Any) -> None:
    a, b = (listed(search, list(dict.fromkeys(names)), "any") for names in two)
    assume(a.clause != b.clause)
    both = search.proposals.union(a, b)
    assert both is not None and both.clause.atoms == a.clause.atoms
    if len(fitting([n for n in merged(*two) if isinstance(n, str)])) in (0, len(merged(*two))):
        assert np.array_equal(both.at, np.union1d(a.at, b.at))
        saved = PRICE * a.clause.atoms + ALTERNATIVE * (a.listed + b.listed - both.listed)
        assert search.worth([both]) == pytest.approx(search.worth([a, b]) + saved)
        assert saved > 0 and both.listed == len(both.names) - 1 == len(set(both.names)) - 1


def test_a_clause_that_is_said_twice_is_worth_nothing(search: Search) -> None:
    c = listed(search, ["Rome", "Prague"])
    assert search.worth([c]) > 0 and search.worth([c, c]) == search.worth([c, replace(c, words="other")]) == -1


def test_what_experiments_stand_behind_is_free_once(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted for the clause that a list goes on in as well, each repetition of a rule would make it cheaper."""
    behind = Condition.of(("garden",), (1, 1), "words", True, search.proposals.spell)
    tested = replace(behind, tested=True)
    bare = [listed(search, [name]) for name in ("Rome", "Prague")]
    one, other = (replace(c, clause=tested.added(c.clause), conditions=(tested,)) for c in bare)
    monkeypatch.setattr(search.proposals, "found", lambda c: True)
    assert search._shown([one]) == 1
    assert search._shown([one, other]) == 1 + other.clause.atoms


def test_lists_that_one_matcher_cannot_hold_have_no_union(search: Search) -> None:
    long = [f"{word}{number:030d}" for word in "ab" for number in range(8)]
    both = search.proposals.union(listed(search, long[:6]), listed(search, long[8:11]))
    assert both is not None and both.names == (*long[:6], *long[8:11]) and len(str(both.clause.at.word)) <= MAX_PATTERN
    assert search.proposals.union(listed(search, long[:8]), listed(search, long[8:])) is None
    tokens = search.proposals.union(listed(search, range(40, 60)), listed(search, range(1, MAX_IDS - 19)))
    assert tokens is not None and tokens.listed == MAX_IDS - 1
    assert search.proposals.union(listed(search, range(40, 60)), listed(search, range(1, MAX_IDS - 18))) is None


def test_only_bare_lists_of_one_kind_and_piece_have_a_union(search: Search) -> None:
    a = listed(search, ["Oslo"])
    others = [listed(search, ["Rome"], "first"), listed(search, [5], "last")]
    others += [Candidate(Clause(a.clause.at, repeat=True), a.at, a.trust, 0, "")]
    assert [search.proposals.union(a, c) for c in others] == [None] * 3


def test_a_union_loses_the_words_that_it_does_as_well_without(search: Search) -> None:
    pool = [listed(search, ["Rome", "house", "judge"]), listed(search, ["garden", "Rome", "Prague", "later"])]
    assert search.worth(pool) > max(search.worth([c]) for c in pool) > 0
    (both,) = search.assemble(pool)
    assert set(both.names) == {"Rome", "house", "garden", "Prague"} and both.listed == 3
    assert both.words == called([str(name) for name in both.names])
    assert search.assemble(pool[:1]) == pool[:1]   # a list that was proposed stays as it was


def test_with_one_part_of_a_long_list_its_other_parts_are_chosen(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = (Near(Matcher(word="war"), 1, 1),)
    part, other = (Clause(Matcher(word=word), need=after) for word in ("paris", "rome"))
    plain = [Clause(Matcher(ids=(i,))) for i in range(20)]
    elsewhere = Clause(Matcher(word="rome"))
    clauses = [part, *plain[: READ - 1], plain[-1], elsewhere, other]
    pool = [Candidate(clause, np.arange(3), np.ones(1), 0, "") for clause in clauses]
    monkeypatch.setattr(search, "shortlist", lambda pool: pool)
    monkeypatch.setattr(search.proposals, "found", lambda c: c.clause.at.word is not None)
    assert [c.clause for c in search.chosen(pool)] == [part, *plain[: READ - 1], other]


def test_words_in_capitals_or_not_and_words_as_they_are_share_a_pattern() -> None:
    assert merged(["The", "dog", 7], ["(?i)dog", "the", "The", 7]) == ["The", "(?i)dog", 7, "the"]
    assert matching(["The", "(?i)dog", "(?i)cat"]) == Matcher(word="The|(?i:dog|cat)")
    assert matching(["(?i)dog", "(?i)cat"]) == Matcher(word="(?i)dog|cat")
    assert matching(["Dog", "."]) == Matcher(word=r"Dog|\.")


def test_a_blank_is_no_word() -> None:
    names = spelled(lambda i: [" the", " ", ",", "  "][i], range(4))
    assert names == ["the", "a blank", ","]
    assert called(names) == "the words “the” and “,” and a blank"
    assert (called(names[1:2]), called(names[:2])) == ("a blank", "the word “the” and a blank")
    assert called(names[1:]) == "the mark “,” and a blank"


# What experiments add


def example(world: World, unit: UnitId, text: str, kept: Sequence[str]) -> Evidence:
    """What minimal_example would have returned."""
    ids = [0, *world.subject.encode(text)]
    pieces = world.subject.pieces(ids)
    row = {"ids": ids, "kept": [i for i, piece in enumerate(pieces) if piece in kept], "one_minimal": True}
    return Evidence(tool="minimal_example", unit=unit.bare, sign=unit.sign, summary="", rows=[row])


def trials(world: World, unit: UnitId, texts: Sequence[tuple[str, str, str]]) -> Evidence:
    """What substitute would have returned: texts, the piece at which the substitute begins, and its effect."""
    rows = []
    for text, word, effect in texts:
        ids = [0, *world.subject.encode(text)]
        at = world.subject.pieces(ids).index(word)
        told = {"effect": effect, "in_text": float(effect == "keeps")}
        rows.append({"ids": ids, "position": at, "original": "", "substitute": word, "places": 1, **told})
    return Evidence(tool="substitute", unit=unit.bare, sign=unit.sign, summary="", rows=rows)


@pytest.fixture(scope="module")
def narrow(world: World) -> World:
    """A corpus that says "II" only after "War"; it shares its tokens with the wide one."""
    narrow = World(world.subject)
    rng = np.random.default_rng(9)
    rows = []
    for number in range(200):
        kept = [s for s in (sentence(rng) for _ in range(14)) if " II" not in s or "War II" in s]
        rows.append(world.subject.encode("".join(kept)))
        start = sum(map(len, rows[:-1]))
        narrow.documents.append(Document("explain" if number % 2 else "score", number, start, len(rows[-1])))
    narrow.tokens = np.concatenate([np.array(row) for row in rows])
    narrow.owner = np.repeat(np.arange(200), [len(row) for row in rows])
    narrow.sides = np.array([d.side for d in narrow.documents])[narrow.owner]
    return narrow


def test_experiments_teach_a_context_that_the_corpus_cannot(world: World, narrow: World) -> None:
    unit = narrow.plant(0, PLANTED["II after War"])
    blind = induce(narrow.subject, narrow, unit)  # type: ignore[arg-type]
    kept = [example(narrow, unit, text, [" War", " II"]) for text in (" World War II", " The World War II")]
    others = ("Henry", "Part", "Bank", "Louis", "Edward", "Page")
    swapped = [(f" World {word} II", f" {word}", "kills") for word in others]
    swapped += [(f" World War {word}", f" {word}", "kills") for word in ("dog", "and", "began", "reign")]
    told = induce(narrow.subject, narrow, unit, [*kept, trials(narrow, unit, swapped)])  # type: ignore[arg-type]
    assert blind.rule is not None and told.rule is not None
    wide = _unit(world, "II after War")
    assert rule_f1(world, wide, blind.rule) < 0.9
    assert rule_f1(world, wide, told.rule) >= 0.95
    assert "after the word “war”" in str(told.sentence)


def test_substitutes_that_keep_widen_a_list(world: World) -> None:
    unit = world.plant(2004, word_is("|".join(SPELLED)))
    swaps = [(f" was the {word}", f" {word}"[:7], "keeps") for word in SPELLED]
    swaps += [(" was the dog", " dog", "kills"), (" was the cat", " cat", "kills")]
    tried = trials(world, unit, [*swaps, *swaps])
    told = induce(world.subject, world, unit, [tried], reads=0)  # type: ignore[arg-type]
    assert told.rule is not None
    tokens = [Tokens.of(world.subject, [0, *world.subject.encode(text)]) for text, _, _ in swaps]
    assert [told.rule.predict(t)[-1] > 0 for t in tokens] == [effect == "keeps" for _, _, effect in swaps]


def test_evidence_of_another_unit_is_refused(world: World) -> None:
    unit = _unit(world, "ordinals")
    foreign = example(world, UnitId("words", "0-mlp", 999), " World War II", [" II"])
    with pytest.raises(Refused, match="give this unit's own"):
        induce(world.subject, world, unit, [foreign])  # type: ignore[arg-type]
    elsewhere = Evidence(tool="lens", unit="words/0-mlp/999", sign=1, summary="")
    assert induce(world.subject, world, unit, [elsewhere], reads=0) == _made(world, "ordinals", 0)  # type: ignore[arg-type]


# Words of one kind, seldom seen

KIND = [
    "gavel", "orchid", "plume", "thyme", "cobalt", "fjord", "zephyr", "quartz", "nectar", "bishop", "walnut", "jigsaw",
    "mosaic", "velvet", "ingot", "hyena", "sphinx", "turnip", "lagoon", "abacus", "easel", "yolk", "ruby", "kiosk",
]  # fmt: skip


def _kinds(alike: bool) -> tuple[World, UnitId]:
    """A unit that fires on 24 words, each of which the explain side shows twice at most, or, the last 6, never."""
    world = World(Words())
    world.write(60, np.random.default_rng(3))
    rows, known = [], iter(KIND[:18] * 2)
    for d in world.documents:
        row = world.tokens[d.start : d.start + d.length].tolist()
        word = next(known, None) if d.side == "explain" else KIND[18 + d.cluster % 6]
        rows.append(row + world.subject.encode(f" The {word} {d.cluster} was old." if word else " It was old."))
    for d, row, start in zip(world.documents, rows, np.cumsum([0, *map(len, rows)]), strict=False):
        world.documents[d.cluster] = Document(d.side, d.cluster, int(start), len(row))
    world.tokens = np.concatenate([np.array(row) for row in rows])
    world.owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    world.sides = np.array([d.side for d in world.documents])[world.owner]
    world.subject.alikes = KIND if alike else []
    return world, world.plant(3000, np.isin(world.tokens, [world.subject.known[f" {w}"] for w in KIND]))


def test_words_near_each_other_in_the_embedding_are_one_kind_and_its_unseen_members_count() -> None:
    world, unit = _kinds(alike=True)
    made = induce(world.subject, world, unit)  # type: ignore[arg-type]
    found = {world.subject.piece(i).strip() for c in (made.rule.clauses if made.rule else ()) for i in c.at.ids}
    assert len(set(KIND[18:]) & found) >= 4 and found <= set(KIND), f"{made.reason} {found}"
    assert not set(KIND[18:]) & {w for d, _, ids in world.windows("explain") for w in world.subject.pieces(ids)}


def test_without_a_likeness_no_unseen_word_is_in_a_rule() -> None:
    """The control: the same unit, and an embedding that says nothing of it."""
    world, unit = _kinds(alike=False)
    made = induce(world.subject, world, unit)  # type: ignore[arg-type]
    found = {world.subject.piece(i).strip() for c in (made.rule.clauses if made.rule else ()) for i in c.at.ids}
    assert not set(KIND[18:]) & found
