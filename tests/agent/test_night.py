"""The run: every unit accounted for, whatever stops it, and the same findings in the end."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from lamplighter.agent import llm, night
from lamplighter.agent.config import Home
from lamplighter.agent.nodes import Drained
from lamplighter.store import records
from lamplighter.store.records import Busy, Evidence, Failure, Refused, Score, Verdict
from lamplighter.store.work import worker_id
from lamplighter.testing import CallTool, ScriptedEndpoint, Status
from lamplighter.tools import measures
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import Sweep
from lamplighter.tools.toolbox import REGISTRY

QUICK = "0-mlp/3,0-mlp/4"     # abstained on within a second
PATIENCE = 120                # seconds that a child process is given


def names(units: list[str]) -> list[str]:
    return ["/".join(unit.split("/")[-2:]) for unit in units]


def table(home: Home, kind: str) -> list[dict[str, Any]]:
    return home.findings.sql(f"SELECT * FROM {kind}")


def verdicts(home: Home, run: str) -> dict[str, list[Verdict]]:
    """A run's verdict rows by unit, in the order they were made."""
    found: dict[str, list[Verdict]] = {}
    for row in home.findings.read(Verdict, run=run):
        found.setdefault(names([row.unit or ""])[0], []).append(row)
    return found


# A finished run


def test_every_unit_is_accounted_for(finished: Any) -> None:
    outcome, home = finished.outcome, finished.home
    assert (outcome.status, outcome.left, outcome.failed, outcome.repeated) == ("done", [], [], False)
    assert names(outcome.units) == ["0-mlp/0", "0-mlp/1", "0-mlp/2-", "0-mlp/3", "0-mlp/4"]
    ended = [(names([r.unit])[0], r.sign, r.status) for r in home.findings.read(records.Investigation)]
    assert ended == [
        ("0-mlp/0", 1, "submitted"), ("0-mlp/1", 1, "submitted"), ("0-mlp/2", -1, "submitted"),
        ("0-mlp/3", 1, "abstained"), ("0-mlp/4", 1, "abstained"),
    ]  # fmt: skip
    assert home.work.counts(outcome.run) == {"queued": 0, "running": 0, "done": 5, "failed": 0}
    assert home.work.pending() == 0 and table(home, "failures") == []


def test_the_table_has_the_planted_rules(finished: Any) -> None:
    rows = {names([row["unit"]])[0]: row for row in table(finished.home, "explanations")}
    assert len(rows) == 5
    for unit, words in {"0-mlp/0": ["car"], "0-mlp/1": ["stop", "world"], "0-mlp/2": ["war"]}.items():
        row = rows[unit]
        assert all(word in row["explanation"].lower() for word in words)
        assert row["rule"] and row["verdict"] == "accepted" and row["planner"] == "playbook"
        assert row["input_f1_low"] > 0.8 and row["input_f1_low"] > row["floor_f1"]
        assert row["run"] == finished.outcome.run
    for unit, count in {"0-mlp/3": 1, "0-mlp/4": 0}.items():
        assert (rows[unit]["explanation"], rows[unit]["verdict"]) == (None, "abstained")
        (first, _) = verdicts(finished.home, finished.outcome.run)[unit]
        assert f"in {count} explain documents" in first.reason


def test_verdicts_get_their_q_at_the_end(finished: Any) -> None:
    """Benjamini–Hochberg over the submitted units: q of rank i is the least of m p_j / j for j ≥ i."""
    found = verdicts(finished.home, finished.outcome.run)
    assert all(len(rows) == 2 and rows[0].q is None for rows in found.values())
    assert {rows[0].verdict for rows in found.values()} == {"unclear", "abstained"}
    tested = {unit: rows[1] for unit, rows in found.items() if rows[1].p is not None}
    assert set(tested) == {"0-mlp/0", "0-mlp/1", "0-mlp/2"}
    ranked = sorted(row.p for row in tested.values() if row.p is not None)
    m = len(ranked)
    for row in tested.values():
        assert row.q == pytest.approx(min(m * p / (j + 1) for j, p in enumerate(ranked) if p >= (row.p or 0)))
        assert row.verdict == "accepted" and f"q = {row.q:.4f}" in row.reason
    assert [found[unit][1].q for unit in ("0-mlp/3", "0-mlp/4")] == [None, None]
    assert [found[unit][1].reason for unit in ("0-mlp/3", "0-mlp/4")] == [
        found[unit][0].reason for unit in ("0-mlp/3", "0-mlp/4")
    ]


