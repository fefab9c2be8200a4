"""steer: what is held is what the model feels, nothing where nothing is done, and every way has the same luck."""

from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import steer as module
from lamplighter.tools.steer import steer
from lamplighter.tools.subject import Edit
from lamplighter.tools.units import UnitId

FAST: dict[str, Any] = {"prompts": 9, "tokens": 4}


def pusher(index: int, site: str = "1-mlp", sign: int = 1) -> UnitId:
    return UnitId("planted", site, index, sign)


def go(pushers: Any, unit: UnitId, **options: Any) -> Evidence:
    return steer(pushers.subject, pushers.sweep, unit, **(FAST | options))


def test_a_held_pusher_raises_what_it_writes(pushers: Any) -> None:
    found = go(pushers, pusher(1), strengths=[0, 4])
    none, prompt, off, on = found.rows
    car = pushers.subject.piece(pushers.subject.encode(" said car")[len(pushers.subject.encode(" said"))])
    assert car in on["raises"] and on["kl"] > 10 * max(off["kl"], 1e-6)
    assert none["kl"] == none["ce_change"] == 0 and none["strength"] is None
    assert prompt["way"] == "prompt" and prompt["kl"] > 0 and found.checks["front"]
    assert found.checks["fired"] == found.checks["positions"] > 0
    assert on["lens_share"] > none["lens_share"] and on["kl_low"] <= on["kl"] <= on["kl_high"]


