"""rebuild: 1 for the activations themselves, 0 for their mean, undefined where the unit does nothing."""

import copy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lamplighter.experiments.language import language
from lamplighter.experiments.plant import SITE, PlantedUnit, plant
from lamplighter.store.records import Refused
from lamplighter.tools import rebuild as module
from lamplighter.tools.corpus import Corpus, Document
from lamplighter.tools.floors import NO_FLOORS
from lamplighter.tools.judged import simulated
from lamplighter.tools.labels import ScoreSide
from lamplighter.tools.rebuild import NO_EFFECT, TOO_FEW, Scale, fit_scales, measure, rebuild, recovered
from lamplighter.tools.rules import Clause, Matcher, Near, Rule, side_text
from lamplighter.tools.score_input import score_input
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import make_sweep
from lamplighter.tools.units import UnitId

A, B, C, D = language().words[:4]
FILL = language().common
ON_A, ON_C = (Rule.from_json({"clauses": [{"at": {"ids": [token]}}]}) for token in (A, C))


def pusher(index: int, sign: int = 1) -> UnitId:
    return UnitId("own", SITE, index, sign)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """In a text where B follows A and D follows C: 0 fires on A and writes B's logit, 1 on C and writes D's, 2 on A and
    writes nothing."""
    promoted = ((B,), (D,), ())
    planted = [PlantedUnit(pusher(i), "own", rule, promoted[i]) for i, rule in enumerate((ON_A, ON_C, ON_A))]
    model = plant("gpt2", planted)
    model.transformer.h[2].mlp.c_proj.weight.data[2] = 0
    subject = Subject.wrap(model, language().tokenizer, "own")
    rng = np.random.default_rng(0)
    documents = []
    for number in range(60):
        tokens = rng.choice(FILL, 50).tolist()
        tokens[5:5], tokens[30:30] = [A, B], [C, D]
        documents.append(Document(str(number), f"made {number}", "".join(language().spelled[t] for t in tokens)))
    sides = tuple(("explain", "explain", "explain", "tune", "score")[i % 5] for i in range(60))
    corpus = Corpus("made", "made", tuple(documents), tuple(range(60)), sides, {})
    return SimpleNamespace(subject=subject, sweep=make_sweep(subject, corpus, [SITE], tmp_path_factory.mktemp("home")))


def score(loud: Any, rules: dict[UnitId, Rule], **options: Any) -> Any:
    scales = fit_scales(loud.subject, loud.sweep, rules)
    return rebuild(loud.subject, loud.sweep, rules, scales, hypothesis="h", claim=lambda _: True, **options)


def losses_of(loud: Any, unit: UnitId, values: Any) -> Any:
    side = ScoreSide.of(loud.subject, loud.sweep, [])
    chosen = module._windows(side.text, side.keep, [e.place for e in loud.sweep.firings(unit)], 0)
    if values is None:
        values = np.zeros(len(side.text.text.ids))
        for a, b in chosen:
            row = side.text.text.ids[a:b].tolist()
            values[a:b] = loud.subject.activations(row, [unit])[0, :, 0].numpy()
    return measure(loud.subject, loud.sweep, side, chosen, {unit: values})[0]


def test_the_activations_themselves_recover_everything(loud: Any) -> None:
    losses = losses_of(loud, pusher(0), None)
    assert losses[:, 2] == pytest.approx(losses[:, 0], abs=1e-3)
    assert losses[:, 4] == pytest.approx(0, abs=1e-3)
    for value, low, high in recovered(losses, 0):
        assert (value, low, high) == pytest.approx((1, 1, 1), abs=1e-3)


def test_the_mean_recovers_nothing(loud: Any) -> None:
    side = ScoreSide.of(loud.subject, loud.sweep, [])
    mean = np.full(len(side.text.text.ids), float(loud.sweep.mean(SITE)[0]))
    assert recovered(losses_of(loud, pusher(0), mean), 0) == [(0.0, 0.0, 0.0)] * 2


def test_a_true_rule_recovers_most_and_another_nothing(loud: Any) -> None:
    (right, by_kl), (wrong, wrong_kl) = score(loud, {pusher(0): ON_A}), score(loud, {pusher(0): ON_C})
    assert right.value > 0.8 and right.low > 0.5 and by_kl.value > 0.8
    assert wrong.value < 0.2 and wrong_kl.value < 0.2
    assert right.details["ce_true"] < right.details["ce_rebuilt"] < right.details["ce_mean"]
    assert right.metric == "ce_recovered" and right.details["units"] == [str(pusher(0))]


def test_a_unit_without_effect_is_not_scorable(loud: Any) -> None:
    for found in score(loud, {pusher(2): ON_A}):
        assert (found.value, found.low, found.reason) == (None, None, NO_EFFECT)


