"""Trains a TopK SAE on a site of the residual stream: `lamplighter saes train`.

Activations stream from the explain side of a corpus, a chunk of windows at a time, and are never stored. A chunk ends
with a checkpoint, so that a run that was stopped goes on and ends with the very weights of one that was not. The
folder that comes out is one that `tools/features.py` and SAELens read, with a card of what `sae_eval` measures on the
score side.

The recipe is that of Gao et al. (2024, arXiv:2406.04093): k largest pre-activations, decoder rows of length 1, and an
auxiliary loss by which features that are never on learn what the others leave over.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import __version__
from ..store.records import Refused
from ..tools.corpus import Corpus
from ..tools.features import CONFIG, TRAINING, WEIGHTS, Point, load_coder
from ..tools.sae_eval import sae_eval
from ..tools.subject import Subject
from ..tools.sweep import Read, apart, tokenise
from ..tools.units import parse_site

CHECKPOINT = "checkpoint.safetensors"
CHUNK = 1024              # windows whose activations are held at once
WARM_UP, COOL_DOWN = 0.02, 0.2     # shares of the steps in which the rate rises, and falls to 0
IDLE = 50_000             # tokens after which a feature that was not on counts as dead
AUXILIARY = 1 / 32        # weight of the loss of dead features
REVIVED = 128             # dead features that may speak for a token
JUDGED = 60_000           # tokens of the score side that the SAE is judged on, where it has more:
PART = 4                  # … windows of each document, so that many documents speak

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides model and text."""

    site: str
    features: int = 4608
    k: int = 32
    tokens: int = 2_000_000
    batch: int = 2048
    rate: float = 8e-4
    seed: int = 0


