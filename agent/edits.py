"""Explanations that people wrote, scored: by the same reading, floors, judge and rule of verdict as a planner's get.

Each is scored on the sweep of the explanation that it replaces, where that is still here, and on no text that stands in
the experiments behind it, which are its own evidence as well. It becomes an investigation like any other, of a run of
its own kind (`store/edits.py`), which the next edits of the same model join while it is not done.
"""

import logging
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from .. import __version__
from ..store import records
from ..store.edits import edit_key, edit_of, queue_forgotten, unqueue_edit
from ..store.findings import drain
from ..store.records import Busy, Evidence, Failure, Hypothesis, Record, Refused
from ..store.work import Job, RunState, StaleAttempt, worker_id
from ..tools import measures
from ..tools.corpus import load_corpus
from ..tools.induce import Induced, induce
from ..tools.judged import Qualification, Unanswered
from ..tools.rules import Rule
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from ..tools.try_rule import trial
from ..tools.units import UnitId
from . import life, log
from .budget import Budget
from .config import Home
from .judge import LLMJudge
from .llm import Later, Stamps
from .night import LEASE, concluded
from .nodes import UNTRIED, Investigator
from .planners import ByLLM, ByPlaybook, choose_judge
from .qualify import qualify
from .state import Abstain, Action, Draft, State, Submit


class Tell(Protocol):
    """Who is told how the scoring goes."""

    def begins(self, done: int, total: int) -> None: ...
    def step(self, unit: str, what: str) -> None: ...
    def ended(self, unit: str, how: str, done: int, total: int) -> None: ...


@dataclass
class _Person:
    """Stands where a planner does: a person has decided."""

    name: str
    sentence: str
    rule: Rule | None
    provenance: dict[str, Any] = field(default_factory=dict)

    def decide(self, state: State) -> Action:
        return self.conclude(state)

    def conclude(self, state: State) -> Submit | Abstain:
        return Submit(self.sentence, self.rule)


def score_edits(
    home: Home, tell: Tell, judge: str | None = None, minutes: float | None = None, device: str | None = None
) -> dict[str, Any]:
    """Scores every explanation by a person that waits for it: {runs, scored, failed, left, told}.

    scored: {unit, sign, explanation, rule, planner, verdict, reason, input_f1, input_f1_low, input_f1_high, floor_f1};
    failed: units; left: how many were not reached in `minutes`, or are paused. judge: as in `run`; a sentence without a
    rule takes one. What fails is recorded as failed, and `retry` queues it again.
    """
    drain(home.work, home.findings)
    queue_forgotten(home.work, home.findings)
    budget = Budget(minutes)
    waiting = [run for run in life.runs(home) if run.key.startswith(edit_key("")) and run.status != "done"]
    with nullcontext() if (asked := choose_judge(judge, ByPlaybook(), home, budget)) is None else closing(asked):
        if asked is not None and waiting:
            asked.ready(None)
        for state in waiting:
            _Scoring(home, state, budget, tell, asked, device).run()
    runs = [state.id for state in waiting]
    counts = [home.work.counts(run) for run in runs]
    failed = [job.unit for run in runs for job in home.work.jobs(run) if job.status == "failed"]
    left = sum(count["queued"] + count["running"] for count in counts)
    scored = home.findings.sql(_SCORED, {"runs": runs}) if runs else []
    return {"runs": runs, "scored": scored, "failed": failed, "left": left, "told": _told(len(scored), failed, left)}


_SCORED = """
    SELECT o.unit, o.sign, o.sentence AS explanation, o.rule_text AS rule, o.author AS planner, o.verdict, o.reason,
           f1.value AS input_f1, f1.low AS input_f1_low, f1.high AS input_f1_high,
           list_max(map_values(CAST(f1.floors AS MAP(VARCHAR, DOUBLE)))) AS floor_f1
    FROM outcomes o
    LEFT JOIN scores f1 ON f1.investigation = o.investigation AND f1.hypothesis = o.hypothesis AND f1.metric = 'f1'
                           AND f1.side = 'score' AND f1.judge IS NULL
    WHERE o.edited AND o.verdict IS NOT NULL AND list_contains($runs::VARCHAR[], o.run)
    ORDER BY o.created_at, o.unit, o.sign
"""


def _told(scored: int, failed: Sequence[str], left: int) -> str:
    if not scored and not failed and not left:
        return "no explanation by a person waits to be scored; `lamplighter review submit` can edit one."
    parts = [f"{scored} scored", *([f"{len(failed)} failed"] if failed else []), *([f"{left} left"] if left else [])]
    return f"explanations by people: {', '.join(parts)}."


