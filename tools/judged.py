"""Judged scores: does an explanation's sentence, read by a language model, say what the unit does on unseen text?

A rule is run on text; a sentence has to be read. A judge reads it and is asked four things about text of the score
side that it cannot have seen: which texts fire (detection), whether the marked tokens are those that fire (fuzzing),
how strongly each token fires (simulation), and for texts of its own, some that fire and near ones that do not
(generation). What it says is compared with what the unit was read to do, with the floors and intervals of
`answers.py`; the texts are those of `snippets.py`. Nothing that a judge failed to answer is filled in.

What is asked is old: simulation is Bills et al. (2023), detection and fuzzing Paulo et al. (arXiv:2410.13928),
generation the predictive evaluation of MAIA (arXiv:2404.14394). The drawing of texts, the matched marks, the labels,
floors and intervals are this project's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from ..store.records import Evidence, Refused, Score
from . import answers, measures
from .answers import Fields
from .labels import ScoreSide, Truth, score_provenance
from .rebuild import Predict, Windows
from .rules import SideText
from .score_input import Claim
from .snippets import Ground, Marked, Snippet, balanced, marked
from .stats import Floats
from .subject import Subject
from .sweep import Sweep
from .units import UnitId

METRICS = ("detection", "fuzzing", "simulation", "generation")
EXPECTED, INTEGERS = "expected digit", "plain integers"     # the forms of a judge's values
TOP = 9.0              # the highest value that a judge gives
NO_ANSWER = "the judge gave no answer"            # begins the reason of what it could not be asked
FIRING = "firing texts that have a silent one beside them"

T = TypeVar("T")


class Unanswered(RuntimeError):
    """A judge that cannot be asked at the moment; the sentence says why."""


@dataclass(frozen=True)
class Written:
    """Texts that a judge wrote: those that are to fire, and near ones that are not."""

    firing: tuple[str, ...]
    silent: tuple[str, ...]


class Judge(Protocol):
    """Reads an explanation and predicts. Equal questions get equal answers.

    Where an answer cannot be read, also when it is asked for by itself, it is None. Raises Unanswered where no more
    answers are to be had; whatever else it raises ends the scoring. name: model, place and words of the questions;
    form: EXPECTED or INTEGERS, what `values` are.
    """

    @property
    def name(self) -> str: ...

    @property
    def form(self) -> str: ...

    def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        """Whether the unit fires somewhere in each text."""
        ...

    def marks(self, explanation: str, texts: Sequence[Marked]) -> list[bool | None]:
        """Whether the marked tokens of each text are those that fire; labels and values are not for its eyes."""
        ...

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        """How strongly the unit fires at each token of each text, from 0 to TOP."""
        ...

    def writes(self, explanation: str, count: int) -> Written | None:
        """`count` texts on which the unit fires, and as many on which it does not."""
        ...


@dataclass(frozen=True)
class Qualification:
    """How well a judge tells true explanations of planted rules from false ones, by one metric.

    auc: the share of pairs in which the true one scores higher, ties counting half, with its 95 % interval over rules.
    """

    metric: str
    auc: float
    low: float
    high: float
    rules: int
    pairs: int
    lost: int

    @property
    def qualified(self) -> bool:
        return self.low >= measures.QUALIFIED


@dataclass(frozen=True)
class Sizes:
    """How many texts of each label are asked about."""

    detected: int = measures.DETECTED
    simulated: int = measures.SIMULATED
    generated: int = measures.GENERATED


FULL = Sizes()


class _Undefined(Exception):  # noqa: N818 — a score without a value is no error
    """Why one score cannot be given, and what is known nevertheless."""

    def __init__(self, reason: str, **details: Any) -> None:
        super().__init__(reason)
        self.details = details


def score_judged(
    subject: Subject, sweep: Sweep, unit: UnitId, sentence: str, judge: Judge, *, hypothesis: str, claim: Claim,
    evidence: Sequence[Evidence] = (), other: str | None = None, author: str | None = None,
    metrics: Sequence[str] = METRICS, qualified: Mapping[str, Qualification] | None = None, seed: int = 0,
) -> list[Score]:  # fmt: skip
    """Scores a sentence by a judge on the score side: one record for each of `metrics`, with `judge` its name.

    hypothesis, claim, evidence: as in `score_input`; the side is claimed under `HYPOTHESIS:judged:JUDGE`. other:
    another unit's explanation, a floor. author: who wrote the sentence; details["judge_is_author"] says whether that is
    the judge's own model (`llm:MODEL`). qualified: how the judge did on planted rules, by metric; it stands in
    details["qualification"], with details["qualified"], which is None for what was not tried.

    detection and fuzzing are F1 (`answers.matches`), simulation is Pearson's correlation (`answers.graded`), generation
    the harmonic mean of trigger rate and boundary rejection (`answers.written`). A score is undefined, with the reason,
    where an answer stays unreadable (details["failed"] counts them), where there are too few positives, and from the
    moment that the judge cannot be asked. The first score's details hold the cost of reading, without the judge's.
    Raises Refused at a second read and for an empty sentence, and what the judge raises other than Unanswered.
    """
    _check(sentence, metrics)
    if not claim(f"{hypothesis}:judged:{judge.name}"):
        raise Refused(
            f"the score side was already read by {judge.name} for explanation {hypothesis} and is read once; "
            "submit a new explanation."
        )
    with subject.metered() as cost:
        side = ScoreSide.of(subject, sweep, evidence)
        truth = Truth.of(subject, sweep, unit, side)
        record = partial(
            Score, unit=unit.bare, sign=unit.sign, hypothesis=hypothesis, side="score", judge=judge.name,
            provenance=score_provenance(sweep, seed) | {"judged": measures.JUDGED_VERSION},
        )  # fmt: skip
        if truth.shortage:
            found = {metric: answers.undefined(truth.shortage) for metric in metrics}
        else:
            ground = Ground.of_unit(subject, sweep, unit, side, truth)
            found = judged(ground, sentence, judge, other=other, metrics=metrics, seed=seed)
    about = {"dropped_windows": side.dropped_windows, "judge_is_author": judge.name.partition("@")[0] == author}
    more = {metric: _standing(metric, qualified) | about for metric in metrics}
    more[metrics[0]]["cost"] = cost
    return [
        record(metric=metric, **fields | {"details": fields["details"] | more[metric]})
        for metric, fields in found.items()
    ]


def simulated(judge: Judge, sentence: str, subject: Subject) -> Predict:
    """What a judge says of the tokens of windows, 0 to 1, as a prediction that `rebuild` puts in a unit's place.

    Raises Refused where an answer cannot be read, and what the judge raises.
    """

    def predict(text: SideText, chosen: Windows) -> Floats:
        pieces = [subject.pieces(text.text.ids[a:b].tolist())[1:] for a, b in chosen]
        said, out = judge.values(sentence, pieces), np.zeros(len(text.text.ids))
        lost = sum(values is None for values in said)
        if lost:
            raise Refused(f"{lost} of {len(said)} answers of the judge could not be read")
        for (a, b), values in zip(chosen, said, strict=True):
            out[a + 1 : b] = np.array(values) / TOP
        return out

    return predict


def judged(
    ground: Ground, sentence: str, judge: Judge, *, other: str | None = None, metrics: Sequence[str] = METRICS,
    sizes: Sizes = FULL, seed: int = 0,
) -> dict[str, Fields]:  # fmt: skip
    """The fields of a score for each metric, on any ground; see `score_judged`."""
    found: dict[str, Fields] = {}
    stopped: str | None = None
    for metric in metrics:
        try:
            if stopped is None:
                found[metric] = judged_by(metric, ground, sentence, judge, other=other, sizes=sizes, seed=seed)
        except Unanswered as end:
            stopped = f"{NO_ANSWER}: {end}"
        if stopped is not None:
            found[metric] = answers.undefined(stopped)
    return found


def judged_by(
    metric: str, ground: Ground, sentence: str, judge: Judge, *, other: str | None = None, sizes: Sizes = FULL,
    seed: int = 0,
) -> Fields:  # fmt: skip
    """The fields of one score. Raises Unanswered."""
    try:
        return _METRICS[metric](_Case(ground, sentence, other, judge, sizes, seed, metric))
    except _Undefined as none:
        return answers.undefined(str(none), **none.details)


def _check(sentence: str, metrics: Sequence[str]) -> None:
    if not sentence.strip():
        raise Refused("there is no sentence to judge; give the explanation in words.")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise Refused(f"{unknown[0] if unknown else 'none'!r} is no judged score; choose of {', '.join(METRICS)}.")


def _standing(metric: str, qualified: Mapping[str, Qualification] | None) -> Fields:
    known = (qualified or {}).get(metric)
    if known is None:
        return {"qualified": None}
    told = {name: getattr(known, name) for name in ("auc", "low", "high", "rules", "pairs", "lost")}
    return {"qualified": known.qualified, "qualification": told}


@dataclass(frozen=True)
class _Case:
    """One metric of one sentence."""

    ground: Ground
    sentence: str
    other: str | None
    judge: Judge
    sizes: Sizes
    seed: int
    metric: str

    def ask(self, question: Callable[[str], Sequence[T | None]]) -> tuple[list[T], list[T] | None]:
        """All answers about the sentence, and about the other one if there is one. Raises _Undefined."""
        own = _whole(question(self.sentence), "")
        return own, None if self.other is None else _whole(question(self.other), " about another explanation")


def _whole(said: Sequence[T | None], about: str) -> list[T]:
    read = [one for one in said if one is not None]
    failed = len(said) - len(read)
    if failed:
        raise _Undefined(f"{failed} of {len(said)} answers of the judge{about} could not be read", failed=failed)
    return read


def _need(positives: Sequence[Snippet], what: str, **details: Any) -> None:
    """Nobody is asked about too few texts."""
    reason = answers.few(len({one.cluster for one in positives}), f"{len(positives)} {what}")
    if reason is not None:
        raise _Undefined(reason, **details)


def _detection(case: _Case) -> Fields:
    """Which texts hold a firing token?"""
    texts = balanced(case.ground, case.sizes.detected, case.seed, case.metric)
    _need([one for one in texts if one.fires], FIRING, mix=_mix(texts))
    own, other = case.ask(lambda sentence: case.judge.fires(sentence, [one.text for one in texts]))
    easy = np.array([one.kind == "random" for one in texts], dtype=np.bool_)
    return _matches(case, texts, [one.fires for one in texts], own, other, easy)


def _fuzzing(case: _Case) -> Fields:
    """Are the marked tokens those that fire?"""
    texts, mix = marked(case.ground, case.sizes.detected, case.seed, case.metric)
    _need([one.snippet for one in texts if one.true], "texts whose firing tokens can be marked", pairs=mix)
    own, other = case.ask(lambda sentence: case.judge.marks(sentence, texts))
    true = [one.true for one in texts]
    easy = np.array([not one.snippet.fires for one in texts], dtype=np.bool_)
    made = _matches(case, [one.snippet for one in texts], true, own, other, easy)
    made["details"]["pairs"] = mix
    if made["value"] is not None:     # F1 of who knows which texts fire, and sees no mark
        firing = sum(one.snippet.fires for one in texts)
        made["references"] = {"text_alone": 2 * sum(true) / (firing + sum(true))}
    return made


def _matches(
    case: _Case, texts: Sequence[Snippet], true: Sequence[bool], own: Sequence[bool], other: Sequence[bool] | None,
    easy: Any,
) -> Fields:  # fmt: skip
    cluster = np.array([one.cluster for one in texts], dtype=np.int64)
    flags = [None if one is None else np.array(one, dtype=np.bool_) for one in (true, own, other)]
    assert flags[0] is not None and flags[1] is not None
    made = answers.matches(flags[0], flags[1], flags[2], easy, cluster, case.seed)
    made["details"] |= {"mix": _mix(texts), "failed": 0}
    return made


def _mix(texts: Sequence[Snippet]) -> dict[str, int]:
    """How many texts of each kind there are."""
    return {kind: sum(one.kind == kind for one in texts) for kind in dict.fromkeys(sorted(t.kind for t in texts))}


def _simulation(case: _Case) -> Fields:
    """How strongly does each token fire?"""
    texts = balanced(case.ground, case.sizes.simulated, case.seed, case.metric)
    _need([one for one in texts if one.fires], FIRING, mix=_mix(texts))
    own, other = case.ask(lambda sentence: case.judge.values(sentence, [one.tokens for one in texts]))
    values = np.array([v for one in texts for v in one.values], dtype=np.float64)
    cluster = np.array([one.cluster for one in texts for _ in one.values], dtype=np.int64)
    rest = None if other is None else _flat(other, texts)
    made = answers.graded(values, _flat(own, texts), rest, cluster, case.ground.strata, case.seed)
    made["details"] |= {"mix": _mix(texts), "form": case.judge.form, "failed": 0}
    return made


def _flat(said: Sequence[Sequence[float]], texts: Sequence[Snippet]) -> Floats:
    assert [len(one) for one in said] == [len(one.tokens) for one in texts], "a judge gives one value a token"
    return np.array([value for one in said for value in one], dtype=np.float64) / TOP


def _generation(case: _Case) -> Fields:
    """Do texts that the judge writes do what it meant them to?"""
    count = case.sizes.generated
    (own,), others = case.ask(lambda sentence: [case.judge.writes(sentence, count)])
    firing, silent = _different(own)
    rest = None if others is None else _react(case.ground, *_different(others[0]))
    made = answers.written(*_react(case.ground, firing, silent), rest, case.seed)
    repeated = len(own.firing) + len(own.silent) - len(firing) - len(silent)
    made["details"] |= {"firing": list(firing), "silent": list(silent), "repeated": repeated, "failed": 0}
    return made


def _different(texts: Written) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Each text once."""
    return tuple(dict.fromkeys(texts.firing)), tuple(dict.fromkeys(texts.silent))


def _react(ground: Ground, firing: Sequence[str], silent: Sequence[str]) -> tuple[Floats, Floats]:
    values = ground.react([*firing, *silent]) if firing or silent else np.zeros(0)
    return values[: len(firing)], values[len(firing) :]


_METRICS: dict[str, Callable[[_Case], Fields]] = {
    "detection": _detection, "fuzzing": _fuzzing, "simulation": _simulation, "generation": _generation,
}  # fmt: skip

__all__ = ["EXPECTED", "INTEGERS", "METRICS", "NO_ANSWER", "Judge", "Qualification", "Sizes", "Unanswered", "Written",
           "judged", "judged_by", "score_judged"]  # fmt: skip
