"""Clauses worth a try, from what the firing places share.

First what the token itself is: one of some token ids, a word of a family of the lexicon, a shape that has a name, a
token near firing ones in the embedding. Then what stands before it, added to such a clause one condition at a time: a
token or word at an exact distance, a word somewhere before, an early or late position, a repeated pair, and what
experiments showed to matter. A condition that firing places could as well meet by chance is dropped (UNLIKELY).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from scipy.special import bdtr, bdtrc

from .conditions import Condition, Names
from .estimate import PRIOR, Candidate, Known, Values
from .lexicon import (
    FOLD,
    Family,
    called,
    fitting,
    folding,
    lexicon,
    matching,
    merged,
    named,
    spelled,
    unmarked,
)
from .measures import MAX_CLAUSES, WINDOW
from .rules import MAX_IDS, Clause, Flags, Floats, Ints, Matcher
from .trials import Trials

SPANS = (*((d, d) for d in range(1, 7)), *((1, far) for far in (2, 3, 4, 5, 8, 16, 32, WINDOW - 1)))
WIDE = 200_000         # matched places × distances beyond which a span is not looked at
BANDS = ((1, 1), (1, 2), (1, 3), (1, 5), (1, 8), (1, 16), (4, WINDOW - 1), (8, WINDOW - 1), (32, WINDOW - 1))
MOST_SHARED, WORTHWHILE = 6, 0.005     # values of a list for several distances, and what each must add to F1
ALONE = 3              # values of a list that are proposed by themselves
NEAREST = (4, 8, 16, MAX_IDS)    # tokens of a cluster around one, or around all, that firing places show
LEAST, EXPECTED = 5, 3.0    # places with a value, and firing documents expected among them, for its absence to count
UNLIKELY = 1e-3        # a condition counts if firing places meet it this improbably well for their matched neighbours


class Embedded(Protocol):
    """What of a subject is asked: the string of a token, and how near each token is to some in the embedding."""

    def piece(self, token: int) -> str: ...
    def alike(self, ids: Sequence[int]) -> Any: ...


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
    """Proposes clauses for what a rule so far leaves."""

    def __init__(self, subject: Embedded, known: Known, trials: Trials) -> None:
        self.spell, self.alike, self.known, self.text = subject.piece, subject.alike, known, known.text
        self.lexicon = lexicon(known.text)
        self.tracked = [word for word, _ in trials.tracked.most_common(24)]
        self.conditions = list(trials.conditions(subject.piece))
        self.distances = trials.distances
        self.spans = list(dict.fromkeys([*SPANS, *trials.distances]))
        self.bands = list(dict.fromkeys([*BANDS, *trials.positions]))
        tested = {name for names in trials.names for name in names}
        self.tested = tested.union(FOLD + name.lower() for name in tested if isinstance(name, str))
        self.lists = [self._bare(part) for names in trials.names for part in self._spread(names)]

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
        for c in self.lists:
            yield self._plain(c.clause, c.words, rest, c.names)
        yield from self._clusters(rest)

    def _clusters(self, rest: Rest) -> Iterator[Candidate]:
        """Clauses on the tokens nearest in the input embedding to some that fire, be they in the text or not.

        A centre is one of the ALONE tokens that fire most, or each other token of those that fire. Since tokens are
        near a centre that is made of them, only the rest are evidence that the kind fires: with k of them in a cluster
        TP shrinks by (k − 1) / k. The cluster costs as much as a list of all that it has of those that fire.
        """
        who = np.flatnonzero(rest.fresh)
        tokens, which = np.unique(self.text.ids[self.known.at[who]], return_inverse=True)
        if len(tokens) < 3:
            return
        often = tokens[np.argsort(-np.bincount(which, self.known.weight[who]), kind="stable")]
        for centre in (often[::2], often[1::2], *(often[[k]] for k in range(ALONE))):
            scores = self.alike(centre.tolist())
            nearest = scores.topk(min(MAX_IDS, len(scores))).indices.cpu().numpy()
            for size in NEAREST:
                shown = tokens[np.isin(tokens, nearest[:size])]
                others = len(np.setdiff1d(shown, centre))
                if others > 1:
                    yield self._cluster(nearest[:size], len(shown), (others - 1) / others, rest)

    def _cluster(self, ids: Ints, shown: int, trust: float, rest: Rest) -> Candidate:
        at = np.flatnonzero(_among(self.text.ids, ids) & (self.text.position > 0))
        covered = self.known.matched(at)
        each = min(self.known.shrink(covered & rest.fresh, len(at)), trust)
        clause, words = Clause(Matcher(tuple(sorted(ids.tolist()))), "any"), called(spelled(self.spell, ids.tolist()))
        return Candidate(clause, at, np.where(covered, each, 0.0), shown - 1, words)

    def found(self, c: Candidate) -> bool:
        """Whether the candidate's matcher is a list that experiments found."""
        return any(c.clause.at == one.clause.at for one in self.lists)

    def _bare(self, names: Names) -> Candidate:
        return self.listed("any" if isinstance(names[0], int) else "last", names, np.zeros(len(self.known.at)))

    def _spread(self, names: Sequence[int | str]) -> list[Names]:
        """The names in as many parts as it takes for each to fit, those that the corpus shows in all of them alike."""
        shown = {*self.text.vocabulary} if isinstance(names[0], str) else set(self.text.ids.tolist())
        ordered = sorted(names, key=lambda name: name not in shown)
        for count in range(1, MAX_CLAUSES + 1):
            parts = [tuple(ordered[k::count]) for k in range(count)]
            if all(_fits(part) for part in parts if part):
                break
        return [part for part in parts if part]

    def _pieces(self, fresh: Flags) -> list[str]:
        """The pieces of a word that most firing places are, and "any" where they are no one piece."""
        at, text = self.known.at[fresh], self.text
        if not len(at):
            return ["last"]
        whole = float((text.last[at] & text.first[at]).mean())
        shares = {p: float(text.piece(p)[at].mean()) for p in ("last", "first", "inner")}
        chosen = [p for p in shares if shares[p] >= 0.5 and not (p == "first" and whole >= 0.9)]
        return chosen if max(shares.values()) >= 0.9 else [*chosen, "any"]

    def _plain(self, clause: Clause, words: str, rest: Rest, names: Names = ()) -> Candidate:
        at = np.flatnonzero(clause.mask(self.text))
        covered = self.known.matched(at)
        trust = np.where(covered, self.known.shrink(covered & rest.fresh, len(at)), 0.0)
        return Candidate(clause, at, trust, self._untested(names), words, names=names)

    def _untested(self, names: Sequence[int | str]) -> int:
        """How many names of a list, beyond the first, no experiment has shown to fire."""
        return max(sum(name not in self.tested for name in names) - 1, 0)

    def _valued(self, codes: Ints, rest: Rest, family: Family | None, piece: str) -> Iterator[Candidate]:
        """Clauses on the values that firing places share: the best list, and the best value alone."""
        at = np.flatnonzero(rest.free & (codes >= 0))
        who = np.flatnonzero(rest.fresh & (codes[self.known.at] >= 0))
        seen = Values(at, codes[at], who, codes[self.known.at[who]])
        for pick in self._choose(seen, self.known.weight, family, rest):
            matcher, words = self._written(pick.values, family)
            at = np.flatnonzero(_among(codes, pick.values) & (self.text.position > 0))
            names = family.words([family.names[v] for v in pick.values]) if family else pick.values.tolist()
            clause = Clause(matcher, piece)
            yield Candidate(clause, at, pick.trust, len(pick.values) - 1, words, names=tuple(names))

    # Bare lists

    def union(self, a: Candidate, b: Candidate) -> Candidate | None:
        """Two bare lists, of words or of tokens, on the same piece as one; None if no such pair, or too long."""
        kinds = {(c.clause.piece, bool(c.clause.at.ids)) for c in (a, b)}
        if not (a.names and b.names) or len(kinds) > 1:
            return None
        names = merged(a.names, b.names)
        return self.listed(a.clause.piece, names, np.maximum(a.trust, b.trust)) if _fits(names) else None

    def listed(self, piece: str, names: Sequence[int | str], trust: Floats) -> Candidate:
        """The clause that is nothing but a list of these names, as many as fit; trust [P] counts where it matches."""
        ids = tuple(name for name in names if isinstance(name, int))[:MAX_IDS]
        words = tuple(fitting([name for name in names if isinstance(name, str)]))
        said = called(spelled(self.spell, ids) if ids else unmarked(words))
        clause = Clause(Matcher(ids) if ids else matching(words), piece)
        at = np.flatnonzero(clause.mask(self.text))
        trust = np.where(self.known.matched(at), trust, 0.0)
        return Candidate(clause, at, trust, self._untested(ids or words), said, names=ids or words)

    # What stands before it

    def narrower(self, c: Candidate, rest: Rest) -> Iterator[Candidate | None]:
        """The candidate with one condition more; None for a condition that may be chance."""
        inside = rest.free[c.at]
        rows = np.searchsorted(c.at, self.known.at).clip(0, len(c.at) - 1)
        mine = rest.fresh & self.known.matched(c.at) & (c.trust > 0)
        if not mine.any():
            return
        who = np.flatnonzero(mine)
        for span in (s for s in self.spans if (s[1] - s[0]) * len(c.at) <= WIDE):
            for codes, family in self._behind(c.at, span):
                seen = _pairs(c.at, codes, inside, who, rows[who])
                for pick in self._choose(seen, self.known.weight * c.trust, family, rest, len(codes) > 1):
                    for near in {span, (span[0], _farthest(codes[:, rows[who]], pick.values, span))}:
                        kept = _some(codes[: near[1] - near[0] + 1], pick.values)
                        yield self._under(c, self._condition(pick.values, family, near), kept, pick.trust)
                avoided = _rare(seen, self.known.documents(mine) / max(int(inside.sum()), 1))
                if len(avoided):
                    condition = self._condition(avoided, family, span, needed=False)
                    yield self._under(c, condition, ~_some(codes, avoided))
        yield from self._placed(c)
        for condition in self.conditions:
            kept = self.text.near(condition.near)[c.at] == condition.needed
            yield self._under(c, condition, kept, tried=True)

    def _under(
        self, c: Candidate, condition: Condition, kept: Flags, trust: Floats | None = None, tried: bool = False
    ) -> Candidate | None:
        longer = replace(c, clause=condition.added(c.clause), conditions=(*c.conditions, condition))
        return self._keep(c, longer, kept, trust, tried)

    def _keep(
        self, c: Candidate, longer: Candidate, keep: Flags, trust: Floats | None = None, tried: bool = False
    ) -> Candidate | None:
        """`longer` at the places of c that it keeps; None if chance would keep as many firing ones, or drop as few.

        A condition that experiments propose needs no such luck: the corpus may never show the token without it.
        """
        at = c.at[keep]
        covered = self.known.matched(at) & (c.trust > 0)
        if not covered.any() or not (tried or self._unlikely(c, covered, keep)):
            return None
        each = np.minimum(c.trust, self.known.shrink(covered, len(at)) if trust is None else trust)
        return replace(longer, at=at, trust=np.where(covered, each, 0.0), names=())

    def _unlikely(self, c: Candidate, covered: Flags, keep: Flags) -> bool:
        """Whether a condition keeps more firing documents, or of the places read drops fewer firing, than luck does."""
        n, k = self.known.documents(c.trust > 0), self.known.documents(covered)
        if bdtrc(k - 1, n, keep.mean()) < UNLIKELY:
            return True
        read, fires = self.known.drawn[c.at] > 0, self.known.fires[c.at]
        gone = read & ~keep
        return bool(gone.any() and bdtr(fires[gone].sum(), gone.sum(), fires[read].mean()) < UNLIKELY)

    def _behind(self, at: Ints, span: tuple[int, int]) -> Iterator[tuple[Ints, Family | None]]:
        """What stands in a span of distances before places [distances, M], seen in each way that fits.

        One distance is seen as a token, as a word and as one of a class; several only as words.
        """
        text, (low, high) = self.text, span
        if low == high:
            yield np.where(text.position[at] > low, text.ids[at - low], -1)[None], None
        kind = np.full((high - low + 1, len(at)), -1)
        for row, distance in zip(kind, range(low, high + 1), strict=True):
            back = distance - text.blank[at]
            inside = text.place[text.word[at]] > back
            row[inside] = text.kind[(text.word[at] - back)[inside]]
        for family in (self.lexicon.folded, self.lexicon.kinds)[: 1 + (low == high)]:
            yield np.where(kind >= 0, family.codes[kind], -1), family

    def _condition(
        self, values: Ints, family: Family | None, span: tuple[int, int], needed: bool = True
    ) -> Condition:
        if family is None:
            return Condition.of(values.tolist(), span, "tokens", needed, self.spell)
        names = [family.names[v] for v in values]
        if family is self.lexicon.folded:
            return Condition.of(folding(names), span, "words", needed, self.spell)
        return Condition.on(family.write(names), family.call(names), span, needed)

    def variants(self, c: Candidate) -> Iterator[Candidate]:
        """The candidate without a name that no experiment backs, or with distances or a list that some found."""
        for one in self.lists:
            if one.clause.piece == c.clause.piece and one.clause.at != c.clause.at:
                at = replace(c, clause=replace(c.clause, at=one.clause.at), words=one.words, extra=one.extra)
                yield self._rebuilt(replace(at, names=one.names if c.names else ()), c.conditions)
        for k, own in enumerate(c.conditions):
            droppable = own.names if len(own.names) > 1 and not own.tested else ()
            fewer = [tuple(n for n in own.names if n != name) for name in droppable]
            others = [own.changed(self.spell, names=names) for names in fewer]
            if own.names:
                others += [own.changed(self.spell, span=span) for span in self.distances if span != own.span]
            yield from (self._rebuilt(c, (*c.conditions[:k], other, *c.conditions[k + 1 :])) for other in others)

    def _rebuilt(self, c: Candidate, conditions: tuple[Condition, ...]) -> Candidate:
        clause = replace(c.clause, need=(), avoid=())
        for condition in conditions:
            clause = condition.added(clause)
        at = np.flatnonzero(clause.mask(self.text))
        covered = self.known.matched(at)
        # A firing place that is new to the clause is worth what the clause's others are.
        usual = float(c.trust[c.trust > 0].mean()) if c.trust.any() else 0.0
        trust = np.where(covered, np.where(c.trust > 0, c.trust, usual), 0.0)
        return replace(c, clause=clause, at=at, trust=trust, conditions=conditions)

    def _placed(self, c: Candidate) -> Iterator[Candidate | None]:
        """The candidate only at some positions, or only where a pair of tokens repeats."""
        position = self.text.position[c.at]
        for low, high in self._bands(c) if c.clause.position is None else ():
            keep = (position >= low) & (position <= high)
            yield self._keep(c, replace(c, clause=replace(c.clause, position=(low, high))), keep)
        if not c.clause.repeat:
            yield self._keep(c, replace(c, clause=replace(c.clause, repeat=True)), self.text.repeats[c.at])

    def _bands(self, c: Candidate) -> list[tuple[int, int]]:
        """Usual bands of positions, and those in which all, nine tenths and half of its firing places lie."""
        at = self.text.position[self.known.at[c.trust > 0]]
        cuts = (np.quantile(at, (share, 1 - share), method="nearest") for share in (0, 0.05, 0.25))
        return list(dict.fromkeys([*self.bands, *((int(low), int(high)) for low, high in cuts)]))

    # Lists of values

    def _choose(
        self, seen: Values, weight: Floats, family: Family | None, rest: Rest, shared: bool = False
    ) -> list[_Pick]:
        """Values of firing places that raise F1: the best list of them, and the best ones alone.

        Adding a value raises F1 as long as its own precision exceeds F1 / 2, so the best list is a prefix by precision,
        unless places are `shared` by values.
        """
        if not len(seen.who):
            return []
        values, which = np.unique(seen.what, return_inverse=True)
        loose = family is not None and family.loose
        shown = (self.text.kind[self.text.word[self.known.at]] if loose else self.known.cluster)[seen.who]
        pairs = set(zip(which.tolist(), shown.tolist(), strict=True))
        support = np.bincount([v for v, _ in pairs], minlength=len(values))
        size, true = self.known.counts(seen, values, which, weight[seen.who])
        trust = (support - 1) / support
        order = np.argsort(-trust * true / np.maximum(size, 1), kind="stable")
        order = order[(trust * true)[order] > 0][: family.most if family else MAX_IDS]
        if not len(order):
            return []
        gain, fixed = (trust * true)[order], rest.size + self.known.firings
        alone = order[np.argsort(-(rest.true + gain) / (fixed + size[order]), kind="stable")[:ALONE]]
        if shared:
            best = self._covering(seen, values, which, weight, trust, rest)
        else:
            best = order[: int(np.argmax((rest.true + np.cumsum(gain)) / (fixed + np.cumsum(size[order])))) + 1]
        picks = []
        for chosen in [best] * (len(best) > 1) + [alone[[i]] for i in range(len(alone))]:
            whole = np.zeros(len(self.known.at))
            np.maximum.at(whole, seen.who, np.where(_among(which, chosen), trust[which], 0.0))
            picks.append(_Pick(values[chosen], whole))
        return picks

    def _covering(self, seen: Values, values: Ints, which: Ints, weight: Floats, trust: Floats, rest: Rest) -> Ints:
        """Of the values that raise F1 the most precise, one after the other; a place counts for the first it has."""
        chosen: list[int] = []
        left, fresh = seen, which
        true, size = rest.true, rest.size + self.known.firings
        while len(chosen) < MOST_SHARED:
            places, firing = self.known.counts(left, values, fresh, weight[left.who])
            raises = 2 * (true + trust * firing) / (size + places) > 2 * true / size + WORTHWHILE
            if not raises.any():
                break
            best = int(np.argmax(np.where(raises, trust * firing / (places + PRIOR), -1.0)))
            chosen.append(best)
            true, size = true + trust[best] * firing[best], size + places[best]
            gone, known = left.at[left.codes == values[best]], left.who[fresh == best]
            stays, more = ~np.isin(left.at, gone), ~np.isin(left.who, known)
            left, fresh = Values(left.at[stays], left.codes[stays], left.who[more], left.what[more]), fresh[more]
        return np.array(chosen, dtype=np.int64)

    def _written(self, values: Ints, family: Family | None) -> tuple[Matcher, str]:
        """The matcher of a list of values, which are token ids if of no family, and what to call it."""
        if family is None:
            ids = tuple(values.tolist())
            return Matcher(ids), called(spelled(self.spell, ids))
        names = [family.names[v] for v in values]
        return family.write(names), family.call(names)


