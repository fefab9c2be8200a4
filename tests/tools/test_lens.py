"""lens: planted writes are read back in every shape, chance is called chance, and forgetting a gain shows."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools.adapters import gap
from lamplighter.tools.lens import lens, paths, project
from lamplighter.tools.subject import Subject
from lamplighter.tools.units import UnitId

CLOSE = 1e-6   # RMSNorm computes in float32 even inside a float64 model
UNIT = UnitId("planted", "1-mlp", 4)
TOKENS = (7, 45, 130, 201, 288, 311)


def plant(tiny: Any, write: Tensor, unit: UnitId = UNIT) -> Subject:
    """A copy whose neuron writes `write` [d] into what its MLP puts out."""
    model = copy.deepcopy(tiny.model)
    subject = Subject.wrap(model, tiny.tokenizer, "planted")
    subject.adapter.linear(unit.layer, "neurons")[0][unit.index] = write   # a view of the weight
    return subject


def between(tiny: Any) -> Tensor | float:
    """Gain of the norm between MLP and stream, by the shape's own definition."""
    if tiny.config.model_type != "gemma2":
        return 1.0
    return 1 + tiny.model.model.layers[1].post_feedforward_layernorm.weight


def gain(tiny: Any) -> Tensor:
    weight: Tensor = tiny.adapter.norm.weight
    return 1 + weight if tiny.config.model_type == "gemma2" else weight


def head(tiny: Any) -> Tensor:
    weight: Tensor = tiny.model.get_output_embeddings().weight
    return weight


# Planted writes


def test_a_planted_write_lists_its_token_first_in_every_shape(tiny: Any) -> None:
    for token in TOKENS:
        subject = plant(tiny, 3 * head(tiny)[token] / (gain(tiny) * between(tiny)))
        rows = lens(subject, UNIT).rows
        assert [r["side"] for r in rows] == ["top"] * 10 + ["bottom"] * 10
        assert rows[0]["id"] == token and rows[0]["rank"] == 1 and rows[0]["token"] == subject.piece(token)
        assert rows[0]["z"] > 0 > rows[10]["z"] and rows[0]["score"] > 0 > rows[10]["score"]


def test_the_other_sign_lists_it_last(tiny: Any) -> None:
    subject = plant(tiny, head(tiny)[45] / (gain(tiny) * between(tiny)))
    up, down = lens(subject, UNIT), lens(subject, UnitId("planted", "1-mlp", 4, sign=-1))
    assert down.rows[10]["id"] == 45 and down.sign == -1
    assert [r["id"] for r in up.rows[:10]] == [r["id"] for r in down.rows[10:]]
    assert down.rows[10]["score"] == pytest.approx(-up.rows[0]["score"], abs=CLOSE)


def test_forgetting_gain_or_centring_is_wrong(tiny: Any) -> None:
    """The naive lens, W_U w, names the token that is written loudly where the norm hardly listens."""
    kind = tiny.config.model_type
    open_ = torch.arange(24) % 2 == 0
    scale = torch.where(open_, 1.0, 0.02).to(tiny.dtype)
    stretched = copy.deepcopy(tiny.model)
    subject = Subject.wrap(stretched, tiny.tokenizer, "stretched")
    subject.adapter.norm.weight.copy_(scale - 1 if kind == "gemma2" else scale)
    right, naive = 0, 0
    for token in TOKENS:
        write = torch.where(open_, head(tiny)[token], 10 * head(tiny)[token - 1])
        if kind in ("gpt2", "gpt_neox"):
            means = [write[part].mean() for part in (open_, ~open_)]
            write = write - torch.where(open_, *means) + 20   # a constant, which LayerNorm takes away
        planted = plant(subject, write / between(tiny))
        right += lens(planted, UNIT).rows[0]["id"] == token
        naive += int((head(tiny) @ write).argmax()) == token
    assert right >= len(TOKENS) - 1 and naive == 0


