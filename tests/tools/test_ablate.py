"""ablate: what plain hooks and plain arithmetic give, planted effects found, and nothing found where nothing is."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import ablate as module
from lamplighter.tools.ablate import AFTER, CONTEXT, WHERE, ablate, effect, matched
from lamplighter.tools.measures import EQUIVALENCE_QUANTILE
from lamplighter.tools.subject import Edit, Pass, Subject
from lamplighter.tools.sweep import Sweep
from lamplighter.tools.taken_out import TakenOut
from lamplighter.tools.units import UnitId

CLOSE = 1e-6   # RMSNorm computes in float32 even inside a float64 model
SILENT, PUSHES, HOLDS = (UnitId("planted", "1-mlp", i) for i in range(3))
RANDOM = UnitId("planted", "1-mlp", 7)


@dataclass
class Setting:
    subject: Subject
    sweep: Sweep


@pytest.fixture(scope="module")
def planted(pushers: Any) -> Setting:
    return Setting(pushers.subject, pushers.sweep)


def run(setting: Setting, unit: UnitId, **options: Any) -> Evidence:
    return ablate(setting.subject, setting.sweep, unit, **options)


def texts(setting: Setting, unit: UnitId, windows: int = 24, seed: int = 0) -> list[module.Text]:
    return module.study_texts(setting.sweep, unit, windows, np.random.default_rng(seed))


# What plain hooks and loops give


def by_hand(
    setting: Setting, unit: UnitId, ids: list[int], value: float | None, first: int = 1
) -> tuple[Tensor, Tensor]:
    """log p of every next token [T, V] and the unit's y [T], the unit set to `value` from position `first` on."""
    layer = setting.subject.model.model.layers[unit.layer].mlp.down_proj
    seen: list[Tensor] = []

    def put(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(inputs[0].clone())
        changed = inputs[0].clone()
        if value is not None:
            changed[:, first:, unit.index] = value
        return (changed,)

    handle = layer.register_forward_pre_hook(put)
    with torch.inference_mode():
        logits = setting.subject.model(input_ids=torch.tensor([ids])).logits[0]
    handle.remove()
    return logits.log_softmax(-1), unit.sign * seen[0][0, :, unit.index]


def expected(
    setting: Setting, unit: UnitId, value: float, first: int = 1, shift: int = 1
) -> dict[str, dict[str, float]]:
    """delta_ce, clean_ce, kl and n by place; `shift` 0 is the naive loss of the firing token itself."""
    threshold = setting.sweep.statistics(unit).threshold
    lines: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WHERE}
    for text in texts(setting, unit):
        before, y = by_hand(setting, unit, text.ids[:-1], None)
        now, _ = by_hand(setting, unit, text.ids[:-1], value, first)
        for p in range(1, len(text.ids) - 1):
            recent = [q for q in range(max(1, p - AFTER), p) if y[q] >= threshold]
            name = "firing" if y[p] >= threshold else "after" if recent else "elsewhere"
            target, at = text.ids[p + shift], p + shift - 1
            kl = float((before[at].exp() * (before[at] - now[at])).sum())
            lines[name].append((float(before[at, target] - now[at, target]), -float(before[at, target]), kl))
    names = ("delta_ce", "clean_ce", "kl")
    return {
        name: dict(zip(names, np.mean(found, axis=0), strict=True)) | {"n": len(found)} for name, found in lines.items()
    }


@pytest.mark.parametrize("unit", [PUSHES, RANDOM, UnitId("planted", "0-mlp", 4, sign=-1)], ids=str)
@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_rows_are_what_plain_hooks_and_loops_give(planted: Setting, unit: UnitId, kind: str) -> None:
    evidence = run(planted, unit, kind=kind, equivalence=False)
    value = float(planted.sweep.mean(unit.site)[unit.index]) if kind == "mean" else 0.0
    wanted = expected(planted, unit, value)
    assert [row["where"] for row in evidence.rows] == list(WHERE)
    for row in evidence.rows:
        for name, number in wanted[row["where"]].items():
            assert row[name] == pytest.approx(number, abs=CLOSE), (row["where"], name)
    assert sum(row["n"] for row in evidence.rows) == evidence.checks["fired"] == evidence.checks["positions"]
    assert evidence.checks["value"] == value


