"""train_sae: planted directions are found again, a run that was stopped ends with the weights of one that was not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.experiments import train_sae as module
from lamplighter.experiments.train_sae import Recipe, Trainer, train_sae
from lamplighter.store.records import Refused
from lamplighter.tools.corpus import Corpus, Document
from lamplighter.tools.features import load_coder
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import Read

D, ATOMS = 20, 40


def planted(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of a few of 40 directions in 20 dimensions, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(ATOMS, D, generator=torch.Generator().manual_seed(0))
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    on = torch.rand(tokens, ATOMS, generator=generator) < 0.05
    return (on * (1 + torch.rand(tokens, ATOMS, generator=generator))) @ atoms, atoms


def test_planted_directions_are_found_again() -> None:
    recipe = Recipe("0-resid", features=60, k=4, batch=512, rate=3e-3)
    x, atoms = planted(512, 1)
    trainer = Trainer(recipe, torch.zeros(D), 1.0)
    left = [trainer.step(planted(512, 2 + n)[0], 600) for n in range(600)]
    near = (atoms @ trainer.decoder.detach().T).max(dim=1).values
    assert left[-1] < 0.25 < left[0] and float((near > 0.9).float().mean()) > 0.7
    assert torch.allclose(trainer.decoder.norm(dim=1), torch.ones(60), atol=1e-5)
    drawn = torch.nn.functional.normalize(torch.randn(60, D, generator=torch.Generator().manual_seed(9)), dim=1)
    assert float(((atoms @ drawn.T).max(dim=1).values > 0.9).float().mean()) < 0.1     # chance finds none


def corpus(subject: Any, documents: int = 60) -> Corpus:
    generator = np.random.default_rng(0)
    texts = [" ".join(str(n) for n in generator.integers(0, 999, 120)) for _ in range(documents)]
    made = tuple(Document(f"{i:04}", str(i), text) for i, text in enumerate(texts))
    sides = tuple(("explain", "explain", "score", "tune")[i % 4] for i in range(documents))
    return Corpus("made", "made", made, tuple(range(documents)), sides, {})


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 32)


RECIPE = Recipe("0-resid", features=48, k=4, tokens=12_000, batch=256)


def single(llama: Any) -> Subject:
    import copy

    return Subject.wrap(copy.deepcopy(llama.model).float(), llama.tokenizer, "single")


def test_what_is_written_is_what_was_learned(llama: Any, tmp_path: Path) -> None:
    subject = single(llama)
    card = train_sae(subject, corpus(subject), RECIPE, tmp_path / "mine")
    coder = load_coder(tmp_path / "mine")
    assert (coder.site, coder.architecture, coder.k, coder.width) == ("0-resid:mine", "topk", 4, 48)
    assert json.loads((tmp_path / "mine" / "card.json").read_text()) == card
    rows = {row["metric"]: row for row in card["judged"]["rows"]}
    assert rows["fve"]["value"] > 0.3 and rows["fve"]["low"] is not None and rows["l0"]["value"] <= 4
    assert not (tmp_path / "mine" / module.CHECKPOINT).exists()
    with pytest.raises(Refused, match="holds an SAE that is finished; choose another name"):
        train_sae(subject, corpus(subject), replace(RECIPE, k=5), tmp_path / "mine")
    assert load_coder(tmp_path / "mine").k == 4


def test_a_run_that_was_stopped_ends_with_the_same_weights(llama: Any, tmp_path: Path) -> None:
    subject = single(llama)
    train_sae(subject, corpus(subject), RECIPE, tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        if what == "train" and done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(subject, corpus(subject), RECIPE, tmp_path / "cut", stop)
    assert (tmp_path / "cut" / module.CHECKPOINT).exists()
    with pytest.raises(Refused, match="holds a run with another k"):
        train_sae(subject, corpus(subject), replace(RECIPE, k=5), tmp_path / "cut")
    train_sae(subject, corpus(subject), RECIPE, tmp_path / "cut")
    one, two = (load_coder(tmp_path / name).tensors for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_dead_features_are_brought_back() -> None:
    """Features that never get among the largest learn from what is left over; else they stay where they are."""
    moved = {}
    for helped in (True, False):
        trainer = Trainer(Recipe("0-resid", features=60, k=4, batch=512, rate=3e-3), torch.zeros(D), 1.0)
        if not helped:
            trainer._auxiliary = lambda pre, left: torch.zeros(())  # type: ignore[method-assign]
        with torch.no_grad():
            trainer.bias[30:] = -1.0
        trainer.idle[30:] = module.IDLE + 1
        before = trainer.decoder.detach().clone()
        for n in range(10):
            trainer.step(planted(512, n)[0], 40)
        dead = trainer.idle > module.IDLE
        moved[helped] = float((trainer.decoder.detach() - before)[dead].abs().max()) if dead.any() else 1.0
    assert moved[True] > 0.01 and moved[False] < 1e-6     # rows are set to length 1 again


def test_what_cannot_be_trained_on_is_refused(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = single(llama)
    with pytest.raises(Refused, match="0-mlp is none"):
        train_sae(subject, corpus(subject), Recipe("0-mlp"), tmp_path)
    with pytest.raises(Refused, match="k = 9 of 8 features cannot be on"):
        train_sae(subject, corpus(subject), replace(RECIPE, features=8, k=9), tmp_path)
    monkeypatch.setattr(module, "CHUNK", 10**6)
    with pytest.raises(Refused, match="one chunk takes 1000000; give more text"):
        train_sae(subject, corpus(subject), RECIPE, tmp_path)


def test_many_documents_are_judged_on_a_part_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [
        Read(Document(f"{n:04}", str(n), ""), "score", n, [1000 * n + i for i in range(63 * 9 + 5)]) for n in range(40)
    ]
    monkeypatch.setattr(module, "JUDGED", 5000)
    chosen = module.judged_on(documents)
    assert chosen == module.judged_on(documents[::-1])
    assert 5000 <= sum(len(d.ids) for d in chosen) < 5000 + 4 * 63 and len({d.cluster for d in chosen}) == len(chosen)
    for d in chosen:
        whole = {tuple(w) for w in documents[d.cluster].windows}
        assert len(d.windows) == module.PART and whole >= {tuple(w) for w in d.windows}
        assert d.windows[0] == documents[d.cluster].windows[0] and max(d.ids) >= 1000 * d.cluster + 6 * 63
    monkeypatch.setattr(module, "JUDGED", 10**6)
    assert module.judged_on(documents) == documents
