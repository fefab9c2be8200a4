"""Rules against a slow reading of their definition, and against hostile input."""

import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.records import Refused
from lamplighter.tools import rules as module
from lamplighter.tools.rules import CLASSES, Clause, Matcher, Near, Rule, Text, Tokens, side_text, split_words


class Speller:
    """A vocabulary of given pieces; id 0 is the sink."""

    def __init__(self, pieces: list[str]) -> None:
        self.known = ["<s>", *pieces]

    def pieces(self, ids: Any) -> list[str]:
        return [self.known[int(i)] for i in ids]


PIECES = [
    " the", " War", " II", "War", "1", "9", "th", "st", " ", ",", ".\"", "\n\n", " don", "'t", " un", "play", "ing",
    "_", "é", "�", " A", "   ", "-", " 3", ".", "5", "", "’s", " NASA",
]  # fmt: skip
SPELLER = Speller(PIECES)


def ids_of(*pieces: str) -> list[int]:
    return [0, *(1 + PIECES.index(p) for p in pieces)]


# The definition, token by token, with Python's own regular expressions


def slow_words(text: str) -> list[tuple[int, int]]:
    """Spans of the words, character by character."""

    def letter(c: str) -> bool:
        return c.isalnum() or c == "�" or "\u0300" <= c <= "\u036f"

    def run(i: int) -> int:
        while i < len(text) and letter(text[i]):
            i += 1
        return i

    spans, i = [], 0
    while i < len(text):
        if text[i].isspace() and text[i] != "\n":
            i += 1
            continue
        start, i = i, i + 1
        if letter(text[start]):
            i = run(start)
            digits = text[start:i].isdecimal()
            number = False
            while digits and i + 1 < len(text) and text[i] in ".," and text[i + 1].isdecimal():
                number, j = True, i + 1
                while j < len(text) and text[j].isdecimal():
                    j += 1
                i = j
            if number:
                i = run(i)
            while not number and i + 1 < len(text) and text[i] in "'’" and letter(text[i + 1]):
                i = run(i + 1)
        spans.append((start, i))
    return spans


def slow_predict(rule: Rule, speller: Speller, ids: list[int]) -> list[float]:
    pieces = speller.pieces(ids)
    text = "".join(pieces[1:])
    spans = slow_words(text)
    words = [text[a:b] for a, b in spans]
    ends = np.cumsum([0, *map(len, pieces[1:])]).tolist()
    owner: list[int | None] = [None]                       # the word of each token; None for blanks and the sink
    before: list[int] = [0]                                # how many words begin before the token ends
    for t in range(1, len(ids)):
        begun = [j for j, (a, _) in enumerate(spans) if a < ends[t]]
        before.append(len(begun))
        owner.append(begun[-1] if begun and spans[begun[-1]][1] > ends[t - 1] else None)

    def word_is(m: Matcher, word: int) -> bool:
        if m.ids:
            return any(owner[s] == word and ids[s] in m.ids for s in range(1, len(ids)))
        if m.cls is not None:
            return bool(PLAIN[m.cls](words[word]))
        return re.fullmatch(str(m.word), words[word]) is not None

    def token_is(m: Matcher, t: int) -> bool:
        if t < 1:
            return False
        if m.ids:
            return ids[t] in m.ids
        mine = owner[t]
        return m.cls in ("any", "blank") if mine is None else word_is(m, mine)

    def near(n: Near, t: int) -> bool:
        for distance in range(n.low, n.high + 1):
            if n.unit == "tokens" and t - distance >= 1 and token_is(n.match, t - distance):
                return True
            last = before[t] if owner[t] is None else owner[t]
            word = (last or 0) - distance
            if n.unit == "words" and word >= 0 and word_is(n.match, word):
                return True
        return False

    def piece_is(piece: str, t: int) -> bool:
        family = [s for s in range(1, len(ids)) if owner[s] == owner[t] and owner[t] is not None] or [t]
        first, last = t == family[0], t == family[-1]
        return {"any": True, "first": first, "last": last, "inner": not first and not last}[piece]

    def matches(c: Clause, t: int) -> bool:
        pairs = [(ids[s - 1], ids[s]) for s in range(2, t)]
        return (
            token_is(c.at, t) and piece_is(c.piece, t)
            and all(near(n, t) for n in c.need) and not any(near(n, t) for n in c.avoid)
            and (c.position is None or c.position[0] <= t <= c.position[1])
            and (not c.repeat or (t >= 2 and (ids[t - 1], ids[t]) in pairs))
        )  # fmt: skip

    hits = [[c.value for c in rule.clauses if t > 0 and matches(c, t)] for t in range(len(ids))]
    return [max(values, default=0.0) for values in hits]


