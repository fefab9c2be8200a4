"""activate: every token's reading, the sink apart."""

from typing import Any

import pytest
import torch

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools.activate import activate
from lamplighter.tools.units import UnitId

TEXT = "World War II began in 1939."


def test_rows_are_what_enters_the_down_projection(llama: Any) -> None:
    ids = llama.encode(TEXT)
    seen: list[torch.Tensor] = []
    module = llama.model.model.layers[1].mlp.down_proj
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    llama.model(input_ids=torch.tensor([ids]))
    handle.remove()
    evidence = activate(llama, UnitId("tiny-llama", "1-mlp", 7), text=TEXT)
    wanted = seen[0][0, :, 7].tolist()
    assert [row["activation"] for row in evidence.rows] == pytest.approx(wanted[1:], abs=1e-12)
    assert [row["position"] for row in evidence.rows] == list(range(1, len(ids)))
    assert "".join(row["token"] for row in evidence.rows) == TEXT
    assert evidence.checks["sink"] == pytest.approx(wanted[0], abs=1e-12)
    assert evidence.checks["peak"] == pytest.approx(max(wanted[1:]), abs=1e-12)
    assert evidence.checks["fired"] == 1


def test_the_sink_never_is_the_peak(llama: Any) -> None:
    for index in range(llama.width("1-mlp")):
        evidence = activate(llama, UnitId("tiny-llama", "1-mlp", index), text=TEXT)
        if evidence.checks["sink"] > evidence.checks["peak"]:
            break
    else:
        pytest.fail("no unit of this model is largest at the sink, so this test shows nothing")
    assert evidence.checks["peak_position"] >= 1
    assert evidence.checks["peak"] == max(row["activation"] for row in evidence.rows)


def test_the_sign_turns_every_reading(tiny: Any) -> None:
    up, down = (activate(tiny, UnitId(tiny.name, "0-mlp", 3, sign), text=TEXT) for sign in (1, -1))
    assert [-row["activation"] for row in up.rows] == [row["activation"] for row in down.rows]
    assert down.sign == -1
    assert down.unit == up.unit == f"{tiny.name}/0-mlp/3"


def test_ids_and_text_read_alike_and_the_record_comes_back(llama: Any) -> None:
    unit = UnitId("tiny-llama", "0-mlp", 5)
    by_text, by_ids = activate(llama, unit, text=TEXT), activate(llama, unit, ids=llama.encode(TEXT))
    assert by_text.rows == by_ids.rows
    assert by_ids.arguments == {"text": None, "ids": llama.encode(TEXT)}
    assert Evidence.from_json(by_text.to_json()) == by_text


@pytest.mark.parametrize(
    ("unit", "given", "words"),
    [
        ("1-mlp/40", {"text": TEXT}, "out of range"),
        ("1-mlp/4", {"text": "  "}, "empty"),
        ("1-mlp/4", {}, "either text or ids"),
        ("1-mlp/4", {"text": "a " * 200}, "shorten"),
        ("1-attn/1", {"text": TEXT}, "head"),
    ],
)
def test_refusals(llama: Any, unit: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        activate(llama, UnitId.parse(f"tiny-llama/{unit}"), **given)
