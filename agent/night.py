"""The run: from what was asked to every unit accounted for, killed and continued as often as need be.

What is asked (model, corpus, sites, units, planner) makes the run's key; the same request continues an unfinished
run, and a finished one is shown, not repeated, unless a fresh one is asked for.
"""

import hashlib
import json
import logging
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__, prompts
from ..store import records
from ..store.findings import drain
from ..store.records import Busy, Failure, Record, Refused, Verdict
from ..store.work import Job, RunState, StaleAttempt, Worker, process_of, worker_id
from ..tools import measures
from ..tools.auto import early_sites, pick_units
from ..tools.corpus import load_corpus
from ..tools.induce import Induced, induce
from ..tools.judged import Qualification, Unanswered
from ..tools.sweep import Sweep, make_sweep
from ..tools.toolbox import Toolbox, code_digest
from ..tools.units import UnitId, parse_spec
from . import life, log, verdict
from .budget import Budget
from .config import Home
from .graph import investigate
from .judge import LLMJudge
from .llm import Later, LLMError, Stamps
from .nodes import Drained, Investigator
from .pace import Pace
from .planners import ByLLM, Planners, choose, choose_judge
from .playbook import Induce
from .qualify import qualify
from .recorded import embed_missing, model_record, sweep_record
from .request import Outcome, Progress, Request
from .waits import Waits
from .workers import Workers

LEASE = 600.0          # seconds a unit is held without a sign of life
DELIVER = 2.0          # seconds between two moves of finished units to the findings, each of which opens these
PACE = 2.0             # seconds between two lines of its pace
_OTHERWISE = "name units with --units, other --sites, or give more text"
_NO_MORE = ("budget", "no time", "timeout")            # kinds of LLMError that a spent budget makes


class BudgetSpent(Refused):
    """The budget did not reach to the first unit, so no run was opened."""


def run_night(home: Home, request: Request, progress: Progress) -> Outcome:
    """Carries a request out: sweep, pick units, investigate each, conclude, embed. Raises Refused before any work
    if it cannot be carried out."""
    budget = Budget(request.minutes, request.llm_tokens, request.usd, request.unit_llm_tokens, request.unit_usd)
    try:
        with closing(choose(request.planner, request.endpoint, home, budget)) as planners:
            judge = choose_judge(request.judge, planners, home, budget)
            with nullcontext() if judge is None else closing(judge):
                named = replace(request, planner=planners.label, judge=None if judge is None else judge.label)
                return _run(home, named, budget, planners, judge, progress)
    except LLMError as error:      # before the first unit; in a unit it is that unit's failure
        with suppress(Refused):    # the ledger's rows of what was asked; where they cannot go on now they wait
            drain(home.work, home.findings)
        if budget.reached and error.kind in _NO_MORE:
            raise BudgetSpent(f"{budget.reached} before the first unit was begun; raise {_limit(budget)}.") from error
        raise Refused(str(error)) from error


def _limit(budget: Budget) -> str:
    """The option whose limit is reached."""
    if budget.seconds_left == 0:
        return "--minutes"
    tokens = budget.llm_tokens is not None and budget.spent_on_llm().tokens_most >= budget.llm_tokens
    return "--llm-tokens" if tokens else "--usd"


def _run(
    home: Home, request: Request, budget: Budget, planners: Planners, judge: ByLLM | None, progress: Progress
) -> Outcome:
    state = None if request.fresh else home.work.find_run(request.key)
    if state is not None and _lost(home, state):
        state, request = None, replace(request, fresh=True)
    elif state is not None and state.status == "done":
        drain(home.work, home.findings)
        return _outcome(home, state, "done", repeated=True)
    for one in _asked(planners, judge):
        one.ready(state.id if state is not None else None)
    with _drain_on_signal() as asked_to_stop:
        return _Night(home, request, budget, planners, judge, progress, asked_to_stop).run()


def _asked(planners: Planners, judge: ByLLM | None) -> list[Planners]:
    """Who is asked in a run: once, where the model that plans judges as well."""
    return [planners] if judge is None or judge is planners else [planners, judge]


def _lost(home: Home, state: RunState) -> bool:
    """Whether the findings hold nothing of a run any more, as after a damaged file was moved away."""
    if home.work.pending():
        return False             # what is on its way is not lost
    return not home.findings.path.exists() or not home.findings.read(records.Run, run=state.id)


