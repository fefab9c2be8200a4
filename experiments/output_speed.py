"""What an ablation study and a patch grid cost beside the same work written with other libraries.

Ours are the tools themselves, with their intervals and repeats. The others do the same passes on the same rows in
batches of the same size and compute the same numbers, without intervals. transformer-lens starts at the changed block,
as it can; nnsight passes whole rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..store.records import Refused
from ..tools.ablate import EQUIVALENCE_PLACES, Text, ablate, compare, cut_behind, matched, study_texts
from ..tools.corpus import load_corpus
from ..tools.losses import inside
from ..tools.measures import EQUIVALENCE_UNITS
from ..tools.patch_grid import grid_of
from ..tools.subject import BATCH_TOKENS, Subject
from ..tools.sweep import Sweep, make_sweep
from ..tools.units import UnitId
from . import rivals
from .input_real import MODEL, draw_units
from .report import Claim, Part, Progress, at_most

RUNS, TOKENS, LAYERS = 9, 40_000, (4, 14, 24)
WINDOWS = 24
CLEAN = "The old train from Paris to the sea was late again, so the children waited in the cold hall and spoke"
CORRUPT = CLEAN.replace("Paris", "Rome")

Put = Callable[[Tensor], Tensor]


class Other(Protocol):
    """Passes of another library over rows of ids [B, T]; both give what the final norm gives [B, T, d]."""

    def clean(self, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """And the neurons of a block, and the stream in front of it."""

    def neurons(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        """With the neurons of a block changed; `stream` is what comes before that block."""

    def streams(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """And the stream behind every block."""

    def stream(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        """With the stream behind a block, which is `stream` without that, changed."""


class _TransformerLens:
    def __init__(self) -> None:
        self.model = rivals.transformer_lens()

    def clean(self, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        found: dict[str, Tensor] = {}
        places = [f"blocks.{layer}.mlp.out.hook_in", f"blocks.{layer}.hook_resid_pre"]
        normed = self.model.run_with_hooks(ids, fwd_hooks=[(p, partial(_keep, found, p)) for p in places])
        return normed, found[places[0]], found[places[1]]

    def neurons(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        hooks = [(f"blocks.{layer}.mlp.out.hook_in", lambda x, hook: put(x))]
        return self.model.run_with_hooks(stream, start_at_layer=layer, fwd_hooks=hooks)  # type: ignore[no-any-return]

    def streams(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        found: dict[str, Tensor] = {}
        places = [f"blocks.{layer}.hook_resid_post" for layer in range(self.model.cfg.n_layers)]
        normed = self.model.run_with_hooks(ids, fwd_hooks=[(p, partial(_keep, found, p)) for p in places])
        return normed, [found[p] for p in places]

    def stream(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        if layer + 1 == self.model.cfg.n_layers:
            hooks = [(f"blocks.{layer}.hook_resid_post", lambda x, hook: put(x))]
            return self.model.run_with_hooks(ids, fwd_hooks=hooks)  # type: ignore[no-any-return]
        return self.model.run_with_hooks(put(stream), start_at_layer=layer + 1)  # type: ignore[no-any-return]


def _keep(found: dict[str, Tensor], place: str, x: Tensor, hook: object) -> None:
    found[place] = x


class _NNsight:
    def __init__(self) -> None:
        self.model = rivals.nnsight()

    def clean(self, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        with model.trace(ids):      # the body's source is read and run
            stream = model.model.layers[layer].input.save()
            x = model.model.layers[layer].mlp.down_proj.input.save()
            normed = model.model.norm.output.save()
        return normed, x, stream

    def neurons(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        model = self.model
        with model.trace(ids):
            model.model.layers[layer].mlp.down_proj.input = put(model.model.layers[layer].mlp.down_proj.input)
            normed: Tensor = model.model.norm.output.save()
        return normed  # noqa: RET504 — what is traced is cut out and run elsewhere: nothing returns from it

    def streams(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        model, found = self.model, []
        with model.trace(ids):
            for block in model.model.layers:
                found.append(block.output.save())
            normed = model.model.norm.output.save()
        return normed, found

    def stream(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        model = self.model
        with model.trace(ids):
            model.model.layers[layer].output = put(model.model.layers[layer].output)
            normed: Tensor = model.model.norm.output.save()
        return normed  # noqa: RET504 — what is traced is cut out and run elsewhere: nothing returns from it


OTHERS: dict[str, Callable[[], Other]] = {"transformer-lens": _TransformerLens, "nnsight": _NNsight}


# The ablation study


@dataclass(frozen=True)
class _Study:
    """One unit's: its windows, its mean, its threshold and the units that δ is measured on."""

    subject: Subject
    sweep: Sweep
    unit: UnitId
    texts: list[Text]
    matched: list[UnitId]


