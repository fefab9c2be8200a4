"""Rules over corpus text whose sentences are known to be true: what a judge is tried on before it is believed.

No model is needed: a rule is run on text, and where it matches is the truth. Rules are drawn, by a seed, from what
stands in the text, in families made by hand; each comes with the sentence that says what it does. No two of those
drawn match mostly the same places, so that the sentence of one is false of another.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..store.records import Refused
from .corpus import Corpus
from .measures import QUALIFY_TEXTS, WINDOW
from .rules import Clause, Flags, Floats, Matcher, Near, Rule, SideText, Text, side_text
from .snippets import Ground

TOKENS = 60_000        # of the corpus's explain side
CLUSTERS = 2 * QUALIFY_TEXTS     # in which a rule must match at least
RATE = 0.03            # share of the tokens at which it may match at most, so that there are texts without it
ALIKE = 0.1            # |A ∩ B| / |A ∪ B| of the places of two rules, at most
_PIECE = re.compile(r" ?\w+| ?[^\w\s]|\s")
_SUFFIXES = ("ing", "ed", "ly", "tion", "ment", "able", "ness", "est", "ive", "ful", "ance", "ers")
_PREFIXES = ("un", "re", "pre", "con", "inter", "dis", "sub", "over", "ex", "trans")
_MARKS = {";": "semicolons", "?": "question marks", "!": "exclamation marks", "%": "percent signs", ":": "colons",
          "/": "slashes", "*": "asterisks", "=": "equals signs"}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A rule, the sentence that is true of it, and its family."""

    family: str
    sentence: str
    rule: Rule


class KnownText:
    """Texts cut into pieces without a tokenizer: a word with the blank before it, a mark, or other white space.

    cluster [documents]: which texts are near copies of one another. Raises Refused where there is no text.
    """

    sink = 0

    def __init__(self, texts: Sequence[str], clusters: Sequence[int]) -> None:
        self._known: dict[str, int] = {"": self.sink}
        self._pieces = [""]
        self._rows = [self.encode(text)[1:] for text in texts]
        if not any(self._rows):
            raise Refused("there is no text to draw rules from; give a corpus with text in it.")
        self.side: SideText = side_text(self, self, "text")
        self.keep: Flags = self.side.text.position > 0
        numbers = np.asarray(clusters, dtype=np.int64)[self.side.document]
        self.cluster = np.where(self.keep, numbers, -1)

    @classmethod
    def of(cls, corpus: Corpus, tokens: int = TOKENS) -> "KnownText":
        """About so many tokens (of four bytes) of the explain side; no other side is read."""
        texts: list[str] = []
        clusters: list[int] = []
        left = 4 * tokens
        for i in corpus.side("explain"):
            if left <= 0:
                break
            texts.append(corpus.documents[i].text)
            clusters.append(corpus.clusters[i])
            left -= len(texts[-1])
        return cls(texts, clusters)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, the sink in front."""
        return [self.sink, *map(self._number, _PIECE.findall(text))]

    def _number(self, piece: str) -> int:
        if piece not in self._known:
            self._known[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._known[piece]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._pieces[i] for i in ids]

    def windows(self, side: str) -> Iterator[tuple[int, int, Sequence[int]]]:
        for number, row in enumerate(self._rows):
            for first in range(0, len(row), WINDOW - 1):
                yield number, first, [self.sink, *row[first : first + WINDOW - 1]]

    def matches(self, rule: Rule) -> Flags:
        """Where a rule matches [M]."""
        return (rule.predict_flat(self.side.text) > 0) & self.keep

    def ground(self, rule: Rule) -> Ground:
        """The text with the rule in a unit's place: y/P is 1 where it matches and 0 elsewhere."""
        fires = self.matches(rule)
        level, starts, ids = fires.astype(np.float64), self.side.text.starts, self.side.text.ids
        alike = self.keep & np.isin(ids, ids[fires]) & ~fires
        count = int(fires.sum())

        def read(windows: Sequence[int]) -> list[Floats]:
            return [level[starts[w] + 1 : starts[w + 1]] for w in windows]

        def react(texts: Sequence[str]) -> Floats:
            found = rule.predict_all(Text.of(self, [self.encode(text)[:WINDOW] for text in texts]))
            return np.array([float(one.max() > 0) for one in found])

        places = {"firing": np.flatnonzero(fires), "boundary": np.zeros(0, dtype=np.int64),
                  "same token": np.flatnonzero(alike)}  # fmt: skip
        strata = (count, 0, 0, 0, int(self.keep.sum()) - count)
        return Ground(self.side, self.keep, self.cluster, places, strata, self, read, react)

    # What stands in the text

    @cached_property
    def words(self) -> list[str]:
        """Words of three letters and more, in lower case, that stand there 20 times, the most frequent first."""
        counted = Counter(word for word in self._lower if len(word) > 2 and word.isalpha() and word.isascii())
        return [word for word, count in counted.most_common() if count >= CLUSTERS]

    @cached_property
    def pairs(self) -> list[tuple[str, str, float]]:
        """Words that stand 20 times right behind another, and of how many of their places that is the share."""
        counted, single = Counter(zip(self._lower, self._lower[1:], strict=False)), Counter(self._lower)
        plain = [(a, b, n) for (a, b), n in counted.most_common() if n >= CLUSTERS and a.isalpha() and b.isalpha()]
        return [(a, b, n / single[b]) for a, b, n in plain if a.isascii() and b.isascii()]

    @cached_property
    def _lower(self) -> list[str]:
        text = self.side.text
        return [text.vocabulary[kind].lower() for kind in text.kind[text.place > 0].tolist()]