class _Night:
    def __init__(
        self, home: Home, request: Request, budget: Budget, planners: Planners, judge: ByLLM | None, progress: Progress,
        asked_to_stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.home, self.request, self.budget, self.planners, self.judge = home, request, budget, planners, judge
        self.progress = progress
        self.workers = Workers(request.workers)
        self._asked_to_stop = asked_to_stop
        self.held: dict[str, Job] = {}      # units in hand, by the worker that has each
        self.waits = Waits(home.work, progress, self.asked_to_stop, self._beat)
        self.pace: Pace | None = None
        self.otherwise = 0                  # units that ended on other inputs than those of now
        self.told_pace = -PACE
        self.delivered = 0.0                # when results were last moved to the findings
        self.others: dict[UnitId, Induced] = {}
        self.second: Sweep | None = None
        self.qualified: dict[str, Qualification] = {}

    def asked_to_stop(self) -> bool:
        """By a signal, or since another worker of this process has ended with an error."""
        return self._asked_to_stop() or self.workers.halted

    def run(self) -> Outcome:
        request, home = self.request, self.home
        toolbox = home.toolbox(request.model, request.device, request.dtype)
        named = self._named(toolbox)
        sweep = self._sweep(toolbox, named, request.corpus)
        if request.second is not None:
            self.second = self._sweep(toolbox, named, request.second)
        toolbox = replace(toolbox, sweep=lambda unit: sweep)
        state = self._open(toolbox, sweep)
        for one in _asked(self.planners, self.judge):
            one.begin(state.id)
        self.budget.spent_on_llm = lambda: home.work.spent(state.id)
        with log.open_log(home, state.id), self.waits.patient():
            log.event("begins", units=len(state.units), open=len(self._open_units(state)), asked=self.request.asked())
            outcome = self._carried_out(state, toolbox, sweep)
            log.event("ends", status=outcome.status, left=len(outcome.left), failed=len(outcome.failed))
        return outcome

    def _carried_out(self, state: RunState, toolbox: Toolbox, sweep: Sweep) -> Outcome:
        home = self.home
        try:
            self.qualified = self._qualify(state)
            self._each_unit(state, toolbox, sweep)
            status = "budget" if self._open_units(state) else "done"
            with self._telling_what_waits(state), self.waits.alone(f"conclude:{state.id}", state.id):
                drain(home.work, home.findings)
                if self._stands(state) != "done":        # else another process that worked on it has concluded it
                    home.work.post(self._conclude(state))
        except (Drained, KeyboardInterrupt, Refused, LLMError) as error:
            log.event("stops", why=type(error).__name__, told=str(error))
            self._close(state, "drained")
            raise
        status = self._close(state, status)
        with self._telling_what_waits(state):
            drain(home.work, home.findings)
            embed_missing(home)
        return _outcome(home, state, status)

    def _qualify(self, state: RunState) -> dict[str, Qualification]:
        """How the judge does on planted rules in the run's own corpus; nothing, with the reason told, where that cannot
        be tried: its scores then enter no verdict. Raises Drained, and LLMError where the judge cannot be asked."""
        if self.judge is None:
            return {}

        def tell(what: str) -> None:
            if self.asked_to_stop():
                raise Drained
            self.progress.step("the judge", what)

        judge = LLMJudge(self.judge.client, self.judge.can, {"run": state.id})
        try:
            return qualify(judge, load_corpus(self.request.corpus), self.home.work, tell=tell)
        except Later as later:
            if not self._wait("the judge", later):
                raise
            return self._qualify(state)
        except Unanswered as error:
            raise LLMError("judge", f"the judge cannot be tried: {error}") from error
        except Refused as refusal:
            tell(f"not tried, so that its scores enter no verdict: {refusal}")
            return {}

    @contextmanager
    def _telling_what_waits(self, state: RunState) -> Iterator[None]:
        """Somebody else who holds the findings when the units are through has not made the run fail."""
        try:
            yield
        except Busy as busy:
            total = len(state.units)
            held, _, _ = str(busy).partition("; ")
            raise Busy(
                f"{total - len(self._open_units(state))} of {total} units are finished and their results wait in the "
                f"outbox, because {held}; run the same command again when it is free, which delivers them."
            ) from busy

    def _stands(self, state: RunState) -> str:
        return next(run.status for run in self.home.work.runs() if run.id == state.id)

    def _each_unit(self, state: RunState, toolbox: Toolbox, sweep: Sweep) -> None:
        total, done = len(state.units), self._ended(state)
        self.pace = Pace(self.budget, self.home.work, state.id, lambda: toolbox.subject.passed, done)
        self.progress.begins(done, total)
        if self.otherwise:
            rest = "ended on other inputs (code, model or text have changed since) and stay as they are"
            self.progress.step(state.id, f"{self.otherwise} of its units {rest}; --fresh does all of them anew")
        if beside := self._others(state):
            self.progress.step(state.id, f"joined, beside {life.processes(beside)}")

        def work() -> None:
            try:
                self._work(state, toolbox, sweep)
            finally:
                self.home.work.close()

        if self.workers.count == 1:
            self._work(state, toolbox, sweep)
            return
        try:
            self.workers.run(work, self._beat)
        except KeyboardInterrupt:        # the threads are not waited for, and what they bring will be refused
            for job in list(self.held.values()):
                with suppress(StaleAttempt):
                    self.home.work.release(job)
            raise

    def _beat(self) -> None:
        """A sign of life for every unit in hand: beside others, one step may take longer than a lease."""
        for job in list(self.held.values()):
            with suppress(StaleAttempt, Busy):
                self.home.work.heartbeat(job)

    def _work(self, state: RunState, toolbox: Toolbox, sweep: Sweep) -> None:
        """What one worker does: unit after unit, until none is left or the budget is reached."""
        work, total, me = self.home.work, len(state.units), worker_id()
        while not self.budget.reached:
            self.waits.until(lambda: life.room(self.home), "no room")
            job = work.claim(state.id, me, LEASE)
            if job is None and work.paused(state.id):
                self.waits.until(lambda: self._paused(state), state.id)
                continue
            if job is None and self._in_other_hands(state):
                self.waits.until(lambda: self._in_other_hands(state), state.id)
                continue
            if job is None:
                return
            self.held[me] = job
            try:
                # StaleAttempt: another worker has the unit by now; this attempt is not recorded.
                with suppress(StaleAttempt), log.bound(unit=job.unit, attempt=job.attempt, worker=me):
                    self._unit(state, job, toolbox, sweep)
            except Busy:                     # a store is in use: what was done of the unit is recalled next time
                work.release(job)
                continue
            except Later as later:
                work.release(job)
                self._deliver()
                if not self._wait(job.unit, later):
                    return
                continue
            except BaseException:
                with suppress(StaleAttempt, Refused):      # whatever ended this worker, others may have the unit
                    work.release(job)
                raise
            finally:
                self.held.pop(me, None)
            if self.budget.elapsed - self.delivered >= DELIVER:
                self._deliver()
            self.progress.ended(job.unit, work.status(state.id, job.unit), self._ended(state), total)
            self._tell_pace(state)

    def _ended(self, state: RunState) -> int:
        counts = self.home.work.counts(state.id)
        return counts["done"] + counts["failed"]

    def _tell_pace(self, state: RunState) -> None:
        """Now and then: counting units costs something."""
        assert self.pace is not None
        if self.budget.elapsed - self.told_pace >= PACE:
            self.told_pace = self.budget.elapsed
            self.progress.pace(self.pace.line(self._ended(state), len(state.units)))

    def _others(self, state: RunState) -> list[Worker]:
        """Other processes that work on this run."""
        mine = process_of(worker_id())
        return [one for one in self.home.work.workers(state.id) if one.process != mine]

    def _in_other_hands(self, state: RunState) -> str | None:
        """Where no unit is left to begin but others have some in hand: who. What they give back is taken up here."""
        holding = [one for one in self._others(state) if one.units]
        if not holding or self.home.work.counts(state.id)["queued"]:
            return None
        return f"the last units are in the hands of {life.processes(holding)}; waiting for them to end"

    def _paused(self, state: RunState) -> str | None:
        """Why nothing is begun now, where somebody has paused the run."""
        return "paused; `lamplighter resume` lets it go on" if self.home.work.paused(state.id) else None

    def _wait(self, unit: str, later: Later) -> bool:
        """Whether the endpoint takes requests again before the run's minutes end, once it has been waited for.

        Raises Drained if the run is asked to stop meanwhile.
        """
        left = self.budget.seconds_left
        if left is not None and left <= later.seconds:
            self.progress.step(unit, f"left for another time: {later}")
            return False
        end = self.budget.elapsed + later.seconds
        why = f"waiting {later.seconds:,.0f} seconds: {later}"
        self.waits.until(lambda: why if self.budget.elapsed < end else None, unit)
        return True

    def _deliver(self) -> None:
        """Moves what was found to the findings; while somebody else holds them it waits in the outbox."""
        self.delivered = self.budget.elapsed
        with suppress(Busy):
            drain(self.home.work, self.home.findings)

    def _close(self, state: RunState, status: str) -> str:
        """The status that the run has then: not done where units were queued again meanwhile."""
        if self._stands(state) == "done":        # by another process, just now
            status = "done"
        stands = self.home.work.close_run(state.id, status)
        self.home.work.post([self._run_record(state, stands, self.budget.elapsed)])
        self._deliver()
        return stands

    def _named(self, toolbox: Toolbox) -> list[UnitId]:
        """The units that are named one by one, each known to be the model's before anything takes long."""
        named = parse_spec(self.request.units, self.request.model, lambda n: [])
        for unit in named:
            if unit.model != self.request.model:
                raise Refused(f"{unit} is no unit of {self.request.model}; name its model with --model.")
            toolbox.subject.check(unit)
        return named

    def _sweep(self, toolbox: Toolbox, named: Sequence[UnitId], text: str) -> Sweep:
        """The sweep of a text, made now where it is not there; a second process waits for the one that makes it."""
        corpus = load_corpus(text)
        sites = self._sites(toolbox.subject.n_layers, named)
        lock = f"sweep:{self.request.model}:{corpus.digest}:{','.join(sites)}:{self.request.tokens}"

        def told(what: str, done: int, total: int) -> None:
            if self.asked_to_stop():
                raise Drained
            if self.budget.seconds_left == 0:
                raise BudgetSpent(
                    f"{self.budget.reached} before {self.request.model} was swept, and a sweep begins anew; raise "
                    "--minutes, or make it beforehand with `lamplighter sweep`."
                )
            self.home.work.lock(lock, me)
            self.progress.sweeping(what, done, total)

        with self.waits.alone(lock, "sweep") as me:
            return make_sweep(toolbox.subject, corpus, sites, self.home.path, self.request.tokens, told)

    def _sites(self, layers: int, named: Sequence[UnitId]) -> list[str]:
        """The sites asked for and those of the units named; where there are none, MLPs at three early depths."""
        asked = [*self.request.sites, *(unit.site for unit in named)]
        return asked or early_sites(layers)

    def _open(self, toolbox: Toolbox, sweep: Sweep) -> RunState:
        request, work = self.request, self.home.work
        units = [str(u) for u in self._units(sweep)]
        if not units:
            raise Refused(
                f"{request.units} finds no unit on {', '.join(sweep.sites)} that is sparse, strong and fires in enough "
                f"documents; {_OTHERWISE}."
            )
        state = work.open_run(request.key, request.asked(), units, request.fresh)
        digests = {unit: self._input_digest(unit, toolbox, sweep) for unit in state.units}
        work.enqueue(state.id, state.units, digests=list(digests.values()))
        self.otherwise = sum(job.digest not in (None, digests[job.unit]) for job in work.jobs(state.id))
        begun = self._run_record(state, "running", 0.0)
        swept = [sweep_record(one, state.id) for one in (sweep, self.second) if one is not None]
        work.post([begun, *swept, model_record(toolbox, state.id)])
        self._deliver()
        return state

    def _input_digest(self, unit: str, toolbox: Toolbox, sweep: Sweep) -> str:
        """sha256 of what the unit's result rests on: model, sweeps, who plans and judges, code and constants."""
        swept = [one.digest for one in (sweep, self.second) if one is not None]
        who = [self.request.planner, self.request.judge]
        code = [__version__, code_digest("agent", "tools"), prompts.digest()]
        rests = [unit, toolbox.subject.digest, str(toolbox.subject.dtype), swept, who, code, measures.VERSION]
        return hashlib.sha256(json.dumps(rests).encode()).hexdigest()

    def _units(self, sweep: Sweep) -> list[UnitId]:
        def pick(n: int) -> list[UnitId]:
            picks = pick_units(sweep, n)
            for one in picks:
                self.progress.picked(str(one.unit), one.why)
            if 0 < len(picks) < n:
                self.progress.step(f"auto:{n}", f"only {len(picks)} units qualify; {_OTHERWISE}")
            return [one.unit for one in picks]

        return parse_spec(self.request.units, self.request.model, pick)

    def _unit(self, state: RunState, job: Job, toolbox: Toolbox, sweep: Sweep) -> None:
        """One attempt at one unit. The only place where any error is caught: it becomes a failure of this unit.

        Raises StaleAttempt if the unit was taken over meanwhile, Later where the endpoint asks to wait.
        """
        unit = UnitId.parse(job.unit)
        step = "start"

        def tell(_: UnitId, what: str) -> None:
            nonlocal step
            if self.asked_to_stop():
                raise Drained
            self.waits.until(lambda: self._paused(state), job.unit)
            step = what
            self.home.work.heartbeat(job)
            self._tell_pace(state)
            log.event("step", what=what)
            self.progress.step(job.unit, what)

        began, investigation = self.budget.elapsed, records.uuid7()
        stamps: Stamps = {"run": state.id, "investigation": investigation, "unit": unit.bare, "sign": unit.sign}
        try:
            planner = self.planners.make(toolbox, self._induce(toolbox, sweep), stamps)
            by = Investigator(
                state.id, toolbox, sweep, planner, self.budget, self._claim, self._other(toolbox, sweep), tell,
                job.attempt, investigation, self.second,
                None if self.judge is None else LLMJudge(self.judge.client, self.judge.can, stamps), self.qualified,
            )  # fmt: skip
            found = investigate(unit, by)
        except (Drained, StaleAttempt, Later, Busy):
            raise
        except Exception as error:  # noqa: BLE001
            passing = isinstance(error, LLMError) and error.passing
            failure = Failure(
                kind=type(error).__name__, message=_told(error), request=_asked_for(error),
                step=step, attempt=job.attempt, run=state.id, investigation=investigation, unit=unit.bare,
                sign=unit.sign, provenance=sweep.facts["provenance"],
            )  # fmt: skip
            again = self.home.work.fail(job, failure, retry=passing)
            told = {"kind": failure.kind, "told": failure.message, "step": step, "again": again}
            log.event("unit failed", level=logging.ERROR, **told)
            return
        seconds = round(self.budget.elapsed - began, 2)
        timed = [replace(r, seconds=seconds) if isinstance(r, records.Investigation) else r for r in found]
        self.home.work.finish(job, timed, rung=planner.provenance.get("rung"))
        log.event("unit done", seconds=seconds)

    def _induce(self, toolbox: Toolbox, sweep: Sweep) -> Induce:
        return lambda unit, evidence: induce(toolbox.subject, sweep, unit, evidence)

    def _other(self, toolbox: Toolbox, sweep: Sweep) -> Callable[[UnitId], Induced]:
        """Rules and sentences of other units, from their exemplars alone (no forward pass), each made once a run."""

        def make(unit: UnitId) -> Induced:
            if unit not in self.others:
                self.others[unit] = induce(toolbox.subject, sweep, unit, reads=0)
            return self.others[unit]

        return make

    def _claim(self, hypothesis: str) -> bool:
        """True once: the score side is read one time for each explanation, also across processes."""
        return self.home.work.claim_once(f"score-side:{hypothesis}")

    def _conclude(self, state: RunState) -> list[Record]:
        return concluded(self.home, state.id)

    def _open_units(self, state: RunState) -> list[str]:
        return [job.unit for job in self.home.work.jobs(state.id) if job.status not in ("done", "failed")]

    def _run_record(self, state: RunState, status: str, seconds: float) -> records.Run:
        return records.Run(
            run=state.id, key=state.key, asked=self.request.asked(), status=status, units=state.units,
            seconds=round(seconds, 2), provenance={"code": __version__, "measures": measures.VERSION},
        )  # fmt: skip


def _asked_for(error: Exception) -> str | None:
    """The request that a language model gave no usable answer to, if the failure is one."""
    request = error.request if isinstance(error, LLMError) else None
    return None if request is None else json.dumps(request, ensure_ascii=False)


def _told(error: Exception) -> str:
    """What a failure says; where it happened too, unless it is one that says by itself what to do."""
    if isinstance(error, Refused | LLMError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error} ({Path(where.filename).name}:{where.lineno})"


def _outcome(home: Home, state: RunState, status: str, repeated: bool = False) -> Outcome:
    jobs = home.work.jobs(state.id)
    left = [job.unit for job in jobs if job.status not in ("done", "failed")]
    failed = [job.unit for job in jobs if job.status == "failed"]
    return Outcome(state.id, status, state.units, left, failed, repeated)


def concluded(home: Home, run: str) -> list[Record]:
    """Verdicts with the false-discovery rate over a run, for every unit of it that ended."""
    findings = home.findings
    ended = findings.read(records.Investigation, run=run)
    scores: dict[str | None, list[records.Score]] = {}
    for score in findings.read(records.Score, run=run):
        scores.setdefault(score.investigation, []).append(score)
    last = {v.investigation: v for v in findings.read(Verdict, run=run)}
    decided = verdict.conclude([(i.status, scores.get(i.id, [])) for i in ended])
    made: list[Record] = []
    for investigation, (word, reason, q) in zip(ended, decided, strict=True):
        before = last[investigation.id]
        if word in verdict.ENDED:
            word, reason = before.verdict, before.reason
        now = replace(before, id=records.uuid7(), created_at=records.utc_now())
        made.append(replace(now, verdict=word, reason=reason, q=q))
    return made


@contextmanager
def _drain_on_signal() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks for an orderly stop at the next step; the second stops at once.

    Signals are the main thread's: a run in another thread is stopped by the Progress that it tells.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
