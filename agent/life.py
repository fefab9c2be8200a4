"""Runs from outside: where they stand, held back and let go on, their failures queued again, and room on the disk.

Everything here works on the two stores alone, beside processes that are at work, and loads no model.
"""

import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ..store.findings import drain
from ..store.records import Busy, Failure, Refused, signed
from ..store.work import RunState, Worker
from ..tools import measures
from .config import Home

ROOM = 2**30           # bytes that must be free on the home's file system for work to go on
UNKNOWN = "unknown"    # kind of a failure of which no record is left
ALIKE = 3              # failures of a unit in a row, all alike, after which it is set apart

# Starts of processes and ends of units, in order: the time between is what a unit took.
_EVENTS = """
    WITH events AS (
        SELECT run, created_at, NULL AS unit, NULL AS sign, NULL AS investigation FROM runs WHERE status = 'running'
        UNION ALL
        SELECT run, created_at, unit, sign, coalesce(investigation, id) FROM investigations
        UNION ALL
        SELECT run, created_at, unit, sign, NULL FROM failures f WHERE NOT EXISTS (
            SELECT 1 FROM investigations i WHERE coalesce(i.investigation, i.id) = f.investigation)
    )
    SELECT * FROM events WHERE run IS NOT NULL ORDER BY run, created_at
"""

_FAILURES = """
    SELECT id, created_at, run, investigation, unit, sign, kind, message, step, attempt FROM failures
    WHERE run IS NOT NULL
"""


@dataclass(frozen=True)
class Taken:
    """What one unit of a run took, in seconds of the clock on the wall, beside whatever else was done meanwhile."""

    unit: str
    investigation: str | None
    seconds: float


def free(home: Home) -> int:
    """Bytes free where the home is, or is to be."""
    place = next(p for p in (home.path, *home.path.parents) if p.exists())
    return shutil.disk_usage(place).free


def room(home: Home) -> str | None:
    """None where work can go on; where the disk is nearly full, a sentence that says so and what to do."""
    left = free(home)
    if left >= ROOM:
        return None
    return (
        f"only {left / 1e6:,.0f} MB are free on the disk of {home.path}, and {ROOM / 1e6:,.0f} MB are kept free; "
        "delete something there (folders in sweeps/ can be made again), then run the same command again."
    )


# Which run


def chosen(home: Home, run: str | None, newest: Iterable[RunState], lack: str) -> RunState:
    """The run of this id, or of an id that begins like this; without one the last of `newest`.

    Raises Refused where there is none (`lack` says what there is not), or several begin so.
    """
    found = [one for one in runs(home) if one.id.startswith(run)] if run else list(newest)[-1:]
    if not found and run:
        raise Refused(f"there is no run {run!r} in {home.path}; `lamplighter status` lists those that there are.")
    if not found:
        raise Refused(f"{lack} in {home.path}; `lamplighter status` lists the runs that there are.")
    if len(found) > 1:
        raise Refused(f"{len(found)} runs begin with {run!r}; give more of the id, as `lamplighter status` lists it.")
    return found[0]


def runs(home: Home) -> list[RunState]:
    """Every run of this home, oldest first; asking leaves no folder behind."""
    return home.work.runs() if home.path.exists() else []


def open_runs(home: Home) -> list[RunState]:
    """Those that are not done, oldest first."""
    return [run for run in runs(home) if run.status != "done"]


def command(home: Home, run: RunState) -> str | None:
    """The command that continues a run; None for one that no command of this version continues."""
    asked = run.asked
    if asked.get("edits"):
        return " ".join(["lamplighter review score", *_elsewhere(home)])
    if not {"model", "corpus", "units"} <= asked.keys() or asked.get("measures") != measures.VERSION:
        return None
    planner, judge = str(asked.get("planner")), asked.get("judge")
    options = {
        "--home": str(home.path) if home.path != Home.resolve(None).path else None,
        "--model": asked["model"], "--corpus": asked["corpus"], "--sites": ",".join(asked.get("sites") or ()),
        "--units": asked["units"], "--planner": planner.partition(":")[0], "--endpoint": _asked_of(planner)[1],
        "--judge": "planner" if judge and judge == planner else _asked_of(judge)[1],
        "--second-corpus": asked.get("second"), "--tokens": asked.get("tokens"), "--device": asked.get("device"),
        "--dtype": asked.get("dtype"),
    }  # fmt: skip
    models = {"LAMPLIGHTER_LLM_MODEL": _asked_of(planner)[0]}
    if judge != planner:
        models["LAMPLIGHTER_JUDGE_MODEL"] = _asked_of(judge)[0]
    before = [f"{name}={shlex.quote(model)}" for name, model in models.items() if model]
    words = [str(word) for name, value in options.items() if value not in (None, "") for word in (name, value)]
    return " ".join([*before, "lamplighter", "run", shlex.join(words)])


