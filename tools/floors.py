"""What an explanation must beat, and what it is shown beside.

Floors decide the verdict: the always-firing rule, the labels shifted within their documents, and the rules of the
unit's nearest and of random units. References never do: a token look-up and a back-off n-gram, which need no
explanation at all; for a unit that fires on single tokens the look-up is the ceiling.

None of them costs a forward pass. With TP true positives among M predicted places and N firings, recall is TP / N and
precision TP / M; so precision = recall × N / M, and F1 = 2 TP / (M + N). M is counted by running the rule, N by the
sweep, and the recall is read off a uniform sample of the firings, which makes TP unbiased.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from . import stats
from .collect import SIGNS
from .labels import Flags, Labelled, ScoreSide, Truth
from .measures import FIRES, FLOOR_UNITS, SHIFTS, STRATA
from .rules import Rule, SideText
from .stats import Floats, Ints
from .subject import Subject
from .sweep import Sweep
from .units import UnitId

TRIES = 40          # units asked for a rule before the search for floor rules of one kind is given up
SHRINK = 5          # g(v) = n ȳ / (n + SHRINK)
LONGEST = 4         # tokens in the longest n-gram
SEEN_TWICE = 2      # an n-gram is trusted from this count

MakeRule = Callable[[UnitId], Rule | None]
Keys = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Floors:
    """Rules made for other units of the layer, to be tried on this one.

    nearest, random: the rules, with the units they were made for beside them; skipped: how many units of each kind
    had no rule and were replaced by the next.
    """

    nearest: tuple[Rule, ...]
    random: tuple[Rule, ...]
    nearest_units: tuple[str, ...]
    random_units: tuple[str, ...]
    skipped: dict[str, int]

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules by the names their floors carry: nearest_1, …, random_1, …"""
        kinds = {"nearest": self.nearest, "random": self.random}
        return {f"{kind}_{i}": rule for kind, rules in kinds.items() for i, rule in enumerate(rules, start=1)}

    def counts(self) -> dict[str, Any]:
        """Whose rules were tried, and how many units were passed over."""
        return {"nearest": list(self.nearest_units), "random": list(self.random_units), "skipped": dict(self.skipped)}


NO_FLOORS = Floors((), (), (), (), {"nearest": 0, "random": 0})     # where no other unit's rule is to be tried