def test_the_sink_stays_as_it_is(planted: Setting) -> None:
    """The naive way, zeroing the weights, also takes the unit out of the sink, which every token looks at."""
    sink = planted.sweep.site("0-mlp")["sink"]
    unit = UnitId("planted", "0-mlp", int(sink.abs().argmax()))
    row = run(planted, unit, kind="zero", equivalence=False).rows[0]
    naive = expected(planted, unit, 0.0, first=0)["firing"]
    assert abs(row["delta_ce"] - naive["delta_ce"]) > 100 * CLOSE


def test_the_loss_is_that_of_the_next_token(planted: Setting) -> None:
    """Reading the loss OF the firing token, which was predicted before it, misses the planted effect."""
    row = run(planted, PUSHES, equivalence=False).rows[0]
    value = float(planted.sweep.mean("1-mlp")[PUSHES.index])
    assert row["delta_ce"] > 0.5
    assert abs(expected(planted, PUSHES, value, shift=0)["firing"]["delta_ce"]) < 0.1 * row["delta_ce"]


# What was planted


def test_a_unit_that_writes_nothing_has_no_effect(planted: Setting) -> None:
    evidence = run(planted, SILENT)
    assert all(row["delta_ce"] == row["kl"] == 0 for row in evidence.rows)
    assert (evidence.rows[0]["low"], evidence.rows[0]["high"]) == (0, 0)
    assert evidence.checks["effect"] == "none" and "no effect" in evidence.summary
    assert evidence.checks["delta_equivalence"] > 0 and abs(evidence.checks["same_rows"]) < CLOSE
    assert all(change == 0 for _, change, _ in evidence.checks["pushed"])


def test_a_unit_that_pushes_what_follows_is_shown_and_names_it(planted: Setting) -> None:
    evidence = run(planted, PUSHES)
    firing, after, elsewhere = evidence.rows
    assert evidence.checks["effect"] == "shown" and firing["low"] > 5 * evidence.checks["delta_equivalence"]
    assert abs(elsewhere["delta_ce"]) < 0.05 * firing["delta_ce"]
    assert firing["documents"] >= 8 and firing["kl"] > 0.1
    car = planted.subject.encode(" said car")[len(planted.subject.encode(" said"))]
    assert evidence.checks["pushed"][0][0] == planted.subject.piece(car)
    assert "an effect" in evidence.summary and len(evidence.summary.split()) <= 60


def test_a_unit_that_holds_it_down_shows_the_other_way(planted: Setting) -> None:
    evidence = run(planted, HOLDS)
    assert evidence.checks["effect"] == "shown" and evidence.rows[0]["high"] < 0
    car = planted.subject.encode(" said car")[len(planted.subject.encode(" said"))]
    assert evidence.checks["held_down"][0][0] == planted.subject.piece(car)
    assert evidence.checks["held_down"][0][1] < 0 < evidence.checks["pushed"][0][1]


def test_pushed_tokens_are_by_the_centred_logits_at_the_firings(planted: Setting) -> None:
    evidence = run(planted, PUSHES, equivalence=False)
    threshold = planted.sweep.statistics(PUSHES).threshold
    changes = []
    for text in texts(planted, PUSHES):
        before, y = by_hand(planted, PUSHES, text.ids[:-1], None)
        now, _ = by_hand(planted, PUSHES, text.ids[:-1], evidence.checks["value"])
        change = before - now   # of log p; centring takes away what the softmax added
        changes += [(change - change.mean(dim=-1, keepdim=True))[p] for p in range(1, len(y)) if y[p] >= threshold]
    mean = torch.stack(changes).mean(dim=0)
    for name, sign in (("pushed", 1), ("held_down", -1)):
        values, ids = (sign * mean).topk(10)
        assert [token for token, _, _ in evidence.checks[name]] == planted.subject.pieces(ids.tolist())
        assert [i for _, _, i in evidence.checks[name]] == ids.tolist()
        assert [change for _, change, _ in evidence.checks[name]] == pytest.approx((sign * values).tolist(), abs=CLOSE)