def _elsewhere(home: Home) -> list[str]:
    """The option that names a home which is not the usual one."""
    return ["--home", shlex.quote(str(home.path))] if home.path != Home.resolve(None).path else []


def _asked_of(label: str | None) -> tuple[str | None, str | None]:
    """(model, URL) of a label `llm:MODEL@URL`; neither for the playbook and the embedded model."""
    model, _, url = (label or "").removeprefix("llm:").rpartition("@")
    return (model, url) if url.startswith(("http://", "https://")) else (None, None)


def _then(home: Home, run: RunState) -> str:
    """What to run to continue, as a sentence."""
    line = command(home, run)
    if line is None:
        return "Nothing of this version continues it: another one began it."
    return f"`{line}` continues it."


# Held back, and let go on


def pause(home: Home, run: str | None = None) -> dict[str, Any]:
    """Has a run (by default the newest open one) start nothing more, until it is resumed."""
    state = chosen(home, run, open_runs(home), "no run is open")
    if state.status == "done":
        raise Refused(f"run {state.id} is done, so there is nothing to pause; `lamplighter status` lists the others.")
    home.work.pause(state.id)
    at_work = home.work.workers(state.id)
    waits = f"{processes(at_work)} will wait at the next step" if at_work else "no process works on it just now"
    was = "was paused before" if state.paused else "is paused"
    told = f"run {state.id} {was}: {waits}. `lamplighter resume` lets it go on."
    return {"run": state.id, "paused": True, "workers": _pids(at_work), "told": told}


def resume(home: Home, run: str | None = None) -> dict[str, Any]:
    """Lets a run go on: by default the newest that is paused, else the newest that is open.

    Where no living process works on it, `command` continues it.
    """
    still = open_runs(home)
    state = chosen(home, run, [one for one in still if one.paused] or still, "no run is open")
    if state.status == "done":
        raise Refused(f"run {state.id} is done, so there is nothing to resume; `lamplighter show UNIT` shows a unit.")
    home.work.resume(state.id)
    at_work = home.work.workers(state.id)
    goes = "is paused no more" if state.paused else "was not paused"
    how = f"{processes(at_work)} will go on." if at_work else f"no process works on it. {_then(home, state)}"
    told = f"run {state.id} {goes}: {how}"
    line = None if at_work else command(home, state)
    return {"run": state.id, "paused": False, "workers": _pids(at_work), "command": line, "told": told}


def processes(at_work: Sequence[Worker]) -> str:
    """`process 12`, or `processes 12, 13`."""
    pids = ", ".join(worker.pid for worker in at_work)
    return f"process{'' if len(at_work) == 1 else 'es'} {pids}"


def _pids(at_work: Sequence[Worker]) -> list[dict[str, Any]]:
    return [{"process": worker.process, "pid": worker.pid, "units": worker.units} for worker in at_work]


# Once more


def retry(home: Home, run: str | None = None, kind: str | None = None, alike: bool = False) -> dict[str, Any]:
    """Queues a run's failed units again, with `kind` only those whose last failure was of it.

    Those that are set apart, since they failed ALIKE times in a row in the same way, stay so unless `alike`. By default
    of the newest run that has failed units. Raises Refused where there are none, or none of that kind.
    """
    with_failed = (one for one in runs(home) if home.work.counts(one.id)["failed"])
    state = chosen(home, run, with_failed, "no unit has failed")
    with suppress(Busy):         # what cannot be delivered now is read from the outbox
        drain(home.work, home.findings)
    failed = [job.unit for job in home.work.jobs(state.id) if job.status == "failed"]
    if not failed:
        raise Refused(f"no unit of run {state.id} has failed; `lamplighter status` says where its units stand.")
    past = failures(home).get(state.id, {})
    kinds = {unit: past[unit][-1].kind if unit in past else UNKNOWN for unit in failed}
    there = Counter(kinds.values())
    if kind is not None and kind not in there:
        raise Refused(f"no unit of run {state.id} failed as {kind!r}; the kinds there are: {_counted(there)}.")
    wanted = [unit for unit in failed if kind in (None, kinds[unit])]
    apart = [unit for unit in wanted if not alike and set_apart(past.get(unit, ()))]
    if apart and len(apart) == len(wanted):
        raise Refused(
            f"{_units(len(apart))} of run {state.id} failed {ALIKE} times in a row in the same way (first {apart[0]}), "
            "so no more is tried; --alike queues them all the same."
        )
    queued = home.work.requeue(state.id, [unit for unit in wanted if unit not in apart])
    at_work = home.work.workers(state.id)
    told = f"{_units(len(queued))} of run {state.id} queued again: {_counted(Counter(kinds[u] for u in queued))}. "
    if apart:
        told += f"{_units(len(apart))} that failed {ALIKE} times in the same way left out; --alike takes them too. "
    told += f"{_taken_up(at_work)}" if at_work else _then(home, state)
    if state.paused:
        told += " The run is paused; `lamplighter resume` lets it go on."
    return {
        "run": state.id, "queued": [{"unit": unit, "kind": kinds[unit]} for unit in queued],
        "left": len(failed) - len(queued), "apart": apart, "workers": _pids(at_work),
        "command": None if at_work else command(home, state), "told": told,
    }  # fmt: skip


