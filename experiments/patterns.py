"""Rules to be planted, drawn by family, and words in which such a rule matches or just fails to."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..tools.measures import WINDOW
from ..tools.rules import Clause, Matcher, Near, Rule
from ..tools.units import UnitId
from .language import POOLS, SHOWN, language
from .plant import REACH, SITE, WIDTH, PlantedUnit


class _Draw:
    """Draws rules: every word is in one rule of a model at most, so that no unit's pattern hides another's."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.left = list(language().words)
        rng.shuffle(self.left)
        pools = rng.sample(sorted(POOLS), len(POOLS))
        self.pools, self.reversed = itertools.cycle(pools), itertools.cycle(reversed(pools))
        self.passes = itertools.cycle(rng.sample((True, False), 2))

    def words(self, low: int, high: int) -> Matcher:
        count = self.rng.randint(low, high)
        return Matcher(ids=tuple(self.left.pop() for _ in range(count)))

    def at(self, low: int = 1, high: int = 2, **more: Any) -> Clause:
        return Clause(self.words(low, high), **more)

    def near(self, low: int, high: int, most: int = 2) -> Near:
        return Near(self.words(1, most), low, high)

    def behind(self, low: int = 2, high: int = 4) -> Near:
        """At one distance, drawn from low to high."""
        distance = self.rng.randint(low, high)
        return self.near(distance, distance)

    def within(self) -> Near:
        return self.near(1, self.rng.randint(2, 4))

    def forbidden(self) -> Near:
        return self.near(1, self.rng.randint(1, 4))

    def band(self, least: int, most: int) -> tuple[int, int]:
        width = self.rng.randint(least, most)
        low = self.rng.randint(2, WINDOW - 2 - width)
        return low, low + width - 1

    def pool(self, name: str, **more: Any) -> Rule:
        """All of a pool. A matcher holds 32 ids, so it takes two clauses."""
        ids = language().pools[name]
        return Rule(tuple(Clause(Matcher(ids=half), **more) for half in (ids[:30], ids[30:])))

    def repeat(self) -> Clause:
        """Induction: any pair of tokens that stood in the window before; every other unit passes over common words."""
        common = Near(Matcher(ids=language().common[: self.rng.randint(6, 12)]))
        return Clause(Matcher(cls="any"), "any", avoid=(common,) * next(self.passes), repeat=True)


def _any_at(band: tuple[int, int]) -> Clause:
    return Clause(Matcher(cls="any"), "any", position=band)


# What each family's rule is. "sink" fires at position 0 alone, where no rule matches: there is nothing to explain.
_ONE: dict[str, Callable[[_Draw], Clause | Rule | None]] = {
    "token": lambda d: d.at(1, 1),
    "set": lambda d: d.at(3, 8),
    "pair": lambda d: d.at(need=(d.near(1, 1),)),
    "gap": lambda d: d.at(need=(d.behind(),)),
    "within": lambda d: d.at(need=(d.within(),)),
    "not after": lambda d: d.at(avoid=(d.forbidden(),)),
    "both": lambda d: d.at(need=(d.near(1, 1), d.near(2, 4))),
    "either": lambda d: Rule((d.at(1, 1), d.at(1, 1, need=(d.near(1, 1),)))),
    "earlier": lambda d: d.at(need=(d.near(1, WINDOW - 1),)),
    "repeat": lambda d: d.repeat(),
    "position": lambda d: _any_at(d.band(1, 2)),
    "sink": lambda d: None,
    "hidden": lambda d: d.pool(next(d.pools)),
    "chain": lambda d: d.at(2, 4, need=(d.near(2, 2, 3),), avoid=(d.near(1, 1),)),
    "after but not": lambda d: d.at(need=(d.within(),), avoid=(d.within(),)),
    "pairs": lambda d: Rule((d.at(1, 1, need=(d.behind(1, 3),)), d.at(1, 1, need=(d.behind(1, 3),)))),
    "repeat of": lambda d: d.at(2, 4, repeat=True),
    "placed": lambda d: d.at(1, 2, position=d.band(18, 28)),
    "hidden after": lambda d: d.pool(next(d.reversed), need=(d.near(1, 1),)),
}
SIDES = "sides"        # one neuron, another rule on each side: two units
_SIDE = ("token", "pair", "gap", "either", "not after")