def test_a_share_of_next_to_nothing_is_not_given(loud: Any) -> None:
    """Twelve clusters whose CE, or KL, with the unit at its mean is that without but for noise: a ratio explodes."""
    noise = np.random.default_rng(0).normal(0, 0.01, (3, 12))
    noise -= noise.mean(axis=1, keepdims=True) - 1e-5
    zero, one = np.zeros(12), np.ones(12)
    losses = np.stack([one, one + noise[0], one + 0.02 + noise[1], one, one / 2, one], axis=1)
    naive = (losses[:, 1] - losses[:, 2]).sum() / (losses[:, 1] - losses[:, 0]).sum()
    assert naive < -1000 and recovered(losses, 0) == [(None, None, None)] * 2
    losses = np.stack([zero, one, one / 4, noise[0], noise[1] + 0.02, one], axis=1)
    naive = (losses[:, 3] - losses[:, 4]).sum() / losses[:, 3].sum()
    ce, kl = recovered(losses, 0)
    assert ce == pytest.approx((0.75, 0.75, 0.75)) and naive < -1000 and kl == (None, None, None)


def test_a_whisper_has_no_share_that_rounding_made(loud: Any) -> None:
    """0 writes a hundredth of what it did: CE, of first order, tells it from its mean; KL is lost in float32."""
    model = copy.deepcopy(loud.subject.model)
    model.transformer.h[2].mlp.c_proj.weight.data[0] *= 0.01
    own = SimpleNamespace(subject=Subject.wrap(model, loud.subject.tokenizer, "own"), sweep=loud.sweep)
    ce, kl = score(own, {pusher(0): ON_A})
    assert ce.value == pytest.approx(1, abs=1e-2)
    assert abs(kl.details["kl_mean"]) < 1e-6 and (kl.value, kl.low, kl.reason) == (None, None, NO_EFFECT)


def test_the_scale_is_fitted_and_without_the_sink(loud: Any) -> None:
    """At the sink a unit may read anything: fitted too, it would raise the floor of every other token."""
    model = copy.deepcopy(loud.subject.model)

    def shout(_: Any, inputs: Any) -> Any:
        x = inputs[0].clone()
        x[:, 0, 0] = 300.0
        return (x,)

    model.transformer.h[2].mlp.c_proj.register_forward_pre_hook(shout)
    own, rules = Subject.wrap(model, loud.subject.tokenizer, "own"), {pusher(0): ON_A}
    (scale,) = fit_scales(own, loud.sweep, rules).values()
    (quiet,) = fit_scales(loud.subject, loud.sweep, rules).values()
    assert (scale.floor, scale.slope) == pytest.approx((quiet.floor, quiet.slope))
    text = side_text(own, loud.sweep, "tune")
    rows = [text.text.ids[a:b].tolist() for a, b in pairwise(text.text.starts)]
    y = np.concatenate([own.activations(row, [pusher(0)])[0, :, 0].numpy() for row in rows])
    slope, floor = np.polyfit(ON_A.predict_flat(text.text), y, 1)
    made = SimpleNamespace(subject=own, sweep=loud.sweep)
    said = ON_A.predict_flat(ScoreSide.of(own, loud.sweep, []).text.text)

    def by(one: Scale) -> float:
        return float(recovered(losses_of(made, pusher(0), one.floor + one.slope * said), 0)[0][0])

    assert by(scale) > 0.99
    assert by(Scale(float(floor), float(slope))) < by(scale) - 0.1      # the sink fitted too
    assert by(Scale(0.0, 1.0)) < 0.5                                    # the rule's own numbers, not fitted at all


def test_sets_are_put_in_at_a_time(loud: Any) -> None:
    """Without both, more is lost than without either; one true rule of two gives back its own part."""
    both, _ = score(loud, {pusher(0): ON_A, pusher(1): ON_C})
    assert both.details["units"] == [str(pusher(0)), str(pusher(1))] and both.value > 0.9
    alone, _ = score(loud, {pusher(0): ON_A})
    assert both.details["ce_mean"] > alone.details["ce_mean"] > both.details["ce_true"]
    half, _ = score(loud, {pusher(0): ON_A, pusher(1): ON_A})
    assert 0.2 < half.value < 0.8


