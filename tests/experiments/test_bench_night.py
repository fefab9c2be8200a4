"""bench_night: killed, hampered and repeated runs are counted up as they are, and what is amiss is seen."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from lamplighter.agent.config import Home
from lamplighter.experiments import night_faults, night_throughput
from lamplighter.experiments.night_clock import HOUR, STEPS, stepped
from lamplighter.experiments.night_faults import Model, Unmeasured, met
from lamplighter.experiments.night_kills import killed, told
from lamplighter.experiments.night_process import account
from lamplighter.experiments.night_same import _PASSING, Night, _compared, same, story
from lamplighter.experiments.night_subject import SITE, Made, make_subject
from lamplighter.experiments.night_throughput import Turn, _few, _gain, _growth, _in_turn, _ran, _turn, _under_way
from lamplighter.store.findings import drain
from lamplighter.store.records import Busy, Evidence, Failure, Hypothesis, Investigation, Refused, Score
from lamplighter.store.work import Work, worker_id
from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import make_sweep
from lamplighter.tools.toolbox import Toolbox
from lamplighter.tools.units import UnitId


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(tmp_path / "no-weights"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_subject(tmp_path_factory.mktemp("made"), 4, 0)


# Whole parts


@pytest.mark.timeout(900)
def test_a_killed_run_has_every_unit_once(tmp_path: Path) -> None:
    made = make_subject(tmp_path, 12, 1)
    done = killed(made, tmp_path / "killed", 3, 2, 1, quiet)
    tables, claims = told(done)
    assert all(claim.holds for claim in claims), claims
    assert [row["exit code"] for row in tables["its processes"]] == [-9, -9, 0] and done.kills == 2
    assert done.found.ended == 12 and len(set(done.requests)) >= 12
    paid = replace(done, requests=done.requests + 7 * done.requests[:1])     # one more than 3 workers lose in 2 kills
    lost = replace(done, found=replace(done.found, lost=1, ended=11))
    for other, wrong in ((paid, {"paid calls above the ideal", "paid calls that no row of the ledger tells of"}),
                         (lost, {"units with a result", "units lost"})):  # fmt: skip
        assert {claim.name for claim in told(other)[1] if not claim.holds} == wrong


def test_a_run_on_a_clock_that_is_stepped_ends_complete() -> None:
    tables, (claim,) = met(["clock stepped"], 4, 2, 0, quiet)
    (row,) = tables["faults"]
    assert claim.holds and claim.value == 0.0, row
    assert (row["ended"], row["exit codes"], row["commands"]) == (4, "0", 1)


@pytest.mark.timeout(900)
def test_a_killed_night_finds_what_an_unkilled_one_finds(made: Made, tmp_path: Path) -> None:
    asked = Night(made.model, made.corpus, [f"{made.model}/{unit}" for unit in made.units[:3]])
    tables, claims = same(asked, tmp_path / "night", 1, 0, quiet)
    assert all(claim.holds for claim in claims), claims
    nights = {row["run"]: row for row in tables["nights"]}
    assert (nights["killed"]["processes"], nights["killed"]["cut off"]) == (2, 1)
    assert (nights["unkilled"]["processes"], nights["unkilled"]["cut off"]) == (1, 0)
    assert {row["records"]: row["killed"] for row in tables["what they found"]}["investigations"] == 3
    (place,) = (tmp_path / "night").iterdir()
    assert (place / "kills.json").read_text("utf-8").startswith("[")
    home = Home(place / "killed")
    found = story(home, home.work.runs()[-1].id)
    other = copy.deepcopy(found)
    unit = next(iter(other["evidence"]))
    other["evidence"][unit][0] = other["evidence"][unit][0].replace("0.", "1.", 1)
    assert _compared(found, found)[1] == set() and _compared(found, other)[1] == {unit}
    assert not any(f'"{name}"' in line for lines in found["scores"].values() for line in lines for name in _PASSING)


# What is amiss is seen


def home_of(tmp_path: Path, twice: bool = False, spoilt: bool = False) -> tuple[Home, str]:
    """Four units: two with results, one failed, one lost."""
    home = Home(tmp_path / "home")
    run = home.work.open_run("key", {}, [f"m/5-mlp/{n}" for n in range(4)]).id
    home.work.enqueue(run, [f"m/5-mlp/{n}" for n in range(4)])
    ended: dict[str, Any] = {"planner": "p", "status": "submitted", "steps": 1, "cost": {}, "seconds": 0.0}
    for n in range(3):
        job = home.work.claim(run, worker_id())
        assert job is not None
        about: dict[str, Any] = {"run": run, "unit": job.unit, "sign": 1}
        if n == 2:
            home.work.fail(job, Failure(kind="x", message="no", step="act", attempt=1, **about), retry=False)
            continue
        investigation = Investigation(**about, **ended)
        kept = Hypothesis(author="p", sentence="fires on a", rule=None, rule_text=None, kept=True, **about)
        score = Score(hypothesis=kept.id, metric="f1", side="score", value=1.0, **about)
        why = "work.sqlite cannot be used" if spoilt else "bert is not here"
        refused = Evidence(tool="substitute", ok=False, summary=why, **about)
        home.work.finish(job, [investigation, kept, score, refused])
        if twice and n == 0:
            again = Score(hypothesis=kept.id, metric="f1", side="score", value=1.0, **about)
            home.work.post([again, Investigation(**about, **ended)])
    drain(home.work, home.findings)
    return home, run


def test_units_are_counted_up(tmp_path: Path) -> None:
    found = account(*home_of(tmp_path))
    assert (found.units, found.ended, found.failed, found.lost, found.twice) == (4, 2, 1, 1, 0)
    assert (found.waiting, found.spoilt, found.again, found.amiss) == (0, 0, 0, 2)


def test_what_is_there_twice_waits_or_was_made_of_a_failure_is_counted(tmp_path: Path) -> None:
    home, run = home_of(tmp_path, twice=True, spoilt=True)
    home.work.post([Investigation(planner="p", status="submitted", steps=1, cost={}, seconds=0.0, run=run)])
    found = account(home, run)
    assert (found.twice, found.waiting, found.spoilt) == (2, 1, 2) and found.amiss == 7


# Faults


def test_the_clock_goes_back_and_forth() -> None:
    read = [stepped(1.0, 0.0, lambda: 1e6, lambda at=at: at) for at in (0.5, 1.5, 2.5, 3.5, 4.5)]
    assert read == [1e6 + step for step in (*STEPS, STEPS[0])] and set(STEPS) == {0.0, HOUR, -HOUR}


def test_ids_and_times_of_records_go_by_the_stepped_clock_and_leases_do_not(tmp_path: Path) -> None:
    """In a process of its own, as a run has it: the first step comes at once, and takes an hour off."""
    Work(tmp_path / "work.sqlite").close()
    code = """
