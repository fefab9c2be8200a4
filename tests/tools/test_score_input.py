"""Scores of rules on a made-up corpus, where y is a known function of the tokens, against counting every place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from lamplighter.store.records import Evidence, Refused, Score
from lamplighter.tools import collect, labels, measures, score_input
from lamplighter.tools.floors import Floors
from lamplighter.tools.near_misses import NearMiss
from lamplighter.tools.rules import Rule, side_text
from lamplighter.tools.sweep import STEP, Exemplar, Statistics, SweptDocument
from lamplighter.tools.try_rule import trial
from lamplighter.tools.units import UnitId

UNIT = UnitId("made-up", "0-mlp", 3)
SINK, CUES, TARGET, WORDS = 0, (3, 4), 7, 40
RANDOM = 64


class Speller:
    """As much of a subject as rules and scores need: every token is a word of its own."""

    sink = SINK

    def piece(self, token: int) -> str:
        return f" w{token}"

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.piece(i) for i in ids]

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.piece(i) for i in ids if i != self.sink)

    @contextmanager
    def metered(self) -> Iterator[dict[str, float]]:
        yield {}


SUBJECT: Any = Speller()


class MadeUp:
    """A sweep of random tokens. The unit fires (y about 0.9, P = 1) on 7 after 3 or 4, does so faintly (0.35) on other
    7s, and fires at a few places for no reason; y elsewhere is noise."""

    digest = "made-up"
    side_digests = dict.fromkeys(measures.SIDES, "made-up")
    facts: ClassVar[dict[str, Any]] = {"overlap": {"tune": 0.0, "score": 0.0}}

    def __init__(self, documents: int = 240, seed: int = 0, target: float = 0.02, stray: float = 0.001) -> None:
        generator = np.random.default_rng(seed)
        self.documents: list[SweptDocument] = []
        tokens: list[np.ndarray] = []
        y: list[np.ndarray] = []
        start = 0
        for number in range(documents):
            length = int(generator.integers(30, 160))
            side = measures.SIDES[min(number * 10 // documents // 4, 2)]
            self.documents.append(SweptDocument(str(number), f"made {number}", side, number // 2, start, length))
            start += length
            rate = target * generator.gamma(2.0, 0.5)
            p = np.full(WORDS, (1 - 3 * rate) / (WORDS - 4))
            p[[SINK, *CUES, TARGET]] = 0, rate, rate, rate
            ids = generator.choice(WORDS, size=length, p=p / p.sum())
            cue = np.flatnonzero(np.isin(ids[:-1], CUES) & (generator.random(length - 1) < 0.5))
            ids[cue + 1] = TARGET
            tokens.append(ids)
            y.append(self.activation(ids, generator, stray))
        self.tokens = np.concatenate(tokens).astype(np.int32)
        self.y = np.concatenate(y)
        self.reads = 0

    @staticmethod
    def activation(ids: np.ndarray, generator: np.random.Generator, stray: float) -> np.ndarray:
        y = 0.04 * generator.standard_normal(len(ids))
        before = np.concatenate([[SINK], ids[:-1]])
        before[::STEP] = SINK
        y[ids == TARGET] += 0.35
        full = (ids == TARGET) & np.isin(before, CUES)
        y[full] = generator.uniform(0.6, 1.2, int(full.sum()))
        odd = generator.random(len(ids)) < stray
        y[odd] = generator.uniform(0.55, 1.0, int(odd.sum()))
        return y

    def side(self, side: str) -> list[int]:
        return [i for i, d in enumerate(self.documents) if d.side == side]

    def flat(self, side: str) -> np.ndarray:
        """Global numbers of a side's places."""
        return np.concatenate([np.arange(d.start, d.start + d.length) for d in self.documents if d.side == side])

    def window(self, place: tuple[int, int]) -> tuple[list[int], int]:
        document, first = self.documents[place[0]], place[1] - place[1] % STEP
        ids = self.tokens[document.start + first : document.start + min(first + STEP, document.length)]
        return [SINK, *ids.tolist()], place[1] % STEP + 1

    def windows(self, side: str) -> Iterator[tuple[int, int, list[int]]]:
        for d in self.side(side):
            for first in range(0, self.documents[d].length, STEP):
                yield d, first, self.window((d, first))[0]

    def statistics(self, unit: UnitId) -> Statistics:
        strata = {s: labels.per_stratum(self.y[self.flat(s)]).tolist() for s in measures.SIDES}
        clusters = {s: len({self.documents[e.document].cluster for e in self._fires(s)}) for s in measures.SIDES}
        return Statistics(
            1.0, 0.5, 0.0, 1.0, 0.0, {s: len(self.flat(s)) for s in measures.SIDES},
            {s: sum(counts[:2]) for s, counts in strata.items()}, clusters, strata,
        )  # fmt: skip

    def _exemplar(self, number: int, band: str) -> Exemplar:
        starts = [d.start for d in self.documents]
        document = int(np.searchsorted(starts, number, side="right")) - 1
        return Exemplar(document, int(number) - starts[document], float(self.y[number]), band)

    def _smallest(self, numbers: np.ndarray, size: int) -> np.ndarray:
        return numbers[np.argsort(vars(labels)["position_key"](numbers))[:size]]

    def _fires(self, side: str) -> list[Exemplar]:
        flat = self.flat(side)
        return [self._exemplar(n, "mid") for n in flat[self.y[flat] >= 0.5]]

    def firings(self, unit: UnitId) -> list[Exemplar]:
        flat = self.flat("score")
        return [self._exemplar(n, "mid") for n in self._smallest(flat[self.y[flat] >= 0.5], measures.SAMPLE)]

    def exemplars(self, unit: UnitId, side: str, band: str) -> list[Exemplar]:
        flat = self.flat(side)
        if band == "random":
            return [self._exemplar(n, band) for n in self._smallest(flat, RANDOM)]
        inside = flat[labels.stratum(self.y[flat]) == ("high", "mid", "boundary", "low").index(band)]
        return [self._exemplar(n, band) for n in self._smallest(inside, 12)]

    def read(self, subject: Any, unit: UnitId, places: Sequence[tuple[int, int]]) -> np.ndarray:
        self.reads += len(places)
        return np.array([self.y[self.documents[d].start + offset] for d, offset in places])