def _taken_up(at_work: Sequence[Worker]) -> str:
    return f"Process {at_work[0].pid}, which works on it, takes them up."


def _units(count: int) -> str:
    return f"{count} unit{'' if count == 1 else 's'}"


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def failures(home: Home) -> dict[str, dict[str, list[Failure]]]:
    """Every failure, recorded or on its way, oldest first, by run and unit; what was asked is left out.

    Raises Refused where findings cannot be read.
    """
    kept = [Failure(**row) for row in home.findings.sql(_FAILURES)] if home.findings.path.exists() else []
    waiting = [one for run in home.work.waiting() if run for one in home.work.waiting_of(Failure, run)]
    every = {one.id: one for one in (*kept, *waiting) if one.run is not None}
    found: dict[str, dict[str, list[Failure]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(every.values(), key=lambda one: (one.created_at, one.id)):
        found[str(one.run)][signed(asdict(one))].append(one)
    return found


def set_apart(past: Sequence[Failure]) -> bool:
    """Whether a unit's last ALIKE failures were the same, so that it is tried no more."""
    last = [(one.kind, one.message, one.step) for one in past[-ALIKE:]]
    return len(last) == ALIKE and len(set(last)) == 1


# Where they stand


def status_facts(home: Home) -> list[dict[str, Any]]:
    """Each run of this home, oldest first: its units by state, who works on it, pace, spend, failures, what waits.

    `note` says why pace and failures are unknown where the findings cannot be read.
    """
    every, note = runs(home), None
    if not every:
        return []
    try:
        past: dict[str, dict[str, list[Failure]]] | None = failures(home)
        took: dict[str, list[Taken]] | None = taken(home)
    except Refused as refusal:
        past, took, note = None, None, str(refusal)
    waiting, left = home.work.waiting(), free(home)
    return [
        _run_facts(home, run, past, took) | {"waiting": waiting.get(run.id, 0), "free_bytes": left, "note": note}
        for run in every
    ]


def _run_facts(
    home: Home, run: RunState, past: dict[str, dict[str, list[Failure]]] | None, took: dict[str, list[Taken]] | None
) -> dict[str, Any]:
    failed = [job.unit for job in home.work.jobs(run.id) if job.status == "failed"]
    spent, counts = home.work.spent(run.id), home.work.counts(run.id)
    pace = None if took is None else units_an_hour(took.get(run.id, ()))
    before = None if past is None else past.get(run.id, {})
    return {
        "run": run.id, "status": run.status, "paused": run.paused, "units": len(run.units), **counts,
        "workers": _pids(home.work.workers(run.id)) if run.status != "done" else [],
        "units_an_hour": pace, "hours_left": round((counts["queued"] + counts["running"]) / pace, 2) if pace else None,
        "llm": {"calls": spent.calls, "tokens": spent.tokens, "usd": spent.usd, "unpriced": spent.unpriced},
        "failures": None if before is None else _kinds_of(failed, before),
        "apart": None if before is None else sum(set_apart(before.get(unit, ())) for unit in failed),
    }  # fmt: skip


def _kinds_of(failed: Iterable[str], past: Mapping[str, Sequence[Failure]]) -> dict[str, int]:
    """How many units stand as failed, by the kind of their last failure."""
    return dict(sorted(Counter(past[unit][-1].kind if unit in past else UNKNOWN for unit in failed).items()))


def taken(home: Home) -> dict[str, list[Taken]]:
    """What each unit that ended took, by run: the time since the unit before it ended, or a process began.

    A unit that failed counts as well. Raises Refused where findings cannot be read.
    """
    found: dict[str, list[Taken]] = defaultdict(list)
    before: dict[str, datetime] = {}
    for row in home.findings.sql(_EVENTS) if home.findings.path.exists() else ():
        now, run = datetime.fromisoformat(row["created_at"]), row["run"]
        if row["unit"] is not None and run in before:
            seconds = max(0.0, (now - before[run]).total_seconds())
            found[run].append(Taken(signed(row), row["investigation"], seconds))
        before[run] = now
    return found


def units_an_hour(took: Sequence[Taken]) -> float | None:
    """Distinct units that ended, by the hours that they took together; None where none did."""
    seconds = sum(one.seconds for one in took)
    return round(3600 * len({one.unit for one in took}) / seconds, 2) if seconds else None


__all__ = [
    "Taken", "chosen", "command", "failures", "free", "open_runs", "pause", "processes", "resume", "retry", "room",
    "runs", "set_apart",
    "status_facts", "taken", "units_an_hour",
]  # fmt: skip
