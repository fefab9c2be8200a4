"""Clauses worth a try, from what the firing places share.

First what the token itself is: one of some token ids, a word of a family of the lexicon, a shape that has a name. Then
what stands before it, added to such a clause one condition at a time: a token or word at an exact distance, a word
somewhere before, an early or late position, a repeated pair, and what experiments showed to matter. A condition that
firing places could as well meet by chance is dropped (UNLIKELY).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.special import bdtrc

from .collect import position_key
from .estimate import Candidate, Known, Values
from .lexicon import Family, after, called, fitting, folding, lexicon, matching, merged, named, spelled, unmarked
from .measures import WINDOW
from .rules import MAX_IDS, Clause, Flags, Floats, Ints, Matcher, Near
from .trials import Condition, Trials

REACH = 6              # exact distances tried, in tokens and in words
RANGES = (2, 3, 5, 8, 16, 32, 62)
SPANS = ((1, 1), (1, 2), (1, 3), (1, 5), (1, 8), (1, 16), (4, WINDOW - 1), (8, WINDOW - 1), (32, WINDOW - 1))
UNLIKELY = 1e-3        # a condition counts if firing places meet it this improbably well for their matched neighbours


@dataclass(frozen=True)
class Rest:
    """What a rule so far leaves: places [N] it does not match, firing places [P] it misses, its TP and its size."""

    free: Flags
    fresh: Flags
    true: float
    size: int

    @classmethod
    def of(cls, rule: Sequence[Candidate], known: Known) -> Self:
        mask = known.mask(rule)
        size = int(mask.sum())
        return cls((known.text.position > 0) & ~mask, ~mask[known.at], known.rates(rule)[0] * size, size)


@dataclass(frozen=True)
class _Pick:
    """A list of values, and what each firing place counts under it."""

    values: Ints
    trust: Floats


class Proposals:
    """Proposes clauses for what a rule so far leaves. spell: the string of a token."""

    def __init__(self, spell: Callable[[int], str], known: Known, trials: Trials) -> None:
        self.spell, self.known, self.text = spell, known, known.text
        self.lexicon = lexicon(known.text)
        self.tracked = [word for word, _ in trials.tracked.most_common(24)]
        self.conditions = list(trials.conditions())

    # What the token itself is

    def matchers(self, rest: Rest) -> Iterator[Candidate]:
        """Clauses without a condition."""
        text = self.text
        yield from self._valued(text.ids, rest, None, "any")
        for piece in self._pieces(rest.fresh):
            allowed = text.piece(piece) & ~text.blank & (text.position > 0)
            for family in self.lexicon.all:
                codes = np.where(allowed, family.codes[text.kind][text.word], -1)
                yield from self._valued(codes, rest, family, piece)
            for matcher, words in named():
                yield self._plain(Clause(matcher, piece), words, rest)
        if self.tracked:
            names = tuple(folding(self.tracked))
            yield self._plain(Clause(matching(names)), called(self.tracked), rest, names)

    def _pieces(self, fresh: Flags) -> list[str]:
        """The pieces of a word that most firing places are, and "any" where they are no one piece."""
        at, text = self.known.at[fresh], self.text
        if not len(at):
            return ["last"]
        whole = float((text.last[at] & text.first[at]).mean())
        shares = {p: float(text.piece(p)[at].mean()) for p in ("last", "first", "inner")}
        chosen = [p for p in shares if shares[p] >= 0.5 and not (p == "first" and whole >= 0.9)]
        return chosen if max(shares.values()) >= 0.9 else [*chosen, "any"]

    def _plain(self, clause: Clause, words: str, rest: Rest, names: tuple[str, ...] = ()) -> Candidate:
        at = np.flatnonzero(clause.mask(self.text))
        covered = self.known.matched(at)
        trust = np.where(covered, self.known.shrink(covered & rest.fresh, len(at)), 0.0)
        return Candidate(clause, at, trust, max(len(names) - 1, 0), words, names=names)

    def _valued(self, codes: Ints, rest: Rest, family: Family | None, piece: str) -> Iterator[Candidate]:
        """Clauses on the values that firing places share: the best list, and the best value alone."""
        at = np.flatnonzero(rest.free & (codes >= 0))
        seen = Values(at, codes[at], np.where(rest.fresh, codes[self.known.at], -1))
        for pick in self._choose(seen, self.known.weight, family, rest):
            matcher, words = self._written(pick.values, family)
            at = np.flatnonzero(_among(codes, pick.values) & (self.text.position > 0))
            names = family.words([family.names[v] for v in pick.values]) if family else pick.values.tolist()
            clause = Clause(matcher, piece)
            yield Candidate(clause, at, pick.trust, len(pick.values) - 1, words, names=tuple(names))

    # Bare lists

    def union(self, a: Candidate, b: Candidate) -> Candidate | None:
        """Two bare lists, of words or of tokens, on the same piece as one; None if they are no such pair."""
        kinds = {(c.clause.piece, bool(c.clause.at.ids)) for c in (a, b)}
        if not (a.names and b.names) or len(kinds) > 1:
            return None
        return self.listed(a.clause.piece, merged(a.names, b.names), np.maximum(a.trust, b.trust))

    def listed(self, piece: str, names: Sequence[int | str], trust: Floats) -> Candidate:
        """The clause that is nothing but a list of these names, as many as fit; trust [P] counts where it matches."""
        ids = tuple(name for name in names if isinstance(name, int))[:MAX_IDS]
        words = tuple(fitting([name for name in names if isinstance(name, str)]))
        said = called(spelled(self.spell, ids) if ids else unmarked(words))
        clause = Clause(Matcher(ids) if ids else matching(words), piece)
        at = np.flatnonzero(clause.mask(self.text))
        trust = np.where(self.known.matched(at), trust, 0.0)
        return Candidate(clause, at, trust, len(ids or words) - 1, said, names=ids or words)

    # What stands before it

    def narrower(self, c: Candidate, rest: Rest) -> Iterator[Candidate | None]:
        """The candidate with one condition more; None for a condition that may be chance."""
        inside = rest.free[c.at]
        rows = np.searchsorted(c.at, self.known.at).clip(0, len(c.at) - 1)
        mine = rest.fresh & self.known.matched(c.at) & (c.trust > 0)
        if not mine.any():
            return
        for distance in range(1, REACH + 1):
            for codes, family in self._behind(c.at, distance):
                stands = inside & (codes >= 0)
                seen = Values(c.at[stands], codes[stands], np.where(mine, codes[rows], -1))
                for pick in self._choose(seen, self.known.weight * c.trust, family, rest):
                    condition = self._condition(pick.values, family, distance)
                    yield self._under(c, condition, _among(codes, pick.values), pick.trust)
                avoided = _rare(seen)
                if len(avoided):
                    condition = self._condition(avoided, family, distance, needed=False)
                    yield self._under(c, condition, ~_among(codes, avoided))
        for condition, kept in self._ranged(c, rows[mine]):
            yield self._under(c, condition, kept)
        yield from self._placed(c)
        for condition in self.conditions:
            kept = self.text.near(condition.near)[c.at] == condition.needed
            yield self._under(c, condition, kept, tried=True)

    def _under(
        self, c: Candidate, condition: Condition, kept: Flags, trust: Floats | None = None, tried: bool = False
    ) -> Candidate | None:
        return self._keep(c, kept, condition.added(c.clause), condition.said, condition.listed, trust, tried)

    def _keep(
        self, c: Candidate, keep: Flags, clause: Clause, said: str, listed: int = 0,
        trust: Floats | None = None, tried: bool = False,
    ) -> Candidate | None:  # fmt: skip
        """The candidate at the places kept; None if as many firing documents would have kept theirs by chance.

        A condition that experiments propose needs no such luck: the corpus may never show the token without it.
        """
        at = c.at[keep]
        covered = self.known.matched(at) & (c.trust > 0)
        n, k = self.known.documents(c.trust > 0), self.known.documents(covered)
        if not k or not (tried or bdtrc(k - 1, n, len(at) / len(c.at)) < UNLIKELY):
            return None
        each = np.minimum(c.trust, self.known.shrink(covered, len(at)) if trust is None else trust)
        return Candidate(clause, at, np.where(covered, each, 0.0), c.listed + listed, c.words, (*c.before, said))

    def _behind(self, at: Ints, distance: int) -> Iterator[tuple[Ints, Family | None]]:
        """What stands at this distance before places, seen in each way: as a token, as a word, as one of a class."""
        text = self.text
        yield np.where(text.position[at] > distance, text.ids[at - distance], -1), None
        back = distance - text.blank[at]
        inside = text.place[text.word[at]] > back
        kind = text.kind[np.where(inside, text.word[at] - back, 0)]
        for family in (self.lexicon.folded, self.lexicon.kinds):
            yield np.where(inside, family.codes[kind], -1), family

    def _condition(self, values: Ints, family: Family | None, distance: int, needed: bool = True) -> Condition:
        matcher, words = self._written(values, family)
        near = Near(matcher, distance, distance, "words" if family else "tokens")
        return Condition(near, after(words, distance), needed, len(values) - 1)

    def _ranged(self, c: Candidate, firing: Ints) -> Iterator[tuple[Condition, Flags]]:
        """Words that stand somewhere before firing places more often than before the other matched ones, or less."""
        near = [self._words_before(i) for i in c.at[firing]]
        sample = [self._words_before(i) for i in c.at[np.argsort(position_key(c.at))[:100]]]
        often, usual = (Counter(v for group in groups for v in group) for groups in (near, sample))
        lift = {v: often[v] / len(near) - usual[v] / len(sample) for v in (often | usual) if v >= 0}
        ranked = sorted(lift, key=lambda v: (-lift[v], v))
        more, less = [v for v in ranked[:6] if lift[v] > 0.1], [v for v in ranked[:-7:-1] if lift[v] < -0.1]
        for v, needed in (*((v, True) for v in more), *((v, False) for v in less)):
            since = self._since(c.at, v)
            reaches = [*RANGES, int(since[firing][since[firing] < WINDOW].max(initial=1))]
            share = [float((since[firing] <= h).mean() - (since <= h).mean()) for h in reaches]
            reach = reaches[int(np.argmax(share) if needed else np.argmin(share))]
            yield Condition.among(self.lexicon.folded.names[v], 1, reach, needed), (since <= reach) == needed

    def _words_before(self, i: int) -> set[int]:
        word = int(self.text.word[i])
        span = slice(word - int(self.text.place[word]) + 1, word + int(self.text.blank[i]))
        return set(self.lexicon.folded.codes[self.text.kind[span]].tolist())

    def _since(self, at: Ints, value: int) -> Ints:
        """How many words before each place the value last stood; WINDOW if it did not, in the same window."""
        text, places = self.text, self.lexicon.places[value]
        word, blank = text.word[at], text.blank[at].astype(np.int64)
        slot = np.searchsorted(places, word + blank) - 1
        back = word - places[slot.clip(0)]
        return np.where((slot >= 0) & (text.place[word] > back), back + blank, WINDOW)

    def _placed(self, c: Candidate) -> Iterator[Candidate | None]:
        """The candidate only at early or late positions, or only where a pair of tokens repeats."""
        position = self.text.position[c.at]
        for low, high in SPANS if c.clause.position is None else ():
            said = f"among the first {high} tokens of a text" if low == 1 else f"from the {low}th token of a text on"
            said = "at the first token of a text" if high == 1 else said
            keep = (position >= low) & (position <= high)
            yield self._keep(c, keep, replace(c.clause, position=(low, high)), said)
        if not c.clause.repeat:
            said = "where the same two tokens have stood together before"
            yield self._keep(c, self.text.repeats[c.at], replace(c.clause, repeat=True), said)

    # Lists of values

    def _choose(self, seen: Values, weight: Floats, family: Family | None, rest: Rest) -> list[_Pick]:
        """Values of firing places that raise F1: the best list of them, and the best one alone.

        Adding a value raises F1 as long as its own precision exceeds F1 / 2, so the best list is a prefix by precision.
        """
        has = seen.firing >= 0
        if not has.any():
            return []
        values, which = np.unique(seen.firing[has], return_inverse=True)
        loose = family is not None and family.loose
        shown = (self.text.kind[self.text.word[self.known.at]] if loose else self.known.cluster)[has]
        pairs = set(zip(which.tolist(), shown.tolist(), strict=True))
        support = np.bincount([v for v, _ in pairs], minlength=len(values))
        size, true = self.known.counts(seen, values, which, weight[has])
        trust = (support - 1) / support
        order = np.argsort(-trust * true / np.maximum(size, 1), kind="stable")
        order = order[(trust * true)[order] > 0][: family.most if family else MAX_IDS]
        if not len(order):
            return []
        gain, fixed = (trust * true)[order], rest.size + self.known.firings
        prefix = int(np.argmax((rest.true + np.cumsum(gain)) / (fixed + np.cumsum(size[order])))) + 1
        single = order[[int(np.argmax((rest.true + gain) / (fixed + size[order])))]]
        picks = []
        for chosen in [order[:prefix]] + [single] * (prefix > 1):
            whole = np.zeros(len(has))
            whole[has] = np.where(_among(which, chosen), trust[which], 0.0)
            picks.append(_Pick(values[chosen], whole))
        return picks

    def _written(self, values: Ints, family: Family | None) -> tuple[Matcher, str]:
        """The matcher of a list of values, which are token ids if of no family, and what to call it."""
        if family is None:
            ids = tuple(values.tolist())
            return Matcher(ids), called(spelled(self.spell, ids))
        names = [family.names[v] for v in values]
        return family.write(names), family.call(names)


def _among(codes: Ints, values: Ints) -> Flags:
    """np.isin, in half the time where numbers are small."""
    lookup = np.zeros(int(max(codes.max(initial=0), values.max())) + 2, dtype=np.bool_)
    lookup[values] = True
    return lookup[codes]  # −1 reads the last entry, which no value holds


def _rare(seen: Values) -> Ints:
    """Values common before the matched places, and before no firing one."""
    size = np.bincount(seen.codes)
    size[np.unique(seen.firing[seen.firing >= 0])] = 0   # every one of them stands before a matched place too
    values = np.flatnonzero(size >= max(10, 0.05 * len(seen.codes)))
    return values[np.argsort(-size[values])][:8]