def test_a_rule_that_is_too_broad_looks_right_on_one_corpus_and_is_found_out_on_another(tmp_path: Path) -> None:
    """The unit fires on A behind C, and A stands behind nothing else in the first corpus: there both rules are one."""
    true = Rule((Clause(Matcher((A,)), need=(Near(Matcher((C,)), 1, 1, "tokens"),)),))
    unit = pusher(0)
    subject = Subject.wrap(plant("gpt2", [PlantedUnit(unit, "own", true, (B,))]), language().tokenizer, "own")
    sweeps = [swept(subject, tmp_path, always) for always in (True, False)]
    found: dict[str, list[float]] = {}
    for name, rule in (("true", true), ("broad", ON_A)):
        scales = fit_scales(subject, sweeps[0], {unit: rule})
        for sweep in sweeps:
            asked: Any = {"hypothesis": "h", "claim": lambda _: True}
            f1 = score_input(subject, sweep, unit, rule, floor_rules=NO_FLOORS, **asked)[0]
            back = rebuild(subject, sweep, {unit: rule}, scales, **asked)
            found.setdefault(name, []).extend([f1.value, *(score.value for score in back)])
    assert found["true"] == pytest.approx([1] * 6, abs=0.05)
    assert found["broad"][:3] == pytest.approx([1] * 3, abs=0.05)
    assert found["broad"][3] < 0.8 and found["broad"][5] < 0.9, found      # CE is lenient: B was no likely token there


def swept(subject: Subject, home: Path, always: bool) -> Any:
    """45 texts with two C A, which B follows, and two D A, or with `always` D and another: another word follows."""
    rng = np.random.default_rng(int(always))
    documents = []
    for number in range(45):
        tokens = rng.choice(FILL, 44).tolist()
        for place, pair in ((5, [C, A, B]), (14, [D, FILL[0] if always else A]), (24, [C, A, B]),
                            (34, [D, FILL[0] if always else A])):  # fmt: skip
            tokens[place:place] = pair
        documents.append(Document(str(number), f"made {number}", "".join(language().spelled[t] for t in tokens)))
    sides = tuple(("explain", "explain", "explain", "tune", "score")[i % 5] for i in range(45))
    corpus = Corpus("made", f"made {always}", tuple(documents), tuple(range(45)), sides, {})
    return make_sweep(subject, corpus, [SITE], home / str(always))


def test_of_few_clusters_it_is_said_that_there_is_no_interval(loud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cluster loses much: that nothing is lost would be false."""
    found, _ = score(loud, {pusher(0): ON_A})
    monkeypatch.setattr(module, "measure", lambda *_: (np.tile([1.0, 2.0, 1.1, 1.0, 0.1, 1.0], (7, 1)), 7))
    few = score(loud, {pusher(0): ON_A})
    assert found.reason is None and {s.reason for s in few} == {TOO_FEW} and few[0].value is None


def test_what_cannot_be_rebuilt_is_refused(loud: Any) -> None:
    with pytest.raises(Refused, match="no rule to rebuild"):
        score(loud, {})
    with pytest.raises(Refused, match="both sides of one unit"):
        score(loud, {pusher(1): ON_A, pusher(1, -1): ON_A})
    with pytest.raises(Refused, match="already read"):
        rebuild(loud.subject, loud.sweep, {pusher(1): ON_A}, {}, hypothesis="h", claim=lambda _: False)


def test_lower_precision_gives_back_as_much(loud: Any, lowered: Any) -> None:
    rules = {pusher(0): ON_A, pusher(1): ON_C}
    subject = lowered(loud.subject)
    scales = fit_scales(subject, loud.sweep, rules)
    lower = rebuild(subject, loud.sweep, rules, scales, hypothesis="h", claim=lambda _: True)
    for exact, other in zip(score(loud, rules), lower, strict=True):
        assert other.value == pytest.approx(exact.value, abs=lowered.near)


class Reader:
    """A judge who gives 9 to one token and 0 to all others; of texts with `lost` in them it can read nothing."""

    def __init__(self, piece: str, lost: str = "never") -> None:
        self.piece, self.lost, self.asked = piece, lost, 0

    def values(self, explanation: str, texts: Any) -> Any:
        self.asked += len(texts)
        return [None if self.lost in text else [9.0 * (token == self.piece) for token in text] for text in texts]


def test_a_sentence_that_a_judge_reads_rightly_is_worth_its_rule(loud: Any) -> None:
    """Whatever the judge's scale: it is fitted. One who reads another word gets nothing back."""
    right, wrong = (Reader(language().spelled[token]) for token in (A, C))
    by_rule = score(loud, {pusher(0): ON_A})
    by_judge, beside = (score(loud, {pusher(0): simulated(one, "fires on it", loud.subject)}) for one in (right, wrong))
    for ours, rule in zip(by_judge, by_rule, strict=True):
        assert ours.value == pytest.approx(rule.value, abs=1e-4) and rule.value > 0.9
    assert all(s.value < 0.1 for s in beside)
    assert 0 < right.asked <= 2 * module.WINDOWS, "only of the windows that are run"


def test_an_answer_that_cannot_be_read_rebuilds_nothing(loud: Any) -> None:
    half = Reader(language().spelled[A], lost=language().spelled[FILL[0]])
    with pytest.raises(Refused, match=r"\d+ of \d+ answers of the judge could not be read"):
        score(loud, {pusher(0): simulated(half, "fires on it", loud.subject)})  # type: ignore[arg-type]
