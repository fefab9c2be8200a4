"""What one pass keeps of one site, for every unit and both signs, in memory that does not grow with the text.

y = sign × activation. On the explain side the peak P is not yet known; ten zero-filled best documents give a lower
bound on it that only grows, so whatever is at least 0.1 P in the end was at least 0.1 of the bound when it came by;
what was kept as a member of a band moves to a lower one as the bound grows.

Firing is rare and counted everywhere. What lies below 0.5 P is not rare: it is counted, and kept, in the LOW_TOKENS
tokens of a side that have the smallest keys, and each of them stands for 1 / share.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import measures

SIGNS = (1, -1)
SAMPLED = ("high", "mid", "boundary", "low")   # the bands between the edges of measures.STRATA
FIRING = measures.STRATA.index(measures.FIRES) + 1   # of these, the bands in which a unit fires
KEPT = 24                                       # places a band, unit and side
BINS, PER_OCTAVE, LOWEST = 200, 8, -10          # histogram of log2 y: bin 0 starts at 2**LOWEST
EVERYWHERE = measures.FIRES * 2 ** (-1 / PER_OCTAVE)    # × the scale: from here all count, a bin below what fires


def position_key(tokens: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each global token number, the same in every process (the splitmix64 finaliser).

    The positions of smallest key are a uniform sample of any set of positions.
    """
    x = tokens.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


class Members(NamedTuple):
    """Activations to choose from [E]: group, key, place and value of each."""

    group: Tensor
    key: Tensor
    place: Tensor
    value: Tensor

    def where(self, chosen: Tensor) -> "Members":
        """Those that `chosen` [E] marks."""
        rows = torch.nonzero(chosen)[:, 0]
        return Members(*(part.index_select(0, rows) for part in self))


