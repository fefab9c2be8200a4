"""What a sweep of every MLP site costs beside the bare forward pass, and the same content through other libraries.

All ways pass the same batches of windows through the same weights, in turn, and all but the bare one keep what a sweep
keeps of the explain side. Without the extra `rivals` the claims on other libraries are not measured.
"""

import multiprocessing
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tools.collect import Site, position_key
from ..tools.corpus import load_corpus
from ..tools.measures import WINDOW
from ..tools.subject import Subject, Take
from ..tools.sweep import apart, batches, make_sweep, tokenise
from . import rivals
from .input_real import MODEL
from .report import Claim, Part, Progress, at_most
from .rivals import RIVALS

TOKENS, RUNS = 40_000, 5
SWEPT = 200_000        # tokens of the larger sweep whose memory is measured
LONG = 120_000         # tokens of the explain side of a usual sweep, which sets the share of what is sampled
FEW = 8                # its sites

Readings = Callable[[list[list[int]], Take], None]     # gives those of rows, all of one length, to `take`


@dataclass(frozen=True)
class _Batch:
    rows: list[list[int]]
    place: Tensor
    key: Tensor
    document: Tensor
    cluster: Tensor


class _Best(Site):
    """Keeps the moments and each unit's best documents on both sides, and no bands."""

    def _bands(self, side: str, x: Tensor, place: Tensor, key: Tensor) -> None:
        pass


