"""What units write, for units that write alike; sentences embedded in batches; search for processes that go on."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.agent import find
from lamplighter.agent.find import Finder, embed_sentences, write_directions
from lamplighter.agent.live import Live
from lamplighter.store.records import Busy, Embedding, Refused
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


# For processes that go on


def test_units_that_write_alike_by_a_subject_that_is_loaded_once(
    copied: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    toolbox = type(copied).toolbox
    monkeypatch.setattr(type(copied), "toolbox", lambda self, *given: loaded.append(given[0]) or toolbox(self, *given))
    live = Live(copied)
    like = f"{project.model}/0-mlp/0"
    found = Finder(copied, live.directions).find(None, like=like, by="direction")
    written = write_directions(toolbox(copied, project.model).subject)("0-mlp")
    assert written is not None and len(found.rows) >= 2
    for row in found.rows:
        other = written[int(row["unit"].rsplit("/")[-1])] * row["sign"]
        assert row["score"] == pytest.approx(cosine(written[0], other), abs=1e-5)
        assert row["why"].endswith(f"by direction (cosine {row['score']:.2f})")
    assert found.by == "direction" and like not in [row["unit"] for row in found.rows if row["sign"] == 1]
    told = live.read(like, "red cars")
    assert len(told["rows"]) >= 2 and told["scale"]["peak"] > 0
    assert loaded == [project.model]


def test_nobody_has_a_model_loaded_for_nothing(copied: Any, project: Any) -> None:
    def never(unit: str) -> Any:
        pytest.fail(f"the model of {unit} was loaded")

    with pytest.raises(Refused, match="no explanation is of the model 'somebody/else'; there are some of"):
        Finder(copied, never).find(None, like="somebody/else/0-mlp/0", by="direction")
    with pytest.raises(Refused, match="`lamplighter serve --live` loads it"):
        Finder(copied).find(None, like=f"{project.model}/0-mlp/0", by="direction")


def test_the_embedder_is_loaded_ahead_once_and_only_where_it_is(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []

    def load() -> Any:
        loaded.append(1)
        return lambda texts: [[1.0, 0.0] for _ in texts]

    monkeypatch.setattr(find, "load_embedder", load)
    finder = Finder(copied)
    finder.warm()
    assert not [thread for thread in threading.enumerate() if thread.name == "embedder"], "it was not pulled"
    monkeypatch.setattr(find, "embeds", lambda: True)
    finder.warm()
    for thread in threading.enumerate():
        if thread.name == "embedder":
            thread.join(20)
    finder.warm()
    assert finder.embed(["a"]) == [[1.0, 0.0]] and loaded == [1]


def test_pages_search_as_the_finder_does(copied: Any, project: Any) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="fastapi is not installed")
    pytest.importorskip("multipart", reason="python-multipart is not installed")
    from lamplighter.store.guard import open_doors
    from lamplighter.store.server import create_app, services

    live = Live(copied)
    finder = Finder(copied, live.directions)
    given = services(copied.snapshots, copied.index, copied.pictures, finder.find, finder.warm, live.read)
    doors = open_doors(copied.path, "127.0.0.1", 8600, [], "me")
    heads = {"authorization": f"Bearer {doors.tokens['me']}"}
    client = testclient.TestClient(create_app(given, doors), base_url="http://127.0.0.1:8600", headers=heads)
    word = client.get("/api/v1/search", params={"q": "cars"}).json()
    assert word["by"] == "word" and "as minilm is not in the cache" in word["notes"][0]
    assert word["rows"][0]["why"] == "1st by word (cars)"
    page = client.get("/search", params={"q": "cars"}).text
    assert "1st by word (cars)" in page and "Found by word alone, as minilm is not in the cache" in page
    like = {"like": f"{project.model}/0-mlp/0", "by": "direction"}
    alike = client.get("/api/v1/search", params=like).json()
    assert [row["unit"] for row in alike["rows"]] == [row["unit"] for row in finder.find(None, **like).rows]
    assert "1st by direction (cosine" in client.get("/search", params=like).text
    other = client.get("/search", params=like | {"like": "somebody/else/0-mlp/0"})
    assert other.status_code == 400 and "no explanation is of the model" in other.text
    tried = client.post("/try", data={"unit": "somebody/else/0-mlp/0", "text": "a"})
    assert tried.status_code == 404 and "nothing is recorded of the model" in tried.text
