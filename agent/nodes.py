"""The steps of one investigation, as methods of `Investigator`; `graph.py` says in which order they run.

observe → plan ⇄ act → submit → (revise) → score → explain output → verdict → record. The planner sees explain and tune
only; the score side is read once, after submission, and the verdict is by rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from ..store.records import (
    Evidence,
    Exemplar,
    Failure,
    Hypothesis,
    Investigation,
    Record,
    Refused,
    Score,
    Unit,
    Verdict,
    uuid7,
)
from ..tools.explain_output import explain_output, rule_of, rule_text
from ..tools.floors import NO_FLOORS, Floors, floor_rules
from ..tools.induce import Induced
from ..tools.judged import METRICS, Judge, Qualification, Unanswered, score_judged, simulated
from ..tools.near_misses import near_misses
from ..tools.rebuild import METRICS as REBUILT
from ..tools.rebuild import Predict, fit_scales, rebuild
from ..tools.rules import Rule
from ..tools.score_input import score_input, unscored
from ..tools.score_output import score_output
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from ..tools.try_rule import trial
from ..tools.units import UnitId
from . import verdict
from .brief import plain
from .budget import Budget
from .llm import Later, LLMError, OutOfBudget
from .progress import PLANNING
from .state import GOOD_ENOUGH, Abstain, Action, Call, Draft, Planner, State, Submit
from .turns import as_hypotheses, turns

UNTRIED: dict[str, Any] = {"f1": None, "precision": None, "recall": None, "misses": []}
PATTERN = 300          # characters of a pattern that was held back, in the reason of an abstention
RECORDED = ("top", "high", "mid", "boundary")   # bands whose exemplars go to the findings

Tell = Callable[[UnitId, str], None]


class Drained(Exception):  # noqa: N818 — asked for from outside, nothing went wrong
    """The run was asked to stop; the unit in hand goes back to the queue."""


@dataclass
class Investigator:
    """One unit's investigation: its tools, its planner, its budget, and what it writes down.

    `claim(hypothesis)` guards the score side; `other(unit)` makes another unit's rule and sentence, floors for this
    one's; `tell(unit, what)` is called before each step, and may raise Drained; `second` is another corpus, swept over
    the same sites, on which rules are scored as well; `judge` reads sentences, and `qualified` says how it did on
    planted rules, by metric.
    """

    run: str
    toolbox: Toolbox
    sweep: Sweep
    planner: Planner
    budget: Budget
    claim: Callable[[str], bool]
    other: Callable[[UnitId], Induced]
    tell: Tell
    attempt: int = 1
    investigation: str = field(default_factory=uuid7)
    second: Sweep | None = None
    judge: Judge | None = None
    qualified: Mapping[str, Qualification] = field(default_factory=dict)

    def observe(self, state: State) -> State:
        """Checks that the unit can be studied at all: it is the model's, and the sweep saw it active."""
        self.toolbox.subject.check(state["unit"])
        self.sweep.statistics(state["unit"])
        return {"steps": 0, "revisions": 0, "misses": [], "kept": None, "output": None, "scores": [], "failures": []}

    def plan(self, state: State) -> State:
        """Asks the planner, or has it conclude once the budget is spent.

        Where a language model fails after a first submission, that one stands and the failure is recorded beside it.
        Raises Later where it only asks to wait.
        """
        spent = self.budget.spent(state["steps"])
        self.tell(state["unit"], PLANNING if spent is None else f"wrapping up: {spent}")
        try:
            decided: Action = self.planner.decide(state) if spent is None else self.planner.conclude(state)
        except Later:               # the unit is begun again when the server takes requests
            raise
        except LLMError as error:
            if self.budget.reached:     # as where no more time was left for an answer
                return {"action": self.planner.conclude(state)}
            if not state.get("drafts"):
                raise
            failure = Failure(
                kind=type(error).__name__, message=str(error), step=PLANNING, attempt=self.attempt,
                **self._stamps, **_name(state["unit"]),
            )  # fmt: skip
            return {"action": Abstain(str(error)), "failures": [failure]}
        return {"action": decided}

    def act(self, state: State) -> State:
        """Runs the tool that the planner chose; a refusal is evidence too."""
        action = state["action"]
        assert isinstance(action, Call)
        self.tell(state["unit"], f"{action.tool}: {action.why}" if action.why else action.tool)
        evidence = self.toolbox.call(action.tool, state["unit"], action.arguments, **self._stamps)
        return {"evidence": [evidence], "calls": [action], "steps": state["steps"] + 1}

    def submit(self, state: State) -> State:
        """Writes the planner's explanation down and tries its rule on the tune side."""
        action, unit = state["action"], state["unit"]
        assert isinstance(action, Submit)
        self.tell(unit, "trying the rule on the tune side")
        rule, subject = action.rule, self.toolbox.subject
        tune = UNTRIED if rule is None else trial(subject, self.sweep, unit, rule, "tune")
        hypothesis = Hypothesis(
            author=self.planner.name, sentence=action.sentence,
            rule=None if rule is None else rule.to_json(),
            rule_text=None if rule is None else rule.text(subject.piece),
            kept=False, evidence=[e.id for e in state.get("evidence", []) if e.ok], tune_f1=tune["f1"],
            provenance=self.planner.provenance, **self._stamps, **_name(unit),
        )  # fmt: skip
        return {"drafts": [Draft(hypothesis, rule, tune)]}

    def revise(self, state: State) -> State:
        """Hands the tune-side misses of the last draft back to the planner."""
        return {"misses": state["drafts"][-1].tune["misses"], "revisions": state["revisions"] + 1}

    def score(self, state: State) -> State:
        """Reads the score side once, for the draft that did best on the tune side."""
        unit, subject = state["unit"], self.toolbox.subject
        best = max(state["drafts"], key=lambda draft: draft.tune["f1"] or 0.0)
        self.tell(unit, "scoring on text that was never shown")
        floors = NO_FLOORS
        if best.rule is not None or self.judge is not None:
            floors = floor_rules(subject, self.sweep, unit, lambda another: self.other(another).rule)
        if best.rule is None:
            scores = unscored(unit, best.hypothesis.id, verdict.NO_RULE)
        else:
            scores = score_input(
                subject, self.sweep, unit, best.rule, hypothesis=best.hypothesis.id, claim=self.claim,
                floor_rules=floors, evidence=state.get("evidence", []),
                near_misses=lambda: near_misses(subject, self.sweep, self.toolbox.masked(), unit),
            )  # fmt: skip
            scores += self._elsewhere(unit, best.hypothesis.id, best.rule, state.get("evidence", []))
        scores += self._rebuilt(unit, best.hypothesis, best.rule, state.get("evidence", []))
        scores += self._judged(unit, best.hypothesis, floors, state.get("evidence", []))
        return {"kept": replace(best.hypothesis, kept=True), "scores": [replace(s, **self._stamps) for s in scores]}

    def _judged(
        self, unit: UnitId, hypothesis: Hypothesis, floors: Floors, evidence: Sequence[Evidence]
    ) -> list[Score]:
        """What a judge makes of the sentence, where there is one and the budget lasts; a floor is the sentence of the
        unit that writes most alike."""
        if self.judge is None or self.budget.reached:
            return []
        self.tell(unit, "asking the judge")
        beside = floors.nearest_units
        try:
            return score_judged(
                self.toolbox.subject, self.sweep, unit, hypothesis.sentence, self.judge, hypothesis=hypothesis.id,
                claim=self.claim, evidence=evidence, author=hypothesis.author, qualified=self.qualified,
                other=self.other(UnitId.parse(beside[0])).sentence if beside else None,
            )  # fmt: skip
        except OutOfBudget as spent:
            told: dict[str, Any] = {"hypothesis": hypothesis.id, "side": "score", "judge": self.judge.name}
            return [Score(metric=m, value=None, reason=str(spent), **told, **_name(unit)) for m in METRICS]

    def _elsewhere(
        self, unit: UnitId, hypothesis: str, rule: Rule, evidence: Sequence[Evidence]
    ) -> list[Score]:
        """F1 of the same rule on a second corpus, if there is one, whose own explain side says what firing is there."""
        if self.second is None:
            return []
        self.tell(unit, f"scoring on {self.second.corpus}")
        f1, *_ = score_input(
            self.toolbox.subject, self.second, unit, rule, hypothesis=hypothesis,
            claim=lambda h: self.claim(f"{h}:{self.second.digest if self.second else ''}"), floor_rules=NO_FLOORS,
            evidence=evidence,
        )  # fmt: skip
        return [replace(f1, metric="f1_second_corpus", details=f1.details | {"corpus": self.second.corpus})]

    def explain_output(self, state: State) -> State:
        """Puts what the ablation found into words and scores them, for units without a rule as well.

        Left out once the budget is reached: the verdict does not wait for it.
        """
        unit, subject, evidence = state["unit"], self.toolbox.subject, state.get("evidence", [])
        made = None if self.budget.reached else explain_output(subject, evidence)
        if made is None:
            return {}
        self.tell(unit, "scoring what it pushes on text that was never shown")
        pushes = made.pushes
        hypothesis = Hypothesis(
            author="ablate", sentence=made.sentence, rule=None if pushes is None else rule_of(pushes),
            rule_text=None if pushes is None else rule_text(subject, pushes), kept=True, side="output",
            evidence=[made.evidence], **self._stamps, **_name(unit),
        )  # fmt: skip
        scores = [] if pushes is None else score_output(
            subject, self.sweep, unit, pushes, hypothesis=hypothesis.id, claim=self.claim, evidence=evidence
        )  # fmt: skip
        stamped = [replace(score, **self._stamps) for score in scores]
        return {"output": hypothesis, "scores": [*state["scores"], *stamped]}

    def _rebuilt(
        self, unit: UnitId, hypothesis: Hypothesis, rule: Rule | None, evidence: Sequence[Evidence]
    ) -> list[Score]:
        """What the model gets back with a prediction in the unit's place, on each corpus there is.

        It is the rule's, else that of a judge who reads the sentence; its scale is fitted on the first corpus.
        """
        subject = self.toolbox.subject
        if self.budget.reached or not subject.holds("edit") or (rule is None and self.judge is None):
            return []
        self.tell(unit, "rebuilding it from its explanation")
        if rule is not None:
            return self._rebuild(unit, hypothesis.id, rule, evidence)
        assert self.judge is not None
        try:
            found = self._rebuild(unit, hypothesis.id, simulated(self.judge, hypothesis.sentence, subject), evidence)
        except (OutOfBudget, Unanswered, Refused) as error:
            told: dict[str, Any] = {"hypothesis": hypothesis.id, "side": "score", "reason": str(error)}
            found = [Score(metric=m, value=None, **told, **_name(unit)) for m in REBUILT]
        return [replace(score, judge=self.judge.name) for score in found]

    def _rebuild(
        self, unit: UnitId, hypothesis: str, explanation: Rule | Predict, evidence: Sequence[Evidence]
    ) -> list[Score]:
        subject, rules = self.toolbox.subject, {unit: explanation}
        scales, found = fit_scales(subject, self.sweep, rules), []
        for sweep in (self.sweep, self.second):
            if sweep is not None and sweep.statistics(unit).peak > 0:
                found += rebuild(
                    subject, sweep, rules, scales, hypothesis=hypothesis, evidence=evidence,
                    claim=lambda h, digest=sweep.digest: self.claim(f"{h}:rebuild:{digest}"),  # type: ignore[misc]
                )  # fmt: skip
        second = [replace(s, metric=f"{s.metric}_second_corpus") for s in found[len(REBUILT) :]]
        return [*found[: len(REBUILT)], *second]

    def decide(self, state: State) -> State:
        """The verdict on this unit alone; false discovery over the run is added when the run ends."""
        kept = state["kept"]
        if kept is None:
            action = state["action"]
            why = self._abstained(action) if isinstance(action, Abstain) else "no explanation was submitted"
            decided = ("abstained", why)
        else:
            decided = verdict.decide(state["scores"], None)
        p = None if kept is None else verdict.headline(state["scores"]).details.get("p")
        made = Verdict(
            hypothesis=kept.id if kept else None, verdict=decided[0], reason=decided[1], p=p,
            **self._stamps, **_name(state["unit"]),
        )  # fmt: skip
        return {"verdict": made}

    def _abstained(self, action: Abstain) -> str:
        """The reason, with the pattern that was held back, where there is one: a reviewer may see more in it."""
        if action.weak is None:
            return action.reason
        pattern = plain(action.weak.text(self.toolbox.subject.piece))
        return f"{action.reason} Held back: {pattern[:PATTERN]}{'…' * (len(pattern) > PATTERN)}"

    def record(self, state: State) -> State:
        """Everything that is remembered of this investigation, as records."""
        unit, kept, evidence = state["unit"], state["kept"], state.get("evidence", [])
        drafts = [d.hypothesis for d in state.get("drafts", []) if kept is None or d.hypothesis.id != kept.id]
        investigation = Investigation(
            id=self.investigation, planner=self.planner.name, status="abstained" if kept is None else "submitted",
            steps=state["steps"], cost=_total(evidence, state["scores"]), seconds=0.0, run=self.run, **_name(unit),
        )  # fmt: skip
        known = [h for h in (kept, state["output"]) if h is not None]
        stamps = {**self._stamps, **_name(unit)}
        asked = list(zip(state.get("calls", []), evidence, strict=True))
        tried = as_hypotheses(asked, [*drafts, *known], self.toolbox.subject, **stamps)
        threshold = self.sweep.statistics(unit).threshold
        made = turns(asked, tried, self.toolbox.subject, threshold, **stamps)
        others = [h for h in tried.values() if h not in (*drafts, *known)]
        records: list[Record] = [
            self._unit(unit), *self._exemplars(unit), investigation, *evidence, *made, *others, *drafts, *known,
            *state["scores"], state["verdict"], *state["failures"],
        ]  # fmt: skip
        return {"records": [replace(r, provenance=self._provenance | r.provenance) for r in records]}

    @property
    def _stamps(self) -> dict[str, Any]:
        return {"run": self.run, "investigation": self.investigation}

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        return dict(self.sweep.facts["provenance"])

    def _unit(self, unit: UnitId) -> Unit:
        facts = asdict(self.sweep.statistics(unit))
        return Unit(
            model=unit.model, site=unit.site, index=unit.index, peak=facts.pop("peak"),
            threshold=facts.pop("threshold"), statistics=facts, **self._stamps, **_name(unit),
        )  # fmt: skip

    def _exemplars(self, unit: UnitId) -> list[Exemplar]:
        rows = []
        for side in ("explain", "tune"):
            for e in self.sweep.exemplars(unit, side):
                if e.band in RECORDED:
                    ids, position = self.sweep.window(e.place)
                    rows.append(Exemplar(
                        side=side, band=e.band, document=self.sweep.documents[e.document].id, position=e.offset,
                        activation=e.activation, text=self.toolbox.subject.text(ids[: position + 1]),
                        token=self.toolbox.subject.piece(ids[position]), **self._stamps, **_name(unit),
                    ))  # fmt: skip
        return rows


def after_plan(state: State) -> str:
    """The node that carries out what the planner decided."""
    return {Call: "act", Submit: "submit", Abstain: "explain_output"}[type(state["action"])]


def after_submit(state: State, revisions: int) -> str:
    """Revise while rounds are left, the last draft is weak, and it missed something."""
    tune = state["drafts"][-1].tune
    weak = tune["f1"] is not None and tune["f1"] < GOOD_ENOUGH
    return "revise" if weak and tune["misses"] and state["revisions"] < revisions else "score"


def _name(unit: UnitId) -> dict[str, Any]:
    return {"unit": unit.bare, "sign": unit.sign}


def _total(evidence: Sequence[Evidence], scores: Sequence[Score]) -> dict[str, float]:
    """Forward rows, padded tokens and seconds of all tool calls and of scoring; recalled evidence cost nothing now."""
    costs = [e.cost for e in evidence if "recalled" not in e.provenance]
    costs += [s.details["cost"] for s in scores if "cost" in s.details]
    return {name: float(sum(c.get(name, 0) for c in costs)) for name in ("forward_rows", "forward_tokens", "seconds")}


__all__ = ["Drained", "Investigator", "after_plan", "after_submit"]
