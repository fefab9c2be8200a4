"""The search for the rule that is worth most.

Clauses are proposed for what the rule so far leaves, the best is added, and so on; then a rule is put together anew
from the better clauses seen on the way. What a rule is worth is at `Search.worth`: its F1 less what its size and the
experiments that contradict it cost.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from . import stats
from .estimate import Candidate, Known
from .measures import MAX_ATOMS, MAX_CLAUSES
from .propose import Embedded, Proposals, Rest
from .rules import Clause, Ints, Matcher
from .trials import Trials

PRICE, ALTERNATIVE, DOUBT, GUESS = 0.02, 0.001, 0.5, 0.005
DEPTH = 3              # conditions added to one matcher
FRONTIER = 6           # clauses that get a further condition
BEGUN = 8              # rules begun, each with another clause
READ = 8               # clauses that are read for at a time
SHORTLIST, SAME = 24, 3    # clauses that a rule is put together from, and of those so many with one matcher


class Search:
    """Joins proposed clauses into rules."""

    def __init__(self, subject: Embedded, known: Known, trials: Trials) -> None:
        self.known, self.trials = known, trials
        self.proposals = Proposals(subject, known, trials)

    def worth(self, rule: Sequence[Candidate]) -> float:
        """F1, doubted as far as experiments contradict the rule, less the price of size and of unfound distances.

        −1 if the rule is too large, or says a clause twice.
        """
        if not rule:
            return 0.0
        atoms = sum(c.clause.atoms for c in rule)
        if atoms > MAX_ATOMS or len(rule) > MAX_CLAUSES or len({c.clause for c in rule}) < len(rule):
            return -1.0
        price = PRICE * (atoms - self._shown(rule)) + ALTERNATIVE * sum(c.listed for c in rule)
        price += GUESS * self.trials.guessed(rule)
        # A share of F1: taken off it, doubt would outweigh a weak rule, and one that says nothing would win.
        return float(stats.f1(*self.known.rates(rule))) * (1 - DOUBT * self.trials.wrong(rule)) - price

    def _shown(self, rule: Sequence[Candidate]) -> int:
        """Atoms that experiments stand behind: conditions, and clauses that only go on with a list too long for one."""
        rests = [self._around(c) for c in rule]
        goes_on = [rest is not None and rest in rests[:k] for k, rest in enumerate(rests)]
        return sum(
            c.clause.atoms if known else sum(condition.tested for condition in c.conditions)
            for c, known in zip(rule, goes_on, strict=True)
        )

    def _around(self, c: Candidate) -> Clause | None:
        """What stands around a list that experiments found, the same for all its parts; None for other clauses."""
        return replace(c.clause, at=Matcher(cls="any")) if self.proposals.found(c) else None

    def cover(self) -> tuple[list[Candidate], list[Candidate]]:
        """The best rule found clause by clause, and the better clauses seen on the way."""
        rule: list[Candidate] = []
        pool: list[Candidate] = []
        while len(rule) < MAX_CLAUSES:
            options = self._clauses(rule)
            pool += [c for _, c in _varied(options, SAME)[:SHORTLIST]]
            if not options or options[0][0] <= self.worth(rule):
                break
            rule.append(options[0][1])
        return self.assemble(self.shortlist([*rule, *pool])), [*rule, *pool]

    def assemble(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """The best rule from these clauses: begun with the best of each matcher, the best is added while it helps.

        Clauses that are bare lists on the same piece become one, which loses the words that it does as well without.
        """
        best: tuple[float, list[Candidate]] = (0.0, [])
        ranked = sorted(((self.worth([c]), c) for c in pool), key=lambda item: -item[0])
        for worth, first in _varied(ranked, 1)[:BEGUN]:
            now, rule = worth, [first]
            while True:
                longer = max((self._with(rule, c) for c in pool), key=self.worth)
                if self.worth(longer) <= now:
                    break
                now, rule = self.worth(longer), longer
            best = max(best, (now, rule), key=lambda item: item[0])
        return self._trimmed(best[1], pool)

    def _with(self, rule: list[Candidate], c: Candidate) -> list[Candidate]:
        """The rule and a clause more, or where both are bare lists on the same piece, the union in place of its own."""
        unions = [self.proposals.union(own, c) for own in rule]
        longer = [both or own for own, both in zip(rule, unions, strict=True)]
        return longer if any(unions) else [*rule, c]

    def _trimmed(self, rule: list[Candidate], pool: Sequence[Candidate]) -> list[Candidate]:
        """The rule without the words, tried from the last on, that a union is worth as much without."""
        for k, c in enumerate(rule):
            for name in reversed(c.names if c not in pool else ()):
                own = rule[k]
                if len(own.names) > 1:
                    left = [other for other in own.names if other != name]
                    less = [*rule[:k], self.proposals.listed(own.clause.piece, left, own.trust), *rule[k + 1 :]]
                    rule = less if self.worth(less) >= self.worth(rule) else rule
        return rule

    def polish(self, rule: list[Candidate]) -> list[Candidate]:
        """The rule with single names and distances of its conditions changed, as long as it is worth more for it."""
        now = self.worth(rule)
        while True:
            changed = [
                [*rule[:k], other, *rule[k + 1 :]] for k, c in enumerate(rule) for other in self.proposals.variants(c)
            ]
            best = max(changed, key=self.worth, default=rule)
            if self.worth(best) <= now:
                return rule
            now, rule = self.worth(best), best

    def shortlist(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """The clauses of most worth by themselves, each set of places once, and the rule found clause by clause.

        A later clause of that rule was proposed for what the earlier ones left; found for all, it is worth more.
        """
        ranked = _each_place(sorted(((self.worth([c]), c) for c in pool), key=lambda item: -item[0]))
        best = {c.key: (worth, c) for worth, c in ranked}
        chosen = _each_place([*(best[c.key] for c in pool[:MAX_CLAUSES]), *_varied(ranked, SAME)])
        return [c for _, c in chosen[:SHORTLIST]]

    def chosen(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """The first READ of the shortlist, and with a part of a list that experiments found its other parts."""
        listed = self.shortlist(pool)
        around = [rest for c in listed[:READ] if (rest := self._around(c)) is not None]
        return [c for k, c in enumerate(listed) if k < READ or self._around(c) in around]

    def shared_words(self) -> list[Ints]:
        """The places of each token seen firing, where one that always fires would not be drowned in others."""
        known, ids = self.known, self.known.text.ids
        groups = (np.flatnonzero(ids == token) for token in np.unique(ids[known.at]))
        return [at for at in groups if len(at) <= 5 * known.firings]

    def exact(self, c: Candidate) -> Candidate:
        """The candidate with the places that its patterns match when they are really run."""
        at = np.flatnonzero(c.clause.mask(self.known.text))
        return replace(c, at=at, trust=np.where(self.known.matched(at), c.trust, 0.0))

    def _clauses(self, rule: list[Candidate]) -> list[tuple[float, Candidate]]:
        """Clauses that could be added to a rule, with what the rule would then be worth, best first."""
        rest = Rest.of(rule, self.known)
        known: dict[bytes, tuple[float, Candidate]] = {}

        def rate(candidates: Iterable[Candidate | None]) -> list[tuple[float, Candidate]]:
            new = []
            for c in candidates:
                if c is not None and c.trust.any():
                    item = (self.worth([*rule, c]), c)
                    if known.get(c.key, (-1.0,))[0] < item[0]:
                        known[c.key] = item
                        new.append(item)
            return sorted(new, key=lambda item: -item[0])

        first = rate(self.proposals.matchers(rest))
        wide = sorted(first, key=lambda item: -float((self.known.weight * item[1].trust).sum()))
        found = [item for item in first if self.proposals.found(item[1])]
        frontier = [c for _, c in _each_place((*first[:FRONTIER], *wide[:2], *_spread(wide), *found))]
        for _ in range(DEPTH):
            longer = rate(n for c in frontier for n in self.proposals.narrower(c, rest))
            frontier = [c for _, c in _varied(_each_place(longer), 2)[:FRONTIER]]
        return sorted(known.values(), key=lambda item: -item[0])


def _each_place(items: Iterable[tuple[float, Candidate]]) -> list[tuple[float, Candidate]]:
    """The items, of those with the same places only the first."""
    distinct: dict[bytes, tuple[float, Candidate]] = {}
    for item in items:
        distinct.setdefault(item[1].key, item)
    return list(distinct.values())


def _varied(items: Sequence[tuple[float, Candidate]], most: int) -> list[tuple[float, Candidate]]:
    """The items in order, at most so many with one matcher."""
    seen: Counter[Matcher] = Counter()
    kept = []
    for item in items:
        seen[item[1].clause.at] += 1
        if seen[item[1].clause.at] <= most:
            kept.append(item)
    return kept


def _spread(wide: list[tuple[float, Candidate]]) -> list[tuple[float, Candidate]]:
    """Of candidates sorted by what they cover, the smallest that cover nine and six tenths as much as the first."""
    if not wide:
        return []
    most = float(wide[0][1].trust.sum())
    groups = ([item for item in wide if item[1].trust.sum() >= share * most] for share in (0.9, 0.6))
    return [min(group, key=lambda item: len(item[1].at)) for group in groups]