def _capitalised(word: str) -> bool:
    plain = word.replace("'", "").replace("’", "")
    return plain.isalpha() and word[0].isupper() and any(c.islower() for c in word)


PLAIN: dict[Any, Any] = {
    "number": lambda w: re.fullmatch(r"[0-9]+([.,][0-9]+)*", w) is not None,
    "number word": lambda w: w.lower() in CLASSES["number word"].removeprefix("(?i)").split("|"),
    "uppercase": lambda w: len(w) > 1 and w.isalpha() and w.isupper(),
    "capitalised": _capitalised,
    "lowercase": lambda w: w.replace("'", "").replace("’", "").isalpha() and w[0].islower() and w == w.lower(),
    "punctuation": lambda w: len(w) == 1 and not w.isalnum() and w not in "\n�",
    "newline": lambda w: w == "\n",
    "blank": lambda w: False,
    "any": lambda w: True,
}

matchers = st.one_of(
    st.lists(st.integers(1, len(PIECES)), min_size=1, max_size=3).map(lambda ids: Matcher(tuple(ids))),
    st.sampled_from([r"\d+(st|nd|rd|th)", "(?i)war|ii", "[a-zA-Z'’]+ing", "(the|War|II)", r"\n", ".*"]).map(
        lambda p: Matcher(word=p)
    ),
    st.sampled_from(sorted(CLASSES)).map(lambda c: Matcher(cls=c)),
)


@st.composite
def nears(draw: Any) -> Near:
    low = draw(st.integers(1, 4))
    return Near(draw(matchers), low, low + draw(st.integers(0, 4)), draw(st.sampled_from(["tokens", "words"])))


@st.composite
def clauses(draw: Any) -> Clause:
    low = draw(st.integers(1, 8))
    return Clause(
        draw(matchers), draw(st.sampled_from(["", "last", "first", "inner", "any"])),
        tuple(draw(st.lists(nears(), max_size=1))), tuple(draw(st.lists(nears(), max_size=1))),
        draw(st.sampled_from([None, (low, low + 3)])), draw(st.booleans()) and draw(st.booleans()),
        draw(st.floats(0.01, 2)),
    )  # fmt: skip


rules = st.lists(clauses(), min_size=1, max_size=3).map(lambda c: Rule(tuple(c)))
windows = st.lists(st.integers(1, len(PIECES)), min_size=1, max_size=20).map(lambda ids: [0, *ids])


@settings(max_examples=300, deadline=None)
@given(rules, windows)
def test_a_rule_predicts_what_its_definition_says(rule: Rule, ids: list[int]) -> None:
    fast = rule.predict(Tokens.of(SPELLER, ids))
    assert fast.tolist() == slow_predict(rule, SPELLER, ids)


@settings(max_examples=100, deadline=None)
@given(rules, st.lists(windows, max_size=4))
def test_many_windows_at_once_read_as_one_by_one(rule: Rule, rows: list[list[int]]) -> None:
    together = rule.predict_all(Text.of(SPELLER, rows))
    assert [p.tolist() for p in together] == [rule.predict(Tokens.of(SPELLER, ids)).tolist() for ids in rows]


def test_masks_that_are_forgotten_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [Tokens.of(SPELLER, row) for row in ([0, 5, 6, 7, 8, 9, 10, 5, 6], [0, 7, 7, 8])]
    nears = [Near(Matcher(cls=name), 1, 3) for name in CLASSES]
    rules = [Rule((Clause(Matcher(ids=(i,)), need=(near,)),)) for i in range(5, 11) for near in nears]
    text = Text(windows)
    kept = [rule.predict_flat(text) for rule in rules]
    monkeypatch.setattr(module, "CACHED", 1)
    small = Text(windows)
    for rule, values in zip([*rules, *rules], [*kept, *kept], strict=True):
        assert (rule.predict_flat(small) == values).all() and len(small._masks) == 1


@settings(max_examples=100, deadline=None)
@given(rules)
def test_json_gives_the_rule_back(rule: Rule) -> None:
    if rule.atoms > 8:
        with pytest.raises(Refused, match="8 are allowed"):
            Rule.from_json(rule.to_json())
        return
    assert Rule.from_json(rule.to_json()) == rule
    assert Rule.from_json(rule.to_json()).to_json() == rule.to_json()


@settings(max_examples=100, deadline=None)
@given(rules, clauses(), nears(), windows)
def test_a_clause_never_lowers_and_a_not_never_raises(rule: Rule, more: Clause, near: Near, ids: list[int]) -> None:
    tokens = Tokens.of(SPELLER, ids)
    now = rule.predict(tokens)
    assert (Rule((*rule.clauses, more)).predict(tokens) >= now).all()
    narrowed = replace(rule.clauses[0], avoid=(*rule.clauses[0].avoid, near))
    assert (Rule((narrowed, *rule.clauses[1:])).predict(tokens) <= now).all()


