"""attribute: contributions add up to the logit difference, part by part and unit by unit."""

import copy
from typing import Any

import pytest
import torch

from lamplighter.store.records import Refused
from lamplighter.tools import attribute as module
from lamplighter.tools.attribute import attribute
from lamplighter.tools.features import Point
from lamplighter.tools.subject import Subject
from lamplighter.tools.units import UnitId

TEXT = "World War II began in 1939; the capital"
CLOSE = 1e-5     # RMSNorm computes in float32 even inside a float64 model


def unit_of(subject: Subject, site: str, index: int = 3) -> UnitId:
    return UnitId(subject.name, site, index)


def parts_of(evidence: Any, name: str, layer: int | None) -> float:
    (row,) = [r for r in evidence.rows[1:] if r["part"] == name and r["layer"] == layer]
    return float(row["contribution"])


def test_parts_and_biases_add_up_to_the_difference(tiny: Any) -> None:
    found = attribute(tiny, unit_of(tiny, "1-mlp"), text=TEXT, answer=" of", foil=" is")
    checks = found.checks
    logits = tiny.run([tiny.encode(TEXT)], logits=True).logits[0, -1]
    cap = getattr(tiny.config, "final_logit_softcapping", None)
    logits = cap * torch.atanh(logits / cap) if cap else logits
    a, f = (tiny.encode(words)[1] for words in (" of", " is"))
    assert checks["difference"] == pytest.approx(float(logits[a] - logits[f]), abs=CLOSE)
    assert abs(checks["residue"]) < CLOSE
    assert sum(r["contribution"] for r in found.rows[1:]) == pytest.approx(checks["total"], abs=CLOSE)   # all listed
    assert [r["share"] for r in found.rows] == [r["contribution"] / checks["difference"] for r in found.rows]


def test_a_scale_computed_anew_for_each_part_does_not_add_up(tiny: Any) -> None:
    """What is left if a part is taken away, with the norm run again: the parts then miss or exceed the difference."""
    row = tiny.encode(TEXT)
    points = [Point(layer, place) for layer in range(2) for place in ("attn_out", "mlp_out")]
    top, first = Point(1, "resid"), Point(0, "resid")
    done = tiny.run([row], read=[*points, top, first], normed=True)
    x = done.readings[top][0, -1]
    head = tiny.model.get_output_embeddings().weight
    target = head[5] - head[9]
    at = {p: done.readings[p][0, -1] for p in (*points, first)}
    writes = [*(at[p] for p in points), at[first] - at[points[0]] - at[points[1]]]

    def read(stream: Any) -> float:
        with torch.inference_mode():
            return float(tiny.adapter.norm(stream[None, None])[0, 0] @ target)

    lost = sum(read(x) - read(x - write) for write in writes)
    whole = read(x) - read(torch.zeros_like(x))
    assert abs(lost - whole) > 0.05 * abs(whole)


@pytest.mark.parametrize("site", ["0-mlp", "1-mlp", "0-attn", "1-attn"])
def test_units_of_a_site_add_up_to_their_part(tiny: Any, site: str) -> None:
    """With the bias of the projection, which no unit writes, and the norm behind it frozen."""
    layer, name = int(site[0]), {"mlp": "MLP", "attn": "attention"}[site[2:]]
    units = [unit_of(tiny, site, i) for i in range(tiny.count(site))]
    singles = [attribute(tiny, unit, text=TEXT, answer=" of", foil=" is") for unit in units]
    whole = parts_of(singles[0], name, layer)
    _, bias = tiny.adapter.linear(layer, {"mlp": "neurons", "attn": "heads"}[site[2:]])
    if bias is not None:
        assert bias.abs().sum() > 0
        x = tiny.run([tiny.encode(TEXT)], read=[Point(1, "resid")]).readings[Point(1, "resid")][0, -1].double()
        gain, centres = tiny.adapter.final_norm()
        scale = module.norm_scale(tiny.adapter.norm, x, gain, centres)
        a, f = (tiny.encode(words)[1] for words in (" of", " is"))
        head = tiny.model.get_output_embeddings().weight.double()
        centred = bias - bias.mean() if centres else bias
        whole -= float((centred * gain / scale) @ (head[a] - head[f]))
    assert sum(e.rows[0]["contribution"] for e in singles) == pytest.approx(whole, abs=CLOSE)


def test_a_stream_dimension_is_read_where_it_stands(tiny: Any) -> None:
    found = [attribute(tiny, unit_of(tiny, "1-resid", i), text=TEXT, answer=" of", foil=" is") for i in range(24)]
    biases = parts_of(found[0], "biases", None)
    total = sum(e.rows[0]["contribution"] for e in found) + biases
    assert total == pytest.approx(found[0].checks["difference"], abs=CLOSE)


def test_a_unit_that_writes_nothing_adds_nothing(llama: Any) -> None:
    model = copy.deepcopy(llama.model)
    model.model.layers[1].mlp.down_proj.weight[:, 3] = 0
    subject = Subject.wrap(model, llama.tokenizer, "mute")
    found = attribute(subject, unit_of(subject, "1-mlp"), text=TEXT)
    assert found.rows[0]["contribution"] == 0
    assert found.checks["larger"] == 39
    assert found.checks["answer"] != found.checks["foil"]


def test_early_layers_say_direct_path_only(llama: Any) -> None:
    assert any("direct path only" in w for w in attribute(llama, unit_of(llama, "0-mlp"), text=TEXT).warnings)
    assert not attribute(llama, unit_of(llama, "1-mlp"), text=TEXT).warnings


def test_answers_that_begin_alike_are_refused_with_their_tokens(llama: Any) -> None:
    shared = llama.piece(llama.encode(" regiment")[1])
    with pytest.raises(Refused, match="begin with the same token") as refused:
        attribute(llama, unit_of(llama, "1-mlp"), text=TEXT, answer=" regiment", foil=shared)
    assert repr(shared) in str(refused.value)
    with pytest.raises(Refused, match="the foil is empty"):
        attribute(llama, unit_of(llama, "1-mlp"), text=TEXT, answer=" of", foil="")


@pytest.mark.parametrize("site", ["0-mlp", "1-attn", "0-resid"])
def test_lower_precision_splits_alike(tiny: Any, lowered: Any, site: str) -> None:
    asked = {"text": TEXT, "answer": " of", "foil": " is"}
    exact = attribute(tiny, unit_of(tiny, site, 1), **asked)
    lower = attribute(lowered(tiny), unit_of(tiny, site, 1), **asked)
    size = max(abs(row["contribution"]) for row in exact.rows)
    assert lower.rows[0]["contribution"] == pytest.approx(exact.rows[0]["contribution"], abs=lowered.near * size)
    assert lower.checks["residue"] == pytest.approx(0, abs=lowered.near * size)
