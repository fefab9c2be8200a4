"""The token atlas: every token of the vocabulary read by itself, right behind the sink, for every unit of a site.

One pass of the rows [sink, t], read at t, over all tokens t that a text can give. In the corpus a token has a history;
here it has none, so what the atlas says is labelled "beside the sink" wherever it is shown. A batch is folded into
what is kept as soon as it is read: memory is O(units × kept), never vocabulary × units.

Stored for each site, x being the raw activation in float32 and a unit's y = sign × x:
top_id, top_value [≤ 32, width]: the tokens of largest x, largest first; bottom_id, bottom_value: of smallest x,
smallest first; among equals the smaller id goes first. mean, std, skewness and kurtosis of x [width]: μ, σ = √m₂,
m₃/σ³ and m₄/σ⁴ (3 for a normal distribution) with m_k = mean of (x − μ)^k; the last two are NaN where σ = 0.
fires [2, width]: tokens with y ≥ 0.5 P for the signs +1 and −1, −1 where P ≤ 0. n [1]: tokens read.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..store.records import Refused
from . import measures
from .collect import SIGNS
from .subject import Subject
from .tries import Trie
from .units import UnitId

KEPT = 32                   # tokens a unit and end of its range
BATCH = 511                 # tokens in one pass, which with the sink are 512
LOW = 0xFFFFFFFF            # the lower half of a 64-bit key
NAMES = ("top_id", "top_value", "bottom_id", "bottom_value", "mean", "std", "skewness", "kurtosis", "fires", "n")

Entry = tuple[int, float]   # a token's id and y


@dataclass(frozen=True)
class Atlas:
    """One unit and sign on [sink, token], over `n` tokens: y = sign × activation.

    top: (id, y), largest y first; bottom: smallest y first. fires: tokens with y ≥ 0.5 P, None where P ≤ 0.
    Skewness and kurtosis are None where y never varies.
    """

    top: list[Entry]
    bottom: list[Entry]
    n: int
    fires: int | None
    mean: float
    std: float
    skewness: float | None
    kurtosis: float | None


def make_atlas(
    subject: Subject, peaks: Mapping[str, Tensor],
    progress: Callable[[str, int, int], None] = lambda what, done, total: None, batch: int = BATCH,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Reads the vocabulary behind the sink at the sites of `peaks`, `batch` tokens at a time; the tensors of each site.

    peaks: P [2, width] for the signs +1 and −1 of each site, from which `fires` is counted.
    """
    ids = tokens_of_text(subject)
    kept = {site: _Site(peak) for site, peak in peaks.items()}
    progress("atlas", 0, len(ids))
    for done, mine, readings in _passes(subject, ids, list(peaks), batch):
        for site, keeper in kept.items():
            keeper.add(readings[site].float(), mine)
        progress("atlas", done, len(ids))
    return {site: keeper.tensors() for site, keeper in kept.items()}


def tokens_of_text(subject: Subject) -> list[int]:
    """Ids that the tokenizer has and the model knows, ascending, without special tokens: no text gives those."""
    marked = {i for i, token in subject.tokenizer.added_tokens_decoder.items() if token.special}
    found = set(subject.tokenizer.get_vocab().values()) - marked - subject.special
    ids = sorted(i for i in found if i < subject.vocabulary)
    if not ids:
        raise Refused(f"the tokenizer of {subject.name} has no token but special ones; the atlas needs a vocabulary.")
    return ids


def _passes(
    subject: Subject, ids: Sequence[int], sites: Sequence[str], batch: int
) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """How many tokens are done, the ids [N] of a batch and their raw readings [N, width] at each site."""
    read = _beside_one_sink if subject.shares else _beside_own_sinks
    for start in range(0, len(ids), batch):
        mine = ids[start : start + batch]
        yield start + len(mine), torch.tensor(mine, device=subject.device), read(subject, mine, sites)


