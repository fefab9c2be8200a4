"""How good a clause is, from what the explain side has shown of a unit so far.

Known without a forward pass are some dozens of firing places, a sample of each stratum of y/P, weighted so that they
sum to N, how often the unit fires. A clause that covers the share r of them has r N true places among the M that it
matches. Places that were read correct that: their labels, each weighted by 1 / the chance that its window was drawn,
with PRIOR places' worth of belief in what the firing places said. A place that shows a word of a list counts for
(k − 1) / k, with k the documents that show it; that is its trust.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from scipy.special import bdtrc

from .collect import position_key
from .conditions import Condition, Names
from .measures import FIRES, STRATA
from .rules import Clause, Flags, Floats, Ints, Speller, Text, side_text
from .units import UnitId

PRIOR = 4.0            # places' worth of belief in the exemplars' precision once places are read

Place = tuple[int, int]


class Explained(Protocol):
    """What of a sweep an induction asks for; it is only ever asked about the explain side."""

    @property
    def documents(self) -> Sequence[Any]: ...
    def statistics(self, unit: UnitId) -> Any: ...
    def exemplars(self, unit: UnitId, side: str) -> Sequence[Any]: ...
    def windows(self, side: str) -> Iterable[tuple[int, int, Sequence[int]]]: ...
    def read(self, subject: Any, unit: UnitId, places: Sequence[Place]) -> Any: ...


@dataclass(frozen=True, eq=False)
class Candidate:
    """A clause, the places `at` it matches (flat, ascending), and trust[P]: what each firing place counts (0 = missed).

    extra: names of its matcher's list beyond the first, but for those that experiments showed to fire; words: how to
    say its matcher. names: of a clause that is nothing but a list, its tokens' ids, or its words as `lexicon.matching`
    takes them, the best first.
    """

    clause: Clause
    at: Ints
    trust: Floats
    extra: int
    words: str
    conditions: tuple[Condition, ...] = ()
    names: Names = ()

    @property
    def listed(self) -> int:
        """Words in its lists beyond the first."""
        return self.extra + sum(condition.listed for condition in self.conditions)

    @cached_property
    def key(self) -> bytes:
        return self.at.tobytes()


@dataclass(frozen=True)
class Values:
    """Places seen by their values, of which one may have several: the matched ones (flat), each with a value in turn,
    and the firing ones (`who` of the known, each with its value `what`)."""

    at: Ints
    codes: Ints
    who: Ints
    what: Ints


class Known:
    """The explain side of one unit: its text, firing places [P] with weights (summing to N), and what was read.

    A firing place found by reading has weight 0: it says that its word fires in one more document, not how often.
    open [tokens]: places that could have been read. Of those that were, drawn [tokens]: 1 / the chance of that, and
    fires [tokens]: whether the unit fires there.
    """

    def __init__(self, subject: Speller, sweep: Explained, unit: UnitId) -> None:
        statistics = sweep.statistics(unit)
        self._readings = partial(sweep.read, subject, unit)
        self.side = side_text(subject, sweep, "explain")
        self.text: Text = self.side.text
        self.peak = float(statistics.peak)
        self.firings = float(max(statistics.firings["explain"], 1))
        self.clusters = [document.cluster for document in sweep.documents]
        # A place may be both among the best and in the sample; the sample's entry wins.
        found = {e.place: e for e in sorted(sweep.exemplars(unit, "explain"), key=lambda e: e.band != "top")}
        firing = [e for _, e in sorted(found.items()) if e.activation >= FIRES * self.peak > 0]
        self.at: Ints = np.array([self.side.index(e.place) for e in firing], dtype=np.int64)
        self.ratio: Floats = np.array([e.activation / self.peak for e in firing])
        self.cluster: Ints = np.array([self.clusters[e.document] for e in firing], dtype=np.int64)
        sampled = np.array([e.band != "top" for e in firing], dtype=np.bool_)
        self.weight = self._weigh(sampled, statistics.strata["explain"])
        windows, tokens = len(self.text.starts) - 1, len(self.text.ids)
        self.window: Ints = np.repeat(np.arange(windows), np.diff(self.text.starts))
        self.key: Floats = position_key(np.arange(windows))
        self.chance: Floats = np.zeros(windows)
        self.open: Flags = np.zeros(tokens, dtype=np.bool_)
        self.drawn: Floats = np.zeros(tokens)
        self.fires: Flags = np.zeros(tokens, dtype=np.bool_)
        self.read_at: Ints = np.zeros(0, dtype=np.int64)
        self.read_ratio: Floats = np.zeros(0)

    def _weigh(self, sampled: Flags, strata: Sequence[int]) -> Floats:
        """N_h / n_h in each firing stratum; its best documents' maxima count only if everything there is known."""
        weight = np.zeros(len(self.at))
        for h, (low, high) in enumerate(((STRATA[0], np.inf), (STRATA[1], STRATA[0]))):
            inside = (self.ratio >= low) & (self.ratio < high)
            if strata[h] > inside.sum() and (inside & sampled).any():
                inside &= sampled
            weight[inside] = max(strata[h], inside.sum()) / max(inside.sum(), 1)
        return weight * self.firings / weight.sum() if weight.any() else weight

    # Reading

    def read(self, groups: Sequence[Ints], reads: int) -> None:
        """Reads whole windows that hold places of the groups: of each group its windows of smallest key.

        chance[window]: the chance that it is read, 0 where no group reaches; open: places where it is above 0.
        """
        own = [np.unique(self.window[at]) for at in groups]
        own = [rows[np.argsort(self.key[rows])] for rows in own]

        def chances(size: int) -> Floats:
            # The key of the first window left out is the chance that any one of the group's windows is read.
            chance = self.chance.copy()
            for rows in own:
                chance[rows] = np.maximum(chance[rows], self.key[rows[size]] if size < len(rows) else 1.0)
            return chance

        done = self.key < self.chance
        low, high = 0, max(map(len, own), default=0)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if (self.key < chances(middle)).sum() <= reads else (low, middle - 1)
        self.chance = chances(low) if low else self.chance
        self.open = (self.chance > 0)[self.window] & (self.text.position > 0)
        flat = np.flatnonzero(self.open & (self.key < self.chance)[self.window] & ~done[self.window])
        if len(flat):
            places = [(int(self.side.document[i]), int(self.side.offset[i])) for i in flat]
            ratio = np.asarray(self._readings(places), dtype=np.float64) / self.peak
            self.read_at, self.read_ratio = np.append(self.read_at, flat), np.append(self.read_ratio, ratio)
        self.drawn[self.read_at] = 1 / self.chance[self.window[self.read_at]]
        self.fires[self.read_at] = self.read_ratio >= FIRES

    def learn(self) -> None:
        """Takes the firing places read so far among the known ones."""
        new = (self.read_ratio >= FIRES) & ~np.isin(self.read_at, self.at)
        self.at = np.append(self.at, self.read_at[new])
        self.ratio = np.append(self.ratio, self.read_ratio[new])
        self.weight = np.append(self.weight, np.zeros(int(new.sum())))
        clusters = [self.clusters[d] for d in self.side.document[self.read_at[new]]]
        self.cluster = np.append(self.cluster, np.array(clusters, dtype=np.int64))

    # Counting

    def mask(self, rule: Sequence[Candidate]) -> Flags:
        """Where a rule matches [tokens]."""
        mask = np.zeros(len(self.text.ids), dtype=np.bool_)
        for c in rule:
            mask[c.at] = True
        return mask

    def matched(self, at: Ints) -> Flags:
        """Which firing places are among `at` (ascending)."""
        if not len(at):
            return np.zeros(len(self.at), dtype=np.bool_)
        found: Flags = at[np.minimum(np.searchsorted(at, self.at), len(at) - 1)] == self.at
        return found

    def documents(self, which: Flags | slice = slice(None)) -> int:
        """How many documents, near copies counted once, these firing places are in; by default all of them."""
        return len(set(self.cluster[which].tolist()))

    # Estimating

    def shrink(self, covered: Flags, size: int) -> float:
        """(k − 1) / k for k clusters covered, and no more true places than the `size` there are."""
        k, total = self.documents(covered), float(self.weight[covered].sum())
        return (k - 1) / k * min(1.0, size / max(total, 1e-9)) if k else 0.0

    def rates(self, rule: Sequence[Candidate]) -> tuple[float, float]:
        """Precision and recall of a rule."""
        mask = self.mask(rule)
        size = int(np.count_nonzero(mask))
        if not size:
            return 0.0, 0.0
        trust = np.max([c.trust for c in rule], axis=0)
        weight, inside = self.weight * trust, self.open[self.at]
        opened = int((mask & self.open).sum())
        true = min(float(weight[~inside].sum()), size - opened)
        true += opened * self._precision(mask, opened, float(weight[inside].sum()) / max(opened, 1), trust)
        return true / size, min(1.0, true / self.firings)

    def _precision(self, mask: Flags, opened: int, prior: float, trust: Floats) -> float:
        """Precision in the windows that could be read: of the places that were, with some belief in the exemplars."""
        hit = mask[self.read_at]
        if not hit.any():
            return min(prior, 1.0)
        weight = self.drawn[self.read_at[hit]]
        trust = trust[mask[self.at]]
        seen = float((weight * (self.read_ratio[hit] >= FIRES)).sum() / weight.sum())
        seen *= float(trust.mean()) if len(trust) else 0.0
        count = float(weight.sum() ** 2 / (weight**2).sum())
        belief = PRIOR * (1 - int(hit.sum()) / opened)
        return (count * seen + belief * min(prior, 1.0)) / (count + belief)

    def counts(self, seen: Values, values: Ints, which: Ints, weight: Floats) -> tuple[Floats, Floats]:
        """How many places each of `values` has, and how many of them fire, estimated as in `rates`.

        which, weight: of each pair of a firing place and a value, which value, and what the place counts.
        """
        if not self.open.any():   # the same, sooner
            found = np.bincount(seen.codes, minlength=int(values.max()) + 1)[values].astype(np.float64)
            return found, np.minimum(np.bincount(which, weight, len(values)), found)
        slot = np.full(int(max(seen.codes.max(initial=0), values.max())) + 1, -1)
        slot[values] = np.arange(len(values))
        mine = slot[seen.codes]
        at, mine = seen.at[mine >= 0], mine[mine >= 0]

        def count(weights: Floats | Flags | None = None) -> Floats:
            return np.bincount(mine, weights, len(values)).astype(np.float64)

        drawn = self.drawn[at]
        size, opened, read = count(), count(self.open[at]), count(drawn > 0)
        inside = self.open[self.at[seen.who]]
        prior = np.bincount(which[inside], weight[inside], len(values)) / np.maximum(opened, 1)
        outside = np.bincount(which[~inside], weight[~inside], len(values))
        precision = count(drawn * self.fires[at]) / np.maximum(count(drawn), 1e-9)
        belief = PRIOR * (1 - read / np.maximum(opened, 1))
        precision = (read * precision + belief * np.minimum(prior, 1)) / np.maximum(read + belief, 1e-9)
        return size, opened * precision + np.minimum(outside, size - opened)

    def luck(self, rule: Sequence[Candidate]) -> float:
        """The chance that as many firing documents fall on the rule's places if firing has nothing to do with it."""
        mask = self.mask(rule)
        k = self.documents(mask[self.at])
        return float(bdtrc(k - 1, self.documents(), mask.mean())) if k else 1.0

    def value(self, c: Candidate) -> float:
        """Mean y/P where a clause matches."""
        hit = self.mask([c])[self.read_at]
        if hit.any():
            mean = float(np.average(self.read_ratio[hit], weights=self.drawn[self.read_at[hit]]))
        else:
            weight = self.weight * c.trust
            mean = self.rates([c])[0] * float((weight * self.ratio).sum() / max(weight.sum(), 1e-9))
        return round(max(mean, 0.01), 4)