def study(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Seconds of `ablate` on one unit of each of three depths, and ΔCE where it fires by each way."""
    subject = Subject.load(MODEL, device="cpu")
    sites = [f"{layer}-mlp" for layer in LAYERS]
    sweep = make_sweep(subject, load_corpus("builtin"), sites, folder, TOKENS, progress)
    others = {name: OTHERS[name]() for name in rivals.installed()}
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    for unit in draw_units(sweep, len(sites), seed):
        generator = np.random.default_rng(seed)
        texts = study_texts(sweep, unit, WINDOWS, generator)
        work = _Study(subject, sweep, unit, texts, matched(subject, unit, EQUIVALENCE_UNITS, generator))
        ways: dict[str, Callable[[], object]] = {"ours": partial(_ours, work, seed)}
        ways |= {name: partial(_theirs, other, work) for name, other in others.items()}
        timed = rivals.in_turn(ways, max(2, round(size * RUNS)), progress)
        rows += _rows({"unit": str(unit)}, *timed, "ΔCE where it fires")
        claims += _claims(f"ablation study of {unit}", timed[0], seed)
    return {"ablation study": rows}, claims


def _ours(work: _Study, seed: int) -> float:
    found = ablate(work.subject, work.sweep, work.unit, windows=WINDOWS, seed=seed)
    return float(found.rows[0]["delta_ce"])


@torch.inference_mode()
def _theirs(other: Other, work: _Study) -> float:
    """Losses, divergences and logit changes of every position, then the mean effects of single units of the layer."""
    subject, unit = work.subject, work.unit
    level, threshold = work.sweep.mean(unit.site), work.sweep.statistics(unit).threshold
    rows = [text.ids[:-1] for text in work.texts]
    moved, delta, firings = torch.zeros(subject.vocabulary), list[Tensor](), list[tuple[Text, int]]()
    for batch in subject.batches(rows):
        ids, real = _padded([rows[i] for i in batch])
        normed, x, before = other.clean(ids, unit.layer)
        put = partial(_hold, unit.index, float(level[unit.index]), real)
        changed = other.neurons(ids, unit.layer, put, before)
        fires = (unit.sign * x[..., unit.index] >= threshold)[real]
        places = [(work.texts[batch[b]], p) for b, p in torch.nonzero(real).tolist()]
        targets = torch.tensor([text.ids[p + 1] for text, p in places])
        each, change = compare(subject, normed[real], changed[real], targets, fires)
        delta.append(each[0][fires])
        moved += change
        firings += [place for place, on in zip(places, fires.tolist(), strict=True) if on]
    _bound(other, work, firings[:EQUIVALENCE_PLACES], level)
    return float(torch.cat(delta).double().mean())


def _padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and the positions that are neither padding nor the sink."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True), inside(rows)


def _hold(index: int, level: float, where: Tensor, x: Tensor) -> Tensor:
    x = x.clone()
    x[..., index] = torch.where(where, level, x[..., index])
    return x


def _bound(other: Other, work: _Study, places: Sequence[tuple[Text, int]], level: Any) -> float:
    """δ, as `ablate` defines it."""
    subject, layer = work.subject, work.unit.layer
    rows, follows = cut_behind(places)
    targets = torch.tensor(follows)
    ids, real = _padded(rows)
    last = real.sum(dim=1)
    normed, _, before = other.clean(ids, layer)
    clean = cross_entropy(subject.unembed(normed[torch.arange(len(rows)), last]), targets, reduction="none")
    units = [work.unit, *work.matched]
    size = max(1, BATCH_TOKENS // ids.numel())
    effects = []
    for group in (units[i : i + size] for i in range(0, len(units), size)):
        n = len(group)
        columns = torch.tensor([u.index for u in group for _ in rows])[:, None, None].expand(-1, ids.shape[1], 1)
        levels = torch.tensor([float(level[u.index]) for u in group for _ in rows])[:, None, None]
        where = real.repeat(n, 1)[..., None]
        put = partial(_hold_by_row, columns, levels, where)
        changed = other.neurons(ids.repeat(n, 1), layer, put, before.repeat(n, 1, 1))
        logits = subject.unembed(changed[torch.arange(n * len(rows)), last.repeat(n)])
        ce = cross_entropy(logits, targets.repeat(n), reduction="none")
        effects.append((ce.view(n, -1) - clean).mean(dim=1))
    return float(torch.cat(effects)[1:].abs().quantile(0.95))


def _hold_by_row(columns: Tensor, levels: Tensor, where: Tensor, x: Tensor) -> Tensor:
    return x.scatter(2, columns, torch.where(where, levels, x.gather(2, columns)))


# The grid


def grid(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Seconds of one patch grid of the stream, 30 blocks by the positions from the first that differs."""
    subject = Subject.load(MODEL, device="cpu")
    clean, corrupt = subject.encode(CLEAN), subject.encode(CORRUPT)
    if len(clean) != len(corrupt):
        raise Refused(f"the pair has {len(clean)} and {len(corrupt)} tokens in {subject.name}, and must have as many.")
    first = next(i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    ways: dict[str, Callable[[], object]] = {"ours": partial(_our_grid, subject, clean, corrupt, seed)}
    for name in rivals.installed():
        ways[name] = partial(_their_grid, OTHERS[name](), subject, clean, corrupt, first)
    timed = rivals.in_turn(ways, max(2, round(size * RUNS)), progress)
    shape = {"blocks": subject.n_layers, "positions": len(clean) - first}
    return {"patch grid": _rows(shape, *timed, "mean carried")}, _claims("patch grid", timed[0], seed)


def _our_grid(subject: Subject, clean: Sequence[int], corrupt: Sequence[int], seed: int) -> float:
    unit = UnitId(subject.name, "14-mlp", 0)     # it names the grid; no cell depends on it
    _, checks = grid_of(subject, unit, clean, corrupt, [], "resid", "denoise", "recomputed", seed)
    if checks["grid"] is None:
        raise Refused(f"the pair has no score ({checks['reason']}).")
    return float(np.mean(checks["grid"]))


@torch.inference_mode()
def _their_grid(
    other: Other, subject: Subject, clean: Sequence[int], corrupt: Sequence[int], first: int
) -> float:
    normed, streams = other.streams(torch.tensor([corrupt, clean]))
    rise = torch.diff(subject.unembed(normed[:, -1]), dim=0)[0]
    plus, minus = int(rise.argmax()), int(rise.argmin())

    def metric(normed: Tensor) -> Tensor:
        logits = subject.unembed(normed[:, -1])
        return logits[:, plus] - logits[:, minus]

    low, high = metric(normed).tolist()
    places = torch.arange(first, len(clean))
    size = max(1, BATCH_TOKENS // len(clean))
    found = []
    for layer, stream in enumerate(streams):
        for some in torch.split(places, size):
            ids, line = torch.tensor([corrupt]).repeat(len(some), 1), torch.arange(len(some))

            def put(x: Tensor, some: Tensor = some, line: Tensor = line, source: Tensor = stream[1]) -> Tensor:
                x = x.clone()
                x[line, some] = source[some]
                return x

            base = stream[:1].repeat(len(some), 1, 1)
            found.append((metric(other.stream(ids, layer, put, base)) - low) / (high - low))
    return float(torch.cat(found).double().mean())


# Showing


def _rows(
    shape: dict[str, Any], seconds: dict[str, list[float]], gave: dict[str, object], what: str
) -> list[dict[str, Any]]:
    ours = np.array(seconds["ours"])
    return [
        {**shape, "way": name, "runs": len(found), "median seconds": float(np.median(found)),
         "median of ours / it": float(np.median(ours / np.array(found))), what: gave[name]}
        for name, found in seconds.items()
    ]  # fmt: skip


def _claims(what: str, seconds: dict[str, list[float]], seed: int) -> list[Claim]:
    """Ours over the faster of the others, whose median is lowest: ratios of runs side by side, with their interval."""
    others = {name: found for name, found in seconds.items() if name != "ours"}
    if not others:
        return [Claim(f"{what}: ours / the fastest other (none is installed)", None, 0, "upper end at most 1.05", None)]
    name = min(others, key=lambda other: float(np.median(others[other])))
    ratios = np.array(seconds["ours"]) / np.array(others[name])
    draws = np.random.default_rng(seed).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    middle, bounds = float(np.median(ratios)), (float(low), float(high))
    return [at_most(f"{what}: ours / {name}", middle, 1.05, len(ratios), *bounds, by="high")]


__all__ = ["grid", "study"]
