"""Runs from outside: paused, resumed, tried again, and where they stand. Queues are real, models are not needed."""

import os
import shlex
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamplighter.agent import life
from lamplighter.agent.config import Home
from lamplighter.store.findings import drain
from lamplighter.store.records import Failure, Investigation, LLMCall, Refused, Run
from lamplighter.store.work import worker_id
from lamplighter.tools import measures

ASKED = {
    "model": "m", "corpus": "my texts", "sites": ["5-mlp", "8-mlp"], "units": "auto:3", "planner": "playbook",
    "judge": None, "tokens": 1000, "second": None, "device": None, "dtype": None, "measures": measures.VERSION,
}  # fmt: skip
UNITS = ["m/5-mlp/1", "m/5-mlp/2-", "m/5-mlp/3"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def begun(home: Home, key: str = "key", asked: dict[str, Any] = ASKED) -> str:
    run = home.work.open_run(key, asked, UNITS).id
    home.work.enqueue(run, UNITS)
    return run


def failure(run: str, unit: str, kind: str, **changed: Any) -> Failure:
    sign = -1 if unit.endswith("-") else 1
    told = {"message": "no", "step": "act", "attempt": 1} | changed
    return Failure(kind=kind, run=run, unit=unit.removesuffix("-"), sign=sign, **told)


def fail_all(home: Home, run: str, *kinds: str) -> None:
    for kind in kinds:
        job = home.work.claim(run, worker_id())
        assert job is not None
        home.work.fail(job, failure(run, job.unit, kind), retry=False)


def statuses(home: Home, run: str) -> list[str]:
    return [job.status for job in home.work.jobs(run)]


# Pause and resume


def test_the_newest_open_run_is_paused_and_resumed_with_what_continues_it(home: Home) -> None:
    first, second = begun(home), begun(home, "other")
    home.work.close_run(first, "drained")
    told = life.pause(home)
    assert (told["run"], told["paused"], told["workers"]) == (second, True, [])
    assert home.work.paused(second) and not home.work.paused(first)
    assert "no process works on it" in told["told"] and "lamplighter resume" in told["told"]
    assert "was paused before" in life.pause(home)["told"]
    life.pause(home, first)
    assert life.resume(home, second)["run"] == second
    told = life.resume(home)
    assert told["run"] == first and "is paused no more" in told["told"], "the newest that is paused"
    assert told["command"] in told["told"]
    assert "was not paused" in life.resume(home)["told"]


def test_a_living_process_is_said_to_wait_and_to_go_on(home: Home) -> None:
    run = begun(home)
    assert home.work.claim(run, worker_id()) is not None
    assert f"process {os.getpid()} will wait" in life.pause(home)["told"]
    told = life.resume(home)
    assert f"process {os.getpid()} will go on" in told["told"] and told["command"] is None
    assert told["workers"][0]["units"] == ["m/5-mlp/1"]


@pytest.mark.parametrize("act", [life.pause, life.resume])
def test_what_cannot_be_paused_or_resumed_is_refused(home: Home, act: Any) -> None:
    with pytest.raises(Refused, match="no run is open in .*lamplighter status"):
        act(home)
    assert not home.path.exists(), "asking leaves nothing behind"
    run, other = begun(home), begun(home, "other")
    with pytest.raises(Refused, match="2 runs begin with"):
        act(home, run[:6])
    with pytest.raises(Refused, match="no run 'zz'"):
        act(home, "zz")
    for one in (run, other):
        for _ in UNITS:
            job = home.work.claim(one, worker_id())
            assert job is not None
            home.work.finish(job, [])
        home.work.close_run(one, "done")
    with pytest.raises(Refused, match="no run is open"):
        act(home)
    with pytest.raises(Refused, match=f"{run} is done"):
        act(home, run)


# The command that continues a run


def options(line: str | None) -> dict[str, str]:
    assert line is not None
    words = shlex.split(line)
    words = words[words.index("run") + 1 :]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_command_asks_for_the_same_run(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamplighter.agent.request import Request

    begun(home)
    (run,) = home.work.runs()
    given = options(life.command(home, run))
    assert given == {
        "--home": str(home.path), "--model": "m", "--corpus": "my texts", "--sites": "5-mlp,8-mlp",
        "--units": "auto:3", "--planner": "playbook", "--tokens": "1000",
    }  # fmt: skip
    again = Request(
        model=given["--model"], corpus=given["--corpus"], sites=tuple(given["--sites"].split(",")),
        units=given["--units"], planner=given["--planner"], tokens=int(given["--tokens"]),
    )  # fmt: skip
    assert {**again.asked(), "sites": list(again.sites)} == run.asked
    monkeypatch.setenv("LAMPLIGHTER_HOME", str(home.path))
    assert "--home" not in options(life.command(home, run))


@pytest.mark.parametrize(
    ("planner", "judge", "words", "before"),
    [
        ("llm:qwen@embedded", None, {"--planner": "llm"}, ""),
        ("llm:a b@http://h:1/v1", None, {"--planner": "llm", "--endpoint": "http://h:1/v1"}, "LLM_MODEL='a b' "),
        ("llm:a@http://h/v1", "llm:a@http://h/v1", {"--judge": "planner"}, "LAMPLIGHTER_LLM_MODEL=a lamp"),
        ("playbook", "llm:j@http://h/v1", {"--judge": "http://h/v1"}, "LAMPLIGHTER_JUDGE_MODEL=j lamp"),
    ],
)
def test_the_command_names_who_is_asked(
    home: Home, planner: str, judge: str | None, words: dict[str, str], before: str
) -> None:
    begun(home, asked=ASKED | {"planner": planner, "judge": judge})
    line = life.command(home, home.work.runs()[0])
    assert words.items() <= options(line).items() and before in str(line)


def test_no_command_is_made_up_for_a_run_of_another_version(home: Home) -> None:
    begun(home, asked=ASKED | {"measures": measures.VERSION - 1})
    assert life.command(home, home.work.runs()[0]) is None
    assert "another one began it" in life.resume(home)["told"]


# Retry


def test_failed_units_are_queued_again_by_the_kind_of_their_last_failure(home: Home) -> None:
    run = begun(home)
    home.work.post([failure(run, UNITS[0], "LLMError", created_at="2020-01-01T00:00:00.000000")])
    fail_all(home, run, "OSError", "LLMError", "OSError")
    home.work.close_run(run, "done")
    with pytest.raises(Refused, match="as 'Oops'; the kinds there are: 1 LLMError, 2 OSError"):
        life.retry(home, kind="Oops")
    assert statuses(home, run) == ["failed"] * 3
    told = life.retry(home, kind="LLMError")
    assert told["queued"] == [{"unit": "m/5-mlp/2-", "kind": "LLMError"}] and told["left"] == 2
    assert statuses(home, run) == ["failed", "queued", "failed"] and home.work.pending() == 0
    assert f"`{told['command']}` continues it" in told["told"]
    assert home.work.find_run("key").status == "drained"  # type: ignore[union-attr]
    told = life.retry(home)
    assert [one["kind"] for one in told["queued"]] == ["OSError"] * 2 and statuses(home, run) == ["queued"] * 3
    with pytest.raises(Refused, match="no unit has failed"):
        life.retry(home)
    with pytest.raises(Refused, match=f"no unit of run {run} has failed"):
        life.retry(home, run)


def test_failures_that_wait_in_the_outbox_count(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(home)
    fail_all(home, run, "A", "B", "B")
    monkeypatch.setattr(life, "drain", lambda *_: 0)
    assert [one["unit"] for one in life.retry(home, kind="B")["queued"]] == UNITS[1:]


def test_a_failure_of_which_no_record_is_left_is_unknown(home: Home) -> None:
    run = begun(home)
    fail_all(home, run, "A", "A", "A")
    drain(home.work, home.findings)
    home.findings.path.unlink()
    assert life.status_facts(home)[0]["failures"] == {"unknown": 3}
    assert len(life.retry(home, kind="unknown")["queued"]) == 3


def test_a_unit_that_fails_in_the_same_way_again_and_again_is_set_apart(home: Home) -> None:
    """Three times alike: it is left out, but for --alike. Another kind in between, and it counts anew."""
    run = begun(home)
    for kinds in (("A", "A", "A"), ("A", "B", "A"), ("A", "A", "A")):
        fail_all(home, run, *kinds)
        (row,) = life.status_facts(home)
        if kinds[1] != "B" and row["apart"]:
            break
        life.retry(home)
    assert (row["apart"], row["failures"]) == (2, {"A": 3})
    told = life.retry(home)
    assert [one["unit"] for one in told["queued"]] == ["m/5-mlp/2-"] and told["apart"] == [UNITS[0], UNITS[2]]
    assert "2 units that failed 3 times in the same way left out; --alike takes them too" in told["told"]
    with pytest.raises(Refused, match=r"2 units of run .* failed 3 times in a row in the same way .*; --alike queues"):
        life.retry(home, run)
    assert len(life.retry(home, run, alike=True)["queued"]) == 2 and statuses(home, run) == ["queued"] * 3


def test_retry_says_who_takes_the_units_up_and_that_a_run_is_paused(home: Home) -> None:
    run = begun(home)
    fail_all(home, run, "A", "A", "A")
    life.pause(home)
    told = life.retry(home)
    assert f"Process {os.getpid()}" in told["told"] and told["command"] is None
    assert "The run is paused" in told["told"]


# Status


def test_status_of_a_run(home: Home) -> None:
    run = begun(home)
    hour = "2026-01-01T{}.000000"
    start = Run(key="key", asked=ASKED, status="running", units=UNITS, run=run)
    ended = {"planner": "p", "status": "submitted", "steps": 1, "cost": {}, "seconds": 1.0, "run": run, "sign": 1}
    home.work.post([
        replace(start, created_at=hour.format("01:00:00")),
        Investigation(unit="m/5-mlp/8", created_at=hour.format("01:10:00"), **ended),
        replace(start, id="again", created_at=hour.format("08:00:00")),
        Investigation(unit="m/5-mlp/9", created_at=hour.format("08:20:00"), **ended),
        replace(start, id="not this run", run="another", created_at=hour.format("08:19:00")),
    ])  # fmt: skip
    called = {"purpose": "plan", "model": "l", "endpoint": "e", "outcome": "ok", "request": "d", "seconds": 1.0}
    home.work.charge(LLMCall(run=run, tokens_in=90, tokens_out=10, usd=0.5, **called))
    home.work.charge(LLMCall(run=run, **called))
    drain(home.work, home.findings)
    fail_all(home, run, "A")
    assert home.work.claim(run, worker_id()) is not None
    life.pause(home)
    (row,) = life.status_facts(home)
    assert row["free_bytes"] > 0 and row.pop("free_bytes")
    assert [(one["pid"], one["units"]) for one in row.pop("workers")] == [(str(os.getpid()), ["m/5-mlp/2-"])]
    assert row == {
        "run": run, "status": "running", "paused": True, "units": 3, "queued": 1, "running": 1, "done": 0, "failed": 1,
        "units_an_hour": 4.0, "hours_left": 0.5, "failures": {"A": 1}, "apart": 0, "waiting": 1, "note": None,
        "llm": {"calls": 2, "tokens": 100, "usd": 0.5, "unpriced": 1},
    }  # fmt: skip


def test_what_a_unit_took_is_the_time_since_the_one_before_or_since_its_process_began(home: Home) -> None:
    run = begun(home)
    base = {"planner": "p", "status": "submitted", "steps": 1, "cost": {}, "seconds": 1.0, "run": run, "sign": 1}
    one = Investigation(unit="m/5-mlp/1", created_at="2026-01-01T00:00:30.000000", **base)
    at = {"created_at": "2026-01-01T00:01:40.000000"}
    home.findings.append([
        Run(key="k", asked={}, status="running", units=[], run=run, created_at="2026-01-01T00:00:00.000000"), one,
        failure(run, "m/5-mlp/1", "LLMError", investigation=one.id, created_at="2026-01-01T00:00:20.000000"),
        failure(run, "m/5-mlp/2-", "A", **at),
        Run(key="k", asked={}, status="done", units=[], run=run, created_at="2026-01-01T00:09:00.000000"),
    ])  # fmt: skip
    took = life.taken(home)[run]
    assert [(t.unit, t.seconds) for t in took] == [("m/5-mlp/1", 30.0), ("m/5-mlp/2-", 70.0)]
    assert took[0].investigation == one.id, "a failure beside an explanation that stands is no end of its own"
    assert life.units_an_hour(took) == 72.0 and life.units_an_hour([]) is None


def test_status_goes_on_without_the_findings_and_says_why(home: Home) -> None:
    begun(home)
    home.findings.path.write_bytes(b"no database at all" * 1000)
    (row,) = life.status_facts(home)
    assert (row["units_an_hour"], row["failures"]) == (None, None) and "findings.duckdb" in row["note"]


# The disk


def test_a_disk_with_little_room_is_told_with_what_is_free(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    asked = []
    monkeypatch.setattr(life.shutil, "disk_usage", lambda place: asked.append(place) or usage(life.ROOM))
    assert life.room(home) is None and asked == [home.path.parent], "a home that is not there yet"
    monkeypatch.setattr(life.shutil, "disk_usage", lambda place: usage(life.ROOM - 1_000_000))
    assert str(life.room(home)).startswith("only 1,073 MB are free") and "sweeps/" in str(life.room(home))


# Beside a process that works

TOIL = """
import sys, time
from pathlib import Path
from lamplighter.store.records import Evidence
from lamplighter.store.work import Work, worker_id
work, run = Work(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
while work.counts(run)["queued"]:
    job = work.claim(run, worker_id())
    if job is None:
        time.sleep(0.01)
        continue
    work.finish(job, [Evidence(tool="t", summary="s", unit=job.unit, sign=1)])
    print(job.unit, flush=True)
    time.sleep(0.02)
"""


def test_a_process_at_work_waits_while_its_run_is_paused(home: Home) -> None:
    units = [f"m/5-mlp/{i}" for i in range(60)]
    run = home.work.open_run("key", ASKED, units).id
    home.work.enqueue(run, units)
    process = subprocess.Popen(
        [sys.executable, "-c", TOIL, home.work.path, run], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    told = life.pause(home)
    assert [one["pid"] for one in told["workers"]] == [str(process.pid)]
    time.sleep(0.3)         # what it held is finished by then
    done = home.work.counts(run)["done"]
    time.sleep(0.3)
    assert home.work.counts(run)["done"] == done < 60
    assert life.resume(home)["command"] is None, "it is alive, and holds no unit just now"
    process.communicate(timeout=60)
    assert home.work.counts(run)["done"] == 60


def test_no_query_of_status_takes_a_home_for_another(home: Home, tmp_path: Path) -> None:
    begun(home)
    assert life.status_facts(Home(tmp_path / "none")) == [] and not (tmp_path / "none").exists()
    with sqlite3.connect(home.work.path) as con:
        assert con.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    con.close()
