"""The output side in every shape: what each tool measures is what a plain hook and the library's own logits give."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamplighter.tools import rebuild as rebuilding
from lamplighter.tools import steer as steering
from lamplighter.tools.ablate import WHERE, ablate, study_texts
from lamplighter.tools.labels import ScoreSide
from lamplighter.tools.score_output import Pushes, _Moved, _Pairs, _places
from lamplighter.tools.steer import steer
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import Sweep
from lamplighter.tools.units import UnitId

CLOSE = 1e-5   # RMSNorm computes in float32 even inside a float64 model


@dataclass
class Setting:
    subject: Subject
    sweep: Sweep
    unit: UnitId
    mean: float

    def plain(self, ids: list[int], value: Any = None, first: int = 1) -> tuple[Tensor, Tensor]:
        """The library's log p [T, V], the unit set to `value` from `first` on, and y [T] as it stood before that."""
        seen: list[Tensor] = []

        def put(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(self.unit.sign * inputs[0][0, :, self.unit.index])
            changed = inputs[0].clone()
            if value is not None:
                changed[0, first:, self.unit.index] = torch.as_tensor(value).to(changed)
            return (changed, *inputs[1:])

        handle = self.subject.adapter.module(self.unit.layer, "neurons").register_forward_pre_hook(put)
        with torch.inference_mode():
            logits = self.subject.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        handle.remove()
        return logits.log_softmax(-1), seen[0]


@pytest.fixture(scope="module")
def setting(tiny: Any, sweep_of: Callable[..., Any]) -> Setting:
    """Of each shape, the neuron of MLP 0 that fires least among those that do so in four clusters of the score side."""
    sweep = sweep_of(tiny, 60, 40, 10)
    known = {unit: sweep.statistics(unit) for unit in (UnitId(tiny.name, "0-mlp", i) for i in range(40))}
    unit = min((u for u in known if known[u].clusters["score"] >= 4), key=lambda u: known[u].firings["explain"])
    return Setting(tiny, sweep, unit, float(sweep.mean("0-mlp")[unit.index]))


@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_ablation_is_that_of_a_plain_hook(setting: Setting, kind: str) -> None:
    found = ablate(setting.subject, setting.sweep, setting.unit, kind=kind, windows=8, equivalence=False)
    value, threshold = setting.mean if kind == "mean" else 0.0, setting.sweep.statistics(setting.unit).threshold
    ce: dict[str, list[float]] = {name: [] for name in WHERE}
    naive: list[float] = []
    for text in study_texts(setting.sweep, setting.unit, 8, np.random.default_rng(0)):
        (before, y), (now, _) = (setting.plain(text.ids[:-1], put) for put in (None, value))
        sunk, _ = setting.plain(text.ids[:-1], value, first=0)
        for p in range(1, len(text.ids) - 1):
            near = [q for q in range(max(1, p - 5), p) if y[q] >= threshold]
            name = "firing" if y[p] >= threshold else "after" if near else "elsewhere"
            ce[name].append(float(before[p, text.ids[p + 1]] - now[p, text.ids[p + 1]]))
            naive.append(abs(float(now[p, text.ids[p + 1]] - sunk[p, text.ids[p + 1]])))
    for row in found.rows:
        assert row["n"] == len(ce[row["where"]])
        if row["n"]:
            assert row["delta_ce"] == pytest.approx(np.mean(ce[row["where"]]), abs=CLOSE)
    assert found.checks["fired"] == found.checks["positions"] == len(naive)
    assert np.mean(naive) > 10 * CLOSE      # with the sink taken out as well, other numbers come


def test_steering_is_that_of_a_plain_hook(setting: Setting) -> None:
    found = steer(setting.subject, setting.sweep, setting.unit, prompts=8, tokens=1, strengths=[0.0, 3.0])
    starts = steering._starts(setting.subject, setting.sweep, setting.unit, 8, 0)
    for row, strength in zip(found.rows[2:], (0.0, 3.0), strict=True):
        kl = []
        for start in starts:
            (p, _), (q, _) = (setting.plain(start, put) for put in (None, strength * found.checks["peak"]))
            kl.append(float((p[-1].exp() * (p[-1] - q[-1])).sum()))
        assert row["kl"] == pytest.approx(np.mean(kl), rel=1e-3, abs=CLOSE)
    assert found.rows[3]["kl"] > found.rows[2]["kl"] > 0


def test_what_an_output_score_looks_at_is_that_of_a_plain_hook(setting: Setting) -> None:
    places = _places(setting.subject, setting.sweep, setting.unit, [])
    pairs = _Pairs.of(setting.subject, setting.sweep, Pushes((40,), (50,)), 0)
    moved = _Moved(setting.subject, setting.sweep, setting.unit, places, [pairs]).scores(0)["ablated"]
    wanted = np.zeros_like(moved)
    for row, cluster in zip(places.rows, places.cluster, strict=True):
        (before, _), (now, _) = (setting.plain(row, put) for put in (None, setting.mean))
        change = (before - now)[-1]
        wanted[cluster] += (change - change.mean()).numpy()
    asked = pairs.controls.ravel()
    assert len(places.rows) > 3 and np.abs(moved[:, asked]).max() > 100 * CLOSE
    assert moved[:, asked] == pytest.approx(wanted[:, asked], abs=CLOSE)


def test_rebuilding_is_that_of_a_plain_hook(setting: Setting) -> None:
    """With the real activations in their own place, all is as it was; with others, as a plain hook says."""
    side = ScoreSide.of(setting.subject, setting.sweep, [])
    chosen = [(int(a), int(b)) for a, b in zip(side.text.text.starts[:6], side.text.text.starts[1:7], strict=True)]
    rows = [side.text.text.ids[a:b].tolist() for a, b in chosen]
    said, true = (np.random.default_rng(0).normal(size=len(side.text.text.ids)) for _ in range(2))
    for (a, b), row in zip(chosen, rows, strict=True):
        true[a:b] = setting.plain(row)[1].numpy()
    sums, same = (
        rebuilding.measure(setting.subject, setting.sweep, side, chosen, {setting.unit: values})[0].sum(axis=0)
        for values in (said, true)
    )
    wanted = np.zeros(3)
    for (a, b), row in zip(chosen, rows, strict=True):
        for k, put in enumerate((None, setting.mean, said[a + 1 : b])):
            p, _ = setting.plain(row, put)
            wanted[k] -= float(p[1:-1].gather(1, torch.tensor(row[2:])[:, None]).sum())
    assert sums[:3] / sums[5] == pytest.approx(wanted / sums[5], abs=CLOSE) and sums[5] == sum(map(len, rows)) - 12
    assert same[2] == pytest.approx(same[0], abs=100 * CLOSE) and abs(sums[2] - sums[0]) > 1000 * CLOSE