def test_gemma_adds_one_to_its_gains(tiny: Any) -> None:
    if tiny.config.model_type != "gemma2":
        return
    for name in ("final", "between"):
        model = copy.deepcopy(tiny.model)
        norm = model.model.norm if name == "final" else model.model.layers[1].post_feedforward_layernorm
        norm.weight.zero_()   # a gain of 1; whoever leaves out the 1 sees nothing pass
        subject = Subject.wrap(model, tiny.tokenizer, "planted")
        final = gain(subject)
        middle = 1 + model.model.layers[1].post_feedforward_layernorm.weight
        planted = plant(subject, head(tiny)[45] / (final * middle))
        row = lens(planted, UNIT).rows[0]
        assert row["id"] == 45 and row["score"] > 0


# Against arithmetic


def test_scores_are_the_change_of_the_centred_logits(tiny: Any) -> None:
    """What the norms divide by is frozen by writing along a stream that hardly changes: a derivative."""
    subject = Subject.wrap(copy.deepcopy(tiny.model), tiny.tokenizer, "planted")
    ids = torch.tensor([[0, 11, 21, 31]])
    seen: dict[str, Tensor] = {}
    norm = subject.adapter.norm
    handle = norm.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    subject.run(ids, normed=True)
    handle.remove()
    write = subject.write_direction(UNIT)
    score, _, _ = project(subject, UNIT, write, torch.ones(1, 24, dtype=torch.float64))
    stream = between(tiny) * write
    x = seen["x"][0, -1]
    centres = tiny.config.model_type in ("gpt2", "gpt_neox")
    inner = x - x.mean() if centres else x
    divisor = (inner.square().mean() + 1e-6).sqrt()
    # d(norm)/dx along a direction without a part along x itself is gain × direction / divisor.
    step = stream - stream.mean() if centres else stream
    logits = head(tiny) @ (gain(tiny) * step / divisor)
    assert gap(score / divisor, logits - logits.mean()) < 1e-4


def test_z_is_the_score_over_its_spread_among_random_directions(tiny: Any) -> None:
    write = tiny.write_direction(UNIT)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(4000, 24, generator=generator, dtype=torch.float64)
    score, z, largest = project(tiny, UNIT, write, random)
    rows = torch.cat(list(paths(tiny, UNIT, torch.float64)))
    drawn = rows @ (random / random.norm(dim=1, keepdim=True) * write.norm()).T
    assert gap(score / z, drawn.std(dim=1)) < 0.06
    assert torch.allclose(largest, (drawn / (score / z)[:, None]).abs().amax(dim=0))
    assert gap(score, rows @ write) < 1e-12 and abs(float(score.mean())) < 1e-9