class Reservoir:
    """For each group, the `size` members of smallest key.

    Who is added waits until as many do as there are places; then one sort chooses among all, whatever came at a time.
    """

    def __init__(self, groups: int, size: int, device: torch.device) -> None:
        self.size = size
        self.key = torch.full((groups, size), torch.inf, device=device)
        self.place = torch.full((groups, size), -1, dtype=torch.int32, device=device)
        self.value = torch.zeros((groups, size), device=device)
        self.worst = torch.full((groups,), torch.inf, device=device)   # a larger key than this is not chosen
        self._waiting: list[Members] = []

    @property
    def full(self) -> bool:
        """Whether so many wait that it is time to settle."""
        return sum(len(members.group) for members in self._waiting) >= self.key.numel()

    def add(self, members: Members, enters: Tensor) -> None:
        """Takes those of `members` that `enters` [E] marks."""
        self._waiting.append(members.where(enters & (members.key < self.worst[members.group])))

    def members(self) -> Members:
        """All that are kept or wait."""
        slots = torch.arange(self.key.numel(), device=self.key.device)
        kept = Members(slots // self.size, *(t.flatten() for t in (self.key, self.place, self.value)))
        kept = kept.where(kept.place >= 0)
        return Members(*(torch.cat(parts) for parts in zip(kept, *self._waiting, strict=True)))

    def settle(self, members: Members) -> None:
        """Keeps those of smallest key in each group, and none else."""
        self._waiting = []
        # One sort, by group and then by key: the bits of positive float32 numbers are in their order.
        order = (members.group << 32 | members.key.view(torch.int32)).argsort()
        group = members.group.index_select(0, order)
        first = torch.searchsorted(group, torch.arange(len(self.key), device=group.device))
        rank = torch.arange(len(group), device=group.device) - first[group]
        chosen = torch.nonzero(rank < self.size)[:, 0]
        slot, order = (group * self.size + rank).index_select(0, chosen), order.index_select(0, chosen)
        for table, empty, values in ((self.key, torch.inf, members.key), (self.place, -1, members.place),
                                     (self.value, 0, members.value)):  # fmt: skip
            table.fill_(empty).view(-1)[slot] = values.index_select(0, order)
        self.worst = self.key.amax(dim=1)


class Side:
    """One site on one side of the corpus. Of a signed unit there are two, one a sign, and `width` counts both."""

    def __init__(
        self, width: int, device: torch.device, peak: Tensor | None, firings: int, share: float = 1.0
    ) -> None:
        self.width, self.share = width, share
        self.peak = None if peak is None else torch.where(peak > 0, peak, torch.inf)   # without a peak: never fires
        best = (measures.PEAK_DOCUMENTS, width)
        self.best_value = torch.zeros(best, device=device)
        self.best_place = torch.full(best, -1, dtype=torch.int32, device=device)
        self.open_document = self.open_cluster = -1
        self.open_value = torch.zeros(width, device=device)
        self.open_place = torch.full((width,), -1, dtype=torch.int32, device=device)
        self.bands = Reservoir(width * len(SAMPLED), KEPT, device)
        self.banded = torch.zeros(width, device=device)     # the scale at which each unit's bands were last set
        self.firings = Reservoir(width, firings, device) if firings else None
        self.strata = torch.zeros((width, len(measures.STRATA)), dtype=torch.float64, device=device)
        self.histogram = torch.zeros((width, BINS), dtype=torch.float64, device=device)
        self.clusters = torch.zeros(width, dtype=torch.int64, device=device)
        self.last_cluster = torch.full((width,), -1, dtype=torch.int64, device=device)

    def scale(self) -> Tensor:
        """P where it is frozen (infinite for a unit that has none), else its lower bound so far [U]."""
        return self.best_value.sum(dim=0) / measures.PEAK_DOCUMENTS if self.peak is None else self.peak

    def least(self, edge: float) -> Tensor:
        """The smallest y at `edge` × the scale [U], above 0."""
        return (edge * self.scale()).clamp(min=torch.finfo(torch.float32).tiny)

    def keep(self, units: Tensor, value: Tensor, key: Tensor, place: Tensor) -> None:
        """Takes y [E] of units [E] at places [E] with their keys: all of at least EVERYWHERE × the scale, and of at
        least 0.1 × it those whose key is below `share`."""
        scale = self.scale()
        # Where the scale has grown, some of what is kept will move down and make room: all may enter.
        self.bands.worst.view(-1, len(SAMPLED))[scale != self.banded] = torch.inf
        scale = scale[units]
        band = self._band(value, scale)
        group = units * len(SAMPLED) + band.clamp(max=len(SAMPLED) - 1)
        self.bands.add(Members(group, key, place, value), self._enters(band, key))
        stands = torch.where(value >= EVERYWHERE * scale, 1.0, 1 / self.share).double()
        bins = units * BINS + ((torch.log2(value) - LOWEST) * PER_OCTAVE).long().clamp(0, BINS - 1)
        for counts, where in ((self.strata, group), (self.histogram, bins)):
            counts.view(-1).index_add_(0, where, stands)
        if self.firings is not None:
            self.firings.add(Members(units, key, place, value), value >= measures.FIRES * scale)
        self._settle(lambda reservoir: reservoir.full)

    @staticmethod
    def _band(value: Tensor, scale: Tensor) -> Tensor:
        """Number in SAMPLED of the band that each value belongs to; len(SAMPLED) below the last."""
        ratio, band = value / scale, torch.full(value.shape, len(SAMPLED), device=value.device)
        for edge in measures.STRATA:
            band -= (ratio >= edge).long()
        return band

    def _enters(self, band: Tensor, key: Tensor) -> Tensor:
        """Which members may be in their bands: those of a low one are a sample, whatever they were before."""
        return (band < FIRING) | ((band < len(SAMPLED)) & (key < self.share))

    def _settle(self, due: Callable[[Reservoir], bool]) -> None:
        if self.firings is not None and due(self.firings):
            self.firings.settle(self.firings.members())
        if due(self.bands):
            self.bands.settle(self._rebanded(self.bands.members()))

    def _rebanded(self, members: Members) -> Members:
        """Members in the bands where they belong at this scale, without those below them all."""
        self.banded = self.scale()
        units = members.group // len(SAMPLED)
        band = self._band(members.value, self.banded[units])
        return members._replace(group=units * len(SAMPLED) + band).where(self._enters(band, members.key))

    def documents(self, x: Tensor, place: Tensor, document: Tensor, cluster: Tensor) -> None:
        """Takes x [N, U] at places [N] with their documents and clusters, in order, for the best documents.

        Where `width` is 2 U, x is raw: units 0 to U − 1 read x, and the others −x.
        """
        numbers, lengths = torch.unique_consecutive(document, return_counts=True)
        start = 0
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            if number != self.open_document:
                self.close()
                self.open_document, self.open_cluster = number, int(cluster[start])
            self._read(x[start : start + length], place[start : start + length])
            start += length

    def _read(self, x: Tensor, place: Tensor) -> None:
        """Takes x [N, U] of the document in progress."""
        least, across = torch.maximum(self.open_value, self.best_value.amin(dim=0)), x.shape[1]
        for first, sign in zip(range(0, self.width, across), SIGNS, strict=False):
            mine = slice(first, first + across)
            value = x.amax(dim=0) if sign > 0 else -x.amin(dim=0)
            # Where it was is looked up only for what may be among the best in the end.
            units = torch.nonzero(value > least[mine])[:, 0]
            column = x.index_select(1, units)
            row = (column.max(dim=0) if sign > 0 else column.min(dim=0)).indices
            self.open_place[first + units] = place[row]
            self.open_value[mine] = torch.maximum(self.open_value[mine], value)

    def close(self) -> None:
        """Lets the document in progress compete for a place among the best, and counts its cluster if it fires."""
        if self.peak is not None:
            fires = self.open_value >= measures.FIRES * self.peak
            self.clusters += fires & (self.last_cluster != self.open_cluster)
            self.last_cluster[fires] = self.open_cluster
        least, slot = self.best_value.min(dim=0)
        better = torch.nonzero(self.open_value > least)[:, 0]
        self.best_value[slot[better], better] = self.open_value[better]
        self.best_place[slot[better], better] = self.open_place[better]
        self.open_value = torch.zeros_like(self.open_value)

    def end(self) -> None:
        """Closes the last document and settles what waits."""
        self.close()
        self._settle(lambda _: True)


class Site:
    """Everything kept of one site: moments, the sink's reading, random positions, and each sign and side."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.width, self.device = width, device
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.squares = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = 0
        self.sink = torch.zeros(width, device=device)
        self.peak: Tensor | None = None
        self.sides: dict[str, Side] = {}
        self.random: dict[str, list[tuple[int, Tensor]]] = {side: [] for side in measures.SIDES}

    @property
    def frozen(self) -> Tensor:
        """The peaks P [2, U] of both signs, once the explain side has ended."""
        assert self.peak is not None, "the explain side freezes the peaks"
        return self.peak

    def begin(self, side: str, tokens: int = 0) -> None:
        """Starts a side of so many tokens; the peaks are frozen by then unless it is the explain side."""
        share = min(1.0, measures.LOW_TOKENS / max(tokens, 1))
        firings = measures.SAMPLE if side == "score" else 0
        peak = None if self.peak is None else self.peak.flatten()
        self.sides[side] = Side(len(SIGNS) * self.width, self.device, peak, firings, share)

    def add(
        self, side: str, x: Tensor, place: Tensor, key: Tensor, document: Tensor, cluster: Tensor, drawn: Tensor
    ) -> None:
        """Takes raw activations x [N, U]; `drawn` [N] marks the side's random positions."""
        self._moments(side, x, place, drawn)
        self.sides[side].documents(x, place, document, cluster)
        self._bands(side, x, place, key)

    def _moments(self, side: str, x: Tensor, place: Tensor, drawn: Tensor) -> None:
        if side == "explain":
            self.sum += x.sum(dim=0)
            self.squares += x.square().sum(dim=0)
            self.count += len(x)
        for row in torch.nonzero(drawn)[:, 0].tolist():
            self.random[side].append((int(place[row]), x[row].clone()))

    def _bands(self, side: str, x: Tensor, place: Tensor, key: Tensor) -> None:
        kept = self.sides[side]
        everywhere = self._reaching(kept, x, EVERYWHERE)
        near = torch.nonzero(key < kept.share)[:, 0]
        rows, units, value = self._reaching(kept, x[near], measures.STRATA[-1], EVERYWHERE)
        rows, units, value = (torch.cat(pair) for pair in zip(everywhere, (near[rows], units, value), strict=True))
        kept.keep(units + self.width * (value < 0), value.abs(), key[rows], place[rows])

    @staticmethod
    def _reaching(kept: Side, x: Tensor, low: float, high: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, units and raw values [E] of x [N, U] whose y, of either sign, is from low to below high × the scale."""
        plus, minus = kept.least(low).view(len(SIGNS), -1)
        inside = (x >= plus) | (x <= -minus)
        if high is not None:
            plus, minus = kept.least(high).view(len(SIGNS), -1)
            inside &= (x < plus) & (x > -minus)
        rows, units = torch.nonzero(inside, as_tuple=True)
        return rows, units, x[rows, units]

    def end(self, side: str) -> None:
        """Closes a side; after the explain side the peaks P [2, U] of both signs are frozen."""
        self.sides[side].end()
        if side == "explain":
            self.peak = self.sides[side].scale().view(len(SIGNS), self.width)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name; leading dimension 2 = the signs +1 and −1."""
        mean = self.sum / max(self.count, 1)
        spread = (self.squares / max(self.count, 1) - mean.square()).clamp(min=0).sqrt()
        out = {"peak": self.frozen, "mean": mean.float(), "std": spread.float(), "sink": self.sink}
        for side, kept in self.sides.items():
            signed = (len(SIGNS), self.width)
            for name in ("best_value", "best_place"):
                out[f"{side}.{name}"] = getattr(kept, name).view(-1, *signed).transpose(0, 1)
            for name in ("strata", "histogram", "clusters"):
                counts = getattr(kept, name)
                out[f"{side}.{name}"] = counts.view(*signed, *counts.shape[1:]).round().int()
            out[f"{side}.band_place"] = kept.bands.place.view(*signed, len(SAMPLED), KEPT)
            out[f"{side}.band_value"] = kept.bands.value.view(*signed, len(SAMPLED), KEPT)
            if self.random[side]:
                out[f"{side}.random_place"] = torch.tensor([p for p, _ in self.random[side]], dtype=torch.int32)
                out[f"{side}.random_value"] = torch.stack([v for _, v in self.random[side]])
            if side == "score":
                assert kept.firings is not None
                out["score.firing_place"] = kept.firings.place.view(*signed, -1)
                out["score.firing_value"] = kept.firings.value.view(*signed, -1)
        return {name: tensor.cpu().contiguous() for name, tensor in out.items()}
