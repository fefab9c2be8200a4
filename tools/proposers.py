"""Proposers: where words come from that are tried in the place of one.

masked: what a masked language model expects there, seeing both sides. form: for numbers, others written alike and
otherwise. next: what the subject itself expects there, seeing what stands before. neighbours: words whose input
embedding in the subject is nearest. collocates: words that go with the word beside it, as States and Kingdom with
United, by log-likelihood in the built-in corpus (Dunning, 1993). random: words about as common, which is the control: a
proposer that keeps a unit firing no more often than this knows nothing of it. given: words that the caller names.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise, zip_longest

import numpy as np
from nltk import FreqDist
from nltk.collocations import BigramAssocMeasures, BigramCollocationFinder

from . import corpus
from .forms import by_form
from .masked import MaskedLM, same_kind
from .measures import SALT
from .rules import split_words
from .spelled import Spelled, Word
from .subject import Subject

NAMES = ("masked", "form", "next", "neighbours", "collocates", "random", "given")
LOOKED = 20     # tokens looked through for each word that is wanted
ALIKE = 10      # words about as common, for each that is drawn


class Proposers:
    """The proposers of one subject and masked language model, by name; equal seeds propose equal."""

    def __init__(self, subject: Subject, masked: MaskedLM, words: Sequence[str], seed: int) -> None:
        self.subject, self.masked, self.words, self.seed = subject, masked, words, seed
        self.mode = masked.choose_mode(subject)["mode"]

    def each(self, names: Iterable[str], spelled: Spelled, word: Word, n: int) -> Iterable[tuple[str, str]]:
        """(proposer, word) of each of the proposers called so."""
        return ((name, other) for name in names for other in self.propose(name, spelled, word, n))

    def propose(self, name: str, spelled: Spelled, word: Word, n: int) -> list[str]:
        """Up to n words for `word` in its text, best first, itself left out; all the words that were given."""
        ways: dict[str, Callable[[], Iterable[str]]] = {
            "masked": lambda: self.masked.propose(spelled.text, word.span, n, self.mode),
            "form": lambda: by_form(word.text),
            "next": lambda: self._words(self._next(spelled.ids[: word.first], n), word),
            "neighbours": lambda: self._words(self._near(spelled.ids[word.first : word.end], n), word),
            "collocates": lambda: _collocates(spelled, word),
            "random": lambda: self._random(word.text, n),
        }
        if name == "given":     # whoever names a word means its case as well
            return list(dict.fromkeys(w for w in self.words if w != word.text))
        found = dict.fromkeys(w for w in ways[name]() if w.casefold() != word.text.casefold())
        return list(found)[:n]

    def _words(self, tokens: Iterable[int], word: Word) -> Iterable[str]:
        """Tokens that begin with a blank and are a word of the kind of `word`: without the blank they may be pieces."""
        for token in tokens:
            piece = self.subject.piece(token)
            text = piece.strip()
            if piece[:1].isspace() and split_words(text) == [text] and same_kind(text, word.text):
                yield text

    def _next(self, before: Sequence[int], n: int) -> list[int]:
        logits, _ = self.subject.next_token_logits([before], [(0, len(before) - 1)])
        return logits[0].topk(min(LOOKED * n, logits.shape[1])).indices.tolist()

    def _near(self, tokens: Sequence[int], n: int) -> list[int]:
        scores = self.subject.alike(tokens)
        return scores.topk(min(LOOKED * n, len(scores))).indices.tolist()

    def _random(self, word: str, n: int) -> list[str]:
        counts = common_words()
        own = np.log(counts.get(word, 1))
        alike = [w for w in counts if same_kind(w, word) and w.casefold() != word.casefold()]
        nearest = sorted(alike, key=lambda w: (abs(np.log(counts[w]) - own), w))[: ALIKE * n]
        draw = np.random.default_rng([self.seed, *f"{SALT} {word}".encode()])
        return [nearest[i] for i in draw.permutation(len(nearest))[:n]]


def _collocates(spelled: Spelled, word: Word) -> list[str]:
    """What goes behind the word before and before the word behind, by turns, of the kind of `word`."""
    words = spelled.words()
    here = next(i for i, other in enumerate(words) if other.span == word.span)
    behind, before = collocations()
    sides = [behind.get(other.text, []) for other in words[:here][-1:]]
    sides += [before.get(other.text, []) for other in words[here + 1 :][:1]]
    return [w for pair in zip_longest(*sides) for w in pair if w is not None and same_kind(w, word.text)]


@cache
def common_words() -> Counter[str]:
    """How often each word stands in the built-in corpus's committed text."""
    return Counter(w for w in split_words(corpus.filler_text()) if any(c.isalnum() for c in w))


@cache
def collocations() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What stands behind, and before, each word of the built-in corpus's committed text, the most telling first."""
    words = split_words(corpus.filler_text())
    finder = BigramCollocationFinder(FreqDist(words), FreqDist(pairwise(words)))
    behind, before = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for (one, other), _ in finder.score_ngrams(BigramAssocMeasures.likelihood_ratio):
        behind[one].append(other)
        before[other].append(one)
    return behind, before


__all__ = ["NAMES", "Proposers"]
