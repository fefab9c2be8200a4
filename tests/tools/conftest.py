"""Small corpora of random words, swept; subjects in lower precision and on other devices."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Lowered:
    """Puts subjects into one precision on one device; `near`: how far its numbers may then be from float64 ones."""

    device: str
    dtype: torch.dtype

    @property
    def near(self) -> float:
        return 1e-3 if self.dtype == torch.float32 else 0.1

    def __call__(self, subject: Any) -> Any:
        from lamplighter.tools.subject import Subject

        model = copy.deepcopy(subject.model).to(device=self.device, dtype=self.dtype)
        return Subject.wrap(model, subject.tokenizer, subject.name)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def lowered(request: pytest.FixtureRequest, device: str) -> Lowered:
    return Lowered(device, request.param)