def test_its_kl_is_that_of_an_edit_by_hand(pushers: Any) -> None:
    subject = pushers.subject
    found = go(pushers, pusher(1), strengths=[3.0])
    starts = module._starts(subject, pushers.sweep, pusher(1), 9, 0)
    where = torch.ones(len(starts), len(starts[0]), dtype=torch.bool)
    where[:, 0] = False
    value = torch.full((1, 1, 1), 3.0 * found.checks["peak"])
    clean, held = (
        subject.run(starts, edits=edits, logits=True).logits[:, -1].log_softmax(-1)
        for edits in ([], [Edit("1-mlp", value, (1,), where)])
    )
    kl = (clean.exp() * (clean - held)).sum(-1)
    assert found.rows[2]["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)


def plain(pushers: Any, unit: UnitId, row: list[int], held: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The library's own logits [T, V] of one row, its neuron held by a plain hook, and y [T] as it stands then."""
    seen: list[torch.Tensor] = []

    def hold(_: Any, inputs: Any) -> Any:
        x = inputs[0].clone()
        if held is not None:
            x[:, 1:, unit.index] = held
        seen.append(unit.sign * x[0, :, unit.index])
        return (x,)

    handle = pushers.subject.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(hold)
    with torch.inference_mode():
        logits = pushers.subject.model(input_ids=torch.tensor([row])).logits[0]
    handle.remove()
    return logits, seen[0]


def by_hand(pushers: Any, unit: UnitId, front: list[int], held: float | None) -> dict[str, Any]:
    """One way to steer, a row at a time: the first text, and means of `ce` and `fires` over the prompts.

    naive_ce, naive_fires: judged while it is still steered, or with the words still in front.
    """
    subject, sweep = pushers.subject, pushers.sweep
    starts = module._starts(subject, sweep, unit, FAST["prompts"], 0)
    u = torch.rand(FAST["tokens"], len(starts), subject.vocabulary, generator=torch.Generator().manual_seed(0))
    gumbel = -torch.log(-torch.log(u.clamp(1e-20, 1 - 1e-7)))
    found: dict[str, list[Any]] = {"text": [], "ce": [], "fires": [], "naive_ce": [], "naive_fires": []}
    for k, start in enumerate(starts):
        before, new = [start[0], *front, *start[1:]], []
        for step in range(FAST["tokens"]):
            new.append(int((plain(pushers, unit, [*before, *new], held)[0][-1] + gumbel[step, k]).argmax()))
        found["text"].append(subject.text(new))
        for kind, given, value in (("", start, None), ("naive_", before, held)):
            logits, y = plain(pushers, unit, [*given, *new], value)
            p = logits[len(given) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(new)[:, None])
            first = 1 if kind else len(given)
            found[f"{kind}ce"].append(float(-p.mean()))
            found[f"{kind}fires"].append(bool((y[first:] >= sweep.statistics(unit).threshold).any()))
    return {"text": found.pop("text")[0]} | {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("unit", [pusher(1), pusher(6, sign=-1)], ids=str)
def test_texts_are_judged_by_the_model_as_it_is_behind_the_bare_prompt(pushers: Any, unit: UnitId) -> None:
    """Brute force. Judged while still steered, what was held fires always and what was pushed for is no surprise."""
    found = go(pushers, unit, strengths=[0.0, 4.0])
    peak = unit.sign * pushers.sweep.statistics(unit).peak
    ways = [([], None), (module._exemplar(pushers.sweep, unit), None), ([], 0.0), ([], 4.0 * peak)]
    wanted = [by_hand(pushers, unit, front, held) for front, held in ways]
    for row, one in zip(found.rows, wanted, strict=True):
        assert row["text"] == one["text"] and row["fires"] == one["fires"]
        assert row["ce"] == pytest.approx(one["ce"], rel=1e-5)
        assert row["ce_change"] == pytest.approx(one["ce"] - wanted[0]["ce"], abs=1e-5)
    _, prompt, _, held = wanted
    assert prompt["naive_fires"] == held["naive_fires"] == 1 > max(prompt["fires"], held["fires"])
    assert held["naive_ce"] < held["ce"] - 0.1


def test_what_writes_nothing_changes_nothing_at_any_strength(pushers: Any) -> None:
    found = go(pushers, pusher(0), strengths=[1, 8])
    none, _, *held = found.rows
    for row in held:
        assert row["kl"] == 0 and row["text"] == none["text"] and row["ce_change"] == 0
        assert row["raises"] == []      # and no token is named where none has moved
    assert any("no strength changed" in w for w in found.warnings)
    with pytest.raises(Refused, match="writes nothing"):
        go(pushers, pusher(0), mode="add")


def test_adding_nothing_is_doing_nothing_and_the_signs_push_apart(pushers: Any) -> None:
    found = go(pushers, pusher(1), mode="add", strengths=[0.0, 1.0, -1.0])
    none, _, zero, up, down = found.rows
    assert zero["kl"] == 0 and zero["text"] == none["text"]
    assert up["raises"] != down["raises"] and min(up["kl"], down["kl"]) > 0


def test_prompts_are_of_different_clusters_and_silent(pushers: Any) -> None:
    subject, sweep = pushers.subject, pushers.sweep
    starts = module._starts(subject, sweep, pusher(1), 12, 0)
    assert len(starts) == 12 and len({tuple(row) for row in starts}) == 12
    y = subject.activations(starts, [pusher(1)])[:, 1:, 0]
    assert (y < sweep.statistics(pusher(1)).threshold).all()
    assert starts != module._starts(subject, sweep, pusher(1), 12, 1)


def test_the_words_of_the_prompting_baseline_can_be_given(pushers: Any) -> None:
    found = go(pushers, pusher(1), strengths=[1], prompt="He said: ")
    assert found.checks["front"] == "He said: "


@pytest.mark.parametrize(
    ("options", "said"),
    [({"mode": "push"}, "mode 'push' is unknown"), ({"strengths": []}, "none to steer with"),
     ({"strengths": [float("nan")]}, "none to steer with"), ({"prompts": 1}, "at least 2 and 1")],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(pushers: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        go(pushers, pusher(1), **options)
    with pytest.raises(Refused, match="is a head"):
        go(pushers, pusher(1, "1-attn"))


def test_lower_precision_is_steered_alike(pushers: Any, lowered: Any) -> None:
    exact = go(pushers, pusher(1), strengths=[0, 4])
    lower = steer(lowered(pushers.subject), pushers.sweep, pusher(1), strengths=[0, 4], **FAST)
    for row, other in zip(exact.rows, lower.rows, strict=True):
        assert other["kl"] == pytest.approx(row["kl"], rel=lowered.near, abs=0.05 * lowered.near)
    assert lower.rows[-1]["raises"][0] == exact.rows[-1]["raises"][0]


def test_a_write_is_added_as_the_stream_receives_it(tiny: Any) -> None:
    """Behind Gemma's norm the neuron's row comes with that norm's gain; elsewhere as it is."""
    unit = UnitId(tiny.name, "0-mlp", 3)
    edit = module._edit(tiny, None, unit, "add", 0.5)(None)  # type: ignore[arg-type]  # neither is asked for
    x = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = (edit.value(x) - x) / x.norm(dim=-1, keepdim=True)  # type: ignore[operator]
    row = tiny.adapter.linear(0, "neurons")[0][3]
    if tiny.config.model_type == "gemma2":
        naive = row / row.norm()
        row = row * (1 + tiny.model.model.layers[0].post_feedforward_layernorm.weight)
        assert (naive - row / row.norm()).norm() > 1e-3
    assert torch.allclose(moved, (0.5 * row / row.norm()).expand_as(moved), atol=1e-9)
