"""The other libraries' side of bench_output: the same work as ours, shown with our own passes in their place."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamplighter.experiments import output_speed as module
from lamplighter.experiments.output_speed import Put
from lamplighter.experiments.rivals import in_turn
from lamplighter.tools.ablate import ablate, matched, study_texts
from lamplighter.tools.features import Point
from lamplighter.tools.patch_grid import grid_of
from lamplighter.tools.subject import Edit, Pass, Subject
from lamplighter.tools.units import UnitId

CLEAN = [0, 11, 21, 31, 41, 51]
CORRUPT = [0, 11, 21, 99, 41, 51]


class Whole:
    """Whole passes of a subject, as another library would make them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def _run(self, ids: Tensor, read: list[Any], edits: list[Edit]) -> Pass:
        return self.subject.run(ids, read=read, edits=edits, normed=True)

    def clean(self, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        before = Point(layer - 1, "resid")
        done = self._run(ids, [f"{layer}-mlp", before], [])
        assert done.normed is not None
        return done.normed, done.readings[f"{layer}-mlp"], done.readings[before]

    def neurons(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        normed = self._run(ids, [], [Edit(f"{layer}-mlp", put)]).normed
        assert normed is not None
        return normed

    def streams(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        points = [Point(layer, "resid") for layer in range(self.subject.n_layers)]
        done = self._run(ids, list(points), [])
        assert done.normed is not None
        return done.normed, [done.readings[p] for p in points]

    def stream(self, ids: Tensor, layer: int, put: Put, stream: Tensor) -> Tensor:
        normed = self._run(ids, [], [Edit(Point(layer, "resid"), put)]).normed
        assert normed is not None
        return normed


def test_the_others_measure_the_same_study(pushers: Any) -> None:
    subject, unit = pushers.subject, UnitId("planted", "1-mlp", 1)
    ours = ablate(subject, pushers.sweep, unit)
    generator = np.random.default_rng(0)
    texts = study_texts(pushers.sweep, unit, module.WINDOWS, generator)
    work = module._Study(subject, pushers.sweep, unit, texts, matched(subject, unit, 20, generator))
    assert module._theirs(Whole(subject), work) == pytest.approx(ours.rows[0]["delta_ce"], rel=1e-5)
    assert ours.rows[0]["delta_ce"] > 0.1


def test_the_bound_of_others_is_that_of_the_same_units_and_places(pushers: Any, monkeypatch: Any) -> None:
    """One unit is matched, so δ is its own effect: that of a plain ablation."""
    subject, unit, other = pushers.subject, UnitId("planted", "1-mlp", 1), UnitId("planted", "1-mlp", 2)
    texts = study_texts(pushers.sweep, unit, 4, np.random.default_rng(0))
    work = module._Study(subject, pushers.sweep, unit, texts, [other])
    places = [(text, 7) for text in texts]
    level = pushers.sweep.mean("1-mlp")
    found = module._bound(Whole(subject), work, places, level)
    rows = torch.tensor([[text.ids[0], *text.ids[1:8]] for text in texts])
    effects = []
    for edits in ([], [Edit("1-mlp", torch.tensor(float(level[2])), (2,), torch.arange(8)[None].expand(4, 8) > 0)]):
        logits = subject.run(rows, edits=edits, logits=True).logits[:, -1]
        effects.append(torch.nn.functional.cross_entropy(logits, torch.tensor([t.ids[8] for t in texts])))
    assert found == pytest.approx(abs(float(effects[1] - effects[0])), rel=1e-4)


def test_the_others_make_the_same_grid(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamplighter.tools.patch.PATCH_NOISE", 0.0)
    unit = UnitId(tiny.name, "0-mlp", 7)
    _, checks = grid_of(tiny, unit, CLEAN, CORRUPT, [3], "resid", "denoise", "recomputed", 0)
    theirs = module._their_grid(Whole(tiny), tiny, CLEAN, CORRUPT, 3)
    assert theirs == pytest.approx(float(np.mean(checks["grid"])), rel=1e-6)
    assert module._their_grid(Whole(tiny), tiny, CORRUPT, CLEAN, 3) != pytest.approx(theirs, rel=1e-3)


def test_the_claim_is_on_the_faster_of_the_others() -> None:
    seconds = {"ours": [1.0, 1.1, 0.9], "slow": [4.0, 4.0, 4.0], "fast": [1.0, 1.0, 1.0]}
    (claim,) = module._claims("work", seconds, 0)
    assert (claim.name, claim.value, claim.low, claim.high) == ("work: ours / fast", 1.0, 0.9, 1.1)
    assert claim.holds is False
    (claim,) = module._claims("work", {"ours": [0.5, 0.5], "fast": [1.0, 1.0]}, 0)
    assert claim.holds is True and claim.high == 0.5
    (claim,) = module._claims("work", {"ours": [0.5, 0.5]}, 0)
    assert claim.holds is None


def test_ways_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    seconds, gave = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b") or 7}, 2, lambda *_: None)
    assert order == ["a", "b"] * 3
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}
    assert gave == {"a": None, "b": 7}
