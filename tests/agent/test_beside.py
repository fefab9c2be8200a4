"""A run beside others: a second process that joins it, and a language model that is away or fails for one unit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lamplighter.agent import life, llm, night
from lamplighter.agent.config import Home
from lamplighter.store import records
from lamplighter.store.records import Failure, Verdict
from lamplighter.testing import CallTool, ScriptedEndpoint, Status

QUICK = "0-mlp/3,0-mlp/4"     # abstained on within a second
PATIENCE = 120                # seconds that a child process is given
ABSTAIN = CallTool("abstain", {"reason": "no", "why": "so"})


def started(project: Any, home: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lamplighter", *project.arguments, "--home", str(home), *more]
    with log.open("wb") as err:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, cwd=home.parent)


def wait_for(log: Path, words: str) -> str:
    for _ in range(PATIENCE * 20):
        said = log.read_text("utf-8")
        if words in said:
            return said
        time.sleep(0.05)
    raise AssertionError(f"{words!r} was not said: {log.read_text('utf-8')}")


# A second process


def test_a_second_run_joins_and_both_end_with_every_unit_once(swept: Home, project: Any, tmp_path: Path) -> None:
    """The first is stopped in its unit until the second has taken all others and waits; then both go on to the end."""
    logs = [tmp_path / "first", tmp_path / "second"]
    first = started(project, swept.path, logs[0])
    wait_for(logs[0], "0-mlp/0: ")
    os.kill(first.pid, signal.SIGSTOP)
    second = started(project, swept.path, logs[1])
    try:
        said = wait_for(logs[1], "the last units are in the hands of")
        assert f"joined, beside process {first.pid}\n" in said
        assert f"the last units are in the hands of process {first.pid}; waiting for them to end" in said
        assert said.count("0-mlp/1: done") == 1 and "0-mlp/0: top_examples" not in said
        (row,) = life.status_facts(swept)
        assert (row["status"], row["running"], row["queued"]) == ("running", 1, 0)
        assert sorted(one["pid"] for one in row["workers"]) == sorted([str(first.pid), str(second.pid)])
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
    (state,) = swept.work.runs()
    assert state.status == "done" and swept.work.pending() == 0 and life.status_facts(swept)[0]["workers"] == []
    ended = swept.findings.read(records.Investigation)
    assert len({(i.unit, i.sign) for i in ended}) == len(ended) == len(state.units)
    concluded = Counter(v.investigation for v in swept.findings.read(Verdict))
    assert set(concluded.values()) == {2}, "one verdict at the unit's end and one at the run's, by one process"


def test_a_killed_processs_unit_is_taken_up_by_the_one_that_waits(swept: Home, project: Any, tmp_path: Path) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    first = started(project, swept.path, logs[0], "--units", QUICK)
    wait_for(logs[0], "0-mlp/3: ")
    os.kill(first.pid, signal.SIGSTOP)
    second = started(project, swept.path, logs[1], "--units", QUICK)
    wait_for(logs[1], "waiting for them to end")
    first.kill()
    assert first.wait(PATIENCE) == -signal.SIGKILL and second.wait(PATIENCE) == 0
    assert [job.status for job in swept.work.jobs(swept.work.runs()[0].id)] == ["done", "done"]


def test_a_second_run_waits_for_the_sweep_of_the_first(project: Any, tmp_path: Path, told: Any) -> None:
    home = Home(tmp_path / "home")
    sweeping, go = threading.Event(), threading.Event()

    def hold(what: str, done: int, total: int) -> None:
        sweeping.set()
        go.wait(PATIENCE)

    told.sweeping = hold
    made: list[Any] = []
    log = tmp_path / "log"
    one = threading.Thread(target=lambda: made.append(_run_off_the_main_thread(project, home, told)))
    one.start()
    assert sweeping.wait(PATIENCE)
    second = started(project, home.path, log, "--units", QUICK)
    wait_for(log, "sweep: another process does this just now; waiting for it")
    go.set()
    assert second.wait(PATIENCE) == 0
    one.join(PATIENCE)
    assert made and made[0].status == "done"
    assert "tokens, " not in log.read_text("utf-8"), "the second did not sweep"


def _run_off_the_main_thread(project: Any, home: Home, told: Any) -> Any:
    """Signals can be caught on the main thread alone; here none comes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamplighter.agent.night.signal.signal", lambda number, handler: None)
        return project.run(home, told, units=QUICK)


