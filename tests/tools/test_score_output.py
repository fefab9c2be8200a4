"""score_output: a planted push scores 1, ignorance a half, and Δ is what a plain pass with a hook of its own gives."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.experiments.language import language
from lamplighter.experiments.plant import SITE, PlantedUnit, plant
from lamplighter.store.records import Refused, Score
from lamplighter.tools import measures
from lamplighter.tools.atlas import tokens_of_text
from lamplighter.tools.corpus import Corpus, Document
from lamplighter.tools.rules import Rule
from lamplighter.tools.score_output import CONTROLS, Pushes, _controls, _Moved, _Pairs, _places, nearest, score_output
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import make_sweep
from lamplighter.tools.units import UnitId

SILENT, PUSHES, HOLDS = (UnitId("planted", "1-mlp", i) for i in range(3))


def car(pushers: Any) -> int:
    subject = pushers.subject
    return int(subject.encode(" said car")[len(subject.encode(" said"))])


def score(pushers: Any, unit: UnitId, pushes: Pushes, **more: Any) -> list[Score]:
    given: dict[str, Any] = {"hypothesis": "h", "claim": lambda _: True} | more
    return score_output(pushers.subject, pushers.sweep, unit, pushes, **given)


def test_a_planted_push_is_worth_one_and_its_contrary_nothing(pushers: Any) -> None:
    token = car(pushers)
    right, steered = score(pushers, PUSHES, Pushes(raises=(token,)))
    wrong, _ = score(pushers, PUSHES, Pushes(lowers=(token,)))
    assert (right.metric, right.value) == ("output_auc", 1.0) and right.n >= 12
    assert right.low == right.high == 1.0 and wrong.value == 0.0
    assert steered.metric == "steering_auc" and steered.details["mechanical"] is True
    assert score(pushers, HOLDS, Pushes(lowers=(token,)))[0].value == 1.0
    assert right.references["lens"] == 1.0 and right.details["lens_lead"]["value"] == 0.0    # the lens finds it too


def test_tokens_that_were_drawn_are_worth_a_half(pushers: Any) -> None:
    """Ignorance: over many drawn claims the score is .5 on average."""
    rng = np.random.default_rng(0)
    drawn = [Pushes(tuple(rng.choice(np.arange(1, 300), 6, replace=False))) for _ in range(8)]
    found = [score(pushers, UnitId("planted", "1-mlp", 5), pushes)[0].value for pushes in drawn]
    assert 0.35 < np.mean(found) < 0.65


def test_the_floors_are_low_where_the_push_is_the_units_own(pushers: Any) -> None:
    right, _ = score(pushers, PUSHES, Pushes(raises=(car(pushers),)))
    assert right.floors.keys() == {"random_direction", "neighbours"}
    assert right.floors["random_direction"] < 1.0


def test_the_change_is_that_of_a_plain_pass(pushers: Any) -> None:
    """Brute force: each firing's window by itself, the neuron set by a hook, the library's own logits."""
    subject, sweep = pushers.subject, pushers.sweep
    pushes = Pushes(raises=(car(pushers), 40), lowers=(50,))
    found, _ = score(pushers, PUSHES, pushes)
    places = _places(subject, sweep, PUSHES, ())
    mean = float(sweep.mean("1-mlp")[PUSHES.index])
    module = subject.adapter.module(1, "neurons")
    total = np.zeros(subject.vocabulary)
    for row in places.rows:
        both = []
        for ablated in (False, True):
            def change(_: Any, inputs: Any, ablated: bool = ablated) -> Any:
                x = inputs[0].clone()
                if ablated:
                    x[:, 1:, PUSHES.index] = mean
                return (x,)

            handle = module.register_forward_pre_hook(change)
            with torch.inference_mode():
                logits = subject.model(input_ids=torch.tensor([row])).logits[0, -1]
            handle.remove()
            both.append((logits - logits.mean()).double().numpy())
        total += both[0] - both[1]
    pairs = _Pairs.of(subject, sweep, pushes, 0)
    wins = []
    for token, sign, controls in zip(pairs.tokens, pairs.signs, pairs.controls, strict=True):
        wins += [1.0 if sign * total[token] > sign * total[c] else 0.0 for c in controls]
    assert found.value == pytest.approx(np.mean(wins))


def test_that_a_unit_raises_what_is_frequent_is_worth_nothing(tmp_path: Any) -> None:
    """0 raises every token of the texts alike, 1 a single one of them. Beside tokens drawn from the whole vocabulary,
    of which most stand in no text, any frequent tokens would seem to be 0's own."""
    a, c, d, *frequent = language().words[:220]
    everything, single = (UnitId("own", SITE, i) for i in range(2))
    fires = [Rule.from_json({"clauses": [{"at": {"ids": [token]}}]}) for token in (a, c)]
    model = plant("gpt2", [PlantedUnit(everything, "own", fires[0], (d, *frequent)),
                           PlantedUnit(single, "own", fires[1], (d,))])  # fmt: skip
    subject = Subject.wrap(model, language().tokenizer, "own")
    rng = np.random.default_rng(0)
    texts = [[a, c, *rng.permutation([d, *frequent])[:60].tolist()] for _ in range(60)]
    spelled = ["".join(language().spelled[token] for token in ids) for ids in texts]
    documents = [Document(str(n), f"made {n}", text) for n, text in enumerate(spelled)]
    sides = tuple(("explain", "explain", "explain", "tune", "score")[n % 5] for n in range(60))
    corpus = Corpus("made", "made", tuple(documents), tuple(range(60)), sides, {})
    made = SimpleNamespace(subject=subject, sweep=make_sweep(subject, corpus, [SITE], tmp_path))
    claim = Pushes(raises=tuple(frequent[::20]))
    found, _ = score(made, everything, claim)
    pairs = _Pairs.of(subject, made.sweep, claim, 0)
    drawn = rng.choice(tokens_of_text(subject), pairs.controls.shape)
    naive = _Pairs(pairs.tokens, pairs.signs, drawn)
    places = _places(subject, made.sweep, everything, ())
    moved = _Moved(subject, made.sweep, everything, places, [pairs, naive]).scores(0)["ablated"].sum(axis=0)
    assert found.value == pytest.approx(float(pairs.auc(moved))) and abs(found.value - 0.5) < 0.1
    assert naive.auc(moved) > 0.9
    assert score(made, single, Pushes(raises=(d,)))[0].value == 1.0