def _fits(names: Sequence[int | str]) -> bool:
    """Whether one matcher holds all of a list."""
    words = [name for name in names if isinstance(name, str)]
    return len(names) - len(words) <= MAX_IDS and len(fitting(words)) == len(words)


def _among(codes: Ints, values: Ints) -> Flags:
    """np.isin, in half the time where numbers are small."""
    lookup = np.zeros(int(max(codes.max(initial=0), values.max())) + 2, dtype=np.bool_)
    lookup[values] = True
    return lookup[codes]  # −1 reads the last entry, which no value holds


def _some(codes: Ints, values: Ints) -> Flags:
    """Columns of [distances, M] that hold one of the values."""
    found: Flags = np.logical_or.reduce(_among(codes, values))
    return found


def _farthest(codes: Ints, values: Ints, span: tuple[int, int]) -> int:
    """The distance, in a span, at which firing places [distances, n] have one of the values nearest, at most."""
    found = _among(codes, values)
    has = np.logical_or.reduce(found)
    return span[0] + int(found.argmax(axis=0)[has].max(initial=0))


def _pairs(at: Ints, codes: Ints, inside: Flags, who: Ints, rows: Ints) -> Values:
    """Places with the values [distances, M] that stand before them, each value of a place once.

    inside [M]: matched places that count; who, rows: the firing ones, and which of the matched each is.
    """
    base = int(codes.max(initial=0)) + 1

    def distinct(columns: Ints) -> tuple[Ints, Ints]:
        some = codes[:, columns]
        keys = (np.arange(len(columns)) * base + some)[some >= 0]
        keys = np.unique(keys) if len(codes) > 1 else keys
        return keys // base, keys % base

    own = np.flatnonzero(inside)
    where, seen = distinct(own)
    whose, what = distinct(rows)
    return Values(at[own[where]], seen, who[whose], what)


def _rare(seen: Values, each: float) -> Ints:
    """Values common before the matched places, and before no firing one.

    each: firing documents a matched place; a value at k places is so expected in each × k of them.
    """
    size = np.bincount(seen.codes)
    size[np.unique(seen.what)] = 0   # every one of them stands before a matched place too
    values = np.flatnonzero((size >= LEAST) & (size * each >= EXPECTED))
    return values[np.argsort(-size[values], kind="stable")][:8]