def test_half_the_windows_hold_firings(planted: Setting) -> None:
    threshold = planted.sweep.statistics(PUSHES).threshold
    found = texts(planted, PUSHES)
    fires = [bool((by_hand(planted, PUSHES, text.ids, None)[1][1:] >= threshold).any()) for text in found]
    assert len(found) == 24 and all(fires[:12])
    assert len({tuple(text.ids) for text in found}) == 24
    explain = {planted.sweep.documents[d].cluster for d in planted.sweep.side("explain")}
    assert {text.cluster for text in found} <= explain
    assert len({text.cluster for text in found[:12]}) == 12   # other documents come first


# The bound of "no effect"


def test_the_bound_is_the_quantile_over_matched_units_ablated_one_by_one(planted: Setting) -> None:
    evidence = run(planted, RANDOM, seed=3)
    generator = np.random.default_rng(3)
    found = module.study_texts(planted.sweep, RANDOM, 24, generator)
    held = TakenOut(planted.subject, planted.sweep, "mean", 3)
    measured = module._measure(planted.subject, planted.sweep, held, RANDOM, [], found, 1)
    places = module._spread(found, measured.firings, generator)
    others = matched(planted.subject, RANDOM, 50, generator)
    means = planted.sweep.mean("1-mlp")
    effects = []
    for other in (RANDOM, *others):
        changes = []
        for text, p in places:
            row = [text.ids[0], *text.ids[1 : p + 1][1 - CONTEXT :]]
            before, _ = by_hand(planted, other, row, None)
            now, _ = by_hand(planted, other, row, float(means[other.index]))
            changes.append(float(before[-1, text.ids[p + 1]] - now[-1, text.ids[p + 1]]))
        effects.append(np.mean(changes))
    assert evidence.checks["same_rows"] == pytest.approx(effects[0], abs=CLOSE)
    wanted = np.quantile(np.abs(effects[1:]), EQUIVALENCE_QUANTILE)
    assert evidence.checks["delta_equivalence"] == pytest.approx(wanted, abs=CLOSE)
    assert evidence.checks["equivalence_units"] == len(others) == 39   # all that the tiny layer has
    assert evidence.checks["equivalence_n"] == len(places) == 8


def test_matched_units_are_the_nearest_in_write_norm(planted: Setting) -> None:
    norms = planted.subject.model.model.layers[1].mlp.down_proj.weight.norm(dim=0)
    units = matched(planted.subject, RANDOM, 5, np.random.default_rng(0))
    far = (norms - norms[RANDOM.index]).abs()
    assert {u.index for u in units} == set(far.argsort()[1:6].tolist())
    stream = matched(planted.subject, UnitId("planted", "0-resid", 3), 5, np.random.default_rng(0))
    assert len(set(stream)) == 5 and all(u.index != 3 for u in stream)


def test_without_the_bound_nothing_is_called_none(planted: Setting) -> None:
    evidence = run(planted, SILENT, equivalence=False)
    assert evidence.checks["effect"] == "not shown" and "delta_equivalence" not in evidence.checks
    assert evidence.cost["forward_tokens"] < run(planted, SILENT).cost["forward_tokens"]


@given(*[st.floats(-1, 1)] * 2, st.none() | st.floats(0, 1))
def test_none_means_that_the_whole_interval_lies_within_the_bound(a: float, b: float, bound: float | None) -> None:
    low, high = sorted((a, b))
    said = effect({"low": low, "high": high}, bound)
    assert (said == "none") == (bound is not None and max(abs(low), abs(high)) <= bound)
    assert said != "shown" or low > 0 or high < 0
    assert effect({"low": None, "high": None}, bound) == "not shown"


# Parts


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_every_position_is_firing_after_or_elsewhere(cells: list[tuple[bool, bool]]) -> None:
    y = torch.tensor([[2.0 if fires else 0.0 for fires, _ in cells]])
    inner = torch.tensor([[real for _, real in cells]])
    found = module._where(y, inner, 1.0)[0].tolist()
    hot = [fires and real for fires, real in cells]
    for p, index in enumerate(found):
        wanted = "firing" if hot[p] else "after" if any(hot[max(0, p - AFTER) : p]) else "elsewhere"
        assert WHERE[index] == wanted


