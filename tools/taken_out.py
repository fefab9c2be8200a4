"""What units are set to when they are taken out of the running model: zero, a mean, or what they are elsewhere.

Zero is far from anything that a unit usually is, a mean hides what it does for other reasons than the text at hand, and
values from another text keep its usual size: effects that agree under all of these do not hang on the choice.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .collect import position_key
from .subject import Subject
from .sweep import STEP, Sweep

KINDS = ("mean", "zero", "mean_by_role", "resample")
REFERENCE = 96         # explain windows behind means that the sweep does not hold
SEEN = 3               # positions of a token there, below which the mean over all positions stands for its own


class TakenOut:
    """Values for the columns of any site at every position of some rows, in one kind of ablation.

    mean: over the explain side, the sink left out (of sites that were not swept: over REFERENCE windows of it). role:
    the token at the position; mean_by_role is the mean over positions of these windows with the same token, so that
    what a unit says of the token alone stays, and what it says of the context goes. resample: what another of the rows
    has at the same position (from its first again behind its end), by a derangement drawn from `seed` and `draw`, the
    same for all columns.
    """

    def __init__(self, subject: Subject, sweep: Sweep, kind: str, seed: int) -> None:
        self.subject, self.sweep, self.kind, self.seed = subject, sweep, kind, seed
        self._reference = cache(self._read_reference)
        self._role = cache(self._role_means)

    def values(self, site: str, columns: Sequence[int], rows: Sequence[Sequence[int]], draw: int = 0) -> Tensor:
        """Raw values [N, T, C], T the longest row's length; what stands at the sink or behind a row's end is unused."""
        shape = (len(rows), max(map(len, rows)), len(columns))
        if self.kind == "zero":
            return torch.zeros(shape)
        if self.kind == "mean":
            return self.mean(site)[list(columns)].expand(shape)
        if self.kind == "mean_by_role":
            return self._by_role(site, columns, rows)
        source = derangement(len(rows), np.random.default_rng((self.seed, draw)))
        real = self._read(site, rows)[..., list(columns)]
        out = torch.zeros(shape)
        for line, row in enumerate(rows):
            other = source[line]
            at = 1 + torch.arange(len(row) - 1) % (len(rows[other]) - 1)
            out[line, 1 : len(row)] = real[other, at]
        return out

    def mean(self, site: str) -> Tensor:
        """Mean raw value of each column [width]."""
        if site in self.sweep.sites:
            return self.sweep.mean(site)
        return self._reference(site)[1].mean(dim=0)

    def _by_role(self, site: str, columns: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        tokens, means = self._role(site)
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for line, row in enumerate(rows):
            ids[line, : len(row)] = torch.tensor(row)
        place = torch.searchsorted(tokens, ids).clamp(max=len(tokens) - 1)
        known = (tokens[place] == ids)[..., None]
        return torch.where(known, means[:, list(columns)][place], self.mean(site)[list(columns)])

    def _role_means(self, site: str) -> tuple[Tensor, Tensor]:
        """Tokens [R], ascending, and the mean of each column over their positions [R, width]."""
        ids, real = self._reference(site)
        tokens, line, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(tokens), real.shape[1]).index_add_(0, line, real)
        often = counts >= SEEN
        return tokens[often], sums[often] / counts[often, None]

    def _read_reference(self, site: str) -> tuple[Tensor, Tensor]:
        """Ids [M] and raw values [M, width] at the tokens of REFERENCE explain windows, drawn by hash."""
        sweep = self.sweep
        every = [(d, first) for d in sweep.side("explain") for first in range(0, sweep.documents[d].length, STEP)]
        order = np.argsort(position_key(np.arange(len(every))), kind="stable")[:REFERENCE]
        rows = [sweep.window(every[i])[0] for i in order]
        real = self._read(site, rows)
        inside = [(torch.tensor(row[1:]), real[line, 1 : len(row)]) for line, row in enumerate(rows)]
        return torch.cat([ids for ids, _ in inside]), torch.cat([values for _, values in inside])

    def _read(self, site: str, rows: Sequence[Sequence[int]]) -> Tensor:
        """Raw values [N, T, width], float32, 0 behind a row's end."""
        out = torch.zeros(len(rows), max(map(len, rows)), self.subject.width(site))
        for batch in self.subject.batches(rows):
            done = self.subject.run([rows[i] for i in batch], read=[site])
            found = done.readings[site].float() * done.mask[..., None]
            out[batch, : found.shape[1]] = found.cpu()
        return out


def derangement(count: int, generator: np.random.Generator) -> list[int]:
    """A number other than its own for each of `count` ≥ 2: a random cycle through all."""
    order = generator.permutation(count)
    source = np.empty(count, dtype=np.int64)
    source[order] = np.roll(order, 1)
    return source.tolist()


__all__ = ["KINDS", "TakenOut", "derangement"]
