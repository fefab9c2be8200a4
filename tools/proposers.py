"""Proposers: where words come from that are tried in the place of one.

masked: what a masked language model expects there, seeing both sides. form: for numbers, others written alike and
otherwise. next: what the subject itself expects there, seeing what stands before. neighbours: words whose input
embedding in the subject is nearest. random: words about as common, which is the control: a proposer that keeps a unit
firing no more often than this knows nothing of it. given: words that the caller names.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from . import corpus
from .forms import by_form
from .masked import MaskedLM, same_kind
from .measures import SALT
from .rules import split_words
from .spelled import Spelled, Word
from .subject import Subject

NAMES = ("masked", "form", "next", "neighbours", "random", "given")
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
        scores = alike(self.subject, tokens)
        return scores.topk(min(LOOKED * n, len(scores))).indices.tolist()

    def _random(self, word: str, n: int) -> list[str]:
        counts = common_words()
        own = np.log(counts.get(word, 1))
        alike = [w for w in counts if same_kind(w, word) and w.casefold() != word.casefold()]
        nearest = sorted(alike, key=lambda w: (abs(np.log(counts[w]) - own), w))[: ALIKE * n]
        draw = np.random.default_rng([self.seed, *f"{SALT} {word}".encode()])
        return [nearest[i] for i in draw.permutation(len(nearest))[:n]]


def alike(subject: Subject, tokens: Sequence[int]) -> Tensor:
    """How near each token [V] is to these: the cosine of centred input embeddings with their mean, × its length."""
    table = subject.model.get_input_embeddings().weight
    with torch.inference_mode():
        centre = table.mean(0)
        wanted = table[list(tokens)].mean(0) - centre
        length = (table - centre).norm(dim=1)
        scores: Tensor = (table @ wanted - centre @ wanted) / length.clamp_min(torch.finfo(length.dtype).tiny)
        return scores


@cache
def common_words() -> Counter[str]:
    """How often each word stands in the built-in corpus's committed text."""
    return Counter(w for w in split_words(corpus.filler_text()) if any(c.isalnum() for c in w))


__all__ = ["NAMES", "Proposers", "alike"]