def rule(*cues: int, ids: Sequence[int] = (TARGET,), value: float = 0.9) -> Rule:
    need = [{"match": {"ids": list(cues)}}] if cues else []
    return Rule.from_json({"clauses": [{"at": {"ids": list(ids)}, "need": need, "value": value}]})


TRUE, BROAD, NARROW = rule(*CUES), rule(), rule(CUES[0])
EVERYWHERE, NOWHERE = Rule.from_json({"clauses": [{"at": {"class": "any"}, "piece": "any"}]}), rule(ids=[WORDS + 1])
OTHERS = [rule(ids=[i]) for i in range(10, 16)]
FLOORS = Floors(tuple(OTHERS[:3]), tuple(OTHERS[3:]), ("a", "b", "c"), ("d", "e", "f"), {"nearest": 0, "random": 2})


def scored(sweep: Any, tried: Rule = TRUE, floors: Floors = FLOORS, **options: Any) -> dict[str, Score]:
    once: set[str] = set()
    found = score_input.score_input(
        SUBJECT, sweep, UNIT, tried, hypothesis="h", claim=lambda h: not (h in once or once.add(h)),  # type: ignore[func-returns-value]
        floor_rules=floors, **options,
    )  # fmt: skip
    for score in found:
        Score.from_json(score.to_json())
    return {score.metric: score for score in found}


