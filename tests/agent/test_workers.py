"""Several units at a time: the same findings, each once; a stop, an error and a lost lease lose nothing."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamplighter.agent import llm, night, waits, workers
from lamplighter.agent.config import Home
from lamplighter.agent.nodes import Drained, Investigator
from lamplighter.agent.workers import Workers
from lamplighter.store import records
from lamplighter.store.records import Evidence, Failure, Score, Verdict
from lamplighter.testing import CallTool, ScriptedEndpoint

MANY = "0-mlp/0..8"


def scored(home: Home, run: str) -> dict[tuple[str, int, str], float | None]:
    """Values of the scores that rest on the rule alone, by unit, sign and metric."""
    return {(s.unit or "", s.sign or 0, s.metric): s.value for s in home.findings.read(Score, run=run)}


def test_findings_are_those_of_one_worker(swept: Home, project: Any, told: Any, tmp_path: Path) -> None:
    """Passes that are shared round otherwise, so that scores are equal to a ten-thousandth, and words are equal."""
    copied = Home(tmp_path / "several")
    shutil.copytree(swept.path / "sweeps", copied.path / "sweeps")
    alone = project.run(swept, units=MANY)
    outcome = project.run(copied, told, units=MANY, workers=4)
    assert (outcome.status, outcome.failed, outcome.left) == ("done", [], [])
    assert sorted(outcome.units) == sorted(alone.units) and len(told.ends) == len(outcome.units)
    for home, one in ((swept, alone), (copied, outcome)):
        ended = home.findings.read(records.Investigation, run=one.run)
        assert Counter((i.unit, i.sign) for i in ended).most_common(1)[0][1] == 1 and len(ended) == len(one.units)
    first, second = ((h.findings.read(Verdict, run=o.run), scored(h, o.run)) for h, o in
                     ((swept, alone), (copied, outcome)))  # fmt: skip
    last = [{(v.unit, v.sign): v.verdict for v in verdicts} for verdicts, _ in (first, second)]
    assert last[0] == last[1]
    assert first[1].keys() == second[1].keys()
    for key, value in first[1].items():
        assert second[1][key] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-4)), key


def test_units_are_in_hand_at_a_time_and_costs_stay_apart(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most = [0], [0]
    guard, whole = threading.Lock(), night.investigate

    def counted(*given: Any) -> Any:
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            time.sleep(0.3)
            return whole(*given)
        finally:
            with guard:
                inside[0] -= 1

    monkeypatch.setattr(night, "investigate", counted)
    outcome = project.run(swept, units="0-mlp/0..3", workers=3)
    assert most[0] == 3 and outcome.status == "done"
    for investigation in swept.findings.read(records.Investigation, run=outcome.run):
        evidence = swept.findings.read(Evidence, investigation=investigation.id)
        rows = sum(e.cost.get("forward_rows", 0) for e in evidence)
        assert investigation.cost["forward_rows"] >= rows >= 0
        assert {e.unit for e in evidence} == {investigation.unit}


def test_language_model_calls_overlap(swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer takes half a second; several units at a time wait for theirs together."""
    inside, most, guard, whole = [0], [0], threading.Lock(), llm._exchange

    def slow(*given: Any) -> Any:
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.5)
        with guard:
            inside[0] -= 1
        return whole(*given)

    monkeypatch.setattr(llm, "_exchange", slow)
    with ScriptedEndpoint(lambda request: CallTool("abstain", {"reason": "no pattern", "why": "so"})) as server:
        outcome = project.run(swept, units=MANY, workers=4, planner="llm", endpoint=server.url)
    assert (outcome.status, outcome.failed) == ("done", []) and most[0] > 1


def test_a_signal_gives_every_unit_in_hand_back(swept: Home, project: Any, told: Any) -> None:
    sent: list[str] = []

    def stop(unit: str, what: str) -> None:
        if not sent and what != "planning":
            sent.append(unit)
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2 if sent else 0.0)

    told.at_step = stop
    with pytest.raises(Drained):
        project.run(swept, told, units=MANY, workers=4)
    (state,) = swept.work.runs()
    counts = swept.work.counts(state.id)
    assert counts["running"] == counts["failed"] == 0 and counts["queued"] > 0 and state.status == "drained"
    assert threading.active_count() < 20
    told.at_step = None
    again = project.run(swept, units=MANY, workers=4)
    assert (again.run, again.status, again.failed) == (state.id, "done", [])
    ended = swept.findings.read(records.Investigation, run=again.run)
    assert len(ended) == len({(i.unit, i.sign) for i in ended}) == len(again.units)


