"""Words on tokens: which tokens of a row hold which word, and how another word is put in its place.

A word is replaced whole: its ids are cut out and the other's are put in, so that no other token is read differently.
Joining strings and tokenising again would move boundaries.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .rules import split_words
from .subject import Subject

Span = tuple[int, int]


@dataclass(frozen=True)
class Word:
    """One word: its span in the text and the tokens [first, end) that hold it."""

    text: str
    span: Span
    first: int
    end: int


class Spelled:
    """A row of ids beside its text: which tokens hold which word, and how another word is put in its place."""

    def __init__(self, subject: Subject, ids: Sequence[int]) -> None:
        self.subject, self.ids = subject, list(ids)
        pieces = ["\n" if i in subject.special else subject.piece(i) for i in ids]
        pieces[0] = ""
        self.ends = list(accumulate(map(len, pieces)))
        self.starts = [0, *self.ends[:-1]]
        self.pieces = pieces
        self.text = "".join(pieces)

    def words(self) -> list[Word]:
        """Every word with its tokens; white space that is a token of its own goes with the word after it.

        Where one token holds several marks, as in `."`, only the first of them counts as a word.
        """
        found: list[Word] = []
        b = 0
        for word in split_words(self.text):
            a = self.text.index(word, b)
            b = a + len(word)
            first, end = bisect_right(self.ends, a), bisect_left(self.starts, b)
            if first > 1 and self.starts[first] == a and self.pieces[first - 1].isspace():
                first -= 1
            if not word.isspace() and (not found or found[-1].end < end):
                found.append(Word(word, (a, b), first, end))
        return found

    def words_of(self, kept: Iterable[int]) -> list[Word]:
        """The words that hold a kept token; words with a character that is split among tokens are left out."""
        held = set(kept)
        return [w for w in self.words() if held.intersection(range(w.first, w.end)) and "�" not in w.text]

    def respell(self, word: Word, other: str) -> list[int]:
        """Ids of `other` in the place of `word`, with all that shares the word's tokens; [] if it cannot be spelled."""
        (a, b), start, end = word.span, self.starts[word.first], self.ends[word.end - 1]
        wanted = self.text[start:a] + other + self.text[b:end]
        direct = self.subject.encode(wanted)[1:]
        if "".join(self.subject.pieces(direct)) == wanted:
            return direct
        # Some tokenizers put a space in front of a text; behind a line break they do not.
        line, behind = self.subject.encode("\n")[1:], self.subject.encode("\n" + wanted)[1:]
        rest = behind[len(line) :]
        spelled = behind[: len(line)] == line and "".join(self.subject.pieces(rest)) == wanted
        return rest if spelled else []