# A language model that is away


def test_an_endpoint_that_is_down_is_waited_for_and_no_unit_fails(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    monkeypatch.setattr(llm, "DOWN_WAIT", 0.2)
    monkeypatch.setattr(llm, "BACKOFF", 0.01)
    with ScriptedEndpoint(lambda request: ABSTAIN) as server:
        port, up = int(server.url.rpartition(":")[2]), [server]

        def at_step(unit: str, what: str) -> None:
            waits = sum(said.startswith("waiting") for _, said in told.steps)
            if what == "planning" and len(up) == 1:
                server.stop()
                up.append(None)          # type: ignore[arg-type]
            elif waits == 2 and up[-1] is None:
                up.append(ScriptedEndpoint(lambda request: ABSTAIN, port=port).__enter__())

        told.at_step = at_step
        outcome = project.run(swept, told, units=QUICK, planner="llm", endpoint=server.url)
        up[-1].stop()
    waits = [what for _, what in told.steps if what.startswith("waiting")]
    assert (outcome.status, outcome.failed, len(waits) >= 2) == ("done", [], True)
    assert "cannot be reached (connection, 3 times)" in waits[0]
    assert swept.findings.read(Failure) == [] and [job.attempt for job in swept.work.jobs(outcome.run)] == [1, 1]


def test_a_request_that_always_fails_sets_its_unit_apart_with_what_was_asked(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    """The server breaks on one unit's request and is well otherwise: three tries, behind the other unit, no more."""
    monkeypatch.setattr(llm, "BACKOFF", 0.01)
    poisoned: list[str] = []

    def script(request: dict[str, Any]) -> Any:
        words = json.dumps(request["messages"])
        poisoned[:] = poisoned or [words]
        return Status(500) if words == poisoned[0] else ABSTAIN

    with ScriptedEndpoint(script) as server:
        asked = {"units": QUICK, "planner": "llm", "endpoint": server.url}
        outcome = project.run(swept, told, **asked)
    assert [(unit[-1], how) for unit, how, *_ in told.ends] == [
        ("3", "queued"), ("4", "done"), ("3", "queued"), ("3", "failed")
    ]  # fmt: skip
    assert outcome.status == "done" and [unit[-1] for unit in outcome.failed] == ["3"]
    failures = swept.findings.read(Failure)
    assert [one.attempt for one in failures] == [1, 2, 3] and {one.kind for one in failures} == {"LLMError"}
    assert {json.dumps(json.loads(one.request or "")["messages"]) for one in failures} == set(poisoned)
    (row,) = life.status_facts(swept)
    assert (row["failures"], row["apart"]) == ({"LLMError": 1}, 1)
    with pytest.raises(records.Refused, match="--alike"):
        life.retry(swept)


def test_the_pace_says_speed_recall_spend_and_time_left(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    monkeypatch.setattr(night, "PACE", 0.0)
    with ScriptedEndpoint(lambda request: ABSTAIN) as server:
        project.run(swept, told, units=f"{QUICK},0-mlp/5,0-mlp/6", planner="llm", endpoint=server.url)
    assert told.paces and "no unit ended yet" in told.paces[0]
    assert all("tokens a second" in line and "recalled" in line for line in told.paces)
    last = told.paces[-2]        # after the last unit nothing is left
    assert "units an hour" in last and "tokens of language model, $0.00" in last and last.endswith(" left")
