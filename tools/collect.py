"""What one pass keeps of one site, for every unit and both signs, in memory that does not grow with the text.

y = sign × activation. On the explain side the peak P is not yet known; ten zero-filled best documents give a lower
bound on it that only grows, so whatever is at least 0.1 P in the end was at least 0.1 of the bound when it came by;
what was kept as a member of a band moves to a lower one as the bound grows.

Firing is rare and counted everywhere. What lies below 0.5 P is not rare: it is counted, and kept, in the LOW_TOKENS
tokens of a side that have the smallest keys, and each of them stands for 1 / share.
"""

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
EDGES = torch.tensor(measures.STRATA[::-1])


def position_key(tokens: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each global token number, the same in every process (the splitmix64 finaliser).

    The positions of smallest key are a uniform sample of any set of positions.
    """
    x = tokens.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53


class Reservoir:
    """For each group, the `size` members of smallest key seen so far: their places and values."""

    def __init__(self, groups: int, size: int, device: torch.device) -> None:
        self.size = size
        self.key = torch.full((groups, size), torch.inf, device=device)
        self.place = torch.full((groups, size), -1, dtype=torch.int32, device=device)
        self.value = torch.zeros((groups, size), device=device)
        self.worst = torch.full((groups,), torch.inf, device=device)   # the largest key kept by each group

    def add(self, group: Tensor, key: Tensor, place: Tensor, value: Tensor) -> None:
        """Offers members [E] to their groups [E]; cost grows with those that get in, few once the groups are full."""
        fits = torch.nonzero(key < self.worst[group])[:, 0]
        fits = fits[torch.argsort(group[fits].double() + key[fits])]   # by group, then by key (below 1)
        if not len(fits):
            return
        touched, line, counts = torch.unique_consecutive(group[fits], return_inverse=True, return_counts=True)
        rank = torch.arange(len(fits), device=key.device) - (counts.cumsum(0) - counts)[line]
        fits, line, rank = (t[rank < self.size] for t in (fits, line, rank))
        shape = (len(touched), int(rank.max()) + 1)
        merged_key = torch.cat([self.key[touched], self._table(shape, line, rank, key[fits], torch.inf)], dim=1)
        self.key[touched], order = merged_key.topk(self.size, dim=1, largest=False)
        self.worst[touched] = self.key[touched].amax(dim=1)
        for mine, new, empty in ((self.place, place, -1), (self.value, value, 0)):
            merged = torch.cat([mine[touched], self._table(shape, line, rank, new[fits], empty)], dim=1)
            mine[touched] = merged.gather(1, order)

    def take(self, groups: Tensor, gone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Removes the members that `gone` [G, size] marks in `groups` [G]; their keys, places and values."""
        key, place = self.key[groups], self.place[groups]
        taken = key[gone], place[gone], self.value[groups][gone]
        key[gone], place[gone] = torch.inf, -1
        self.key[groups], self.place[groups], self.worst[groups] = key, place, key.amax(dim=1)
        return taken

    @staticmethod
    def _table(shape: tuple[int, int], line: Tensor, rank: Tensor, values: Tensor, empty: float) -> Tensor:
        table = torch.full(shape, empty, dtype=values.dtype, device=values.device)
        table[line, rank] = values
        return table


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
        if self.peak is None:
            self._reband(scale)
        band = self._band(value, scale[units]).clamp(max=len(SAMPLED) - 1)
        group = units * len(SAMPLED) + band
        enters = self._enters(band, key)
        self.bands.add(group[enters], key[enters], place[enters], value[enters])
        stands = torch.where(value >= EVERYWHERE * scale[units], 1.0, 1 / self.share).double()
        bins = units * BINS + ((torch.log2(value) - LOWEST) * PER_OCTAVE).long().clamp(0, BINS - 1)
        for counts, where in ((self.strata, group), (self.histogram, bins)):
            counts += torch.bincount(where, stands, minlength=counts.numel()).view_as(counts)
        if self.firings is not None:
            fires = value >= measures.FIRES * scale[units]
            self.firings.add(units[fires], key[fires], place[fires], value[fires])

    @staticmethod
    def _band(value: Tensor, scale: Tensor) -> Tensor:
        """Number in SAMPLED of the band that each value belongs to; len(SAMPLED) below the last."""
        return len(SAMPLED) - torch.bucketize(value / scale, EDGES.to(value.device), right=True)

    def _enters(self, band: Tensor, key: Tensor) -> Tensor:
        """Which members may be in their bands: those of a low one are a sample, whatever they were before."""
        return (band < FIRING) | ((band < len(SAMPLED)) & (key < self.share))

    def _reband(self, scale: Tensor) -> None:
        """Moves what is kept to the bands where it belongs at this scale, and drops what is below them all."""
        grown = torch.nonzero(scale != self.banded)[:, 0]
        self.banded = scale
        groups = (grown[:, None] * len(SAMPLED) + torch.arange(len(SAMPLED), device=scale.device)).flatten()
        value, place = self.bands.value[groups], self.bands.place[groups]
        band = self._band(value, scale[grown].repeat_interleave(len(SAMPLED))[:, None])
        gone = (place >= 0) & (band != (groups % len(SAMPLED))[:, None])
        units, band = (groups // len(SAMPLED))[:, None].expand_as(gone)[gone], band[gone]
        taken = self.bands.take(groups, gone)
        stays = self._enters(band, taken[0])
        self.bands.add((units * len(SAMPLED) + band)[stays], *(part[stays] for part in taken))

    def documents(self, x: Tensor, place: Tensor, document: Tensor, cluster: Tensor) -> None:
        """Takes x [N, U] at places [N] with their documents and clusters, in order, for the best documents.

        Where `width` is 2 U, x is raw: units 0 to U − 1 read x, and the others −x.
        """
        numbers, lengths = torch.unique_consecutive(document, return_counts=True)
        start = 0
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            part = x[start : start + length]
            value, row = part.max(dim=0)
            if self.width > len(value):
                low, low_row = part.min(dim=0)
                value, row = torch.cat([value, -low]), torch.cat([row, low_row])
            where = place[start + row]
            if number == self.open_document:
                more = value > self.open_value
                self.open_value = torch.where(more, value, self.open_value)
                self.open_place = torch.where(more, where, self.open_place)
            else:
                self.close()
                self.open_document, self.open_cluster = number, int(cluster[start])
                self.open_value, self.open_place = value, where
            start += length

    def close(self) -> None:
        """Lets the document in progress compete for a place among the best, and counts its cluster if it fires."""
        if self.peak is not None:
            fires = self.open_value >= measures.FIRES * self.peak
            self.clusters += fires & (self.last_cluster != self.open_cluster)
            self.last_cluster[fires] = self.open_cluster
        slot = self.best_value.argmin(dim=0, keepdim=True)
        better = self.open_value[None] > self.best_value.gather(0, slot)
        for best, new in ((self.best_value, self.open_value), (self.best_place, self.open_place)):
            best.scatter_(0, slot, torch.where(better, new[None], best.gather(0, slot)))
        self.open_value = torch.zeros_like(self.open_value)


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
        self.sides[side].close()
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
