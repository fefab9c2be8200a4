"""What experiments say about rules.

A substitution experiment is a labelled text: the unit fires on it or falls silent. A rule that says otherwise is wrong
there. And the words that minimal examples kept and that substitutions found to matter propose conditions that the
corpus may never show: a word that always stands before another can only be told from it by taking it away.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..store.records import Evidence
from .estimate import Candidate
from .lexicon import LONGEST, after, called, listing, within
from .rules import Clause, Flags, Ints, Near, Speller, Text, Tokens


@dataclass(frozen=True)
class Condition:
    """What must stand before a token, or if not `needed` must not.

    what: how to say the context; listed: words in its list beyond the first.
    """

    near: Near
    what: str
    needed: bool = True
    listed: int = 0

    @classmethod
    def behind(cls, names: Sequence[str], distance: int, needed: bool = True) -> "Condition":
        """One of these words, so many words before."""
        near = Near(listing(names), distance, distance, "words")
        return cls(near, after(called(names), distance), needed, len(names) - 1)

    @classmethod
    def among(cls, name: str, low: int, high: int, needed: bool = True) -> "Condition":
        """A word, from `low` to `high` words before."""
        return cls(Near(listing([name]), low, high, "words"), within(called([name]), high), needed)

    @property
    def said(self) -> str:
        return self.what if self.needed else f"not {self.what}"

    def added(self, clause: Clause) -> Clause:
        """The clause with this condition more."""
        if self.needed:
            return replace(clause, need=(*clause.need, self.near))
        return replace(clause, avoid=(*clause.avoid, self.near))


class Trials:
    """Substitution experiments as labelled texts, and the words that they and minimal examples found to matter.

    tracked: words on which the unit was seen to fire. kept, killing: by their distance before it in words, those that
    it needed and those that silenced it.
    """

    def __init__(self, subject: Speller, evidence: Sequence[Evidence]) -> None:
        told = ("kills", "keeps", "raises")
        rows = [r for e in evidence if e.tool == "substitute" for r in e.rows if r["effect"] in told]
        windows = [Tokens.of(subject, r["ids"]) for r in rows]
        self.fires: Flags = np.array([r["effect"] != "kills" for r in rows], dtype=np.bool_)
        self.text = Text(windows)
        self.last: Ints = self.text.starts[1:] - 1
        self.tracked: Counter[str] = Counter()
        self.kept: dict[int, Counter[str]] = {}
        self.killing: dict[int, Counter[str]] = {}
        for e in evidence:
            if e.tool == "minimal_example" and e.rows:
                self._note(Tokens.of(subject, e.rows[0]["ids"]), e.rows[0]["kept"], True)
        for row, tokens in zip(rows, windows, strict=True):
            self._note(tokens, [row["position"]], row["effect"] != "kills")

    def _note(self, tokens: Tokens, indices: Sequence[int], keeps: bool) -> None:
        """Files the words at these tokens under their distance in words from the tracked token, the last."""
        for index in indices:
            back, word = tokens.word[-1] - tokens.word[index], tokens.words[tokens.word[index]].lower()
            if not word or len(word) > LONGEST:
                continue
            if back == 0 and keeps:
                self.tracked[word] += 1
            elif back > 0:
                (self.kept if keeps else self.killing).setdefault(back, Counter())[word] += 1

    def conditions(self) -> Iterator[Condition]:
        """Conditions worth a try."""
        where: dict[str, list[int]] = {}
        for back, words in sorted(self.kept.items()):
            for word in words:
                where.setdefault(word, []).append(back)
            common = [word for word, _ in words.most_common(12)]
            often = [word for word in common if words[word] > 1]
            for names in {len(n): n for n in (common, often, common[:1]) if n}.values():
                yield Condition.behind(names, back)
        for word, backs in where.items():
            if len(backs) > 1:
                yield Condition.among(word, min(backs), max(backs))
        for back, words in sorted(self.killing.items()):
            names = [word for word, count in words.most_common(12) if count > 1]
            if names:
                yield Condition.behind(names, back, needed=False)

    def wrong(self, rule: Sequence[Candidate]) -> float:
        """The share of the experiments that a rule gets wrong."""
        if not len(self.fires):
            return 0.0
        said = np.any([c.clause.mask(self.text)[self.last] for c in rule], axis=0)
        return float((said != self.fires).mean())