def test_resampling_tells_the_spread_of_its_draws(planted: Setting) -> None:
    unit = UnitId("planted", "1-mlp", 7, sign=-1)
    one, same, other = (run(planted, unit, kind="resample", seed=s, equivalence=False) for s in (0, 0, 1))
    assert one.rows == same.rows != other.rows
    assert all(row["sd"] > 0 for row in one.rows) and one.checks["value"] is None
    assert one.checks["fired"] == one.checks["positions"] == 4 * sum(row["n"] for row in one.rows)
    (single, *_) = run(planted, unit, kind="resample", draws=1, equivalence=False).rows
    assert single["sd"] is None
    assert run(planted, SILENT, kind="resample", equivalence=False).rows[0]["delta_ce"] == 0


def test_a_mean_of_draws_is_that_of_the_draws_one_by_one(planted: Setting) -> None:
    found = texts(planted, RANDOM)
    held = TakenOut(planted.subject, planted.sweep, "resample", 0)
    rows = [text.ids[:-1] for text in found]
    measured = module._measure(planted.subject, planted.sweep, held, RANDOM, [], found, 3)
    text = found[0]
    before, _ = by_hand(planted, RANDOM, rows[0], None)
    for draw in range(3):
        values = held.values("1-mlp", [7], rows, draw)[0, : len(rows[0])]
        done = planted.subject.run([rows[0]], edits=[Edit("1-mlp", values[None], (7,), not_sink(rows[0]))], logits=True)
        now = done.logits[0].log_softmax(-1)  # type: ignore[index]
        last = len(rows[0]) - 1
        wanted = float(before[last, text.ids[-1]] - now[last, text.ids[-1]])
        place = next(k for k, p in enumerate(order_of(planted, found)) if p == (0, last))
        assert measured.draws[draw, place] == pytest.approx(wanted, abs=1e-4)


def not_sink(row: list[int]) -> Tensor:
    return torch.tensor([[i > 0 for i in range(len(row))]])


def order_of(setting: Setting, found: list[module.Text]) -> list[tuple[int, int]]:
    """The positions in the order that batches read them."""
    rows = [text.ids[:-1] for text in found]
    return [(i, p) for batch in setting.subject.batches(rows) for i in batch for p in range(1, len(rows[i]))]


def test_a_set_is_taken_out_at_a_time(planted: Setting) -> None:
    """Two units that write against each other: alone each is missed, together they are not."""
    alone = run(planted, PUSHES, equivalence=False)
    both = run(planted, PUSHES, also=["1-mlp/2"])
    assert both.rows[0]["delta_ce"] < 0.1 * alone.rows[0]["delta_ce"]
    assert "delta_equivalence" not in both.checks and both.arguments["also"] == ["1-mlp/2"]
    across = run(planted, PUSHES, also=["0-resid/3", "0-attn/1"], equivalence=False)
    assert across.checks["fired"] == across.checks["positions"] == 3 * alone.checks["positions"]


def test_others_may_be_of_a_site_that_was_not_swept(planted: Setting) -> None:
    """Their mean is then over windows of the explain side: at least near what a whole sweep gives."""
    held = TakenOut(planted.subject, planted.sweep, "mean", 0)
    swept, near = planted.sweep.mean("0-mlp"), held._reference("0-mlp")[1].mean(dim=0)
    assert float((near - swept).abs().max()) < 0.2 * float(swept.abs().max())
    with pytest.raises(Refused, match="1-resid was not swept"):
        planted.sweep.statistics(UnitId("planted", "1-resid", 3))
    both = run(planted, SILENT, also=["1-resid/3"], equivalence=False)
    assert both.checks["fired"] == both.checks["positions"] and both.rows[0]["kl"] > 0


def test_heads_are_taken_out_everywhere(planted: Setting) -> None:
    evidence = run(planted, UnitId("planted", "1-attn", 1))
    firing, after, elsewhere = evidence.rows
    assert firing["n"] == after["n"] == 0 and firing["delta_ce"] is None
    assert elsewhere["n"] == evidence.checks["positions"] == evidence.checks["fired"]
    assert elsewhere["kl"] > 0 and evidence.checks["pushed"] and "everywhere" in evidence.summary
    assert elsewhere["low"] is not None and not any("no interval" in said for said in evidence.warnings)
    assert evidence.checks["equivalence_units"] == 3 and evidence.checks["delta_equivalence"] > 0
    model = copy.deepcopy(planted.subject.model)
    model.model.layers[1].self_attn.o_proj.weight[:, 6:12] = 0      # a head that writes nothing
    mute = Subject.wrap(model, planted.subject.tokenizer, "planted")
    assert ablate(mute, planted.sweep, UnitId("planted", "1-attn", 1), kind="zero").rows[2]["kl"] < 1e-9


