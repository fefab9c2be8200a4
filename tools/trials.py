"""What experiments say about rules.

A text with one thing changed is a labelled text: read itself, the unit fires on it (half of what it did before) or
falls silent (a quarter). A rule that says otherwise is wrong there. And what experiments found to matter proposes what
the corpus may never show: words that fire in a place where it never has them, how far before it a word may stand, and
that a word is needed which always stands there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..store.records import Evidence
from .conditions import Condition, Spell
from .estimate import Candidate
from .lexicon import LONGEST, folding
from .measures import KILLS, UNSURE, WINDOW
from .rules import MAX_IDS, Flags, Ints, Speller, Text, Tokens, split_words

TOOLS = ("minimal_example", "substitute", "tokens_in_place", "shift")   # the experiments that rules are held against
LABELS = ("kills", "keeps", "raises")    # effects of a change; what is unsure is none
FEW = 0.25             # tokens in place that fire, as a share of those tried, up to which they are a list

Row = dict[str, Any]


class Trials:
    """Experiments as labelled texts, and what they found to matter.

    tracked: words on which the unit was seen to fire. kept, killing: by their distance before it in words, those that
    it needed and those that silenced it. names: lists of what fired in one place, as `lexicon.matching` takes words or
    ids for tokens that are no words. ranges: those of `shift`; distances, positions: from where to where these go.
    breaking: by their distance in tokens, those that silence it when put in all places of a repeated word.
    """

    def __init__(self, subject: Speller, evidence: Sequence[Evidence]) -> None:
        self.tracked: Counter[str] = Counter()
        self.kept: dict[int, Counter[str]] = {}
        self.killing: dict[int, Counter[str]] = {}
        rows = [(e, row) for e in evidence if e.tool in TOOLS[1:] for row in _telling(e)]
        told = [(e, row, Tokens.of(subject, row["ids"])) for e, row in rows]
        self._label([one for one in told if not KILLS <= one[1]["in_text"] < UNSURE])
        for row in minimal_rows(evidence):
            self._note(Tokens.of(subject, row["ids"]), row["kept"], True)
        self._file([(row, tokens) for e, row, tokens in told if e.tool == "substitute" and row["effect"] in LABELS])
        placed = (e for e in evidence if e.tool == "tokens_in_place")
        self.names = _joined(_names(e.rows) for e in placed if 0 < e.checks["fires"] <= FEW * e.checks["tried"])
        self.ranges = [span for e in evidence if e.tool == "shift" for span in e.checks["ranges"]]
        self.distances, self.positions = (self._reaches(what) for what in ("distance", "position"))

    def _label(self, told: Sequence[tuple[Evidence, Row, Tokens]]) -> None:
        """Texts, where their last tokens are, whether the unit fires there, and which question each answers."""
        self.text = Text([tokens for _, _, tokens in told])
        self.last: Ints = self.text.starts[1:] - 1
        self.fires: Flags = np.array([row["in_text"] >= UNSURE for _, row, _ in told], dtype=np.bool_)
        asked = [(e.id, *map(row.get, ("position", "places", "moved")), row["in_text"] < KILLS) for e, row, _ in told]
        number = {key: k for k, key in enumerate(dict.fromkeys(asked))}
        self.question: Ints = np.array([number[key] for key in asked], dtype=np.int64)

    def _file(self, swapped: Sequence[tuple[Row, Tokens]]) -> None:
        """Words by what they did in the places of others."""
        copied: dict[bool, dict[tuple[int, int], None]] = {True: {}, False: {}}     # in the order of their reading
        for row, tokens in swapped:
            keeps = row["effect"] != "kills"
            self._note(tokens, [row["position"]], keeps)
            if row["places"] > 1:
                copied[keeps][_ending(tokens, row["position"])] = None
        self.breaking: dict[int, list[int]] = {}
        for back, token in copied[False]:
            if (back, token) not in copied[True]:
                self.breaking.setdefault(back, []).append(token)

    def _note(self, tokens: Tokens, indices: Sequence[int], keeps: bool) -> None:
        """Files the words at these tokens under their distance in words from the tracked token, the last."""
        for index in indices:
            back, word = tokens.word[-1] - tokens.word[index], tokens.words[tokens.word[index]].lower()
            if not word or len(word) > LONGEST or back >= WINDOW:
                continue
            if back == 0 and keeps:
                self.tracked[word] += 1
            elif back > 0:
                (self.kept if keeps else self.killing).setdefault(back, Counter())[word] += 1

    def conditions(self, spell: Spell) -> Iterator[Condition]:
        """Conditions worth a try."""

        def made(names: Sequence[str], span: tuple[int, int], needed: bool = True) -> Condition:
            return Condition.of(folding(names), span, "words", needed, spell)

        where: dict[str, list[int]] = {}
        for back, words in sorted(self.kept.items()):
            for word in words:
                where.setdefault(word, []).append(back)
            common = [word for word, _ in words.most_common(12)]
            often = [word for word in common if words[word] > 1]
            for names in {len(n): n for n in (common, often, common[:1]) if n}.values():
                yield made(names, (back, back))
        for word, backs in where.items():
            if len(backs) > 1:
                yield made([word], (min(backs), max(backs)))
        for back, words in sorted(self.killing.items()):
            # A word that kills in one of its two places and keeps in both only breaks a repeat.
            names = [w for w, n in words.most_common() if n > 1 and w not in self.kept.get(back, ())][:12]
            if names:
                yield made(names, (back, back), needed=False)
        for back, ids in self.breaking.items():
            if 0 < back < WINDOW:
                yield replace(Condition.of(ids[:MAX_IDS], (back, back), "tokens", False, spell), tested=True)
        for span in self.ranges:
            if span["what"] == "distance":
                yield Condition.of([span["moved"]], reach(span), "tokens", not span["added"], spell)

    def _reaches(self, what: str) -> list[tuple[int, int]]:
        return list(dict.fromkeys(reach(span) for span in self.ranges if span["what"] == what))

    def guessed(self, rule: Sequence[Candidate]) -> int:
        """How many conditions stand at distances that are none of those found, where words were moved at all."""
        spans = [condition.span for c in rule for condition in c.conditions]
        return sum(span not in self.distances for span in spans) if self.distances else 0

    def wrong(self, rule: Sequence[Candidate]) -> float:
        """The share of the experiments that a rule gets wrong; each question with each answer counts the same."""
        if not len(self.fires):
            return 0.0
        said = np.any([c.clause.mask(self.text)[self.last] for c in rule], axis=0)
        asked = np.bincount(self.question)
        return float((np.bincount(self.question, said != self.fires) / asked).mean())


def minimal_rows(evidence: Iterable[Evidence]) -> list[Row]:
    """What `minimal_example` found, in order, without texts in which its search stopped before it found any."""
    pruned = (e.rows[0] for e in evidence if e.tool == "minimal_example" and e.ok and e.rows)
    return [row for row in pruned if row["one_minimal"]]


def _ending(tokens: Tokens, index: int) -> tuple[int, int]:
    """How far before the last token the word at `index` ends, and the token it ends in."""
    last = max(t for t in range(len(tokens.ids)) if tokens.word[t] == tokens.word[index])
    return len(tokens.ids) - 1 - last, tokens.ids[last]


def _telling(evidence: Evidence) -> list[dict[str, Any]]:
    """The rows that are texts to be right about: of a range only its edges, since most of what lies beyond is plain."""
    if evidence.tool != "shift":
        return evidence.rows
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(evidence.rows, key=lambda row: row["place"]):
        groups.setdefault((row["what"], row["moved"]), []).append(row)
    edges = {id(row) for rows in groups.values() for pair in pairwise(rows) if _differ(*pair) for row in pair}
    return [row for row in evidence.rows if id(row) in edges or row["place"] == row["from"]]


def _differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool((a["ratio"] >= UNSURE) != (b["ratio"] >= UNSURE))


def reach(span: dict[str, Any]) -> tuple[int, int]:
    """A range of `shift`, which has no end where nothing beyond was tried."""
    return 1 if span["low_open"] else span["low"], WINDOW - 1 if span["high_open"] else span["high"]


def _joined(lists: Iterable[set[int | str]]) -> list[list[int | str]]:
    """The lists in order, those that share half of the shorter one as one list."""
    joined: list[set[int | str]] = []
    for names in lists:
        alike = [known for known in joined if 2 * len(known & names) >= min(len(known), len(names))]
        joined = [known for known in joined if known not in alike] + [names.union(*alike)]
    return [sorted(names, key=str) for names in joined]


def _names(rows: Sequence[dict[str, Any]]) -> set[int | str]:
    """The tokens that fired: as words if they all are whole words, else as ids."""
    firing = [row for row in rows if row["effect"] != "kills"]
    words = [row["token"].strip() for row in firing if row["token"][:1].isspace()]
    whole = len(words) == len(firing) and all(split_words(word) == [word] for word in words)
    return set(words if whole else [row["id"] for row in firing])