@settings(max_examples=200, deadline=None)
@given(windows)
def test_every_character_that_is_no_blank_lies_in_one_word(ids: list[int]) -> None:
    tokens = Tokens.of(SPELLER, ids)
    text = "".join(tokens.pieces[1:])
    assert "".join(tokens.words) == re.sub(r"[^\S\n]", "", text)
    assert list(tokens.words[1:]) == [text[a:b] for a, b in slow_words(text)] == split_words(text)


def test_words_are_what_the_page_says() -> None:
    assert split_words("He didn't buy 1,000.5 well-known foo_bar 19th\n\ncafé's.\"") == [
        "He", "didn't", "buy", "1,000.5", "well", "-", "known", "foo", "_", "bar", "19th", "\n", "\n", "café's", ".",
        '"',
    ]  # fmt: skip


def test_a_blank_token_is_in_no_word_and_distances_in_words_pass_over_it() -> None:
    ids = ids_of(" the", " ", "1", "9", "th")
    tokens = Tokens.of(SPELLER, ids)
    assert [tokens.words[w] for w in tokens.word] == ["", "the", "the", "19th", "19th", "19th"]
    after_the = Clause(Matcher(word=r"\d+th"), need=(Near(Matcher(word="the"), 1, 1, "words"),))
    assert Rule((after_the,)).predict(tokens).tolist() == [0, 0, 0, 0, 0, 1]


def test_the_usual_examples() -> None:
    ordinal = Rule.from_json({"clauses": [{"at": {"word": r"\d+(st|nd|rd|th)"}, "value": 0.9}]})
    assert ordinal.predict(Tokens.of(SPELLER, ids_of(" 3", "1", "st", " War", " 3", "st"))).tolist() == [
        0, 0, 0, 0.9, 0, 0, 0.9,
    ]  # fmt: skip
    war = {"match": {"word": "War"}, "within": [1, 1], "unit": "words"}
    second = Rule.from_json({"clauses": [{"at": {"word": "II"}, "need": [war]}]})
    assert second.predict(Tokens.of(SPELLER, ids_of(" the", " II", " War", " II"))).tolist() == [0, 0, 0, 0, 1]
    induction = Rule.from_json({"clauses": [{"at": {"class": "any"}, "repeat": True}]})
    assert induction.predict(Tokens.of(SPELLER, ids_of(" A", "9", " the", " A", "9"))).tolist() == [0] * 5 + [1]


def test_the_naive_reading_by_joined_strings_would_see_other_words() -> None:
    """A regular expression over each piece alone never sees "19th", which is three tokens."""
    tokens = Tokens.of(SPELLER, ids_of("1", "9", "th"))
    assert not any(re.fullmatch(r"\d+th", piece.strip()) for piece in tokens.pieces)
    assert Rule((Clause(Matcher(word=r"\d+th")),)).predict(tokens)[-1] == 1


def test_nothing_matches_the_sink_even_where_a_matcher_names_it() -> None:
    for clause in (Clause(Matcher((0,))), Clause(Matcher(cls="any")), Clause(Matcher(word=".*"), "any")):
        assert Rule((clause,)).predict(Tokens.of(SPELLER, [0, 0, 1]))[0] == 0
    after_sink = Clause(Matcher((1,)), need=(Near(Matcher(cls="any"), 1, 63, "words"),))
    assert Rule((after_sink,)).predict(Tokens.of(SPELLER, [0, 1])).tolist() == [0, 0]
    by_token = Clause(Matcher((1,)), need=(Near(Matcher((0,)), 1, 63),))
    assert Rule((by_token,)).predict(Tokens.of(SPELLER, [0, 1])).tolist() == [0, 0]


def test_atoms_count_each_part() -> None:
    near = Near(Matcher(cls="any"))
    clause = Clause(Matcher(word="a"), "first", (near,), (near, near), (1, 5), True)
    assert clause.atoms == 7
    assert Clause(Matcher((3,))).atoms == Clause(Matcher(word="a"), "last").atoms == 1
    assert Clause(Matcher((3,)), "last").atoms == 2


def test_a_rule_is_readable() -> None:
    rule = Rule((Clause(Matcher(word=r"\d+(st|nd|rd|th)")),))
    assert str(rule) == r"last piece of a word /\d+(st|nd|rd|th)/"
    near = Near(Matcher((2,)), 1, 3)
    named = Rule((Clause(Matcher((3,)), avoid=(near,)),)).text(lambda i: PIECES[i - 1])
    assert named == "token “ II”, not after a token “ War” 1 to 3 tokens before"