import datetime, sys, time
right = time.time
from lamplighter.experiments.night_clock import step_clock
step_clock(1e9)
import lamplighter.experiments.night_clock as night_clock
night_clock.STEPS = (-3600.0,)
from pathlib import Path
from lamplighter.store import records, work
told = [int(records.uuid7().replace("-", "")[:12], 16) / 1000,
        datetime.datetime.fromisoformat(records.utc_now() + "+00:00").timestamp(), work.Work(Path(sys.argv[1])).now]
print(*(round((one - right()) / 3600, 3) for one in told))
"""
    line = [sys.executable, "-P", "-c", code, str(tmp_path / "work.sqlite")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    *stamps, lease = done.stdout.split()
    assert stamps == ["-1.0", "-1.0"] and float(lease) == 0


class Still:
    """A run that says nothing: what happens to it is looked at here."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def until(self, holds: Any, seconds: float = 0.0) -> bool:
        self.look()
        return bool(holds())

    def says(self, pattern: str) -> None:
        return None


@pytest.mark.parametrize("leave", [0, 2**19])
def test_a_small_disk_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: int) -> None:
    monkeypatch.setattr(night_faults, "ROOM", 2**20)
    monkeypatch.setattr(night_faults, "SPARE", 2**20)
    model = Model()
    free: list[int] = []
    try:
        with night_faults._small_disk(leave, "x", tmp_path, model) as scene:
            ask = [*scene.before, "stat", "-f", "-c", "%a %S", str(scene.home.parent)]

            def look() -> None:
                blocks, size = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
                free.append(int(blocks) * int(size))

            look()
            scene.disturb(Still(look))  # type: ignore[arg-type]
            look()
            subprocess.run([*scene.before, "mkdir", str(scene.home)], check=True)
            assert scene.seen().is_dir() and not scene.home.exists()
    except Unmeasured as why:
        pytest.skip(str(why))
    finally:
        model.down()
    assert free[0] == free[-1] == 2 * 2**20 and set(free[1:-1]) == {leave}