def floor_rules(subject: Subject, sweep: Sweep, unit: UnitId, make_rule: MakeRule, seed: int = 0) -> Floors:
    """Rules of the five nearest and five random units of the unit's site, by the way the unit's own was made.

    Nearest: highest `Subject.likeness`, each side of a unit with its sign.
    Random: sides in an order drawn from `seed`, the same for all units of a site, so that a `make_rule` that remembers
    makes their rules once. A unit without exemplars, or for which `make_rule` finds none, is skipped and the next one
    taken, up to 40 units of a kind. Raises Refused for a head.
    """
    near = _collect(sweep, list(_by_cosine(subject, unit)), make_rule)
    taken = {other for other, _ in near[0]}
    drawn = np.random.default_rng(seed).permutation(len(SIGNS) * subject.count(unit.site)).tolist()
    order = [UnitId(unit.model, unit.site, place // len(SIGNS), SIGNS[place % len(SIGNS)]) for place in drawn]
    far = _collect(sweep, [u for u in order if u.index != unit.index and u not in taken], make_rule)
    return Floors(
        nearest=tuple(rule for _, rule in near[0]),
        random=tuple(rule for _, rule in far[0]),
        nearest_units=tuple(str(other) for other, _ in near[0]),
        random_units=tuple(str(other) for other, _ in far[0]),
        skipped={"nearest": near[1], "random": far[1]},
    )


def nearest_unit(subject: Subject, sweep: Sweep, unit: UnitId, make_rule: MakeRule) -> UnitId | None:
    """The first of `floor_rules`' nearest units, found without the others; None where it has none."""
    found, _ = _collect(sweep, list(_by_cosine(subject, unit)), make_rule, 1)
    return found[0][0] if found else None


def _by_cosine(subject: Subject, unit: UnitId) -> Iterator[UnitId]:
    """Both sides of every other unit of the site, the one that writes most alike first."""
    cosine = unit.sign * subject.likeness(unit).cpu()
    both = torch.stack([sign * cosine for sign in SIGNS], dim=1).flatten()
    for place in torch.argsort(both, descending=True, stable=True).tolist():
        index, side = divmod(place, len(SIGNS))
        if index != unit.index:
            yield UnitId(unit.model, unit.site, index, SIGNS[side])


def _collect(
    sweep: Sweep, units: Sequence[UnitId], make_rule: MakeRule, most: int = FLOOR_UNITS
) -> tuple[list[tuple[UnitId, Rule]], int]:
    """The first `most` units that have a rule, with it, and how many were passed over."""
    found: list[tuple[UnitId, Rule]] = []
    tried = 0
    for unit in units[:TRIES]:
        if len(found) == most:
            break
        tried += 1
        rule = make_rule(unit) if sweep.exemplars(unit, "explain", "top") else None
        if rule is not None:
            found.append((unit, rule))
    return found, tried - len(found)


# Floors


def always_on(prevalence: ArrayLike) -> Floats:
    """F1 of predicting every place, 2π / (1 + π) at prevalence π: precision π, recall 1."""
    share = np.asarray(prevalence, dtype=np.float64)
    return np.asarray(2 * share / (1 + share))


def hit_f1(hits: ArrayLike, positives: ArrayLike, predicted: ArrayLike) -> Floats:
    """F1 = 2 TP / (M + N) from the (estimated) hits TP, which no rule can have more of than it predicts."""
    return stats.ratio(2 * np.minimum(hits, predicted), np.add(positives, predicted))


def shift_floor(document: Ints, predicted: Flags, rows: Ints, seed: int) -> Floats:
    """How often each firing still meets a prediction after a circular shift of y within its document.

    document [M], predicted [M] (bool): the places of a side, document after document; rows [n]: those that fire.
    Returns [n] the share of 20 shifts, each of 1 to L − 1 places in a document of length L, under which place
    row + shift (mod L) is predicted. The shift keeps how labels cluster and how many there are, and breaks their tie
    to the text; Σ over firings / N is the recall on shifted labels, whose precision follows by the identity above.
    """
    numbers, firsts, lengths = np.unique(document, return_index=True, return_counts=True)
    mine = np.searchsorted(numbers, document[rows])
    first, length = firsts[mine], lengths[mine]
    draws = np.random.default_rng(seed).random((SHIFTS, len(numbers)))
    shifts = 1 + np.floor(draws * np.maximum(lengths - 1, 1)).astype(np.int64)
    moved = first + (rows - first + shifts[:, mine]) % length
    met: Floats = predicted[moved].mean(axis=0, dtype=np.float64)
    return met


# References


def references(
    explain: Labelled, tune: Labelled, score: ScoreSide, truth: Truth, tune_firings: int
) -> dict[str, float | None]:
    """F1 on the score side of what a table could do: `token_lookup` and `back_off_ngram`.

    A table holds, for each token or n-gram (n ≤ 4) of the explain side, its count n (exact) and its mean y/P, ȳ,
    estimated from the kept exemplars by their weights. Look-up: g(v) = n ȳ / (n + 5). Back-off: ȳ of the longest
    n-gram seen at least twice. A place is predicted where the table reaches the threshold that gives the best F1 on
    tune, where the unit fires `tune_firings` times; None if no firing of the tune side is known.
    """
    found: dict[str, float | None] = {}
    tables: list[_Table] = []
    for n in range(1, LONGEST + 1):
        tables.append(_Table(explain, n, tables[-1] if tables else None))
    for name, predict in (("token_lookup", _lookup), ("back_off_ngram", _back_off)):
        threshold = _threshold(predict(tables, tune.text), tune, tune_firings)
        if threshold is None:
            found[name] = None
            continue
        predicted = (predict(tables, score.text) >= threshold) & score.keep
        hits = truth.scale * predicted[truth.rows].sum()
        found[name] = stats.number(hit_f1(hits, truth.firings, predicted.sum()))
    return found


def ngram_keys(text: SideText, n: int) -> tuple[Keys, Flags]:
    """A 64-bit key of the n tokens ending at each place [M], and where n tokens of the window stand (sink left out)."""
    ids = text.text.ids.astype(np.uint64)
    keys = np.zeros(len(ids), dtype=np.uint64)
    for back in range(n):
        earlier = np.zeros_like(ids)
        earlier[back:] = ids[: len(ids) - back]
        keys = _mixed(keys + earlier + np.uint64(1))
    return keys, text.text.position >= n


def _mixed(x: Keys) -> Keys:
    """A bijection that spreads 64 bits (the splitmix64 finaliser), so that sums of keys do not collide."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Table:
    """Counts and mean y/P of the n-grams of the explain side; `shorter` is the table of the (n − 1)-grams.

    For single tokens, an exemplar stands for as many occurrences as it weighs, and the others have the mean of the
    random places below 0.1 P. That leaves a mean for the occurrences of a token of which no exemplar was kept. A
    longer n-gram's mean is that of its own exemplars and, for each other occurrence, of what its last n − 1 tokens
    leave (`unseen`): taking those for silent would make the table forget what a shorter one knows.
    """

    def __init__(self, side: Labelled, n: int, shorter: "_Table | None") -> None:
        keys, whole = ngram_keys(side.text, n)
        self.n = n
        self.keys, first, self.count = np.unique(keys[whole], return_index=True, return_counts=True)
        weak = side.values < STRATA[-1]
        used = whole[side.rows] & ~weak
        weight, value = side.weights[used], side.values[used]
        slot, size = np.searchsorted(self.keys, keys[side.rows[used]]), len(self.keys)
        seen, known = stats.by_cluster(slot, size, value), stats.by_cluster(slot, size)
        if shorter is None:
            rest = float(np.average(side.values[weak], weights=side.weights[weak])) if weak.any() else 0.0
            stood_for = stats.by_cluster(slot, size, weight)
            others = np.maximum(self.count - stood_for, 0)
            self.mean = (stats.by_cluster(slot, size, weight * value) + others * rest) / (stood_for + others)
        else:
            suffix = shorter.find(side.text)[0][whole][first]
            self.mean = (seen + (self.count - known) * shorter.unseen[suffix]) / self.count
        self.unseen: Floats = np.maximum(self.count * self.mean - seen, 0) / np.maximum(self.count - known, 1)

    def find(self, text: SideText) -> tuple[Ints, Flags]:
        """For each place of `text` the number of its n-gram here, and whether it has one."""
        keys, whole = ngram_keys(text, self.n)
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
        slot = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return slot, whole & (self.keys[slot] == keys)


def _lookup(tables: Sequence[_Table], text: SideText) -> Floats:
    table = tables[0]
    slot, known = table.find(text)
    shrunk = table.count * table.mean / (table.count + SHRINK)
    return np.where(known, shrunk[slot], 0.0) if len(shrunk) else np.zeros(len(known))


def _back_off(tables: Sequence[_Table], text: SideText) -> Floats:
    result = np.zeros(len(text.text.ids))
    for table in tables:  # a longer n-gram overwrites what a shorter one said
        slot, known = table.find(text)
        if len(table.keys):
            known &= table.count[slot] >= SEEN_TWICE
            result[known] = table.mean[slot[known]]
    return result


def _threshold(predictions: Floats, tune: Labelled, firings: int) -> float | None:
    """The threshold of best F1 on tune (the higher of equals), or None if no firing is known there."""
    fires = tune.values >= FIRES
    weights, reached = tune.weights[fires], predictions[tune.rows[fires]]
    if not firings or not len(reached):
        return None
    levels = np.unique(reached)[::-1]
    hits = np.array([weights[reached >= level].sum() for level in levels]) / weights.sum() * firings
    real = np.sort(predictions[tune.text.text.position > 0])
    predicted = len(real) - np.searchsorted(real, levels, side="left")
    return float(levels[np.argmax(hit_f1(hits, firings, predicted))])