MANY = {"match": {"class": "any"}, "within": [1, 2]}
BAD_MATCHERS: list[Any] = [
    None, {}, {"ids": []}, {"ids": [1], "word": "a"}, {"ids": "1"}, {"ids": [1.5]}, {"ids": [True]}, {"ids": [-1]},
    {"ids": [10**30]}, {"ids": list(range(33))}, {"word": "("}, {"word": r"(a)\1"}, {"word": "a(?=b)"}, {"word": 5},
    {"word": "a" * 401}, {"word": "\ud800"}, {"word": "((a{100}){100}){100}"}, {"class": "nouns"}, {"class": ["any"]},
]  # fmt: skip
BAD_CONTEXTS: list[Any] = [
    None, {"within": [1, 2]}, MANY | {"within": [2, 1]}, MANY | {"within": [0, 1]}, MANY | {"within": [1, 64]},
    MANY | {"within": 3}, MANY | {"within": ["1", "2"]}, MANY | {"unit": "lines"}, MANY | {"unit": ["words"]},
    MANY | {"after": True},
]  # fmt: skip
BAD_PARTS: list[dict[str, Any]] = [
    {"piece": "whole"}, {"piece": ""}, {"piece": None}, {"need": MANY}, {"need": [MANY] * 9}, {"need": [MANY] * 8},
    {"position": [0, 3]}, {"position": [1, 2, 3]}, {"position": "1"}, {"repeat": "yes"}, {"value": 0}, {"value": "1"},
    {"value": float("nan")}, {"value": float("inf")}, {"value": 10**400}, {"value": True}, {"code": "import os"},
    *({"at": matcher} for matcher in BAD_MATCHERS), *({"not": [context]} for context in BAD_CONTEXTS),
]  # fmt: skip
AT = {"at": {"word": "a"}}
BAD_RULES: list[Any] = [
    None, [], "rule", 3, {}, {"clauses": {}}, {"clauses": []}, {"clauses": [AT] * 5}, {"clauses": [None]},
    {"clauses": [AT], "more": 1}, {"clauses": [{}]}, *({"clauses": [AT | part]} for part in BAD_PARTS),
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_RULES)
def test_hostile_json_is_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(Refused) as refusal:
        Rule.from_json(value)
    message = str(refusal.value)
    assert len(message) < 300 and "\n" not in message and message.endswith(".")


def test_a_catastrophic_pattern_is_harmless() -> None:
    speller = Speller(["a" * 3000 + "!"])
    rule = Rule((Clause(Matcher(word="(a+)+(a|aa)+b")),))
    start = time.perf_counter()
    rule.predict(Tokens.of(speller, [0, 1, 1]))
    assert time.perf_counter() - start < 1


def test_a_hundred_thousand_tokens_take_seconds_and_further_rules_less() -> None:
    rng = np.random.default_rng(0)
    speller = Speller([f" w{i}" if i % 3 else f"x{i}" for i in range(3000)])
    rows = [[0, *rng.integers(1, 3001, 63).tolist()] for _ in range(1600)]
    start = time.perf_counter()
    text = Text.of(speller, rows)
    war = Near(Matcher(word="w2+"), 1, 20, "words")
    Rule((Clause(Matcher(word="w.*1"), need=(war,)),)).predict_all(text)
    assert time.perf_counter() - start < 5
    start = time.perf_counter()
    for ending in "0123456789":
        Rule((Clause(Matcher(word=f".*{ending}"), need=(war,)),)).predict_all(text)
    assert time.perf_counter() - start < 5


def test_a_side_is_prepared_once_and_knows_its_places() -> None:
    class Sweep:
        asked = 0

        def windows(self, side: str) -> Any:
            self.asked += 1
            yield 3, 0, [0] + [1 + i % len(PIECES) for i in range(63)]
            yield 3, 63, ids_of(" War", " II")
            yield 7, 0, ids_of(" the")

    sweep = Sweep()
    side = side_text(SPELLER, sweep, "score")
    assert side_text(SPELLER, sweep, "score") is side and sweep.asked == 1
    place = side.index((3, 64))
    assert side.text.ids[place] == 1 + PIECES.index(" II") and side.text.position[place] == 2
    assert (int(side.document[place]), int(side.offset[place])) == (3, 64)
    assert side.index((7, 0)) == len(side.text.ids) - 1
    assert side.offset[side.text.position == 0].tolist() == [-1, -1, -1]
    with pytest.raises(KeyError):
        side.index((5, 0))


def test_a_blank_token_does_not_lend_its_id_to_the_word_before_it() -> None:
    blank = Matcher((1 + PIECES.index(" "),))
    clause = Clause(Matcher(word="War"), avoid=(Near(blank, 1, 2, "words"),))
    assert Rule((clause,)).predict(Tokens.of(SPELLER, ids_of(" the", " ", " War"))).tolist() == [0, 0, 0, 1]