def _beside_one_sink(subject: Subject, ids: Sequence[int], sites: Sequence[str]) -> dict[str, Tensor]:
    """A sink that all tokens see, none of which sees another: half the work of a row for each."""
    trie, parts = Trie(len(ids) + 1), []
    nodes = [trie.add([subject.sink, token]) for token in ids]
    while trie.passed < len(trie.ids):
        parts.append(subject.pass_nodes(trie, sites))
    subject.meter.rows += len(ids)
    return {site: torch.cat([part[site] for part in parts])[nodes] for site in sites}


def _beside_own_sinks(subject: Subject, ids: Sequence[int], sites: Sequence[str]) -> dict[str, Tensor]:
    readings = subject.run([[subject.sink, token] for token in ids], read=sites).readings
    return {site: readings[site][:, 1] for site in sites}


class _Site:
    """What is kept of one site while the vocabulary goes by."""

    def __init__(self, peak: Tensor) -> None:
        width, device = peak.shape[1], peak.device
        self.none = peak <= 0
        self.threshold = torch.where(self.none, torch.inf, measures.FIRES * peak)
        self.top, self.bottom = (torch.empty((0, width), dtype=torch.int64, device=device) for _ in SIGNS)
        self.fires = torch.zeros((len(SIGNS), width), dtype=torch.int64, device=device)
        self.n = 0
        self.middle = torch.zeros(width, dtype=torch.float64, device=device)
        self.powers = torch.zeros((4, width), dtype=torch.float64, device=device)   # Σ (x − middle)^k, k = 1 to 4

    def add(self, x: Tensor, ids: Tensor) -> None:
        """Takes raw activations x [N, width] of the tokens ids [N]."""
        self.top = _largest(self.top, _keys(x, ids))
        self.bottom = _largest(self.bottom, _keys(-x, ids))
        for sign, fires, threshold in zip(SIGNS, self.fires, self.threshold, strict=True):
            fires += (sign * x >= threshold).sum(dim=0)
        if not self.n:
            # Sums of powers are taken about a value near the mean, or a unit of small spread would lose its digits;
            # about one that occurs, so that the spread of a unit that never varies is 0.
            self.middle = x.median(dim=0).values.double()
        self.n += len(x)
        away = x.double() - self.middle
        power = away
        for total in self.powers:
            total += power.sum(dim=0)
            power = power * away

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        top_id, top_value = _decoded(self.top)
        bottom_id, bottom_value = _decoded(self.bottom)
        mean, std, skewness, kurtosis = self._moments()
        found = {
            "top_id": top_id, "top_value": top_value, "bottom_id": bottom_id, "bottom_value": -bottom_value + 0.0,
            "mean": mean.float(), "std": std.float(), "skewness": skewness.float(), "kurtosis": kurtosis.float(),
            "fires": torch.where(self.none, -1, self.fires).int(), "n": torch.tensor([self.n], dtype=torch.int32),
        }  # fmt: skip
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, c, d = self.powers / self.n
        m2 = (b - a.square()).clamp(min=0)
        m3 = c - 3 * a * b + 2 * a**3
        m4 = d - 4 * a * c + 6 * a.square() * b - 3 * a**4
        std = m2.sqrt()
        spread = torch.where(std > 0, std, torch.nan)
        return self.middle + a, std, m3 / spread**3, m4 / spread**4


def _keys(y: Tensor, ids: Tensor) -> Tensor:
    """One whole number for each y [N, width] of token ids [N], larger for larger y and, among equals, smaller ids.

    Upper half: the float's bits, made to sort as whole numbers do; lower half: the id, counted downwards. No two keys
    of a unit are equal, so that the choice of the largest never depends on how a sort treats ties.
    """
    bits = (y + 0.0).view(torch.int32)                    # −0 becomes 0, its equal
    return (_flipped(bits).long() << 32) | (LOW - ids)[:, None]


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The ids and y behind keys, both of their shape."""
    return (LOW - (keys & LOW)).int(), _flipped((keys >> 32).int()).view(torch.float32)


def _flipped(bits: Tensor) -> Tensor:
    """Negative floats' bits grow with their size: all but the sign are turned over. Its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _largest(kept: Tensor, new: Tensor) -> Tensor:
    """The largest KEPT of each column of both, descending; `kept` is so already."""
    if len(kept) == KEPT:
        new = _packed(new, new > kept[-1])   # soon few get in, and sorting the others would cost most of the time
    both = torch.cat([kept, new])
    return both.topk(min(KEPT, len(both)), dim=0).values


