"""Adapters: a layout is believed only where its identities hold."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamplighter.store.records import Refused
from lamplighter.tools.adapters import LAYOUTS, MISS, Adapter, Layout, find_adapter, gap, identities, unembed, unwrap
from lamplighter.tools.subject import TOLERANCE

EXACT = 1e-6   # RMSNorm computes in float32 even inside a float64 model
IDS = torch.randint(320, (2, 10), generator=torch.Generator().manual_seed(1))
# For each shape, rows that name the wrong module, with the identity each of them breaks.
WRONG = {
    "llama": [
        ({"neurons": "mlp.gate_proj"}, "neurons"),
        ({"heads": "self_attn.q_proj"}, "heads"),
        ({"norm": "model.layers.1.input_layernorm"}, "unembed"),
        ({"mlp_norm": "input_layernorm"}, "normed"),
    ],
    "gemma2": [
        ({"attention_write": "self_attn", "mlp_write": "mlp"}, "stream"),
        ({"mlp_norm": "post_attention_layernorm"}, "normed"),
    ],
    "gpt2": [({"neurons": "mlp.c_fc"}, "neurons"), ({"mlp_write": "attn"}, "stream")],
    "gpt_neox": [({"attention_write": "mlp"}, "stream"), ({"neurons": "mlp.dense_h_to_4h"}, "neurons")],
}


def errors(model: Any, layout: Layout) -> dict[str, float | None]:
    return identities(Adapter(model, layout), IDS)


def test_every_shape_holds_its_identities(tiny: Any) -> None:
    held = {"stream", "heads", "neurons", "unembed", "restore", "share", "resume", "normed"}
    assert set(tiny.checks) == held | {"groups"}
    for name in held:
        assert tiny.checks[name] < EXACT, name
    assert all(tiny.holds(need) for need in ("read", "edit", "project")) and tiny.shares


def test_groups_are_checked_where_values_have_a_projection_of_their_own(tiny: Any) -> None:
    assert tiny.checks["groups"] == (0.0 if tiny.config.model_type in ("llama", "gemma2") else None)


def test_a_row_with_a_wrong_module_fails_the_identity_it_breaks(tiny: Any) -> None:
    kind = tiny.config.model_type
    right = errors(tiny.model, LAYOUTS[kind])
    for change, broken in WRONG[kind]:
        found = errors(tiny.model, replace(LAYOUTS[kind], **change))
        assert found[broken] > 0.05 > EXACT > right[broken], change  # type: ignore[operator]


def test_a_wrong_row_offers_no_tool_that_rests_on_it(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "checks", {**tiny.checks, "stream": 0.3})
    assert tiny.holds("read") and not tiny.holds("edit") and not tiny.holds("project")
    monkeypatch.setattr(tiny, "checks", {**tiny.checks, "neurons": None})
    assert not tiny.holds("read")


def test_query_heads_that_follow_the_wrong_value_head_are_counted(llama: Any) -> None:
    model = copy.deepcopy(llama.model)
    assert errors(model, LAYOUTS["llama"])["groups"] == 0
    output = model.model.layers[0].self_attn.o_proj
    output.register_forward_pre_hook(lambda _, inputs: (inputs[0].roll(6, dims=-1),))   # each head one place on
    assert errors(model, LAYOUTS["llama"])["groups"] == 2   # heads 0 and 2 react the wrong way


def test_an_architecture_without_a_row_gets_the_row_that_its_weights_prove(tiny: Any) -> None:
    model = copy.deepcopy(tiny.model)
    model.config.model_type = "mystery"
    adapter, found = find_adapter(model, IDS)
    assert adapter.layout == LAYOUTS[tiny.config.model_type]
    assert found["stream"] < EXACT and found["neurons"] < EXACT  # type: ignore[operator]


def test_an_architecture_that_no_row_fits_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.config = type("Config", (), {"model_type": "perceptron"})()  # type: ignore[assignment]
    with pytest.raises(Refused, match="'perceptron' has no known place for its neurons; known: gpt2, llama"):
        find_adapter(model, IDS)


def test_the_final_norm_is_probed_whatever_way_its_gain_is_stored(tiny: Any) -> None:
    kind, norm = tiny.config.model_type, tiny.adapter.norm
    gain, centres = tiny.adapter.final_norm()
    stored = 1 + norm.weight if kind == "gemma2" else norm.weight
    # For x = (1, -1, ...) the norm divides by sqrt(1 + eps).
    assert torch.allclose(gain, stored, rtol=1e-4)
    assert centres == (kind in ("gpt2", "gpt_neox"))
    x = torch.randn(24, dtype=gain.dtype)
    inner = x - x.mean() if centres else x
    bias = getattr(norm, "bias", None)
    wanted = inner / inner.square().mean().sqrt() * gain + (0 if bias is None else bias)
    assert gap(norm(x[None, None])[0, 0], wanted) < 1e-4


def test_only_gemma_puts_a_norm_between_mlp_and_stream(tiny: Any) -> None:
    between = tiny.adapter.write_norm(1)
    if tiny.config.model_type != "gemma2":
        assert between is None
        return
    gain, centres = between
    assert not centres
    weight = tiny.model.model.layers[1].post_feedforward_layernorm.weight
    assert torch.allclose(gain, 1 + weight, rtol=1e-4)
    assert not torch.allclose(gain, weight, rtol=1e-1)   # forgetting the 1 would show


def test_a_down_projection_reads_in_by_out_in_every_shape(tiny: Any) -> None:
    for layer in range(tiny.n_layers):
        weight, _ = tiny.adapter.linear(layer, "neurons")
        assert weight.shape == (40, 24)
        x = torch.randn(3, 40, dtype=weight.dtype)
        module = tiny.adapter.module(layer, "neurons")
        bias = module.bias if getattr(module, "bias", None) is not None else 0
        assert gap(x @ weight + bias, module(x)) < 1e-12


def test_unembedding_caps_where_the_model_caps(tiny: Any) -> None:
    normed = 40 * torch.randn(2, 24, dtype=tiny.dtype)
    raw = tiny.model.get_output_embeddings()(normed)
    logits = unembed(tiny.model, normed)
    if tiny.config.model_type == "gemma2":
        assert raw.abs().max() > 30 > logits.abs().max()   # leaving the cap out would show
    else:
        assert torch.equal(raw, logits)


def test_a_block_returns_a_bare_tensor_whose_first_row_is_not_the_stream(tiny: Any) -> None:
    """`output[0]` on it takes batch row 0, and `if not isinstance(output, tuple): return` never edits anything."""
    seen: list[Any] = []
    handle = tiny.adapter.blocks[0].register_forward_hook(lambda _, __, output: seen.append(output))
    tiny.model(input_ids=IDS)
    handle.remove()
    assert isinstance(seen[0], Tensor)
    assert unwrap(seen[0]).shape == (2, 10, 24) and seen[0][0].shape == (10, 24)
    assert unwrap((seen[0], None)) is seen[0]


def test_identities_hold_in_lower_precision_within_the_tolerance_of_the_dtype(tiny: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(tiny.model).to(dtype)
        _, found = find_adapter(model, IDS)
        assert all(e <= TOLERANCE[dtype] for e in found.values() if e is not None), found
    assert found["stream"] > TOLERANCE[torch.float32]  # type: ignore[operator]  # bfloat16 needs its own tolerance


@pytest.mark.parametrize(
    ("found", "wanted", "result"), [([0.0, 0], [0.0, 0], 0), ([1.0, 3], [1.0, 4], 0.25), ([0.5, 0], [0.0, 0], 0.5)]
)
def test_gap_is_relative_to_the_largest_wanted_value(found: list[float], wanted: list[float], result: float) -> None:
    assert gap(torch.tensor(found), torch.tensor(wanted)) == result


def test_gap_calls_other_shapes_a_miss_that_every_tolerance_refuses() -> None:
    assert gap(torch.zeros(2, 3), torch.zeros(2, 1)) == MISS > max(TOLERANCE.values())


def test_zero_weights_are_no_failure(llama: Any) -> None:
    model = copy.deepcopy(llama.model)
    model.model.layers[1].mlp.down_proj.weight.zero_()
    assert max(e for e in errors(model, LAYOUTS["llama"]).values() if e is not None) < EXACT