def test_a_second_signal_stops_at_once_and_late_results_are_refused(
    swept: Home, project: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go = threading.Barrier(3), threading.Event()
    whole = night.investigate

    def stuck(*given: Any) -> Any:
        found = whole(*given)
        held.wait(60)
        go.wait(60)
        return found

    def interrupt() -> None:
        held.wait(60)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    monkeypatch.setattr(night, "investigate", stuck)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        project.run(swept, told, units="0-mlp/0,0-mlp/1", workers=2)
    (state,) = swept.work.runs()
    assert swept.work.counts(state.id)["queued"] == 2
    go.set()
    # Not by `join`: one that a signal interrupts has Python 3.11 take a thread that goes on for ended.
    end = time.monotonic() + 60
    while any(t.name.startswith("worker") for t in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.05)
    assert swept.work.counts(state.id)["queued"] == 2
    assert swept.findings.read(records.Investigation, run=state.id) == []


def test_an_error_beyond_a_unit_ends_the_run_and_the_others_give_theirs_back(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, calls = type(swept.work).finish, []

    def full(self: Any, job: Any, found: Any, **more: Any) -> None:
        calls.append(job.unit)
        if len(calls) == 2:
            raise records.Refused("the disk is full; make room.")
        finish(self, job, found, **more)

    monkeypatch.setattr(type(swept.work), "finish", full)
    with pytest.raises(records.Refused, match="disk is full"):
        project.run(swept, units=MANY, workers=3)
    monkeypatch.setattr(type(swept.work), "finish", finish)
    outcome = project.run(swept, units=MANY, workers=3)
    assert (outcome.status, outcome.failed) == ("done", []) and swept.findings.read(Failure) == []
    ended = swept.findings.read(records.Investigation, run=outcome.run)
    assert len(ended) == len({(i.unit, i.sign) for i in ended}) == len(outcome.units)


def test_a_unit_whose_step_outlasts_the_lease_is_kept_alive(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night, "LEASE", 1.0)
    monkeypatch.setattr(workers, "BEAT", 0.2)
    whole, tried = Investigator.observe, Counter[str]()

    def slow(self: Investigator, state: Any) -> Any:
        tried[str(state["unit"])] += 1
        time.sleep(2.5)
        return whole(self, state)

    monkeypatch.setattr(Investigator, "observe", slow)
    outcome = project.run(swept, units="0-mlp/0,0-mlp/3,0-mlp/4", workers=2)
    assert outcome.status == "done" and set(tried.values()) == {1}


# Threads by themselves


def run(count: int, work: Callable[[], None]) -> Workers:
    made = Workers(count)
    made.run(work, lambda: None)
    return made


def test_as_many_threads_as_were_asked_for() -> None:
    names: list[str] = []
    run(5, lambda: names.append(threading.current_thread().name))
    assert sorted(names) == [f"worker {n}" for n in range(5)]


def test_the_first_error_is_raised_when_all_have_ended() -> None:
    order: list[str] = []
    made = Workers(2)

    def work() -> None:
        if threading.current_thread().name == "worker 0":
            raise ValueError("first")
        while not made.halted:
            time.sleep(0.01)
        time.sleep(0.1)
        order.append("ended")
        raise KeyError("second")

    with pytest.raises(ValueError, match="first"):
        made.run(work, lambda: None)
    assert order == ["ended"] and made.halted


# Held up


@pytest.mark.parametrize("count", [1, 3])
def test_a_paused_run_begins_no_step_until_it_is_resumed(
    swept: Home, project: Any, told: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "WAIT", 0.05)
    paused: list[str] = []

    def pause(unit: str, what: str) -> None:
        if not paused and what != "planning":
            paused.append(swept.work.runs()[-1].id)
            swept.work.pause(paused[0])
            threading.Thread(target=resume, daemon=True).start()

    def resume() -> None:
        time.sleep(1.5)
        seen.append(len(told.steps))
        time.sleep(1.0)
        seen.append(len(told.steps))
        swept.work.resume(paused[0])

    seen: list[int] = []
    told.at_step = pause
    outcome = project.run(swept, told, units="0-mlp/0..3", workers=count)
    assert (outcome.status, outcome.failed) == ("done", []) and len(told.ends) == 4
    assert seen[0] == seen[1] < len(told.steps), "a paused run went on"
    assert any(what.startswith("paused") for _, what in told.steps)


def test_a_full_disk_is_waited_for_and_said(
    swept: Home, project: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "WAIT", 0.01)
    full = iter(["only 3 MB are free; make room."] * 20)
    monkeypatch.setattr(night.life, "room", lambda home: next(full, None))
    outcome = project.run(swept, told, units="0-mlp/0,0-mlp/4")
    assert (outcome.status, outcome.failed) == ("done", [])
    assert [what for _, what in told.steps if "MB are free" in what] == ["only 3 MB are free; make room."]


def test_the_log_has_each_unit_with_its_attempt(swept: Home, project: Any) -> None:
    outcome = project.run(swept, units="0-mlp/0..3", workers=2)
    lines = [json.loads(line) for line in (swept.path / "logs" / f"{outcome.run}.jsonl").read_text().splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["begins", "ends"]
    done = [line for line in lines if line["event"] == "unit done"]
    assert sorted(line["unit"] for line in done) == sorted(outcome.units)
    assert {line["attempt"] for line in done} == {1} and len({line["worker"] for line in done}) == 2
    assert all(line["unit"] and line["run"] == outcome.run for line in lines if line["event"] == "step")