def sweep(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Seconds of each way over the same tokens, in turn; the median of the runs and of each run's ratio to bare."""
    tokens = max(4096, round(size * TOKENS))
    subject = Subject.load(MODEL)
    sites = [f"{layer}-mlp" for layer in range(subject.n_layers)]
    work = _work(subject, tokens, progress)
    ways: dict[str, Callable[[], None]] = {
        "bare forward pass": partial(_bare, subject, work),
        "moments and best documents": partial(_keep, subject, sites, _Best, _own(subject, sites), work),
        "everything": partial(_keep, subject, sites, Site, _own(subject, sites), work),
    }
    readers = {"transformer-lens": _transformer_lens, "nnsight": _nnsight}
    for name in rivals.installed():
        ways[f"everything, {name}"] = partial(_keep, subject, sites, Site, readers[name](sites), work)
    seconds, _ = rivals.in_turn(ways, RUNS, progress)
    swept = max(20_000, round(size * SWEPT))
    return _tables(seconds, sum(len(b.place) for b in work), swept, peaks(swept))


def _work(subject: Subject, tokens: int, progress: Progress) -> list[_Batch]:
    """Batches of whole windows of explain text."""
    found: list[_Batch] = []
    first = 0
    documents = apart("builtin", tokenise(subject, load_corpus("builtin"), None, progress))
    for rows, document, cluster in batches([d for d in documents if d.side == "explain"], subject.sink):
        full = [len(row) == WINDOW for row in rows]
        kept = np.repeat(full, [len(row) - 1 for row in rows])
        whole = [row for row, is_full in zip(rows, full, strict=True) if is_full]
        if not whole:
            continue
        place = np.arange(first, first + int(kept.sum()), dtype=np.int32)
        first += len(place)
        arrays = (place, position_key(place).astype(np.float32), document[kept], cluster[kept])
        found.append(_Batch(whole, *(torch.as_tensor(array) for array in arrays)))
        if first >= tokens:
            break
    return found


def _bare(subject: Subject, work: Sequence[_Batch]) -> None:
    with torch.inference_mode():
        for batch in work:
            subject.model.base_model(input_ids=torch.tensor(batch.rows, device=subject.device), use_cache=False)


def _keep(
    subject: Subject, sites: Sequence[str], kind: type[Site], readings: Readings, work: Sequence[_Batch]
) -> None:
    kept = {site: kind(subject.width(site), subject.device) for site in sites}
    for keeper in kept.values():
        keeper.begin("explain", LONG)
    for batch in work:
        drawn = torch.zeros(len(batch.place), dtype=torch.bool)

        def keep(site: str, x: Tensor, batch: _Batch = batch, drawn: Tensor = drawn) -> None:
            flat = x[:, 1:].flatten(0, 1).float()
            kept[site].add("explain", flat, batch.place, batch.key, batch.document, batch.cluster, drawn)

        readings(batch.rows, keep)
    for keeper in kept.values():
        keeper.end("explain")


def _own(subject: Subject, sites: Sequence[str]) -> Readings:
    def read(rows: list[list[int]], take: Take) -> None:
        subject.run(rows, read=sites, take=take)

    return read


def _transformer_lens(sites: Sequence[str]) -> Readings:
    bridge = rivals.transformer_lens()

    def read(rows: list[list[int]], take: Take) -> None:
        hooks = [
            (f"blocks.{site.split('-')[0]}.mlp.out.hook_in", lambda x, hook, site=site: take(site, x))
            for site in sites
        ]
        with torch.inference_mode():
            bridge.run_with_hooks(torch.tensor(rows), return_type=None, fwd_hooks=hooks)

    return read


def _nnsight(sites: Sequence[str]) -> Readings:
    model = rivals.nnsight()
    layers = [int(site.split("-")[0]) for site in sites]

    def read(rows: list[list[int]], take: Take) -> None:
        found: list[Tensor] = []
        with torch.inference_mode(), model.trace(torch.tensor(rows)):      # the body's source is read and run
            for layer in layers:
                found.append(model.model.layers[layer].mlp.down_proj.input.save())
        for site, x in zip(sites, found, strict=True):
            take(site, x)

    return read


def peaks(tokens: int, model: str = MODEL, corpus: str = "builtin", sites: int = FEW) -> list[int]:
    """Peak memory in bytes of a sweep of a tenth of the tokens and of one of all, each in a process of its own."""
    found = []
    for count in (tokens // 10, tokens):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(_peak, (count, model, corpus, sites)))
    return found


def _peak(tokens: int, model: str, corpus: str, sites: int) -> int:
    subject = Subject.load(model)
    with TemporaryDirectory() as home:
        make_sweep(subject, load_corpus(corpus), [f"{layer}-mlp" for layer in range(sites)], Path(home), tokens)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _tables(seconds: dict[str, list[float]], tokens: int, swept: int, held: Sequence[int]) -> Part:
    bare, everything = (np.array(seconds[name]) for name in ("bare forward pass", "everything"))
    rows: list[dict[str, Any]] = [
        {
            "way": name, "tokens": tokens, "runs": len(found), "median seconds": float(np.median(found)),
            "median ratio to bare": float(np.median(found / bare)), "lowest": float((found / bare).min()),
            "highest": float((found / bare).max()),
        }
        for name, found in ((name, np.array(values)) for name, values in seconds.items())
    ]  # fmt: skip
    best = np.array(seconds["moments and best documents"])
    claims = [
        _ratio("best documents and moments / bare", best / bare, 1.15),
        _ratio("everything / bare", everything / bare, 1.35),
        at_most("peak memory of a sweep, ten times the tokens / one", held[1] / held[0], 1.1, 2),
    ]
    for name in RIVALS:
        other = seconds.get(f"everything, {name}")
        if other is None:
            claims.append(Claim(f"everything / {name} (not installed)", None, 0, "at most 1", None))
        else:
            claims.append(_ratio(f"everything / {name}", everything / np.array(other), 1.0))
    memory = [{"tokens": n, "peak MB": peak / 1e6} for n, peak in zip((swept // 10, swept), held, strict=True)]
    return {"sweep": rows, "peak memory": memory}, claims


def _ratio(name: str, ratios: np.ndarray, bar: float) -> Claim:
    """The median of the runs; its interval is that of all of them, 94 % of five."""
    return at_most(name, float(np.median(ratios)), bar, len(ratios), float(ratios.min()), float(ratios.max()))


__all__ = ["peaks", "sweep"]
