"""What units write, for units that write alike, and sentences embedded in batches."""

from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.agent import find
from lamplighter.agent.find import embed_sentences, write_directions
from lamplighter.store.records import Embedding, Refused
from lamplighter.store.work import Busy
from lamplighter.tools.adapters import unwrap


def moved(subject: Any, unit: int) -> Any:
    """By how much the stream moves when of all neurons of 0-mlp this one alone is active."""
    seen: list[torch.Tensor] = []

    def write(value: float) -> torch.Tensor:
        def alone(_: Any, inputs: Any) -> Any:
            made = torch.zeros_like(inputs[0])
            made[..., unit] = value
            return (made,)

        handles = [
            subject.adapter.module(0, "neurons").register_forward_pre_hook(alone),
            subject.adapter.module(0, "mlp_write").register_forward_hook(lambda _, __, out: seen.append(unwrap(out))),
        ]
        with torch.inference_mode():
            subject.model(input_ids=torch.tensor([subject.encode("the red cars")]), use_cache=False)
        for handle in handles:
            handle.remove()
        return seen[-1][0, -1]

    return (write(5.0) - write(0.0)).numpy()


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_directions_are_what_reaches_the_stream(tiny: Any) -> None:
    rows = write_directions(tiny)("0-mlp")
    assert rows is not None and rows.shape == (40, 24)
    for unit in (3, 17):
        assert cosine(moved(tiny, unit), rows[unit]) == pytest.approx(1.0, abs=1e-6)


def test_the_norm_behind_a_write_counts(tiny: Any) -> None:
    """Negative control: where there is one, the bare rows point elsewhere."""
    bare = tiny.write_rows("0-mlp").numpy()
    off = abs(cosine(moved(tiny, 3), bare[3]) - 1) > 1e-3
    assert off == (tiny.norm_behind("0-mlp") is not None) == (tiny.name == "tiny-gemma2")


def test_sites_without_directions(llama: Any) -> None:
    rows = write_directions(llama)
    assert rows("0-attn") is None and rows("0-resid:nowhere") is None
    stream = rows("1-resid")
    assert stream is not None and np.array_equal(stream, np.eye(24))
    with pytest.raises(Refused):
        rows("nonsense")


def test_sentences_are_embedded_in_batches_and_recorded(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "ASKED", 2)
    asked: list[int] = []

    def embed(texts: list[str]) -> list[list[float]]:
        asked.append(len(texts))
        return [[float(len(text)), 1.0] for text in texts]

    rows = [{"sentence": "s" * i, "hypothesis": f"h{i}", "run": "r", "investigation": "i", "unit": "u", "sign": 1}
            for i in range(5)]  # fmt: skip
    embed_sentences(copied, rows, embed)
    assert asked == [2, 2, 1]
    made = {record.hypothesis: record.vector for record in copied.findings.read(Embedding)}
    assert made == {f"h{i}": [float(i), 1.0] for i in range(5)}


def test_findings_that_are_held_delay_embeddings_and_no_search(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "embeds", lambda: True)
    monkeypatch.setattr(find, "load_embedder", lambda: lambda texts: [[1.0, 0.0] for _ in texts])

    def held(*_: Any) -> int:
        raise Busy("it is in use; wait.")

    monkeypatch.setattr(find, "drain", held)
    found = find.find(copied, "cars")
    assert [row["ranks"] for row in found.rows] == [{"meaning": None, "word": 1}]
    assert copied.work.pending() == 3
