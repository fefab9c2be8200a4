"""substitute: swaps by position on ids, planted synonyms, numbers by form, and the masked LM's two ways of proposing."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools.prune import filler_pool, make_frame, minimal_example
from lamplighter.tools.substitute import MaskedLM, Spelled, by_form, effect, substitute
from lamplighter.tools.units import UnitId

TEXT = "She said: stop the red cars in 1942."


class Fake:
    """Stands for a masked LM: proposes what it was told to for each word, and notes what it was asked."""

    def __init__(self, proposals: dict[str, Sequence[str]]) -> None:
        self.proposals = proposals
        self.asked: list[tuple[str, str, int, str]] = []

    def choose_mode(self, subject: Any) -> dict[str, Any]:
        return {"mode": "masked"}

    def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
        self.asked.append((text, text[slice(*span)], n, mode))
        return list(self.proposals.get(text[slice(*span)], []))[:n]


def swap(subject: Any, proposals: dict[str, Sequence[str]], unit: UnitId, **options: Any) -> Evidence:
    fake: Any = Fake(proposals)
    return substitute(subject, fake, unit, **options)


@pytest.fixture(scope="module")
def planted(synonyms: Sequence[str] = ("red", "blue", "Paris")) -> Any:
    """A GPT-2 without attention or positions whose neuron 0-mlp/0 fires on the last token of each synonym alone."""
    from lamplighter.tools.subject import Subject

    conftest = pytest.importorskip("conftest")
    model, tokenizer = conftest.tiny_model("gpt2"), conftest.tiny_tokenizer()
    return Subject.wrap(model, tokenizer, "planted")