def counted(sweep: Any, tried: Rule, side: str = "score") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every place of a side, sinks left out: the prediction, y, and its number."""
    text = side_text(SUBJECT, sweep, side)
    real = text.text.position > 0
    return tried.predict_flat(text.text)[real], sweep.y[sweep.flat(side)], sweep.flat(side)


def f1_of(predicted: np.ndarray, fires: np.ndarray) -> float:
    return 2 * float((predicted & fires).sum()) / float(predicted.sum() + fires.sum())


@pytest.fixture(scope="module")
def sweep() -> Any:
    return MadeUp()


@pytest.mark.parametrize("tried", [TRUE, BROAD, NARROW, EVERYWHERE, NOWHERE])
def test_where_every_firing_is_listed_the_score_is_the_count(sweep: Any, tried: Rule) -> None:
    prediction, y, _ = counted(sweep, tried)
    predicted, fires = prediction > 0, y >= 0.5
    assert fires.sum() <= measures.SAMPLE
    found = scored(sweep, tried)
    f1 = found["f1"]
    if predicted.sum() <= measures.SAMPLE:
        assert f1.value == pytest.approx(f1_of(predicted, fires))
    assert f1.details["recall"] == pytest.approx(predicted[fires].mean()) == found["coverage"].value
    assert f1.details["predicted"] == predicted.sum() and f1.details["firings"] == fires.sum()
    assert f1.floors["always_on"] == pytest.approx(f1_of(np.ones_like(fires), fires))
    for name, other in FLOORS.rules.items():
        assert f1.floors[name] == pytest.approx(f1_of(counted(sweep, other)[0] > 0, fires))
    fpr = (predicted & ~fires).sum() / (~fires).sum()
    r = predicted[fires].mean()
    if r and predicted.sum() <= measures.SAMPLE:
        p = 0.01 * r / (0.01 * r + 0.99 * fpr)
        assert found["f1_at_prevalence"].value == pytest.approx(2 * p * r / (p + r))


def test_the_true_rule_holds_and_each_wrong_one_scores_lower(sweep: Any) -> None:
    true, broad, narrow = (scored(sweep, tried) for tried in (TRUE, BROAD, NARROW))
    for metric in ("f1", "auprc", "pearson", "f1_at_prevalence"):
        value, low, high = true[metric].value, true[metric].low, true[metric].high
        assert value is not None and low is not None and high is not None and low <= value <= high
        assert max(broad[metric].value or 0, narrow[metric].value or 0) < value, metric
    assert (true["f1"].low or 0) > 0.5 and true["f1"].details["margin"]["low"] > 0
    assert true["f1"].details["p"] == max(true["f1"].details["p_half"], true["f1"].details["p_floor"]) < 0.01


def test_each_clause_is_scored_as_if_it_were_the_rule(sweep: Any) -> None:
    """Clauses that overlap, one that is mostly wrong, and one that never matches, against rules of that clause."""
    alone = [NARROW, rule(*CUES), rule(ids=[12]), NOWHERE]
    several = Rule(tuple(clause for one in alone for clause in one.clauses))
    whole = scored(sweep, several)["f1"].details
    assert whole["predicted"] <= measures.SAMPLE, "else only samples could be compared"
    assert len(whole["clauses"]) == len(alone)
    for one, found in zip(alone, whole["clauses"], strict=True):
        f1 = scored(sweep, one)["f1"]
        assert found["clause"] == one.text(SUBJECT.piece)
        assert found["predicted"] == found["judged"] == f1.details["predicted"]
        assert found["f1"] == pytest.approx({"value": f1.value, "low": f1.low, "high": f1.high})
        for name in ("precision", "recall"):
            assert found[name]["value"] == f1.details[name]
    right, wrong = whole["clauses"][1], whole["clauses"][2]
    assert right["precision"]["low"] > 0.8 > 0.1 > wrong["precision"]["high"]


def test_predicting_nothing_has_f1_0_and_constants_have_no_correlation(sweep: Any) -> None:
    nothing, everything = scored(sweep, NOWHERE), scored(sweep, EVERYWHERE)
    assert nothing["f1"].value == nothing["f1"].high == 0 and nothing["f1"].details["precision"] is None
    assert nothing["f1_at_prevalence"].value == 0
    assert everything["f1"].value == pytest.approx(everything["f1"].floors["always_on"], abs=0.02)
    for found in (nothing, everything):
        for metric in ("auprc", "pearson"):
            assert found[metric].value is None and found[metric].low is None
            assert "same at every place" in (found[metric].reason or "")


def salt(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Other hashes of places, for the sweep's samples and for those of the scores."""
    shift = 10**6 * (seed + 1)
    monkeypatch.setattr(labels, "position_key", lambda numbers: collect.position_key(np.asarray(numbers) + shift))