def test_without_the_masked_lm_substitution_is_refused_with_the_way_out(finished: Any) -> None:
    evidence = finished.home.findings.read(Evidence)
    refused = [e for e in evidence if not e.ok and e.tool in ("substitute", "patch")]
    assert {e.tool for e in refused} >= {"substitute"}
    assert all("lamplighter models pull bert-tiny-mlm" in e.summary for e in refused)
    assert Counter(e.tool for e in evidence if e.ok)["minimal_example"] >= 9


def test_each_explanation_has_used_up_its_one_read_of_the_score_side(finished: Any) -> None:
    kept = finished.home.findings.read(records.Hypothesis, kept=True)
    scored = [h for h in kept if h.rule is not None]
    assert [h.side for h in scored].count("input") == 3 < len(scored)
    assert not any(finished.home.work.claim_once(f"score-side:{h.id}") for h in scored)


def test_the_run_the_model_and_the_sweep_are_recorded(finished: Any, project: Any) -> None:
    home, run = finished.home, finished.outcome.run
    assert [(r.run, r.status) for r in home.findings.read(records.Run)] == [(run, "running"), (run, "done")]
    (sweep,) = home.findings.read(records.Sweep)
    (model,) = home.findings.read(records.Model)
    assert sweep.corpus == project.corpus and sum(sweep.documents.values()) == 300
    assert model.name == project.model and model.architecture == "llama" and "ablate" in model.tools
    told = [s.provenance for s in home.findings.read(Score)]
    swept = Sweep(home.path / "sweeps" / sweep.digest)
    assert told and all((p["sweep"], p["sides"]) == (sweep.digest, swept.side_digests) for p in told)
    assert all((p["overlap"]["score"], p["measures"]) == (0, measures.VERSION) for p in told)


def test_it_tells_how_it_goes(finished: Any) -> None:
    told = finished.told
    assert told.swept[-1][0] == "atlas" and told.swept[-1][1] == told.swept[-1][2]
    assert told.begun == [(0, 5)]
    assert [(names([unit])[0], how, done) for unit, how, done, _ in told.ends] == [
        ("0-mlp/0", "done", 1), ("0-mlp/1", "done", 2), ("0-mlp/2-", "done", 3),
        ("0-mlp/3", "done", 4), ("0-mlp/4", "done", 5),
    ]  # fmt: skip


# Asked again