def _packed(keys: Tensor, wanted: Tensor) -> Tensor:
    """The wanted keys of each column at its top, as few rows as hold them; the rest is smaller than any key."""
    unit, row = wanted.T.nonzero(as_tuple=True)
    counts = wanted.sum(dim=0)
    rank = torch.arange(len(unit), device=keys.device) - (counts.cumsum(0) - counts)[unit]
    packed = torch.full((int(counts.max()), keys.shape[1]), torch.iinfo(keys.dtype).min, device=keys.device)
    packed[rank, unit] = keys[row, unit]
    return packed


# On disk


def atlas_file(folder: Path, site: str) -> Path:
    """Where the folder of a sweep holds a site's atlas."""
    return folder / f"{site}.atlas.safetensors"


def write_atlas(folder: Path, site: str, tensors: dict[str, Tensor], digest: str) -> None:
    """Writes one site's atlas into the folder of the sweep `digest`."""
    atlas_file(folder, site).write_bytes(save(tensors, metadata=_mark(site, digest)))


def load_atlas(folder: Path, site: str, width: int, digest: str) -> dict[str, Tensor]:
    """One site's atlas as it was stored; raises Refused where it is missing, damaged or another's."""
    path = atlas_file(folder, site)
    try:
        with safe_open(path, framework="pt") as file:
            right = file.metadata() == _mark(site, digest)
            found = {name: file.get_tensor(name) for name in NAMES if right}
    except FileNotFoundError:
        raise _refused(site, digest, "missing") from None
    except (SafetensorError, OSError) as error:
        raise _refused(site, digest, f"unreadable ({error})") from error
    if not right or found["mean"].shape != (width,):
        raise _refused(site, digest, "not that of this sweep")
    return found


def _mark(site: str, digest: str) -> dict[str, str]:
    """What the file says it is; one entry only, since safetensors writes several in any order."""
    return {"atlas": f"{digest}/{site}"}


def _refused(site: str, digest: str, state: str) -> Refused:
    return Refused(
        f"the token atlas of {site} in sweep {digest} is {state}; delete the folder sweeps/{digest} and sweep again."
    )


def unit_atlas(data: Mapping[str, Tensor], unit: UnitId) -> Atlas:
    """What a site's atlas says of one unit, by its sign."""
    top, bottom = (_entries(data, end, unit) for end in ("top", "bottom")[:: unit.sign])
    fires = int(data["fires"][SIGNS.index(unit.sign), unit.index])
    mean, std, skewness, kurtosis = (float(data[name][unit.index]) for name in ("mean", "std", "skewness", "kurtosis"))
    return Atlas(
        top=top, bottom=bottom, n=int(data["n"][0]), fires=fires if fires >= 0 else None,
        mean=unit.sign * mean + 0.0, std=std,
        skewness=None if math.isnan(skewness) else unit.sign * skewness + 0.0,
        kurtosis=None if math.isnan(kurtosis) else kurtosis,
    )  # fmt: skip


def _entries(data: Mapping[str, Tensor], end: str, unit: UnitId) -> list[Entry]:
    ids, values = (data[f"{end}_{part}"][:, unit.index] for part in ("id", "value"))
    return list(zip(ids.tolist(), (unit.sign * values + 0.0).tolist(), strict=True))   # + 0: no value is −0


__all__ = ["Atlas", "KEPT", "atlas_file", "load_atlas", "make_atlas", "tokens_of_text", "unit_atlas", "write_atlas"]
