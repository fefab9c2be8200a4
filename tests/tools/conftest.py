"""Small corpora of random words, swept."""

import copy
import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

SAID = "World War II began in 1939; the capital of France is Paris. She said: don't stop the red cars at 9th"


@pytest.fixture(scope="session")
def sweep_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Sweeps 0-mlp of a subject over so many documents of `shortest` words and up to `spread` more.

    Of four documents two are of the explain side, one is of tune and one of score; no two share a cluster.
    """
    from lamplighter.tools.corpus import Corpus, Document
    from lamplighter.tools.sweep import make_sweep

    def text_of(number: int, words: int) -> Document:
        text = " ".join(np.random.default_rng(number).choice(SAID.split(), words))
        return Document(hashlib.sha256(text.encode()).hexdigest(), f"file {number}", text)

    def make(subject: Any, documents: int, shortest: int, spread: int) -> Any:
        texts = tuple(text_of(n, shortest + n % spread) for n in range(documents))
        sides = tuple(("explain", "explain", "tune", "score")[n % 4] for n in range(documents))
        corpus = Corpus("made", "made", texts, tuple(range(documents)), sides, {})
        return make_sweep(subject, corpus, ["0-mlp"], tmp_path_factory.mktemp("home"))

    return make


WORDS = ["It", "was", "built", "in", "the", "late", "century", "and", "left", "World", "War", "began", "ended",
         "capital", "of", "France", "is", "stop", "cars", "blue", "street"]  # fmt: skip


def said_car() -> Any:
    """60 documents of drawn words, in which "said" is always followed by "car" and never starts a document."""
    from lamplighter.tools.corpus import Corpus, Document

    rng = np.random.default_rng(0)
    documents = []
    for i in range(60):
        words = rng.choice(WORDS, size=40).tolist()
        words[int(rng.integers(5, 35))] = "said car"
        documents.append(Document(str(i), f"made {i}", " ".join(words)))
    sides = tuple(("explain", "explain", "explain", "tune", "score")[i % 5] for i in range(60))
    return Corpus("made", "made", tuple(documents), tuple(range(60)), sides, {})


def plant_pushers(llama: Any) -> Any:
    """Three neurons of layer 1 read "said": one writes nothing, one the logit of what follows, one against it."""
    from lamplighter.tools.subject import Subject

    model = copy.deepcopy(llama.model)
    subject = Subject.wrap(model, llama.tokenizer, "planted")
    said, car = llama.encode(" said")[-1], llama.encode(" said car")[len(llama.encode(" said"))]
    inputs, hits = [], []
    handle = model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    for document in said_car().documents:
        ids = subject.encode(document.text)[:64]
        subject.run([ids])
        hits.append(torch.tensor([i == said for i in ids[1:]], dtype=torch.float64))
    handle.remove()
    x = torch.cat([rows[0, 1:] for rows in inputs])
    hit = torch.cat(hits)[:, None]
    weight = torch.where(hit > 0, (1 / hit.mean()).sqrt(), 1)   # rare as they are, they count as much as the rest
    reader = torch.linalg.lstsq(weight * x, weight * hit).solution[:, 0]
    mlp = model.model.layers[1].mlp
    mlp.down_proj.weight *= 0.1   # the others whisper
    write = model.lm_head.weight[car] / model.model.norm.weight
    for unit, size in ((0, 0.0), (1, 1.0), (2, -1.0)):
        mlp.gate_proj.weight[unit], mlp.up_proj.weight[unit] = 16 * reader, reader
        mlp.down_proj.weight[:, unit] = size * write / write.norm()
    return Subject.wrap(model, llama.tokenizer, "planted")


@pytest.fixture(scope="session")
def pushers(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`subject`, with three planted neurons in 1-mlp, and its `sweep`."""
    from lamplighter.tools.sweep import make_sweep

    subject = plant_pushers(llama)
    home = tmp_path_factory.mktemp("home")
    return SimpleNamespace(subject=subject, sweep=make_sweep(subject, said_car(), ["0-mlp", "1-mlp", "0-resid"], home))