def test_findings_are_held_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can read them in the meantime, and everybody afterwards."""
    home, _ = home_of(tmp_path)
    model, seen = Model(), []

    def look() -> None:
        try:
            seen.append(len(home.findings.read(Investigation)))
        except Busy:
            seen.append(-1)

    try:
        with night_faults._held(False, tmp_path, model) as scene:
            scene.disturb(Still(look))  # type: ignore[arg-type]
            look()
    finally:
        model.down()
    assert seen == [-1, 2]


def test_an_endpoint_is_down_or_ill_for_a_while_and_then_on_the_same_port() -> None:
    model, seen = Model(), []

    def look() -> None:
        body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
        try:
            with urlopen(Request(f"{model.url}/v1/chat/completions", body), timeout=10) as reply:
                seen.append(str(reply.status))
        except HTTPError as error:
            seen.append(str(error.code))
        except URLError as error:
            seen.append(type(error.reason).__name__)

    try:
        for ill in (False, True):
            with night_faults._endpoint(ill, Path(), model) as scene:
                look()
                scene.disturb(Still(look))  # type: ignore[arg-type]
                look()
    finally:
        model.down()
    down = ["ConnectionRefusedError"] * 2
    assert seen == ["200", *down, "200", "200", "503", "503", "200"]


def test_a_disk_that_cannot_be_had_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tables, (claim,) = met(["disk full"], 2, 1, 0, quiet)
    assert (claim.value, claim.holds, claim.n) == (None, None, 0)
    assert tables["faults"][0]["said"].startswith("not measured: no file system of its own can be had")


# Throughput


def none_here() -> Any:
    raise Refused("no masked LM is here.")


def test_pruning_alone_passes_the_same_tokens_with_any_workers(made: Made, tmp_path: Path) -> None:
    subject = Subject.load(made.model)
    sweep = make_sweep(subject, load_corpus(made.corpus), [SITE], tmp_path)
    units = [UnitId(made.model, SITE, n) for n in range(3)]
    one, six = (_turn(Toolbox(subject, lambda _: sweep, none_here), units, workers) for workers in (1, 6))
    assert one.tokens == six.tokens > 0 and one.seconds > 0 and (one.workers, six.workers) == (1, 6)


def test_a_way_starts_with_a_sweep_and_is_watched(made: Made, tmp_path: Path) -> None:
    subject = Subject.load(made.model)
    make_sweep(subject, load_corpus(made.corpus), [SITE], tmp_path)
    asked = Night(made.model, made.corpus, [f"{made.model}/{SITE}/{n}" for n in range(3)], None, tmp_path / "sweeps")
    place = tmp_path / "place"
    place.mkdir()
    ran = _ran(asked, Home(place / "fresh"), asked.units, 2, place, quiet)
    assert (ran.units, ran.failed, len(ran.memory)) == (3, 0, 3) and ran.tokens > 0
    assert 0 < ran.under_way < ran.seconds and len(list((tmp_path / "sweeps").iterdir())) == 1
    if Path("/proc/self/statm").exists():
        assert all(size is not None and size > 10**8 for size in ran.memory[:2])


def test_memory_is_flat_where_it_does_not_climb() -> None:
    draw = np.random.default_rng(0)
    level = [int(size) for size in 1e9 + 5e6 * draw.standard_normal(60)]
    climbs = [size + 2_000_000 * n for n, size in enumerate(level)]
    start = [10**8 * (n + 1) for n in range(9)] + level[9:]       # what comes before the tenth unit is of no account
    for memory, flat in ((level, True), (start, True), (climbs, False)):
        growth, high = _growth(memory)
        assert growth is not None and high is not None and growth < high and (high <= 0.05) is flat
    assert _growth(climbs)[0] == pytest.approx(0.1, abs=0.02)
    assert _growth(level[:11]) == (None, None) and _growth([None] * 60) == (None, None)


def test_seconds_under_way_count_once() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)

    def call(tool: str, end: float, seconds: float, ok: bool = True) -> Evidence:
        at = (began + timedelta(seconds=end)).isoformat(timespec="microseconds").removesuffix("+00:00")
        return Evidence(tool=tool, ok=ok, summary="", created_at=at, cost={"seconds": seconds, "forward_tokens": 7})

    calls = [call("minimal_example", 10, 4), call("substitute", 12, 4), call("substitute", 30, 1), call("lens", 50, 9)]
    assert _under_way(calls) == pytest.approx(7.0)     # 6 to 12, and 29 to 30
    assert night_throughput._tokens(calls) == 21.0
    assert _under_way([*calls, call("substitute", 60, 5, ok=False)]) == pytest.approx(7.0)


def test_the_gain_is_of_turns_side_by_side() -> None:
    turns = [Turn(1, 100.0, 1.0), Turn(6, 100.0, 0.5), Turn(6, 100.0, 1.0), Turn(1, 100.0, 2.0)]
    assert [turn.workers for turn in turns] == list(_in_turn(2))
    claim = _gain(turns, 0)
    assert claim.value == pytest.approx(2.0) and claim.holds and claim.n == 2
    assert not _gain([Turn(1, 100.0, 1.0), Turn(6, 100.0, 1.0)], 0).holds


def test_units_of_turns_are_spread_over_layers() -> None:
    units = [UnitId("m", f"{n // 10}-mlp", n) for n in range(60)]
    assert [unit.layer for unit in _few(units, 12)].count(3) == 2 and len(set(_few(units, 12))) == 12
    assert _few(units[:2], 12) == units[:2]