class Trainer:
    """Weights and optimiser of one run; `step` learns from one batch of standardised activations.

    Activations are centred and divided by one number, so that their mean square norm is d: `mean` [d] and `scale`.
    """

    def __init__(self, recipe: Recipe, mean: Tensor, scale: float) -> None:
        self.recipe, self.mean, self.scale = recipe, mean, scale
        d, generator = len(mean), torch.Generator().manual_seed(recipe.seed)
        rows = torch.randn(recipe.features, d, generator=generator)
        rows = (rows / rows.norm(dim=1, keepdim=True)).to(mean.device)
        self.decoder, self.encoder = rows.requires_grad_(), rows.T.clone(memory_format=torch.contiguous_format)
        self.encoder = self.encoder.detach().requires_grad_()
        self.bias = torch.zeros(recipe.features, device=mean.device, requires_grad=True)
        self.centre = torch.zeros(d, device=mean.device, requires_grad=True)
        self.idle = torch.zeros(recipe.features, dtype=torch.int64, device=mean.device)
        self.optimiser = torch.optim.Adam(self.weights(), lr=recipe.rate, betas=(0.9, 0.999), eps=1e-8)
        self.steps = 0

    def weights(self) -> list[Tensor]:
        return [self.encoder, self.decoder, self.bias, self.centre]

    def step(self, x: Tensor, total: int) -> float:
        """One step on standardised activations [N, d], of `total`; returns the share of variance left over."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate * _rate(self.steps / total)
        pre = (x - self.centre) @ self.encoder + self.bias
        top, places = pre.topk(self.recipe.k, dim=1)
        rebuilt = _decode(top.relu(), places, self.decoder) + self.centre
        left = x - rebuilt
        loss = left.square().sum(dim=1).mean()
        (loss + AUXILIARY * self._auxiliary(pre, left.detach())).backward()  # type: ignore[no-untyped-call]
        self._note(places[top > 0], len(x))
        along = (self.decoder.grad * self.decoder).sum(dim=1, keepdim=True)   
        self.decoder.grad -= along * self.decoder.detach()
        torch.nn.utils.clip_grad_norm_(self.weights(), 1.0 * len(self.mean) ** 0.5)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.decoder /= self.decoder.norm(dim=1, keepdim=True)
        self.steps += 1
        return float(loss.detach() / (x - x.mean(dim=0)).square().sum(dim=1).mean())

    def _auxiliary(self, pre: Tensor, left: Tensor) -> Tensor:
        """How much of what is left over the dead features fail to say; 0 where there are none."""
        dead = torch.nonzero(self.idle > IDLE)[:, 0]
        if not len(dead):
            return torch.zeros((), device=pre.device)
        top, places = pre[:, dead].topk(min(REVIVED, len(dead)), dim=1)
        said = _decode(top.relu(), dead[places], self.decoder)
        share: Tensor = (left - said).square().sum(dim=1).mean() / left.square().sum(dim=1).mean()
        return share * len(self.mean)

    def _note(self, on: Tensor, tokens: int) -> None:
        self.idle += tokens
        self.idle[torch.unique(on)] = 0

    # Files

    def save(self, folder: Path, chunk: int) -> None:
        """A checkpoint from which chunk number `chunk` is next, put in its place by one rename."""
        state = self.optimiser.state_dict()["state"]
        tensors = {f"weight.{i}": w.detach() for i, w in enumerate(self.weights())}
        tensors |= {f"adam.{i}.{name}": v for i, row in state.items() for name, v in row.items()}
        tensors |= {"idle": self.idle, "mean": self.mean, "steps": torch.tensor(self.steps)}
        tensors["chunk"] = torch.tensor(chunk)
        tensors["scale"] = torch.tensor(self.scale, dtype=torch.float64)
        save_file(tensors, folder / "checkpoint.new")
        os.replace(folder / "checkpoint.new", folder / CHECKPOINT)

    @classmethod
    def resume(cls, recipe: Recipe, folder: Path, device: torch.device) -> tuple["Trainer", int]:
        """The trainer of a checkpoint, and which chunk is next."""
        tensors = load_file(folder / CHECKPOINT, device=str(device))
        made = cls(recipe, tensors["mean"], float(tensors["scale"]))
        with torch.no_grad():
            for i, weight in enumerate(made.weights()):
                weight.copy_(tensors[f"weight.{i}"])
        state = made.optimiser.state_dict()
        names = ("step", "exp_avg", "exp_avg_sq")
        state["state"] = {i: {name: tensors[f"adam.{i}.{name}"] for name in names} for i in range(4)}
        made.optimiser.load_state_dict(state)
        made.idle, made.steps = tensors["idle"], int(tensors["steps"])
        return made, int(tensors["chunk"])

    def export(self, folder: Path, model: str) -> None:
        """Weights for activations as they are, in half precision, and the configuration that SAELens reads."""
        point = Point(int(self.recipe.site.partition("-")[0]), "resid")
        with torch.no_grad():
            # s z = topk((x − mean − s centre) W_enc + s b), and x̂ = (s z) W_dec + mean + s centre.
            tensors = {
                "W_enc": self.encoder, "b_enc": self.bias * self.scale, "W_dec": self.decoder,
                "b_dec": self.mean + self.scale * self.centre,
            }  # fmt: skip
        halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}
        config = {
            "architecture": "topk", "d_in": len(self.mean), "d_sae": self.recipe.features, "k": self.recipe.k,
            "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
            "rescale_acts_by_decoder_norm": False,
            "metadata": {"hook_name": f"blocks.{point.layer}.hook_resid_post", "model_name": model,
                         "trained_by": f"lamplighter {__version__}"},
        }  # fmt: skip
        save_file(halves, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def _decode(values: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Σ values × rows [N, d] over the k places of each token: k of thousands, so no dense product."""
    return torch.nn.functional.embedding_bag(places, rows, per_sample_weights=values, mode="sum")


def _rate(done: float) -> float:
    """The share of the rate at a share of the steps: up, level, down to 0."""
    return min(1.0, done / WARM_UP + 1e-3, (1 - done) / COOL_DOWN)


# Text


def _windows(subject: Subject, corpus: Corpus, progress: Progress) -> dict[str, list[Any]]:
    """Documents of each side, without windows that share a run of 13 tokens with an earlier side."""
    documents = apart(corpus.name, tokenise(subject, corpus, None, progress))
    return {side: [d for d in documents if d.side == side] for side in ("explain", "score")}