def test_chunks_of_the_vocabulary_make_no_difference(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lens(tiny, UNIT)
    monkeypatch.setattr("lamplighter.tools.lens.VOCABULARY_CHUNK", 37)
    pieces = lens(tiny, UNIT)
    assert [r["id"] for r in pieces.rows] == [r["id"] for r in whole.rows]
    assert pieces.checks["null_z"] == pytest.approx(whole.checks["null_z"])


# Chance


def test_random_directions_rarely_have_a_token_beyond_chance(tiny: Any) -> None:
    """By its definition in 5 % of the cases; with 60 directions, more than 9 have a chance of 2 in 1,000."""
    generator = torch.Generator().manual_seed(5)
    beyond = 0
    for _ in range(60):
        subject = plant_in_place(tiny, torch.randn(24, generator=generator, dtype=torch.float64))
        evidence = lens(subject, UNIT)
        beyond += any(row["beyond"] for row in evidence.rows)
    assert beyond <= 9


def plant_in_place(tiny: Any, write: Tensor) -> Subject:
    subject = getattr(plant_in_place, tiny.name, None) or plant(tiny, write)
    setattr(plant_in_place, tiny.name, subject)
    subject.adapter.linear(1, "neurons")[0][4] = write
    return subject


def test_a_token_beyond_chance_is_counted_and_named(llama: Any) -> None:
    row = torch.cat(list(paths(llama, UNIT, torch.float64)))[45]
    evidence = lens(plant(llama, row), UNIT)
    limit = evidence.checks["null_z"]
    assert evidence.rows[0]["id"] == 45 and evidence.rows[0]["beyond"]
    assert evidence.rows[0]["z"] == pytest.approx(math.sqrt(24))   # no direction can do more
    assert evidence.checks["beyond_top"] == sum(r["beyond"] for r in evidence.rows[:10]) >= 1
    assert all(r["beyond"] == (abs(r["z"]) > limit) for r in evidence.rows)
    assert f"raises {llama.piece(45)!r}" in evidence.summary and len(evidence.summary.split()) <= 60


def test_tokens_with_large_rows_do_not_lead_every_list(llama: Any) -> None:
    """Ranked by the raw score, one row of ten times the length comes first or last for most units."""
    model = copy.deepcopy(llama.model)
    model.lm_head.weight[200] *= 10
    subject = Subject.wrap(model, llama.tokenizer, "loud")
    raw, ranked = 0, 0
    for index in range(40):
        unit = UnitId("loud", "1-mlp", index)
        score, z, _ = project(subject, unit, subject.write_direction(unit), torch.ones(1, 24, dtype=torch.float64))
        raw += 200 in (int(score.argmax()), int(score.argmin()))
        ranked += 200 in (int(z.argmax()), int(z.argmin()))
    assert raw > 20 and ranked < 5


# Units, warnings, refusals


def test_a_stream_dimension_writes_its_basis_direction_past_no_inner_norm(tiny: Any) -> None:
    unit = UnitId("t", "0-resid", 3, sign=-1)
    write = tiny.write_direction(unit)
    assert write.tolist() == [-1.0 if i == 3 else 0.0 for i in range(24)]
    score, _, _ = project(tiny, unit, write, torch.ones(1, 24, dtype=torch.float64))
    centres = tiny.config.model_type in ("gpt2", "gpt_neox")
    logits = head(tiny) @ (gain(tiny) * (write - write.mean() if centres else write))
    assert gap(score, logits - logits.mean()) < 1e-4


def test_warnings_say_what_the_direct_path_leaves_out(tiny: Any) -> None:
    early, late = lens(tiny, UnitId("t", "0-mlp", 4)), lens(tiny, UNIT)
    assert any("direct path only: 1 of 2 blocks come after layer 0" in warning for warning in early.warnings)
    assert (early.checks["blocks_behind"], late.checks["blocks_behind"]) == (1, 0)
    assert not any("direct path" in warning for warning in late.warnings)
    capped = any("capped at ±30 by tanh" in warning for warning in late.warnings)
    assert capped == (tiny.config.model_type == "gemma2")


def test_a_unit_that_writes_nothing_lists_nothing_beyond(llama: Any) -> None:
    evidence = lens(plant(llama, torch.zeros(24, dtype=torch.float64)), UNIT)
    assert all(row["z"] == row["score"] == 0 and not row["beyond"] for row in evidence.rows)
    assert evidence.checks["write_norm"] == 0 and "no token beyond chance" in evidence.summary


def test_evidence_is_seeded_and_costs_no_pass(llama: Any) -> None:
    one, same, other = (lens(llama, UNIT, top=3, directions=50, seed=s) for s in (0, 0, 1))
    assert one.rows == same.rows and one.checks == same.checks
    assert one.checks["null_z"] != other.checks["null_z"] and len(one.rows) == 6
    assert one.cost["forward_rows"] == 0 and one.checks["fired"] is None
    assert one.arguments == {"top": 3, "directions": 50, "seed": 0}
    assert Evidence.from_json(one.to_json()) == one


def test_bfloat16_ranks_as_float32_does(llama: Any) -> None:
    row = torch.cat(list(paths(llama, UNIT, torch.float64)))[45]
    model = copy.deepcopy(plant(llama, row).model).bfloat16()
    evidence = lens(Subject.wrap(model, llama.tokenizer, "lower"), UNIT)
    assert evidence.rows[0]["id"] == 45 and evidence.rows[0]["z"] == pytest.approx(math.sqrt(24), rel=0.02)


@pytest.mark.parametrize(
    ("unit", "options", "said"),
    [
        ("t/1-attn/2", {}, "1-attn/2 has no single write direction"),
        ("t/1-mlp/40", {}, "has units 0 to 39"),
        ("t/1-resid/24", {}, "has units 0 to 23"),
        ("t/1-mlp/4", {"top": 0}, "top = 0 and directions = 200 must both be at least 1"),
        ("t/1-mlp/4", {"directions": 0}, "must both be at least 1"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(llama: Any, unit: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(Refused, match=said):
        lens(llama, UnitId.parse(unit), **options)