def test_the_same_request_is_shown_without_a_model(
    finished: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untouchable(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded for a run that is finished")

    monkeypatch.setattr(Subject, "load", untouchable)
    before = len(table(finished.home, "verdicts"))
    again = project.run(finished.home, minutes=5)
    assert again.repeated and (again.run, again.status) == (finished.outcome.run, "done")
    assert again.units == finished.outcome.units and len(table(finished.home, "verdicts")) == before
    with pytest.raises(AssertionError, match="finished"):
        project.run(finished.home, units="0-mlp/0")


def test_a_fresh_run_is_a_new_one_from_cached_evidence(copied: Home, finished: Any, project: Any, told: Any) -> None:
    again = project.run(copied, told, fresh=True, units=project.request().units)
    assert again.run != finished.outcome.run and not again.repeated and again.units == finished.outcome.units
    assert told.swept == []
    evidence = copied.findings.read(Evidence, run=again.run)
    assert all("recalled" in e.provenance for e in evidence if e.ok)
    assert len(table(copied, "explanations")) == 5 and len(table(copied, "investigations")) == 10
    assert {row["run"] for row in table(copied, "explanations")} == {again.run}
    assert story(copied, again.run) == story(finished.home, finished.outcome.run)


def test_a_run_has_a_row_for_each_unit_whatever_other_runs_found(copied: Home, project: Any) -> None:
    """The table of a finished run stays whole after another run has looked at one of its units again."""
    from lamplighter.agent.show import run_facts

    project.run(copied, units="0-mlp/3")
    again = project.run(copied)
    rows = run_facts(copied, again)["explanations"]
    assert again.repeated and names([row["unit"] for row in rows]) == [f"0-mlp/{i}" for i in range(5)]
    assert {row["run"] for row in rows} == {again.run} and [row["sign"] for row in rows] == [1, 1, -1, 1, 1]
    assert [row["verdict"] for row in rows] == [*3 * ["accepted"], *2 * ["abstained"]]
    assert all(row["seconds"] > 0 for row in rows) and rows[0]["input_f1"] > rows[0]["floor_f1"] > 0


def test_a_lost_findings_file_is_filled_again(copied: Home, project: Any) -> None:
    """A file that was damaged is to be moved away; the same command must then not show a run that is nowhere."""
    copied.findings.path.unlink()
    again = project.run(copied, units=project.request().units)
    assert not again.repeated and again.status == "done"
    assert len(table(copied, "explanations")) == 5


# Budget


def test_no_minutes_leave_every_unit_and_the_next_run_does_them(swept: Home, project: Any, told: Any) -> None:
    outcome = project.run(swept, told, units=QUICK, minutes=0)
    assert (outcome.status, names(outcome.left)) == ("budget", ["0-mlp/3", "0-mlp/4"])
    assert told.steps == [] and table(swept, "investigations") == [] and table(swept, "verdicts") == []
    assert swept.work.runs()[0].status == "budget"
    later = project.run(swept, units=QUICK)
    assert (later.run, later.status, later.left) == (outcome.run, "done", [])
    assert [r.status for r in swept.findings.read(records.Run)] == ["running", "budget", "running", "done"]


def test_minutes_that_end_in_a_unit_leave_the_others(
    swept: Home, project: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit in hand wraps up with what it has, the next is not begun, and nothing is lost."""
    now = [0.0]
    told.at_step = lambda unit, what: now.__setitem__(0, now[0] + 40)
    real = night.Budget
    monkeypatch.setattr(night, "Budget", lambda minutes, *_: real(minutes=minutes, clock=lambda: now[0]))
    outcome = project.run(swept, told, units=QUICK, minutes=1)
    assert outcome.status == "budget" and names(outcome.left) == ["0-mlp/4"]
    assert any(what == "wrapping up: the run's 1 minutes are spent" for _, what in told.steps)
    assert [names([r.unit or ""]) for r in swept.findings.read(records.Investigation)] == [["0-mlp/3"]]


# Stopped


def stop_at(unit: str, what: str, number: int = signal.SIGTERM) -> Callable[[str, str], None]:
    """A progress callback that signals this process once, at a step."""
    sent: list[int] = []

    def at_step(now: str, step: str) -> None:
        if now.endswith(unit) and step.startswith(what) and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    return at_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_unit_back_and_the_run_goes_on_later(
    swept: Home, project: Any, told: Any, number: int
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    told.at_step = stop_at("0-mlp/4", "top_examples", number)
    with pytest.raises(Drained):
        project.run(swept, told, units=QUICK)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    (state,) = swept.work.runs()
    assert state.status == "drained"
    assert swept.work.counts(state.id) == {"queued": 1, "running": 0, "done": 1, "failed": 0}
    assert [job.attempt for job in swept.work.jobs(state.id)] == [1, 0]
    assert swept.findings.read(records.Run)[-1].status == "drained" and swept.work.pending() == 0
    later = project.run(swept, units=QUICK)
    assert (later.run, later.status) == (state.id, "done")
    assert names([r.unit or "" for r in swept.findings.read(records.Investigation)]) == ["0-mlp/3", "0-mlp/4"]


def test_a_stop_in_the_sweep_leaves_no_half_sweep(project: Any, tmp_path: Path, told: Any) -> None:
    home = Home(tmp_path / "home")
    told.sweeping = lambda what, done, total: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Drained):
        project.run(home, told, units=QUICK)
    assert list((home.path / "sweeps").iterdir()) == []
    assert home.work.runs() == []


# Failures


def test_a_unit_that_breaks_is_a_failure_and_the_others_go_on(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = REGISTRY["top_examples"][0]

    @wraps(real)
    def broken(*given: Any, unit: Any, **options: Any) -> Any:
        if unit.index == 3:
            raise ZeroDivisionError("planted")
        return real(*given, unit=unit, **options)

    monkeypatch.setitem(REGISTRY, "top_examples", (broken, "read"))
    outcome = project.run(swept, units=QUICK)
    assert outcome.status == "done" and names(outcome.failed) == ["0-mlp/3"] and outcome.left == []
    (failure,) = swept.findings.read(Failure)
    assert (failure.kind, failure.attempt) == ("ZeroDivisionError", 1)
    assert failure.message.startswith("planted (test_night.py:") and failure.step.startswith("top_examples")
    assert failure.provenance["sweep"] and failure.run == outcome.run
    assert [names([r.unit or ""])[0] for r in swept.findings.read(records.Investigation)] == ["0-mlp/4"]
    assert table(swept, "scores") == []
    again = project.run(swept, units=QUICK)
    assert again.repeated and names(again.failed) == ["0-mlp/3"]


def test_somebody_reading_the_findings_for_long_stops_nothing(swept: Home, project: Any, told: Any) -> None:
    """Results wait in the outbox while another process holds the file, as a DuckDB shell that was left open does."""
    project.run(swept, units=QUICK, minutes=0)
    code = (
        "import duckdb, sys; con = duckdb.connect(sys.argv[1], read_only=True); "
        "print('held', flush=True); sys.stdin.readline(); con.close(); print('free', flush=True)"
    )
    command = [sys.executable, "-c", code, str(swept.findings.path)]
    reader: list[subprocess.Popen[str]] = []
    said: list[str] = []

    def at_step(unit: str, what: str) -> None:
        if not reader:
            reader.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            said.append(reader[0].stdout.readline())  # type: ignore[union-attr]
        if unit.endswith("/4") and what.startswith("ablate"):
            assert swept.work.pending() > 0
            said.extend(reader[0].communicate("\n")[0].splitlines())

    told.at_step = at_step
    try:
        outcome = project.run(swept, told, units=QUICK)
    finally:
        reader[0].kill()
        reader[0].wait()
    assert said == ["held\n", "free"]
    assert outcome.status == "done" and len(table(swept, "investigations")) == 2


@pytest.mark.parametrize("moment", ["units", "end"])
def test_findings_that_are_held_when_the_units_are_through_are_told_and_delivered_later(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Held before the verdicts are concluded, or only after: the run does not stay “running”, and nothing is lost."""
    real, held = night.drain, [True]

    def drain(work: Any, findings: Any) -> int:
        ended = work.runs() and work.runs()[-1].status == "done"
        if held[0] and (ended if moment == "end" else work.runs()):
            raise Busy("findings.duckdb is in use by process 7; wait until it is done or end it, then try again.")
        return real(work, findings)

    monkeypatch.setattr(night, "drain", drain)
    with pytest.raises(Busy) as told:
        project.run(swept, units=QUICK)
    assert str(told.value) == (
        "2 of 2 units are finished and their results wait in the outbox, because findings.duckdb is in use by "
        "process 7; run the same command again when it is free, which delivers them."
    )
    (state,) = swept.work.runs()
    assert state.status == ("done" if moment == "end" else "drained") and swept.work.pending() > 0
    held[0] = False
    again = project.run(swept, units=QUICK)
    assert (again.run, again.status, again.failed) == (state.id, "done", []) and swept.work.pending() == 0
    assert [len(rows) for rows in verdicts(swept, state.id).values()] == [2, 2]
    assert [r.status for r in swept.findings.read(records.Run)][-1] == "done"


def test_what_a_refusing_endpoint_was_asked_is_in_the_findings_at_once(swept: Home, project: Any) -> None:
    with ScriptedEndpoint(key="another") as server, pytest.raises(Refused, match="refused the key"):
        project.run(swept, units=QUICK, planner="llm", endpoint=server.url)
    rows = table(swept, "llm_calls")
    assert [row["outcome"] for row in rows] == ["http 401"] and swept.work.pending() == 0


def test_another_worker_of_the_run_keeps_its_unit(swept: Home, project: Any) -> None:
    """A unit that a living process holds is neither taken nor called failed; the run waits for it as left."""
    state = project.run(swept, units=QUICK, minutes=0)
    job = swept.work.claim(state.run, worker_id("other"), 600)
    assert job is not None and job.unit.endswith("0-mlp/3")
    outcome = project.run(swept, units=QUICK)
    assert names(outcome.left) == ["0-mlp/3"] and outcome.failed == []
    assert names([r.unit or "" for r in swept.findings.read(records.Investigation)]) == ["0-mlp/4"]


def test_a_unit_that_was_taken_over_is_recorded_by_its_new_worker_alone(swept: Home, project: Any, told: Any) -> None:
    """As after the machine slept through the lease: the result comes too late, and is dropped without an error."""

    def at_step(unit: str, what: str) -> None:
        if unit.endswith("/3") and what.startswith("ablate"):
            with sqlite3.connect(swept.work.path) as con:
                con.execute("UPDATE jobs SET token = token + 1, worker = ? WHERE unit = ?", [worker_id("other"), unit])

    told.at_step = at_step
    outcome = project.run(swept, told, units=QUICK)
    assert (names(outcome.left), outcome.failed) == (["0-mlp/3"], [])
    assert names([r.unit or "" for r in swept.findings.read(records.Investigation)]) == ["0-mlp/4"]
    assert table(swept, "failures") == []


def test_a_result_that_comes_too_late_is_dropped(
    swept: Home, project: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same at the very end, when the unit is to be ended."""
    real = night.investigate

    def slow(unit: Any, by: Any) -> Any:
        found = real(unit, by)
        with sqlite3.connect(swept.work.path) as con:
            con.execute("UPDATE jobs SET token = token + 1, worker = ? WHERE unit LIKE '%/3'", [worker_id("other")])
        return found

    monkeypatch.setattr(night, "investigate", slow)
    outcome = project.run(swept, told, units=QUICK)
    assert (names(outcome.left), outcome.failed) == (["0-mlp/3"], [])
    assert names([r.unit or "" for r in swept.findings.read(records.Investigation)]) == ["0-mlp/4"]


# Requests that cannot be carried out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"planner": "oracle"}, ["'oracle'", "playbook"]),
        ({"units": "0-mlp/9"}, ["0-mlp/9", "units 0 to 8"]),
        ({"units": "other/0-mlp/1"}, ["other/0-mlp/1", "--model"]),
        ({"units": "0-mlp"}, ["'0-mlp'", "MODEL/SITE/INDEX"]),
        ({"units": "auto:0"}, ["auto:0"]),
        ({"units": ""}, ["empty"]),
        ({"units": "7-mlp/0"}, ["7-mlp", "0 to 1"]),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_run_is_opened(
    swept: Home, project: Any, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(Refused) as refusal:
        project.run(swept, **changes)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert swept.work.runs() == [] and not swept.findings.path.exists()


def test_auto_that_finds_nothing_says_so(swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night, "pick_units", lambda sweep, n: [])
    with pytest.raises(Refused, match="auto:3 finds no unit on 0-mlp .* name units with --units"):
        project.run(swept, units="auto:3")
    assert swept.work.runs() == []


def test_auto_picks_the_planted_units_and_says_why(swept: Home, project: Any, told: Any) -> None:
    outcome = project.run(swept, told, units="auto:2", minutes=0)
    assert names(outcome.left) == ["0-mlp/0", "0-mlp/2-"]
    assert [unit for unit, _ in told.picks] == outcome.left
    assert all("of tune tokens in" in why and " sd; " in why for _, why in told.picks)


def test_auto_that_finds_fewer_says_so(swept: Home, project: Any, told: Any) -> None:
    outcome = project.run(swept, told, units="auto:40", minutes=0)
    assert 0 < len(outcome.left) < 40
    assert (f"only {len(outcome.left)} units qualify" in dict(told.steps)["auto:40"]) is True
    fewer = told.__class__()
    project.run(swept, fewer, units="auto:2", minutes=0)
    assert "auto:2" not in dict(fewer.steps)


def test_minutes_that_end_in_the_sweep_end_the_run(
    project: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    real = night.Budget
    monkeypatch.setattr(night, "Budget", lambda minutes, *_: real(minutes=minutes, clock=lambda: now[0]))
    told.sweeping = lambda what, done, total: now.__setitem__(0, 61.0)
    home = Home(tmp_path / "home")
    with pytest.raises(night.BudgetSpent, match="minutes are spent before .* was swept.*lamplighter sweep"):
        project.run(home, told, units=QUICK, minutes=1)
    assert home.work.runs() == []


def test_units_that_ended_on_other_inputs_are_told_and_stay(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    """A digest stands beside each unit in the queue; code that has changed makes another."""
    first = told.__class__()
    state = project.run(swept, first, units=QUICK)
    digests = [job.digest for job in swept.work.jobs(state.run)]
    assert len(set(digests)) == 2 and all(len(one or "") == 64 for one in digests)
    with sqlite3.connect(swept.work.path) as con:       # as a run stopped before its second unit
        con.execute("UPDATE jobs SET status = 'queued' WHERE unit LIKE '%/4'")
        con.execute("UPDATE runs SET status = 'drained'")
    monkeypatch.setattr(night, "code_digest", lambda *folders: "other code")
    project.run(swept, told, units=QUICK)
    assert [what for _, what in told.steps if "other inputs" in what] == [
        "1 of its units ended on other inputs (code, model or text have changed since) and stay as they are; "
        "--fresh does all of them anew"
    ]  # fmt: skip
    assert not [what for _, what in first.steps if "other inputs" in what]
    now = [job.digest for job in swept.work.jobs(state.run)]
    assert now[0] == digests[0] and now[1] != digests[1]


# Killed


def story(home: Home, run: str | None = None) -> dict[str, Any]:
    """Everything that was found, without ids, times and costs, in an order that does not depend on them."""
    drop = ("id", "created_at", "run", "investigation", "seconds", "cost", "hypothesis", "evidence")
    found: dict[str, Any] = {}
    for kind in ("units", "exemplars", "investigations", "evidence", "hypotheses", "scores", "explanations"):
        rows = [row for row in table(home, kind) if run is None or row["run"] == run]
        for row in rows:
            if kind == "scores":
                details = json.loads(row["details"])
                row["details"] = {k: v for k, v in details.items() if k != "cost"}
            if "provenance" in row:
                row["provenance"] = {k: v for k, v in json.loads(row["provenance"]).items() if k != "recalled"}
        kept = [{k: v for k, v in row.items() if k not in drop} for row in rows]
        found[kind] = sorted(json.dumps(row, sort_keys=True) for row in kept)
    newest = {unit: rows[-1] for r in {row["run"] for row in table(home, "verdicts")}
              for unit, rows in verdicts(home, r).items()}  # fmt: skip
    found["verdicts"] = {unit: (row.verdict, row.reason, row.p, row.q) for unit, row in newest.items()}
    return found


def started(project: Any, home: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lamplighter", *project.arguments, "--home", str(home)]
    # As many threads as the tests themselves: a sum's last bit depends on how it is split.
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with log.open("wb") as err:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, cwd=home.parent, env=threads)


def wait_for(child: subprocess.Popen[bytes], log: Path, words: str) -> None:
    """Until the child has said it, on its plain progress lines."""
    for _ in range(PATIENCE * 100):
        if words in log.read_text("utf-8"):
            return
        assert child.poll() is None, log.read_text("utf-8")
        time.sleep(0.01)
    raise AssertionError(f"{words!r} was not said: {log.read_text('utf-8')}")


def test_killed_stopped_and_continued_it_finds_what_an_unkilled_run_finds(
    project: Any, finished: Any, tmp_path: Path
) -> None:
    """kill -9 in the second unit, SIGTERM in the next, then to the end: each unit once, and equal numbers."""
    home, log = Home(tmp_path / "home"), tmp_path / "log"
    child = started(project, home.path, log)
    wait_for(child, log, "0-mlp/1: lens")
    child.kill()
    assert child.wait(PATIENCE) == -signal.SIGKILL
    (state,) = home.work.runs()
    assert home.work.counts(state.id) == {"queued": 3, "running": 1, "done": 1, "failed": 0}

    child = started(project, home.path, log)
    wait_for(child, log, "0-mlp/2-: top_examples")
    child.terminate()
    assert child.wait(PATIENCE) == 130
    said = log.read_text("utf-8")
    assert "5 units, 1 done before" in said and "0-mlp/0: " not in said
    assert said.endswith("the same command goes on from there.\n") and "Traceback" not in said
    # The unit in hand is given back; the killed one's holder is dead, and it waits for its second try.
    assert home.work.counts(state.id) == {"queued": 3, "running": 1, "done": 1, "failed": 0}

    outcome = project.run(home)
    assert (outcome.run, outcome.status, outcome.failed) == (state.id, "done", [])
    assert Counter(row["unit"] for row in table(home, "investigations")) == Counter(
        unit.removesuffix("-") for unit in outcome.units
    )
    assert table(home, "failures") == [] and home.work.pending() == 0
    assert [job.attempt for job in home.work.jobs(state.id)] == [1, 2, 1, 1, 1]
    ours, theirs = story(home), story(finished.home)
    assert ours.keys() == theirs.keys()
    for kind in ours:  # one by one, so that what differs is said
        assert ours[kind] == theirs[kind], kind


def test_a_second_corpus_scores_the_same_rule_on_text_of_its_own(
    project: Any, other_texts: str, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    outcome = project.run(home, units="0-mlp/1", second=other_texts)
    scores = {s.metric: s for s in home.findings.read(Score, run=outcome.run)}
    second = scores["f1_second_corpus"]
    assert second.value == scores["f1"].value == 1.0 and second.low is not None
    assert second.details["corpus"] == other_texts and set(second.floors) == {"always_on", "shifted"}
    assert second.provenance["sweep"] != scores["f1"].provenance["sweep"]
    assert len(home.findings.read(records.Sweep, run=outcome.run)) == 2
    without = project.run(home, units="0-mlp/1")
    assert without.run != outcome.run, "it is another run"
    assert "f1_second_corpus" not in {s.metric for s in home.findings.read(Score, run=without.run)}


def test_a_dimension_of_the_stream_goes_through_a_run_as_neurons_do(project: Any, tmp_path: Path) -> None:
    """Dimension 0 is raised by " car", and a little by what the MLP of its block writes."""
    home = Home(tmp_path)
    outcome = project.run(home, units="0-resid/0")
    assert outcome.status == "done" and not outcome.failed
    f1 = home.findings.read(Score, metric="f1")[0]
    known = {name: value for name, value in f1.floors.items() if value is not None}
    assert {"nearest_1", "random_1"} <= known.keys() and f1.value is not None and f1.value > max(known.values())
    pushed = home.findings.read(Score, metric="output_auc")
    assert pushed and "neighbours" in pushed[0].floors


def test_an_endpoint_that_says_later_is_waited_for_and_nothing_is_lost_or_paid_twice(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    monkeypatch.setattr(llm, "LONGEST_WAIT", 0.1)
    answers = [Status(429, retry_after=1.5), Status(503, retry_after=0.4)]

    def script(request: dict[str, Any]) -> Any:
        submit = {"candidate": "A", "sentence": "fires on car", "why": "so"}
        return answers.pop(0) if answers else CallTool("submit", submit)

    with ScriptedEndpoint(script) as server:
        began = time.monotonic()
        outcome = project.run(swept, told, units="0-mlp/0", planner="llm", endpoint=server.url)
        took = time.monotonic() - began
    assert (outcome.status, outcome.failed) == ("done", []) and took >= 1.9
    assert swept.findings.read(Failure, run=outcome.run) == []
    assert len(swept.findings.read(records.Investigation, run=outcome.run)) == 1
    waits = [what for _, what in told.steps if what.startswith("waiting")]
    assert waits[0].startswith("waiting 2 seconds") and "asks to wait 2 seconds" in waits[0] and len(waits) == 2
    asked = [row["outcome"] for row in table(swept, "llm_calls") if row["purpose"] == "plan"]
    assert asked[:2] == ["http 429", "http 503"] and set(asked[2:]) == {"ok"}


def test_an_endpoint_that_says_later_than_the_minutes_leaves_the_units(
    swept: Home, project: Any, told: Any
) -> None:
    with ScriptedEndpoint(lambda request: Status(429, retry_after=3600)) as server:
        asked = {"units": QUICK, "planner": "llm", "endpoint": server.url}
        outcome = project.run(swept, told, minutes=5, **asked)
        assert outcome.status == "budget" and len(outcome.left) == 2 and outcome.failed == []
        assert told.steps[-1][1].startswith("left for another time")
        assert [row["purpose"] for row in table(swept, "llm_calls")].count("plan") == 1
    with ScriptedEndpoint(lambda request: CallTool("abstain", {"reason": "no", "why": "so"})) as server:
        again = project.run(swept, **(asked | {"endpoint": server.url}))
    assert (again.status, again.failed) == ("done", [])


def test_a_stop_while_the_endpoint_is_waited_for_gives_the_unit_back(
    swept: Home, project: Any, told: Any
) -> None:
    def stop(unit: str, what: str) -> None:
        if what.startswith("waiting"):
            os.kill(os.getpid(), signal.SIGTERM)

    told.at_step = stop
    with ScriptedEndpoint(lambda request: Status(429, retry_after=3600)) as server, pytest.raises(Drained):
        project.run(swept, told, units=QUICK, planner="llm", endpoint=server.url)
    (state,) = swept.work.runs()
    assert {job.status for job in swept.work.jobs(state.id)} == {"queued"}


def test_a_unit_that_has_spent_its_tokens_concludes_and_the_next_one_may_spend_its_own(
    swept: Home, project: Any
) -> None:
    """The model would try rules for ever; each unit stops at its own limit with the best candidate that it has."""

    def script(request: dict[str, Any]) -> Any:
        rule = {"clauses": [{"at": {"word": f"w{len(server.requests)}"}}]}
        return CallTool("try_rule", {"sentence": "fires on something", "rule": rule, "why": "so"})

    with ScriptedEndpoint(script) as server:
        asked = {"units": "0-mlp/0,0-mlp/1", "planner": "llm", "endpoint": server.url, "unit_llm_tokens": 1}
        outcome = project.run(swept, **asked)
    assert (outcome.status, outcome.failed) == ("done", [])
    for unit in outcome.units:
        assert swept.work.spent(outcome.run, unit, 1).calls == 1
    kept = swept.findings.read(records.Hypothesis, run=outcome.run, kept=True, side="input")
    assert {h.unit for h in kept} == set(outcome.units)
    each = [swept.work.spent(outcome.run, unit, 1).tokens for unit in outcome.units]
    assert swept.work.spent(outcome.run).tokens == sum(each)


# A store that cannot be used for a while


def test_a_full_disk_in_a_unit_is_waited_for_and_changes_nothing(swept: Home, project: Any, told: Any) -> None:
    """Not a failure of the unit, and no evidence about it: it ends as it does on a disk with room."""
    home, waited = swept, []
    con = home.work._connection()
    room = con.execute("PRAGMA max_page_count").fetchone()[0]

    def at_step(unit: str, what: str) -> None:
        if what.startswith("top_examples") and not waited:
            con.execute(f"PRAGMA max_page_count = {con.execute('PRAGMA page_count').fetchone()[0]}")
        if unit == "waiting":
            waited.append(what)
            con.execute(f"PRAGMA max_page_count = {room}")

    told.at_step = at_step
    outcome = project.run(home, told, units=QUICK)
    assert (outcome.status, outcome.failed) == ("done", [])
    assert waited and "make room on its disk" in waited[0]
    assert not [e for e in home.findings.read(records.Evidence) if "make room" in e.summary]
    assert home.findings.read(records.Failure) == []
    assert home.work.patience(Busy("x")) is False, "others who use this home are told at once"