def test_controls_stand_about_as_often_and_are_none_that_is_named(pushers: Any) -> None:
    subject, sweep = pushers.subject, pushers.sweep
    text = np.concatenate([sweep.tokens[d.start : d.start + d.length] for d in sweep.documents if d.side == "explain"])
    counts = np.bincount(text, minlength=subject.vocabulary)
    common = np.argsort(-counts)[:3]
    controls = _controls(subject, sweep, common, 0)
    assert controls.shape == (3, CONTROLS) and not np.isin(controls, common).any()
    assert all(len(set(row)) == CONTROLS for row in controls.tolist())
    assert not np.isin(controls, list(subject.special)).any()
    rare = np.flatnonzero(counts == 0)[5:6]
    assert counts[_controls(subject, sweep, rare, 0)].max() <= 1


def test_too_few_firings_leave_it_undefined(pushers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MIN_FIRINGS", 1000)
    for made in score(pushers, PUSHES, Pushes(raises=(5,))):
        assert made.value is None and "too few positives: " in str(made.reason)


def test_a_unit_that_moves_nothing_is_undefined(pushers: Any) -> None:
    found = score(pushers, SILENT, Pushes(raises=(5,)))
    assert all(made.value is None and made.reason == "the ablation moves no logit" for made in found)


def test_the_score_side_is_read_once(pushers: Any) -> None:
    with pytest.raises(Refused, match="is read once"):
        score(pushers, PUSHES, Pushes(raises=(5,)), claim=lambda _: False)


@pytest.mark.parametrize(
    ("raises", "lowers", "said"),
    [((), (), "names no token"), ((5,), (5,), "raised and lowered"), (tuple(range(1, 23)), (), "at most 20")],
)
def test_claims_that_say_nothing_or_two_things_are_refused(raises: Any, lowers: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        Pushes(raises, lowers)


def test_neighbours_write_most_alike(pushers: Any) -> None:
    rows = pushers.subject.write_rows("1-mlp")
    cosine = torch.nn.functional.cosine_similarity(rows, rows[7, None], dim=1).abs()
    assert nearest(pushers.subject, UnitId("planted", "1-mlp", 7), 3) == cosine.argsort(descending=True)[1:4].tolist()
    stream = UnitId("planted", "0-resid", 7)
    most = pushers.subject.likeness(stream).abs().topk(4).indices.tolist()
    assert most[0] == 7 and nearest(pushers.subject, stream, 3) == most[1:]


def test_lower_precision_scores_alike(pushers: Any, lowered: Any) -> None:
    pushes = Pushes(raises=(car(pushers),))
    found = score_output(lowered(pushers.subject), pushers.sweep, PUSHES, pushes, hypothesis="h", claim=lambda _: True)
    assert [score.value for score in found] == [1.0, 1.0]