def families(shape: str) -> tuple[str, ...]:
    """The families that a model of this shape can hold. A GELU neuron has no negative side."""
    return (*_ONE, SIDES) if shape == "llama" else tuple(_ONE)


def draw_units(seed: int, shape: str, number: int, model: str) -> list[PlantedUnit]:
    """The units: families in turn, neurons of the layer at random, signs at random where there are two."""
    rng = random.Random(f"{seed} {shape} rules")
    draw = _Draw(rng)
    hidden = [frozenset(rng.sample(ids, len(ids) - SHOWN)) for ids in language().pools.values()]
    indices = rng.sample(range(WIDTH), number)
    promoted = rng.sample(language().words, 3 * number)
    turns = itertools.cycle(families(shape))
    units: list[PlantedUnit] = []
    while len(units) < number:
        family = next(turns)
        sides = {rng.choice((1, 1, -1)) if shape == "llama" else 1: family}
        if family == SIDES:
            sides = dict(zip((1, -1), rng.sample(_SIDE, 2), strict=True))
        if len(units) + len(sides) > number:
            continue
        index = indices.pop()
        for sign, kind in sides.items():
            made = _ONE[kind](draw)
            rule = Rule((made,)) if isinstance(made, Clause) else made
            members = {i for c in rule.clauses for i in c.at.ids} if rule else set()
            unseen = frozenset(i for ids in hidden for i in ids & members)
            words = tuple(promoted.pop() for _ in range(3))
            units.append(PlantedUnit(UnitId(model, SITE, index, sign), family, rule, words, unseen))
    return units


Way = tuple[int, str, int]      # a clause, what is done to it, and to which of its contexts