def test_an_edit_that_does_not_happen_is_told(planted: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a hook that waits for a tuple while blocks return tensors."""
    whole = Subject.run

    def dropped(self: Subject, *args: Any, edits: Any = (), **options: Any) -> Pass:
        done = whole(self, *args, **options)
        return Pass(done.readings, done.logits, done.mask, [0] * len(edits), done.normed)

    monkeypatch.setattr(Subject, "run", dropped)
    evidence = run(planted, PUSHES, equivalence=False)
    assert evidence.checks["fired"] == 0 and any("void" in warning for warning in evidence.warnings)


def test_stream_dimensions_and_other_sizes_work(planted: Setting) -> None:
    evidence = run(planted, UnitId("planted", "0-resid", 3), windows=8, equivalence=False)
    assert evidence.checks["windows"] == 8 and evidence.rows[0]["kl"] > 0
    assert evidence.arguments == {
        "kind": "mean", "also": None, "draws": 4, "windows": 8, "equivalence": False, "seed": 0
    }  # fmt: skip
    assert Evidence.from_json(evidence.to_json()) == evidence


def test_few_documents_give_no_interval(planted: Setting) -> None:
    evidence = run(planted, PUSHES, windows=4)
    assert evidence.rows[0]["low"] is None and evidence.checks["effect"] == "not shown"
    assert any("no interval" in warning for warning in evidence.warnings)


def test_lower_precision_shows_the_same_effect(planted: Setting, lowered: Any) -> None:
    exact = run(planted, PUSHES)
    lower = ablate(lowered(planted.subject), planted.sweep, PUSHES)
    tolerance = 1e-4 if lowered.dtype == torch.float32 else 0.2
    assert lower.rows[0]["delta_ce"] == pytest.approx(exact.rows[0]["delta_ce"], rel=tolerance)
    assert lower.checks["effect"] == "shown" and lower.checks["pushed"][0][0] == exact.checks["pushed"][0][0]


# Refusals


@pytest.fixture
def dead(planted: Setting, monkeypatch: pytest.MonkeyPatch) -> Iterator[UnitId]:
    peaks = planted.sweep.site("1-mlp")["peak"].clone()
    peaks[:, 9] = 0
    monkeypatch.setitem(planted.sweep.site("1-mlp"), "peak", peaks)
    yield UnitId("planted", "1-mlp", 9)


def test_requests_that_cannot_be_met_are_refused_in_a_sentence(planted: Setting, dead: UnitId) -> None:
    for unit, options, said in (
        (PUSHES, {"kind": "median"}, "kind 'median' is unknown; choose one of mean, zero, mean_by_role, resample"),
        (PUSHES, {"draws": 0}, "draws = 0 is too few"),
        (PUSHES, {"also": ["1-mlp/1"]}, "one unit is named twice"),
        (PUSHES, {"also": ["1-mlp/99"]}, "has units 0 to 39"),
        (PUSHES, {"windows": 1}, "windows = 1 is too few"),
        (UnitId("planted", "1-attn", 4), {}, "has units 0 to 3"),
        (UnitId("planted", "1-mlp", 40), {}, "has units 0 to 39"),
        (UnitId("planted", "1-resid", 0), {}, "site 1-resid was not swept"),
        (dead, {}, "1-mlp/9 is never positive on the explain side"),
    ):
        with pytest.raises(Refused, match=said):
            run(planted, unit, **options)


def test_cross_entropy_at_the_ends_of_rows(planted: Setting) -> None:
    rows, targets = [[0, 5, 9], [0, 7]], [11, 13]
    done = planted.subject.run(rows * 2, normed=True)
    found = module._losses(planted.subject, done, rows * 2, targets)
    assert torch.equal(found[:2], found[2:])
    for i, row in enumerate(rows):
        logits = planted.subject.run([row], logits=True).logits
        assert logits is not None
        wanted = float(cross_entropy(logits[0, -1], torch.tensor(targets[i])))
        assert float(found[i]) == pytest.approx(wanted, abs=CLOSE)