def judged_on(documents: Sequence[Read]) -> list[Read]:
    """PART windows, evenly over it, of one document after the other until there are JUDGED tokens; all if there are
    fewer. The documents come in the order of the digests of their ids."""
    if sum(len(d.ids) for d in documents) <= JUDGED:
        return list(documents)
    chosen: list[Read] = []
    left = JUDGED
    for d in sorted(documents, key=lambda d: hashlib.sha256(str(d.document.id).encode()).digest()):
        if left <= 0:
            break
        windows = d.windows[:: max(1, len(d.windows) // PART)][:PART]
        chosen.append(replace(d, ids=[i for w in windows for i in w]))
        left -= len(chosen[-1].ids)
    return chosen


def _chunks(windows: Sequence[list[int]], seed: int) -> Iterator[list[list[int]]]:
    """Chunks of windows without end, each pass over the text in another order."""
    epoch, waiting = 0, list[list[int]]()
    while True:
        generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
        waiting += [windows[i] for i in torch.randperm(len(windows), generator=generator).tolist()]
        while len(waiting) >= CHUNK:
            yield waiting[:CHUNK]
            waiting = waiting[CHUNK:]
        epoch += 1


def _activations(subject: Subject, site: str, windows: Sequence[list[int]]) -> Tensor:
    """What stands at the site at every token but the sink [N, d], float32."""
    rows = [[subject.sink, *ids] for ids in windows]
    found = []
    for batch in subject.batches(rows):
        done = subject.run([rows[i] for i in batch], read=[site])
        found.append(done.readings[site][:, 1:][done.mask[:, 1:]].float())
    return torch.cat(found).clone()


# The run


def train_sae(
    subject: Subject, corpus: Corpus, recipe: Recipe, folder: Path, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Trains, or goes on training, the SAE of `folder`, writes it there with its card, and returns the card.

    Raises Refused for a site that is no residual stream, for k out of range, for less text than one chunk, and for a
    folder that holds a finished SAE, or the checkpoint of another model, text or recipe.
    """
    if parse_site(recipe.site)[1:] != ("resid", ""):
        raise Refused(f"an SAE is trained on a residual stream, as in 8-resid; {recipe.site} is none.")
    if not 1 <= recipe.k <= recipe.features:
        raise Refused(f"k = {recipe.k} of {recipe.features} features cannot be on at a time; choose 1 to that many.")
    if (folder / CONFIG).is_file() and not (folder / CHECKPOINT).is_file():
        raise Refused(f"{folder} holds an SAE that is finished; choose another name, or delete that folder.")
    documents = _windows(subject, corpus, progress)
    windows = [ids for d in documents["explain"] for ids in d.windows]
    if len(windows) < CHUNK:
        raise Refused(
            f"{corpus.name} has {len(windows)} windows of explain text, and one chunk takes {CHUNK}; give more text."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, subject, corpus, recipe)
    trainer = _learn(subject, recipe, windows, folder, progress)
    trainer.export(folder, subject.name)
    judged = Subject.wrap(subject.model, subject.tokenizer, subject.name, subject.sink)
    site = judged.attach(load_coder(folder))
    found = sae_eval(judged, site, judged_on(documents["score"]), seed=recipe.seed, progress=progress)
    card = _card(recipe, corpus, windows, found)
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    (folder / CHECKPOINT).unlink()
    return card


def _claim(folder: Path, subject: Subject, corpus: Corpus, recipe: Recipe) -> None:
    """Notes what the folder is of, or checks that it is of the same."""
    mine = {"model": subject.digest, "corpus": corpus.digest, "code": __version__, **asdict(recipe)}
    note = folder / TRAINING
    if (folder / CHECKPOINT).is_file():
        known = json.loads(note.read_text("utf-8"))
        other = [name for name in mine if known.get(name) != mine[name]]
        if other:
            raise Refused(f"{folder} holds a run with another {other[0]}; name another folder, or delete it.")
    note.write_text(json.dumps(mine, indent=1) + "\n", "utf-8")


def _learn(
    subject: Subject, recipe: Recipe, windows: Sequence[list[int]], folder: Path, progress: Progress
) -> Trainer:
    total = recipe.tokens // recipe.batch
    trainer, begin = None, 0
    if (folder / CHECKPOINT).is_file():
        trainer, begin = Trainer.resume(recipe, folder, subject.device)
    for number, chunk in enumerate(_chunks(windows, recipe.seed)):
        if trainer is not None and trainer.steps >= total:
            return trainer
        if number < begin:
            continue
        x = _activations(subject, recipe.site, chunk)
        if trainer is None:
            mean = x.mean(dim=0)
            trainer = Trainer(recipe, mean, float((x - mean).square().mean().sqrt()))
        x = (x - trainer.mean) / trainer.scale
        generator = torch.Generator().manual_seed(recipe.seed + number)
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for part in torch.split(order, recipe.batch):
            if len(part) == recipe.batch and trainer.steps < total:
                trainer.step(x[part], total)
                progress("train", trainer.steps * recipe.batch, total * recipe.batch)
        trainer.save(folder, number + 1)
    raise AssertionError("the chunks have no end")


def _card(recipe: Recipe, corpus: Corpus, windows: Sequence[list[int]], found: dict[str, Any]) -> dict[str, Any]:
    """What it was made of, and how good it is on text that it was not trained on."""
    text = {"corpus": corpus.name, "explain_tokens": sum(map(len, windows))}
    return {"recipe": asdict(recipe), "text": text, "judged": found, "made_by": f"lamplighter {__version__}"}


__all__ = ["Recipe", "Trainer", "train_sae"]