class _Scoring:
    """One run of edits, of one model."""

    def __init__(
        self, home: Home, state: RunState, budget: Budget, tell: Tell, judge: ByLLM | None, device: str | None
    ) -> None:
        self.home, self.state, self.budget, self.tell, self.judge = home, state, budget, tell, judge
        self.device, self.me = device, worker_id()
        self.toolboxes: dict[str | None, Toolbox] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.qualified: dict[str, dict[str, Qualification]] = {}
        self.others: dict[tuple[str, UnitId], Induced] = {}

    def run(self) -> None:
        """Scores unit after unit until none is left, the budget is reached or somebody pauses the run."""
        home, run = self.home, self.state.id
        home.work.begin_run(run)
        home.work.post([self._record("running")])
        if self.judge is not None:
            self.judge.begin(run)
            self.budget.spent_on_llm = lambda: home.work.spent(run)
        with log.open_log(home, run):
            try:
                while not self.budget.reached and (job := home.work.claim(run, self.me, LEASE)) is not None:
                    self._one(job)
            except BaseException:
                with suppress(Busy):       # what cannot be delivered now waits in the outbox
                    self._close("drained")
                raise
            counts = home.work.counts(run)
            ends = "budget" if self.budget.reached else "drained"
            self._close(ends if counts["queued"] or counts["running"] else "done")

    def _one(self, job: Job) -> None:
        """One explanation, or a failure of this unit; whatever else ends this process gives the unit back."""
        work = self.home.work
        try:
            drain(work, self.home.findings)
            edit = edit_of(self.home.findings, job)
            if edit is None:
                with work.change() as con:
                    unqueue_edit(con, job.run, job.unit, job.token)
                return
            with log.bound(unit=job.unit, attempt=job.attempt, worker=self.me), suppress(StaleAttempt):
                self._attempt(job, edit)
        except BaseException:
            with suppress(StaleAttempt, Refused):
                work.release(job)
            raise
        with suppress(Busy):
            drain(work, self.home.findings)
        counts = work.counts(job.run)
        done = counts["done"] + counts["failed"]
        status = next(one.status for one in work.jobs(job.run) if one.unit == job.unit)
        self.tell.ended(job.unit, status, done, sum(counts.values()))

    def _attempt(self, job: Job, edit: Hypothesis) -> None:
        """Raises StaleAttempt if the unit was taken over, Later where the judge asks to wait."""
        began, step = self.budget.elapsed, "start"

        def tell(_: UnitId, what: str) -> None:
            nonlocal step
            step = what
            self.home.work.heartbeat(job)
            log.event("step", what=what)
            self.tell.step(job.unit, what)

        try:
            made = self._scored(job, edit, tell)
        except (StaleAttempt, Later):
            raise
        except Exception as error:  # noqa: BLE001 — it becomes a failure of this unit
            failure = Failure(
                kind=type(error).__name__, message=_where(error), step=step, attempt=job.attempt, run=job.run,
                investigation=edit.investigation, unit=edit.unit, sign=edit.sign, provenance=edit.provenance,
            )  # fmt: skip
            self.home.work.fail(job, failure, retry=False)
            log.event("unit failed", level=logging.ERROR, kind=failure.kind, told=failure.message, step=step)
            return
        seconds = round(self.budget.elapsed - began, 2)
        timed = [replace(r, seconds=seconds) if isinstance(r, records.Investigation) else r for r in made]
        self.home.work.finish(job, timed)
        log.event("unit done", seconds=seconds)

    def _scored(self, job: Job, edit: Hypothesis, tell: Any) -> list[Record]:
        """All that is recorded of one explanation but itself, which is on record."""
        unit = UnitId.parse(job.unit)
        tell(unit, "loading the model")
        toolbox = self._toolbox(unit.model, edit.provenance.get("dtype"))
        sweep = self._sweep(toolbox, unit, edit.provenance.get("sweep"))
        toolbox = replace(toolbox, sweep=lambda _: sweep)
        rule = None if edit.rule is None else Rule.from_json(edit.rule)
        evidence = self._evidence(edit)
        stamps: Stamps = {"run": job.run, "investigation": edit.investigation, "unit": edit.unit, "sign": edit.sign}
        by = Investigator(
            job.run, toolbox, sweep, _Person(edit.author, edit.sentence, rule), self.budget, self._claim(job),
            self._other(toolbox, sweep), tell, job.attempt, str(edit.investigation),
            judge=None if self.judge is None else LLMJudge(self.judge.client, self.judge.can, stamps),
            qualified=self._qualified(sweep),
        )  # fmt: skip
        state: State = {"unit": unit}
        state |= by.observe(state)
        tell(unit, "trying the rule on the tune side")
        tune = UNTRIED if rule is None else trial(toolbox.subject, sweep, unit, rule, "tune")
        state |= {"evidence": evidence, "drafts": [Draft(edit, rule, tune)], "steps": len(evidence)}
        state |= by.score(state)
        state |= by.decide(state)
        made = by.record(state | {"evidence": [], "calls": []})["records"]
        return [*(r for r in made if r.id != edit.id), *(_again(one, edit, job.run) for one in evidence)]

    def _toolbox(self, model: str, dtype: str | None) -> Toolbox:
        if dtype not in self.toolboxes:
            self.toolboxes[dtype] = self.home.toolbox(model, self.device, dtype)
        return self.toolboxes[dtype]

    def _sweep(self, toolbox: Toolbox, unit: UnitId, digest: str | None) -> Sweep:
        """The sweep of the explanation that is replaced, else the home's largest of these weights."""
        folder = self.home.path / "sweeps" / str(digest)
        if digest is not None and digest not in self.sweeps and folder.is_dir():
            self.sweeps[digest] = Sweep(folder)
        sweep = self.sweeps.get(str(digest))
        if sweep is None or sweep.facts["measures"] != measures.VERSION:
            return toolbox.sweep(unit)
        return sweep if sweep.facts["provenance"]["model"] == toolbox.subject.digest else toolbox.sweep(unit)

    def _evidence(self, edit: Hypothesis) -> list[Evidence]:
        """The experiments behind the explanation that it replaces."""
        origin = edit.provenance.get("origin")
        return [] if origin is None else self.home.findings.read(Evidence, investigation=origin)

    def _claim(self, job: Job) -> Any:
        """The score side is read once an attempt; of attempts that ended early nothing was recorded."""
        return lambda name: self.home.work.claim_once(f"score-side:{name}:{job.run}:{job.token}")

    def _other(self, toolbox: Toolbox, sweep: Sweep) -> Any:
        """Rules and sentences of other units, floors for this one's; each is made once."""

        def make(unit: UnitId) -> Induced:
            key = (sweep.digest, unit)
            if key not in self.others:
                self.others[key] = induce(toolbox.subject, sweep, unit, reads=0)
            return self.others[key]

        return make

    def _qualified(self, sweep: Sweep) -> Mapping[str, Qualification]:
        """How the judge does on planted rules in the sweep's corpus; none, where that cannot be tried."""
        if self.judge is None:
            return {}
        if sweep.digest not in self.qualified:
            judge = LLMJudge(self.judge.client, self.judge.can, {"run": self.state.id})

            def tell(what: str) -> None:
                self.tell.step("the judge", what)

            try:
                self.qualified[sweep.digest] = qualify(judge, load_corpus(sweep.corpus), self.home.work, tell=tell)
            except (Refused, Unanswered) as lack:
                tell(f"not tried, so that its scores enter no verdict: {lack}")
                self.qualified[sweep.digest] = {}
        return self.qualified[sweep.digest]

    def _close(self, status: str) -> None:
        """Verdicts over the run's units that ended, and how the run stands."""
        home, run = self.home, self.state.id
        drain(home.work, home.findings)
        if status == "done":
            home.work.post(concluded(home, run))
        home.work.post([self._record(home.work.close_run(run, status))])
        drain(home.work, home.findings)

    def _record(self, status: str) -> records.Run:
        units = next(one.units for one in self.home.work.runs() if one.id == self.state.id)
        return records.Run(
            run=self.state.id, key=self.state.key, asked=self.state.asked, status=status, units=units,
            seconds=round(self.budget.elapsed, 2), provenance={"code": __version__, "measures": measures.VERSION},
        )  # fmt: skip


def _again(evidence: Evidence, edit: Hypothesis, run: str) -> Evidence:
    """An experiment that stands behind this explanation as well: a row that names the first, at no cost."""
    provenance = evidence.provenance | {"recalled": evidence.provenance.get("recalled", evidence.id)}
    return replace(
        evidence, id=records.uuid7(), created_at=records.utc_now(), cost=dict.fromkeys(evidence.cost, 0.0), run=run,
        investigation=edit.investigation, provenance=provenance,
    )  # fmt: skip


def _where(error: Exception) -> str:
    """What a failure says, and where it happened, unless it says by itself what to do."""
    if isinstance(error, Refused):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error} ({Path(place.filename).name}:{place.lineno})"


__all__ = ["score_edits"]
