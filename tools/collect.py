"""What one pass keeps of one site, for every unit and both signs, in memory that does not grow with the text.

y = sign × activation. On the explain side the peak P is not yet known; ten zero-filled best documents give a lower
bound on it that only grows, so whatever is at least 0.1 P in the end was at least 0.1 of the bound when it came by;
what was kept as a member of a band moves to a lower one as the bound grows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import measures

SIGNS = (1, -1)
SAMPLED = ("high", "mid", "boundary", "low")   # the bands between the edges of measures.STRATA
KEPT = 24                                       # places a band, unit and side
BINS, PER_OCTAVE, LOWEST = 200, 8, -10          # histogram of log2 y: bin 0 starts at 2**LOWEST
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

    def take(self, gone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Removes the members that `gone` [groups, size] marks; their keys, places and values."""
        taken = self.key[gone], self.place[gone], self.value[gone]
        self.key[gone], self.place[gone] = torch.inf, -1
        self.worst = self.key.amax(dim=1)
        return taken

    @staticmethod
    def _table(shape: tuple[int, int], line: Tensor, rank: Tensor, values: Tensor, empty: float) -> Tensor:
        table = torch.full(shape, empty, dtype=values.dtype, device=values.device)
        table[line, rank] = values
        return table


class Side:
    """One sign of one site on one side of the corpus."""

    def __init__(self, width: int, device: torch.device, peak: Tensor | None, firings: int) -> None:
        self.width = width
        self.peak = None if peak is None else torch.where(peak > 0, peak, torch.inf)   # without a peak: never fires
        best = (measures.PEAK_DOCUMENTS, width)
        self.best_value = torch.zeros(best, device=device)
        self.best_place = torch.full(best, -1, dtype=torch.int32, device=device)
        self.open_document = self.open_cluster = -1
        self.open_value = torch.zeros(width, device=device)
        self.open_place = torch.full((width,), -1, dtype=torch.int32, device=device)
        self.bands = Reservoir(width * len(SAMPLED), KEPT, device)
        self.firings = Reservoir(width, firings, device) if firings else None
        self.strata = torch.zeros((width, len(measures.STRATA)), dtype=torch.int64, device=device)
        self.histogram = torch.zeros((width, BINS), dtype=torch.int64, device=device)
        self.clusters = torch.zeros(width, dtype=torch.int64, device=device)
        self.last_cluster = torch.full((width,), -1, dtype=torch.int64, device=device)

    def scale(self) -> Tensor:
        """P where it is frozen (infinite for a unit that has none), else its lower bound so far [U]."""
        return self.best_value.sum(dim=0) / measures.PEAK_DOCUMENTS if self.peak is None else self.peak

    def add(self, y: Tensor, place: Tensor, key: Tensor, document: Tensor, cluster: Tensor) -> None:
        """Takes y [N, U] at places [N] (global token numbers) with their keys, documents and clusters, in order."""
        self._best_documents(y, place, document, cluster)
        scale = self.scale()
        if self.peak is None:
            self._reband(scale)
        rows, units = torch.nonzero((y >= EDGES[0].item() * scale) & (y > 0), as_tuple=True)
        value = y[rows, units]
        band = self._band(value, scale[units]).clamp(max=len(SAMPLED) - 1)
        group = units * len(SAMPLED) + band
        self.bands.add(group, key[rows], place[rows], value)
        self.strata += torch.bincount(group, minlength=self.strata.numel()).view_as(self.strata)
        bins = ((torch.log2(value) - LOWEST) * PER_OCTAVE).long().clamp(0, BINS - 1)
        self.histogram += torch.bincount(units * BINS + bins, minlength=self.histogram.numel()).view_as(self.histogram)
        if self.firings is not None:
            fires = value >= measures.FIRES * scale[units]
            self.firings.add(units[fires], key[rows[fires]], place[rows[fires]], value[fires])

    @staticmethod
    def _band(value: Tensor, scale: Tensor) -> Tensor:
        """Number in SAMPLED of the band that each value belongs to; len(SAMPLED) below the last."""
        return len(SAMPLED) - torch.bucketize(value / scale, EDGES.to(value.device), right=True)

    def _reband(self, scale: Tensor) -> None:
        """Moves what is kept to the bands where it belongs at this scale, and drops what is below them all."""
        value = self.bands.value
        group = torch.arange(len(value), device=value.device)[:, None].expand_as(value)
        units = group // len(SAMPLED)
        band = self._band(value, scale[units])
        gone = (self.bands.place >= 0) & (band != group % len(SAMPLED))
        units, band = units[gone], band[gone]
        low = band < len(SAMPLED)
        self.bands.add((units * len(SAMPLED) + band)[low], *(taken[low] for taken in self.bands.take(gone)))

    def _best_documents(self, y: Tensor, place: Tensor, document: Tensor, cluster: Tensor) -> None:
        numbers, lengths = torch.unique_consecutive(document, return_counts=True)
        start = 0
        for number, length in zip(numbers.tolist(), lengths.tolist(), strict=True):
            value, row = y[start : start + length].max(dim=0)
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
        self.peak: list[Tensor] = []
        self.sides: dict[str, list[Side]] = {}
        self.random: dict[str, list[tuple[int, Tensor]]] = {side: [] for side in measures.SIDES}

    def begin(self, side: str) -> None:
        """Starts a side; the peaks are frozen by then unless it is the explain side."""
        firings = measures.SAMPLE if side == "score" else 0
        peaks: Sequence[Tensor | None] = self.peak or [None] * len(SIGNS)
        self.sides[side] = [Side(self.width, self.device, peak, firings) for peak in peaks]

    def add(
        self, side: str, x: Tensor, place: Tensor, key: Tensor, document: Tensor, cluster: Tensor, drawn: Tensor
    ) -> None:
        """Takes raw activations x [N, U]; `drawn` [N] marks the side's random positions."""
        if side == "explain":
            self.sum += x.sum(dim=0, dtype=torch.float64)
            self.squares += x.double().square().sum(dim=0)
            self.count += len(x)
        for row in torch.nonzero(drawn)[:, 0].tolist():
            self.random[side].append((int(place[row]), x[row].clone()))
        for sign, kept in zip(SIGNS, self.sides[side], strict=True):
            kept.add(sign * x, place, key, document, cluster)

    def end(self, side: str) -> None:
        """Closes a side; after the explain side the peaks P [U] of both signs are frozen."""
        for kept in self.sides[side]:
            kept.close()
        if side == "explain":
            self.peak = [kept.scale() for kept in self.sides[side]]

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name; leading dimension 2 = the signs +1 and −1."""
        mean = self.sum / max(self.count, 1)
        spread = (self.squares / max(self.count, 1) - mean.square()).clamp(min=0).sqrt()
        out = {"peak": torch.stack(self.peak), "mean": mean.float(), "std": spread.float(), "sink": self.sink}
        for side, kept in self.sides.items():
            out[f"{side}.best_value"] = torch.stack([k.best_value for k in kept])
            for name in ("best_place", "strata", "histogram", "clusters"):
                out[f"{side}.{name}"] = torch.stack([getattr(k, name) for k in kept]).int()
            shape = (len(SIGNS), self.width, len(SAMPLED), KEPT)
            out[f"{side}.band_place"] = torch.stack([k.bands.place for k in kept]).view(shape)
            out[f"{side}.band_value"] = torch.stack([k.bands.value for k in kept]).view(shape)
            if self.random[side]:
                out[f"{side}.random_place"] = torch.tensor([p for p, _ in self.random[side]], dtype=torch.int32)
                out[f"{side}.random_value"] = torch.stack([v for _, v in self.random[side]])
            if side == "score":
                out["score.firing_place"] = torch.stack([k.firings.place for k in kept])  # type: ignore[union-attr]
                out["score.firing_value"] = torch.stack([k.firings.value for k in kept])  # type: ignore[union-attr]
        return {name: tensor.cpu().contiguous() for name, tensor in out.items()}