def draw_rules(text: KnownText, count: int, seed: int = 0) -> list[Known]:
    """`count` rules, the families in turn. Raises Refused where the text does not hold so many different ones."""
    rng = random.Random(seed)
    offered = [make(text, rng) for make in _FAMILIES.values()]
    found: list[Known] = []
    masks: list[Flags] = []
    while offered and len(found) < count:
        family = offered.pop(0)
        for known in family:
            mask = text.matches(known.rule)
            if _usable(text, mask) and all(_alike(mask, other) <= ALIKE for other in masks):
                found.append(known)
                masks.append(mask)
                offered.append(family)
                break
    if len(found) < count:
        raise Refused(f"the text holds {len(found)} different rules of {count} that are wanted; give a larger corpus.")
    return found


def _usable(text: KnownText, mask: Flags) -> bool:
    return len(np.unique(text.cluster[mask])) >= CLUSTERS and mask.sum() <= RATE * text.keep.sum()


def _alike(one: Flags, other: Flags) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


# Families


def _word(*words: str) -> Matcher:
    return Matcher(word=f"(?i){'|'.join(words)}")


def _quoted(words: Sequence[str]) -> str:
    shown = [f"“{word}”" for word in words]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]


def _one_word(text: KnownText, rng: random.Random) -> Iterator[Known]:
    for word in rng.sample(text.words, len(text.words)):
        yield Known("word", f"fires on the word “{word}”", Rule((Clause(_word(word)),)))


def _words(text: KnownText, rng: random.Random) -> Iterator[Known]:
    for _ in text.words:
        chosen = sorted(rng.sample(text.words, min(3, len(text.words))))
        yield Known("words", f"fires on the words {_quoted(chosen)}", Rule((Clause(_word(*chosen)),)))


def _pair(text: KnownText, rng: random.Random) -> Iterator[Known]:
    for a, b, share in rng.sample(text.pairs, len(text.pairs)):
        if share < 0.7:
            clause = Clause(_word(b), need=(Near(_word(a), unit="words"),))
            yield Known("pair", f"fires on the word “{b}” right after the word “{a}”", Rule((clause,)))


def _not_after(text: KnownText, rng: random.Random) -> Iterator[Known]:
    for a, b, share in rng.sample(text.pairs, len(text.pairs)):
        if 0.2 < share < 0.7 and len(b) > 2:
            clause = Clause(_word(b), avoid=(Near(_word(a), unit="words"),))
            sentence = f"fires on the word “{b}”, but not where the word just before it is “{a}”"
            yield Known("not after", sentence, Rule((clause,)))


def _ending(text: KnownText, rng: random.Random) -> Iterator[Known]:
    for suffix in rng.sample(_SUFFIXES, len(_SUFFIXES)):
        rule = Rule((Clause(Matcher(word=f"(?i)[a-z]{{2,}}{suffix}")),))
        yield Known("ending", f"fires on words that end in “{suffix}”", rule)


def _beginning(text: KnownText, rng: random.Random) -> Iterator[Known]:
    for prefix in rng.sample(_PREFIXES, len(_PREFIXES)):
        rule = Rule((Clause(Matcher(word=f"(?i){prefix}[a-z]{{3,}}")),))
        yield Known("beginning", f"fires on words that begin with “{prefix}”", rule)


def _form(text: KnownText, rng: random.Random) -> Iterator[Known]:
    forms = [
        ("numbers of four digits", Matcher(word=r"\d{4}")),
        ("numbers of one digit", Matcher(word=r"\d")),
        ("numbers written as words, such as “three” and “ten”", Matcher(cls="number word")),
        ("words of two letters or more, all of them capitals", Matcher(cls="uppercase")),
        ("words of twelve letters or more", Matcher(word=r"(?i)[a-z]{12,}")),
    ]
    for what, match in rng.sample(forms, len(forms)):
        yield Known("form", f"fires on {what}", Rule((Clause(match),)))


def _mark(text: KnownText, rng: random.Random) -> Iterator[Known]:
    for mark, name in rng.sample(sorted(_MARKS.items()), len(_MARKS)):
        yield Known("mark", f"fires on {name}", Rule((Clause(Matcher(word=re.escape(mark))),)))


def _behind(text: KnownText, rng: random.Random) -> Iterator[Known]:
    common = text.words[:60]
    for word in rng.sample(common, len(common)):
        for what, cls in (("capitalised", "capitalised"), ("lower-case", "lowercase")):
            clause = Clause(Matcher(cls=cls), need=(Near(_word(word), unit="words"),))
            yield Known("behind", f"fires on a {what} word right after the word “{word}”", Rule((clause,)))


_FAMILIES: dict[str, Callable[[KnownText, random.Random], Iterator[Known]]] = {
    "word": _one_word, "pair": _pair, "ending": _ending, "form": _form, "not after": _not_after, "words": _words,
    "mark": _mark, "beginning": _beginning, "behind": _behind,
}  # fmt: skip

__all__ = ["Known", "KnownText", "draw_rules"]