class Patterns:
    """Makes the pattern of one unit, or what is nearly its pattern, out of words.

    flow: running text to fill long gaps with; hidden: members of sets that are not used.
    """

    def __init__(self, rng: random.Random, rule: Rule, flow: Sequence[int], hidden: frozenset[int] = frozenset()):
        self.rng, self.rule, self.flow, self.hidden = rng, rule, flow, hidden
        known = language()
        matchers = [m for c in rule.clauses for m in (c.at, *(near.match for near in (*c.need, *c.avoid)))]
        mentioned = {i for matcher in matchers for i in matcher.ids}
        self.names, self.words = ([i for i in ids if i not in mentioned] for ids in (known.names, known.words))

    def holds(self) -> list[Way]:
        """Ways to fire: each clause as it is, and with a forbidden word just too far away to count."""
        ways: list[Way] = []
        for number, clause in enumerate(self.rule.clauses):
            ways.append((number, "fires", 0))
            beyond = [n for n, near in enumerate(clause.avoid) if near.high <= REACH and not clause.repeat]
            ways += [(number, "forbidden too far", n) for n in beyond]
        return ways

    def fails(self) -> list[Way]:
        """Each condition of each clause, broken alone; and the token of one clause in the context of another."""
        ways: list[Way] = []
        for number, clause in enumerate(self.rule.clauses):
            ways += [(number, *way) for way in _breaks(clause)]
            for other, second in enumerate(self.rule.clauses):
                ways += [(number, "crossed", other)] * bool(clause.need and second.need and clause.need != second.need)
        return ways

    def pattern(self, way: Way) -> tuple[list[int], int]:
        """Ids, and which of them is the token in question."""
        number, what, which = way
        clause = self.rule.clauses[number]
        at = self.pick(clause.at) if clause.at.ids and what != "other word" else self.other(clause.at)
        spans = []
        for n, near in enumerate(self.rule.clauses[which].need if what == "crossed" else clause.need):
            if what != "lacks" or which != n:
                spans.append((near.match, *_moved(near, what if which == n else "")))
        if what.startswith("forbidden"):
            near = clause.avoid[which]
            free = (near.high + 1, near.high + 2)      # two, since a context may have to stand at one of them
            spans.append((near.match, *(free if what == "forbidden too far" else _moved(near, ""))))
        slots = self.placed(spans)
        if clause.repeat:
            return self.repeated(slots.get(1, self.other(clause.at)), at, what)
        ids = [*self.run(slots, max(slots, default=0), 1), at]
        return [*ids, *self.run(slots, -1, min(slots, default=0))], len(ids) - 1

    def placed(self, spans: Sequence[tuple[Matcher, int, int]]) -> dict[int, int]:
        """A word of each matcher by its distance, no two the same."""
        for _ in range(1000):
            slots = {self.rng.randint(low, high): self.pick(match) for match, low, high in spans}
            if len(slots) == len(spans):
                return slots
        raise AssertionError(f"the contexts of {self.rule} get in each other's way")

    def run(self, slots: dict[int, int], far: int, near: int) -> list[int]:
        """The tokens at distances from far down to near: the words placed there, and between them gaps."""
        ids: list[int] = []
        empty = 0
        for distance in range(far, near - 1, -1):
            empty += 1
            if distance in slots:
                ids += [*self.gap(empty - 1), slots[distance]]
                empty = 0
        return ids + self.gap(empty)

    def gap(self, size: int) -> list[int]:
        """Words of one token, so that distances in tokens and in words are the same; a long gap is running text."""
        return self.stretch(size) if size > REACH else self.rng.sample(language().common, size)

    def stretch(self, size: int) -> list[int]:
        """So many tokens of running text, from the beginning of a word to the end of one."""
        begins, flow = language().begins, self.flow
        while size:
            start = self.rng.randrange(len(flow) - size)
            if begins(flow[start]) and begins(flow[start + size]):
                return list(flow[start : start + size])
        return []

    def repeated(self, first: int, second: int, what: str) -> tuple[list[int], int]:
        """A pair, and before it the same pair, or one that shares a single token with it, or none."""
        earlier = {"new pair": [], "other first": [self.other(), second], "other second": [first, self.other()]}
        ids = [*earlier.get(what, [first, second]), *self.stretch(self.rng.randint(1, FAR)), first, second]
        return ids, len(ids) - 1

    def pick(self, match: Matcher) -> int:
        return int(self.rng.choice([i for i in match.ids if i not in self.hidden]))

    def other(self, match: Matcher | None = None) -> int:
        """A word that the rule does not mention, capitalised if those of the matcher are."""
        capital = match is not None and match.ids and language().spelled[match.ids[0]][1].isupper()
        return self.rng.choice(self.names if capital else self.words)


FAR = 40               # the longest gap in a pattern


def _moved(near: Near, change: str) -> tuple[int, int]:
    """The distances at which a context is put: its own, or others, off by one, where it must not count."""
    others = {"too far": (near.high + 1,) * 2, "too near": (near.low - 1,) * 2, "order": (-3, -1)}
    return others.get(change, (near.low, min(near.high, FAR)))


def _breaks(clause: Clause) -> Iterator[tuple[str, int]]:
    """What can be done to a clause so that one condition fails."""
    if clause.at.ids:
        yield "other word", 0
    for n, near in enumerate(clause.need):
        yield from (("lacks", n), ("order", n))
        if near.high <= REACH:
            yield "too far", n
        # Where another context must stand just there, nearer cannot be tried.
        if near.low > 1 and all(other.high > 1 for other in clause.need):
            yield "too near", n
    yield from (("forbidden", n) for n in range(len(clause.avoid)))
    if clause.position is not None:
        yield from [("too early", 0)] * (clause.position[0] > 1) + [("too late", 0)] * (clause.position[1] < WINDOW - 1)
    if clause.repeat:
        yield from ((what, 0) for what in ("new pair", "other first", "other second"))


__all__ = ["Patterns", "Way", "draw_units", "families"]
