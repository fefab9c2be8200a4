"""Small corpora of random words, swept."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

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