def test_samples_of_places_are_right_on_average(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 40 places judged in place of 300, the mean over hash salts is the full count, for scores and floors."""
    tried = BROAD
    prediction, y, _ = counted(sweep, tried)
    predicted, fires = prediction > 0, y >= 0.5
    alike = Floors((TRUE,), (OTHERS[0],), ("a",), ("d",), {})
    monkeypatch.setattr(measures, "SAMPLE", 10**6)
    whole = scored(sweep, tried, alike)
    monkeypatch.setattr(measures, "SAMPLE", 40)
    assert fires.sum() > 80 and predicted.sum() > 80
    seen: dict[str, list[float]] = {}
    for seed in range(24):
        salt(monkeypatch, seed)
        found = scored(sweep, tried, alike)
        assert found["f1"].n == 80
        for name in ("precision", "recall"):
            seen.setdefault(name, []).append(found["f1"].details[name])
        for name in ("f1", "auprc", "pearson", "f1_at_prevalence"):
            seen.setdefault(name, []).append(found[name].value or 0.0)
        for name in ("nearest_1", "shifted", "always_on"):
            seen.setdefault(name, []).append(found["f1"].floors[name] or 0.0)
    truth = {
        "precision": fires[predicted].mean(), "recall": predicted[fires].mean(), "f1": f1_of(predicted, fires),
        "nearest_1": f1_of(counted(sweep, TRUE)[0] > 0, fires), "pearson": np.corrcoef(prediction, y)[0, 1],
        "auprc": average_precision_score(fires, prediction), "f1_at_prevalence": whole["f1_at_prevalence"].value,
        "shifted": whole["f1"].floors["shifted"], "always_on": whole["f1"].floors["always_on"],
    }  # fmt: skip
    for name, expected in truth.items():
        error = np.std(seen[name]) / np.sqrt(len(seen[name]))
        assert np.mean(seen[name]) == pytest.approx(expected, abs=4 * error + 0.005), name
        assert np.std(seen[name]) > 0 or name == "always_on"


def test_the_weights_of_the_graded_sample_stand_for_every_place(sweep: Any) -> None:
    subject = SUBJECT
    side = labels.ScoreSide.of(subject, sweep, ())
    truth = labels.Truth.of(subject, sweep, UNIT, side)
    for tried in (TRUE, BROAD, OTHERS[0]):
        prediction = tried.predict_flat(side.text.text)
        judged = labels.Judged.of(subject, sweep, UNIT, side, truth, prediction)
        rows, values, weights, fires = labels.stratified(sweep, UNIT, side, truth, judged)
        assert weights.sum() == pytest.approx(side.keep.sum())
        assert weights[fires].sum() == pytest.approx(truth.firings) and np.all((values >= 0.5) == fires)
        assert weights[prediction[rows] > 0].sum() == pytest.approx(judged.predicted.sum())


def test_a_stratum_without_a_sample_is_stood_for_by_the_next(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = sweep.exemplars
    monkeypatch.setattr(sweep, "exemplars", lambda u, side, band: [] if band == "boundary" else known(u, side, band))
    side = labels.ScoreSide.of(SUBJECT, sweep, ())
    truth = labels.Truth.of(SUBJECT, sweep, UNIT, side)
    judged = labels.Judged.of(SUBJECT, sweep, UNIT, side, truth, OTHERS[0].predict_flat(side.text.text))
    _, values, weights, _ = labels.stratified(sweep, UNIT, side, truth, judged)
    assert truth.strata[2] > 50 and not len(values[(values > 0.25) & (values < 0.5) & (weights > 1)])
    assert weights.sum() == pytest.approx(side.keep.sum())


def test_false_alarms_are_not_left_to_the_random_places(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule with false alarms where y is near 0: weighing the random places alone gives an AUPRC that jumps about."""
    tried, subject = rule(ids=[TARGET, 10]), SUBJECT
    split, plain = [], []
    for seed in range(12):
        salt(monkeypatch, seed)
        side = labels.ScoreSide.of(subject, sweep, ())
        truth = labels.Truth.of(subject, sweep, UNIT, side)
        prediction = tried.predict_flat(side.text.text)
        judged = labels.Judged.of(subject, sweep, UNIT, side, truth, prediction)
        rows, _, weights, fires = labels.stratified(sweep, UNIT, side, truth, judged)
        split.append(average_precision_score(fires, prediction[rows], sample_weight=weights))
        rows, values = side.rows(sweep.exemplars(UNIT, "score", "random"))
        rows = np.concatenate([truth.rows, rows[values < 0.5]])
        weights = np.where(np.arange(len(rows)) < len(truth.rows), 1.0, side.keep.sum() / RANDOM)
        plain.append(average_precision_score(np.isin(rows, truth.rows), prediction[rows], sample_weight=weights))
    expected = average_precision_score(counted(sweep, TRUE)[1] >= 0.5, counted(sweep, tried)[0])
    assert np.abs(np.array(split) - expected).max() < 0.03 < np.abs(np.array(plain) - expected).max()
    assert np.std(split) < np.std(plain) / 5


def test_a_naive_sample_misleads_where_the_stratified_one_does_not(sweep: Any) -> None:
    """Among 64 random places hardly any fires, so that "never" is right nearly always; among the strongest places
    every rule of high recall looks perfect, however many false alarms it has."""
    generator = np.random.default_rng(0)
    prediction, y, _ = counted(sweep, EVERYWHERE)
    random = generator.choice(len(y), 64, replace=False)
    nothing = np.zeros(len(y), dtype=bool)
    assert ((y >= 0.5) == nothing)[random].mean() > 0.9 and scored(sweep, NOWHERE)["f1"].value == 0
    top = np.argsort(-y)[:30]
    assert f1_of((prediction > 0)[top], (y >= 0.5)[top]) == 1
    assert (scored(sweep, EVERYWHERE)["f1"].value or 0) < 0.1


def test_missing_and_extra_labels_lower_every_score() -> None:
    whole: Any = MadeUp(documents=320, stray=0)
    base = scored(whole)
    fewer, more = MadeUp(documents=320, stray=0), MadeUp(documents=320, stray=0)
    firing = np.flatnonzero(whole.y >= 0.5)
    fewer.y[firing[::2]] = 0.02
    generator = np.random.default_rng(1)
    more.y[generator.choice(len(more.y), len(firing), replace=False)] = 0.9
    for corrupt in (fewer, more):
        found = scored(corrupt)
        for metric in ("f1", "f1_at_prevalence", "auprc", "pearson"):
            assert (found[metric].value or 0) < (base[metric].value or 0) - 0.1, metric
            assert (found[metric].high or 0) < (base[metric].low or 0), metric


def test_shuffled_labels_are_rejected(sweep: Any) -> None:
    shuffled = MadeUp()
    np.random.default_rng(2).shuffle(shuffled.y)
    f1 = scored(shuffled)["f1"]
    assert f1.high is not None and f1.high < 0.5 and f1.details["p"] > 0.9


def test_a_neighbours_equal_rule_leaves_no_margin(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Floors((rule(*CUES, value=0.4),), (), ("a",), (), {})
    monkeypatch.setattr(measures, "SAMPLE", 40)
    f1 = scored(sweep, TRUE, twin)["f1"]
    assert f1.floors["nearest_1"] == f1.value
    assert f1.details["margin"] == {"value": 0, "low": 0, "high": 0} and f1.details["p_floor"] == 1
    assert f1.details["p"] == 1 > f1.details["p_half"]


def test_the_score_side_is_read_once(sweep: Any) -> None:
    once: set[str] = set()

    def claim(hypothesis: str) -> bool:
        fresh = hypothesis not in once
        once.add(hypothesis)
        return fresh

    def read(hypothesis: str) -> list[Score]:
        return score_input.score_input(
            SUBJECT, sweep, UNIT, TRUE, hypothesis=hypothesis, claim=claim, floor_rules=FLOORS
        )

    read("a")
    read("b")
    before = sweep.reads
    with pytest.raises(Refused, match="already read for explanation a"):
        read("a")
    assert sweep.reads == before


def test_windows_that_share_a_run_with_the_evidence_are_dropped_and_counted(sweep: Any) -> None:
    leaked = [e for e in sweep.firings(UNIT)[:3]]
    windows = {(e.document, e.offset // STEP): sweep.window(e.place)[0] for e in leaked}
    rows = [{"ids": [SINK, 99, *ids[1:15]]} for ids in windows.values()] + [{"text": "no ids"}]
    evidence = [Evidence(tool="minimal_example", summary="", rows=rows)]
    base, found = scored(sweep)["f1"], scored(sweep, evidence=evidence)["f1"]
    assert found.details["dropped_windows"] == len(windows) == 3
    assert found.details["dropped_tokens"] == base.details["tokens"] - found.details["tokens"] > 0
    prediction, y, numbers = counted(sweep, TRUE)
    starts = np.array([d.start for d in sweep.documents])
    document = np.searchsorted(starts, numbers, side="right") - 1
    kept = np.array([(d, (n - starts[d]) // STEP) not in windows for d, n in zip(document, numbers, strict=True)])
    assert found.value == pytest.approx(f1_of(prediction[kept] > 0, y[kept] >= 0.5))
    assert found.details["firings"] == (y[kept] >= 0.5).sum() < base.details["firings"]
    # Twelve tokens in common are no leak, and a sink in front of them does not make a thirteenth.
    rows = [{"ids": [99, *ids[1:13], 98]} for ids in windows.values()] + [{"ids": ids[:13]} for ids in windows.values()]
    short = [Evidence(tool="t", summary="", rows=rows)]
    assert scored(sweep, evidence=short)["f1"].details["dropped_windows"] == 0


def test_dropped_firings_leave_the_counts_when_not_all_are_listed(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "SAMPLE", 40)
    ids = sweep.window(sweep.firings(UNIT)[0].place)[0]
    evidence = [Evidence(tool="t", summary="", rows=[{"ids": ids}])]
    base, found = scored(sweep)["f1"], scored(sweep, evidence=evidence)["f1"]
    assert found.details["dropped_windows"] == 1 and found.details["firings"] < base.details["firings"]
    assert found.details["firings_sampled"] < 40


def test_too_few_positives_leave_every_score_undefined_with_the_reason() -> None:
    rare = MadeUp(documents=40, target=0.001, stray=0)
    found = scored(rare)
    assert rare.statistics(UNIT).firings["score"] < measures.MIN_FIRINGS
    assert list(found) == list(score_input.METRICS)
    for score in found.values():
        assert score.value is None and score.low is None and (score.reason or "").startswith("too few positives")
    # Many firings in few clusters are as little to go by.
    lumped = MadeUp(documents=60)
    lumped.documents = [replace(d, cluster=min(d.cluster, 27)) for d in lumped.documents]
    reason = scored(lumped)["f1"].reason or ""
    assert lumped.statistics(UNIT).firings["score"] >= measures.MIN_FIRINGS and "clusters" in reason


def test_near_misses_give_boundary_rejection_and_nothing_else(sweep: Any) -> None:
    without = scored(sweep, TRUE)
    assert without["hm"].value is None and without["boundary_rejection"].reason == "no near misses were given"
    near = []
    for e in sweep.firings(UNIT):
        ids, position = sweep.window(e.place)
        if ids[position - 1] in CUES:
            near.append(NearMiss(e.document, (*ids[: position - 1], 20, ids[position]), 0.1))
            near.append(NearMiss(e.document, (*ids[:position], ids[position]), 0.6))  # it fires: no miss
    true, broad = (scored(sweep, tried, near_misses=lambda: near) for tried in (TRUE, BROAD))
    assert true["boundary_rejection"].value == 1 and broad["boundary_rejection"].value == 0
    c = true["coverage"].value or 0.0
    assert true["hm"].value == pytest.approx(2 * c / (1 + c)) and broad["hm"].value == 0
    assert true["boundary_rejection"].n == len(near) // 2 and true["hm"].low is not None
    assert true["f1"].value == without["f1"].value


def test_why_there_are_no_near_misses_is_recorded(sweep: Any) -> None:
    def refuse() -> list[NearMiss]:
        raise Refused("there is no masked LM here")

    for near, reason in ((refuse, "there is no masked LM here"), (list, "no changed text silences the unit")):
        found = scored(sweep, TRUE, near_misses=near)
        assert {(found[m].value, found[m].reason) for m in ("boundary_rejection", "hm")} == {(None, reason)}
        assert found["coverage"].value is not None


def test_near_misses_are_made_only_once_the_score_side_is_claimed(sweep: Any) -> None:
    asked: list[int] = []
    with pytest.raises(Refused, match="was already read"):
        score_input.score_input(
            SUBJECT, sweep, UNIT, TRUE, hypothesis="h", claim=lambda _: False, floor_rules=FLOORS,
            near_misses=lambda: asked.append(1) or [],  # type: ignore[func-returns-value]
        )  # fmt: skip
    assert asked == []


def test_equal_seeds_give_equal_scores(sweep: Any) -> None:
    first, again, other = (scored(sweep, seed=seed) for seed in (0, 0, 1))
    bare = [[replace(s, id="", created_at="") for s in found.values()] for found in (first, again)]
    assert bare[0] == bare[1]
    assert first["f1"].value == other["f1"].value and first["f1"].low != other["f1"].low


def test_a_token_unit_is_as_well_looked_up_as_explained_and_a_context_unit_is_not(sweep: Any) -> None:
    shown = scored(sweep)["f1"]
    lookup, ngram = (shown.references[name] for name in ("token_lookup", "back_off_ngram"))
    single = f1_of(counted(sweep, BROAD)[0] > 0, counted(sweep, BROAD)[1] >= 0.5)
    assert lookup == pytest.approx(single, abs=0.05)
    assert (lookup or 0) < (ngram or 0) <= (shown.value or 0)
    token = MadeUp()
    token.y = np.where(token.tokens == TARGET, 0.9, 0.01)
    shown = scored(token, BROAD)["f1"]
    assert shown.references["token_lookup"] == pytest.approx(1.0) and shown.value == pytest.approx(1.0)


def test_tune_scores_show_the_misses_and_leave_the_score_side_alone(sweep: Any) -> None:
    subject = SUBJECT
    good, broad, narrow = (trial(subject, sweep, UNIT, tried, "tune") for tried in (TRUE, BROAD, NARROW))
    for tried, found in ((TRUE, good), (BROAD, broad)):
        prediction, y, _ = counted(sweep, tried, "tune")
        assert found["precision"] == pytest.approx((y >= 0.5)[prediction > 0].mean(), abs=0.03)
        assert found["f1"] == pytest.approx(f1_of(prediction > 0, y >= 0.5), abs=0.12)
    assert good["f1"] > broad["f1"] and good["f1"] > narrow["f1"]
    false = [m for m in broad["misses"] if m["kind"] == "false positive"]
    missed = [m for m in narrow["misses"] if m["kind"] == "false negative"]
    assert len(false) == 5 and all(m["token"] == f" w{TARGET}" and m["ratio"] < 0.5 for m in false)
    assert missed and all(m["ratio"] >= 0.5 and m["text"].endswith(m["token"]) for m in missed)
    tune = {sweep.documents[number].name for number in sweep.side("tune")}
    assert {m["document"] for found in (good, broad, narrow) for m in found["misses"]} <= tune
    nothing = trial(subject, sweep, UNIT, NOWHERE, "tune")
    assert nothing["f1"] == 0 and nothing["precision"] is None and nothing["predicted"] == 0
