"""patch_grid and path_patch: every cell is the patch that it says it is, and the ends are what they must be."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import patch_grid as module
from lamplighter.tools.features import Point
from lamplighter.tools.heatmap import heatmap, visible
from lamplighter.tools.patch import patch_pair
from lamplighter.tools.patch_grid import INFLATED, draw, grid_of, patch_grid
from lamplighter.tools.path_patch import behind, paths_of
from lamplighter.tools.subject import Edit, Subject
from lamplighter.tools.sweep import Sweep
from lamplighter.tools.toolbox import Toolbox
from lamplighter.tools.units import UnitId

CLEAN = [0, 11, 21, 31, 41, 51]
CORRUPT = [0, 11, 21, 99, 41, 51]
KEPT = (3, 5)
# Where a text is given.
SWEEP = SimpleNamespace(model="smollm2-135m", digest="none", facts={"provenance": {"corpus": "none"}})
CLOSE = 1e-6   # RMSNorm computes in float32 even inside a float64 model


@pytest.fixture(autouse=True)
def _always_scorable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models have noisy gaps; what is tested here is not the noise."""
    monkeypatch.setattr("lamplighter.tools.patch.PATCH_NOISE", 0.0)


def grid(subject: Subject, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    asked = {"place": "resid", "direction": "denoise", "norm": "recomputed", **options}
    return grid_of(subject, UnitId(subject.name, "0-mlp", 7), CLEAN, CORRUPT, KEPT, seed=0, **asked)


def logits(subject: Subject, row: list[int], edits: list[Edit]) -> torch.Tensor:
    found = subject.run([row], edits=edits, logits=True).logits
    assert found is not None
    return found[0, -1].double()


def ends(subject: Subject) -> tuple[int, int]:
    rise = logits(subject, CLEAN, []) - logits(subject, CORRUPT, [])
    return int(rise.argmax()), int(rise.argmin())


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("place", ["resid", "attention", "mlp"])
def test_each_cell_is_that_one_patch(tiny: Any, place: str, direction: str) -> None:
    """Beside a pass of its own for each, from the definition."""
    base, source = (CORRUPT, CLEAN) if direction == "denoise" else (CLEAN, CORRUPT)
    plus, minus = ends(tiny)
    low, high = (float((x := logits(tiny, row, []))[plus] - x[minus]) for row in (base, source))
    rows, checks = grid(tiny, place=place, direction=direction)
    assert checks["positions"] == [3, 4, 5] and checks["fired"] == checks["edits"] == len(rows) == 6
    for row in rows:
        point = Point(row["layer"], module.PLACES[place])
        values = tiny.run([source], read=[point]).readings[point]
        where = torch.tensor([[i == row["position"] for i in range(6)]])
        x = logits(tiny, base, [Edit(point, values, where=where)])
        assert row["metric"] == pytest.approx(float(x[plus] - x[minus]), abs=CLOSE)
        assert row["carried"] == pytest.approx((row["metric"] - low) / (high - low), abs=CLOSE)
        assert checks["grid"][row["layer"]][row["position"] - 3] == row["carried"]


@pytest.mark.parametrize("norm", ["recomputed", "frozen"])
def test_the_last_stream_at_the_last_position_carries_all_and_before_it_nothing(tiny: Any, norm: str) -> None:
    _, checks = grid(tiny, norm=norm)
    assert checks["grid"][1] == pytest.approx([0, 0, 1], abs=CLOSE)


def test_a_frozen_norm_makes_m_linear_in_the_last_stream_and_a_recomputed_one_does_not(llama: Any) -> None:
    top = Point(1, "resid")
    done = llama.run([CORRUPT, CLEAN], read=[top], normed=True)
    (base, clean), normed = done.readings[top][:, -1].double(), done.normed[:, -1]
    plus, minus = ends(llama)

    def bend(norm: str) -> float:
        """How far M halfway lies from the mean of M at both ends."""
        metric = module.Metric(llama, base, normed[0], norm, plus, minus)
        halfway = (base + clean) / 2
        x = torch.stack([base, clean, halfway])
        with torch.inference_mode():
            low, high, middle = metric(x, llama.adapter.norm(x.to(normed.dtype))).tolist()
        return abs(middle - (low + high) / 2)

    assert bend("frozen") < 1e-5 < 1e-3 < bend("recomputed")


def test_unscorable_pairs_have_no_shares_and_no_picture(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamplighter.tools.patch.PATCH_NOISE", 1e9)
    rows, checks = grid(llama)
    assert "below" in checks["reason"] and checks["grid"] is None and {r["carried"] for r in rows} == {None}
    asked = {"direction": "denoise", "place": "resid", "norm": "recomputed"}
    assert draw(Evidence(tool="patch_grid", arguments=asked, summary="", rows=rows, checks=checks)) is None


def test_unknown_options_are_refused(llama: Any) -> None:
    none: Any = SimpleNamespace()
    for options in ({"place": "q"}, {"direction": "both"}, {"norm": "none"}):
        with pytest.raises(Refused, match="is unknown; choose one of"):
            patch_grid(llama, none, none, UnitId(llama.name, "0-mlp", 7), **options)


# The picture


def test_the_picture_is_a_png_that_is_the_same_each_time(llama: Any) -> None:
    rows, checks = grid(llama)
    asked = {"direction": "denoise", "place": "resid", "norm": "recomputed"}
    found = Evidence(tool="patch_grid", arguments=asked, summary="", rows=rows, checks=checks)
    (picture,) = {draw(found) for _ in range(2)}
    assert picture is not None and picture.startswith(b"\x89PNG\r\n")


@given(st.text(max_size=12))
@settings(deadline=None, max_examples=30)
def test_any_token_can_be_a_label(token: str) -> None:
    assert visible(token).strip() and visible(token).isprintable()
    assert heatmap(np.array([[0.5, np.nan]]), ["0"], [token, "$x^$"], token, "share").startswith(b"\x89PNG")


# Paths


def paths(subject: Subject, unit: UnitId, norm: str = "recomputed", direction: str = "denoise") -> Any:
    return paths_of(subject, unit, CLEAN, CORRUPT, KEPT, direction, norm, 0)


@pytest.mark.parametrize("site", ["0-mlp", "0-attn", "0-resid", "1-mlp"])
def test_the_total_is_that_of_patch(tiny: Any, site: str) -> None:
    unit = UnitId(tiny.name, site, 1)
    (total, direct, *through), _ = paths(tiny, unit)
    patched, _ = patch_pair(tiny, unit, CLEAN, CORRUPT, 5, kept=KEPT, fillers=list(range(60, 90)))
    assert total["metric"] == pytest.approx(patched[0]["metric"], abs=CLOSE)
    assert {(r["receiver"], r["layer"]) for r in through} == {
        ({"attn_out": "attention", "mlp_out": "MLP"}[p.place], p.layer) for p in behind(tiny, unit)
    }
    if site == "1-mlp":
        assert direct["metric"] == pytest.approx(total["metric"], abs=CLOSE) and not through


def test_noise_puts_the_corrupt_value_into_the_clean_run(tiny: Any) -> None:
    unit = UnitId(tiny.name, "0-mlp", 1)
    (total, *_), checks = paths(tiny, unit, direction="noise")
    patched, _ = patch_pair(tiny, unit, CLEAN, CORRUPT, 5, kept=KEPT, fillers=list(range(60, 90)))
    assert total["metric"] == pytest.approx(patched[1]["metric"], abs=CLOSE)
    carried = (total["metric"] - checks["m_clean"]) / (checks["m_corrupt"] - checks["m_clean"])
    assert total["carried"] == pytest.approx(carried, abs=CLOSE) == pytest.approx(patched[1]["carried"], abs=CLOSE)


@pytest.mark.parametrize("norm", ["recomputed", "frozen"])
def test_receivers_see_the_unit_and_nothing_that_others_make_of_it(tiny: Any, norm: str) -> None:
    """Block 1's attention sees it first; its MLP sees it beside attention as it was. By passes of their own."""
    unit = UnitId(tiny.name, "0-resid", 5)
    rows, _ = paths(tiny, unit, norm)
    found = {(r["receiver"], r["layer"]): r["metric"] for r in rows}
    where = torch.tensor([[i == 5 for i in range(6)]])
    value = tiny.run([CLEAN], read=["0-resid"]).readings["0-resid"][..., [5]]
    sent = Edit("0-resid", value, (5,), where)
    top, z, neurons, attention = Point(1, "resid"), Point(1, "attn"), Point(1, "mlp"), Point(1, "attn_out")
    base = tiny.run([CORRUPT], read=[top, attention], normed=True)
    seen = tiny.run([CORRUPT], read=[z], edits=[sent]).readings[z]
    held = Edit(attention, base.readings[attention])
    by_mlp = tiny.run([CORRUPT], read=[neurons], edits=[sent, held]).readings[neurons]
    naive = tiny.run([CORRUPT], read=[neurons], edits=[sent]).readings[neurons]
    metric = module.Metric(tiny, base.readings[top][0, -1], base.normed[0, -1], norm, *ends(tiny))

    def run(point: Point, values: torch.Tensor) -> float:
        done = tiny.run([CORRUPT], read=[top], edits=[Edit(point, values, where=where)], normed=True)
        return float(metric(done.readings[top][:, -1], done.normed[:, -1]))

    assert found["attention", 1] == pytest.approx(run(z, seen), abs=CLOSE)
    assert found["MLP", 1] == pytest.approx(run(neurons, by_mlp), abs=CLOSE)
    if tiny.config.model_type != "gpt_neox":      # whose MLP stands beside attention and not behind it
        assert abs(found["MLP", 1] - run(neurons, naive)) > 1e-4


def test_a_unit_that_writes_nothing_has_no_path(llama: Any) -> None:
    model = copy.deepcopy(llama.model)
    model.model.layers[0].mlp.down_proj.weight[:, 7] = 0
    rows, _ = paths(Subject.wrap(model, llama.tokenizer, "mute"), UnitId("mute", "0-mlp", 7))
    assert {round(row["carried"], 9) for row in rows} == {0.0}


class Gain(torch.nn.Module):
    """Stands in for a norm, and is linear."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.fixture(scope="module")
def linear(llama: Any) -> Subject:
    """Three linear blocks: gains for norms, no activation function, and attention that sees all tokens alike."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=128, n_embd=24, n_layer=3, n_head=4, n_inner=40, bos_token_id=0,
                        eos_token_id=0, activation_function="linear", initializer_range=0.3)  # fmt: skip
    model = GPT2LMHeadModel(config).double()
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = (Gain(1 + 0.3 * torch.randn(24, dtype=torch.float64)) for _ in range(2))
        block.attn.c_attn.weight.data[:, :48] = 0          # of queries and keys
    model.transformer.ln_f = Gain(1 + 0.3 * torch.randn(24, dtype=torch.float64))
    return Subject.wrap(model, llama.tokenizer, "linear")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("norm", ["recomputed", "frozen"])
def test_in_a_linear_model_each_path_is_a_product_of_matrices_and_they_add_up(
    linear: Subject, norm: str, direction: str
) -> None:
    """A receiver's row is all that begins with it: of paths through several parts, each is in the first one's alone."""
    unit = UnitId("linear", "0-mlp", 7)
    (total, direct, *through), _ = paths(linear, unit, norm, direction)
    base, source = (CORRUPT, CLEAN) if direction == "denoise" else (CLEAN, CORRUPT)
    x = logits(linear, base, [])
    plus, minus = ends(linear)
    core, low = linear.model.transformer, float(x[plus] - x[minus])
    was, now = linear.activations([base, source], [unit])[:, -1, 0]
    write = (now - was) * core.h[0].mlp.c_proj.weight[7]
    read = core.ln_f.weight * (linear.model.lm_head.weight[plus] - linear.model.lm_head.weight[minus])
    eye = torch.eye(24, dtype=torch.float64)

    def attention(layer: int) -> torch.Tensor:
        """What the last token hands on of itself, one of six that it sees alike."""
        block = core.h[layer]
        return torch.diag(block.ln_1.weight) @ block.attn.c_attn.weight[:, 48:] @ block.attn.c_proj.weight / 6

    def mlp(layer: int) -> torch.Tensor:
        block = core.h[layer]
        return torch.diag(block.ln_2.weight) @ block.mlp.c_fc.weight @ block.mlp.c_proj.weight

    behind_mlp = (eye + attention(2)) @ (eye + mlp(2))
    wanted = {
        ("attention", 1): write @ attention(1) @ (eye + mlp(1)) @ behind_mlp @ read,
        ("MLP", 1): write @ mlp(1) @ behind_mlp @ read,
        ("attention", 2): write @ attention(2) @ (eye + mlp(2)) @ read,
        ("MLP", 2): write @ mlp(2) @ read,
    }
    assert direct["metric"] - low == pytest.approx(float(write @ read), abs=1e-9)
    assert {(r["receiver"], r["layer"]) for r in through} == wanted.keys()
    for row in through:
        by_hand = float(wanted[row["receiver"], row["layer"]])
        assert abs(by_hand) > 1e-5 and row["metric"] - low == pytest.approx(by_hand, abs=1e-9)
    assert sum(row["carried"] for row in (direct, *through)) == pytest.approx(total["carried"], abs=1e-9)


def test_a_single_receiver_adds_up_with_the_direct_path_only_where_the_norm_is_frozen(tiny: Any) -> None:
    """A head of the last block, whose MLP alone stands behind it; logits before Gemma's soft cap."""
    model = copy.deepcopy(tiny.model)
    model.config.final_logit_softcapping = None
    subject = Subject.wrap(model, tiny.tokenizer, "own")

    def missed(norm: str) -> float:
        rows, _ = paths(subject, UnitId("own", "1-attn", 1), norm)
        total, direct, mlp = (row["carried"] for row in rows)
        return abs(total - direct - mlp)

    assert missed("frozen") < CLOSE
    if tiny.config.model_type != "gpt_neox":     # whose MLP stands beside attention and takes nothing up
        assert missed("recomputed") > 10 * CLOSE


def test_as_tools_they_make_their_own_pair_and_draw_it(smollm2: Any, bert_tiny: Any) -> None:
    unit = UnitId("smollm2-135m", "5-mlp", 511)
    pictures: list[bytes] = []

    def keep(picture: bytes) -> str:
        pictures.append(picture)
        return "kept"

    toolbox = Toolbox(smollm2, lambda _: cast(Sweep, SWEEP), lambda: bert_tiny, keep=keep)
    asked = {"text": "the country entered World War II"}
    grid, paths = (toolbox.call(name, unit, asked) for name in ("patch_grid", "path_patch"))
    assert grid.ok and paths.ok, (grid.summary, paths.summary)
    assert grid.artifact == "kept" and [p[:4] for p in pictures] == [b"\x89PNG"]
    assert INFLATED in grid.warnings and paths.warnings == [INFLATED]
    assert all(grid.checks[name] == paths.checks[name] for name in ("clean_text", "corrupt_text", "substitute"))
    assert [row["receiver"] for row in paths.rows[:2]] == ["total", "direct"]
    assert grid.checks["norm"] == paths.checks["norm"] == "recomputed" and "-0%" not in grid.summary + paths.summary
    assert len(paths.rows) == 2 + 2 * (smollm2.n_layers - 6)


def test_a_head_is_followed_on_a_pair_and_answers_of_ones_own(smollm2: Any, bert_tiny: Any) -> None:
    toolbox = Toolbox(smollm2, lambda _: cast(Sweep, SWEEP), lambda: bert_tiny)
    text = "When Mary and John went to the store, John gave a drink to"
    asked = {"text": text, "corrupt": text.replace("John gave", "Mary gave"), "answer": " Mary", "foil": " John"}
    head = UnitId("smollm2-135m", "17-attn", 3)
    patched, grid, paths = (toolbox.call(name, head, asked) for name in ("patch", "patch_grid", "path_patch"))
    for made in (patched, grid, paths):
        assert made.ok, made.summary
        assert (made.checks["t_plus"], made.checks["t_minus"]) == (" Mary", " John")
        assert made.checks["m_clean"] > 0 > made.checks["m_corrupt"]      # the model knows who is given the drink
        assert made.checks["m_clean"] == pytest.approx(patched.checks["m_clean"], abs=1e-3)
    assert grid.warnings == [] and paths.warnings == []
    last = [row for row in grid.rows if row["layer"] == smollm2.n_layers - 1]
    assert last[0]["position"] == len(smollm2.encode(text)) - 1 and last[0]["carried"] == pytest.approx(1, abs=1e-4)
    total = next(row for row in paths.rows if row["receiver"] == "total")
    assert total["carried"] == pytest.approx(patched.rows[0]["carried"], abs=1e-4)

    def unswept(unit: UnitId) -> Sweep:
        raise Refused("not swept")

    fresh = Toolbox(smollm2, unswept, lambda: unswept(head))  # type: ignore[arg-type,return-value]
    assert fresh.call("patch", head, asked).rows == patched.rows      # where a pair is given no sweep is asked for
    alone = toolbox.call("patch", head, {"text": text})
    assert not alone.ok and "give a text and a corrupt one" in alone.summary


def test_lower_precision_gives_the_same_grid_and_paths(tiny: Any, lowered: Any) -> None:
    unit, answers = UnitId(tiny.name, "0-mlp", 7), ends(tiny)
    for norm in ("recomputed", "frozen"):
        asked = (CLEAN, CORRUPT, KEPT)
        one, other = (
            [np.array(grid_of(s, unit, *asked, "resid", "denoise", norm, 0, answers)[1]["grid"]) for s in both]
            for both in ([tiny], [lowered(tiny)])
        )
        assert np.abs(one[0] - other[0]).max() < lowered.near
        found = [paths_of(s, unit, *asked, "denoise", norm, 0, answers)[0] for s in (tiny, lowered(tiny))]
        exact, lower = ({(row["receiver"], row["layer"]): row["carried"] for row in rows} for rows in found)
        assert exact.keys() == lower.keys()
        assert max(abs(exact[key] - lower[key]) for key in exact) < lowered.near
