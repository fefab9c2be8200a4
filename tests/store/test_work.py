import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store import work as module
from lamplighter.store.records import Evidence, Failure, LLMCall, Refused
from lamplighter.store.work import (
    MAX_ATTEMPTS,
    Busy,
    Spent,
    StaleAttempt,
    Work,
    Worker,
    ddl_after,
    is_gone,
    process_of,
    worker_id,
)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def work(tmp_path, clock):
    return Work(tmp_path / "home" / "work.sqlite", clock)


def queued(work, n=3, priorities=None):
    units = [f"m/5-mlp/{i}" for i in reversed(range(n))]     # against the alphabet: order is order of arrival
    run = work.open_run("key", {"n": n}, units).id
    assert work.enqueue(run, units, priorities) == n
    return run


def found(unit):
    return Evidence(tool="lens", summary="é\u2028\0", unit=unit, sign=1, rows=[{"x": 0.1}])


def failed(unit, attempt=1):
    return Failure(kind="tool", message="no", step="act", attempt=attempt, unit=unit, sign=1)


def child(script, *arguments):
    """A process of its own that runs `script`; it says on stdout how far it has come."""
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


# Runs


def test_the_same_question_continues_its_unfinished_run(work):
    run = work.open_run("key", {"units": "auto:2", "ü": [1.5, None]}, ["a", "b"])
    assert run.status == "running"
    for end in ("drained", "budget"):
        work.close_run(run.id, end)
        assert work.open_run("key", {}, ["other"]) == run
    assert work.open_run("another", {}, []).id != run.id


def test_a_finished_run_is_returned_as_finished_unless_fresh(work):
    run = work.open_run("key", {}, ["a"])
    work.close_run(run.id, "done")
    assert work.open_run("key", {}, ["a"]) == replace(run, status="done")
    fresh = work.open_run("key", {}, ["b"], fresh=True)
    assert (fresh.id != run.id, fresh.status, fresh.units) == (True, "running", ["b"])
    assert work.open_run("key", {}, ["a"]).id == fresh.id


def test_ends_of_runs_are_checked(work):
    run = work.open_run("key", {}, [])
    with pytest.raises(ValueError):
        work.close_run(run.id, "finished")
    with pytest.raises(Refused, match="no run 'nope'"):
        work.close_run("nope", "done")


def test_runs_are_found_by_what_was_asked(work):
    assert work.find_run("key") is None and work.runs() == []
    first = work.open_run("key", {}, ["a"])
    work.close_run(first.id, "done")
    second, other = work.open_run("key", {}, ["a"], fresh=True), work.open_run("other", {}, [])
    assert work.find_run("key") == second
    assert {run.id for run in work.runs()} == {first.id, second.id, other.id}


# Jobs


def test_units_go_by_priority_then_in_order_and_are_queued_once(work):
    run = queued(work, 4, [0, 0, 1, 1])
    assert work.enqueue(run, ["m/5-mlp/9", "m/5-mlp/1"]) == 1
    taken = [work.claim(run, worker_id()).unit[-1] for _ in range(5)]
    assert taken == ["1", "0", "3", "2", "9"]
    assert work.claim(run, worker_id()) is None
    assert [state.unit[-1] for state in work.jobs(run)] == ["3", "2", "1", "0", "9"]
    with pytest.raises(sqlite3.IntegrityError):
        work.enqueue("no such run", ["m/5-mlp/1"])


def test_priorities_must_fit_the_units(work):
    run = work.open_run("key", {}, []).id
    with pytest.raises(ValueError):
        work.enqueue(run, ["a", "b"], [1.0])
    assert work.counts(run) == {"queued": 0, "running": 0, "done": 0, "failed": 0}


def test_finishing_records_and_ends_in_one(work):
    run = queued(work, 1)
    job = work.claim(run, worker_id())
    records = [found(job.unit), found(job.unit)]
    work.finish(job, records)
    assert [record for _, record in work.outbox(10)] == records
    assert work.counts(run)["done"] == 1
    for again in (work.finish, lambda job, _: work.heartbeat(job), lambda job, _: work.release(job)):
        with pytest.raises(StaleAttempt):
            again(job, [found(job.unit)])
    assert work.pending() == 2


def test_a_record_that_cannot_be_stored_leaves_the_unit_running(work):
    run = queued(work, 1)
    job = work.claim(run, worker_id())
    for bad in (replace(found("u"), rows=[{"x": float("nan")}]), replace(found("u"), summary="\ud83d")):
        with pytest.raises(Refused, match="evidence cannot be stored"):
            work.finish(job, [found("u"), bad])
    assert (work.pending(), work.counts(run)["running"]) == (0, 1)
    work.finish(job, [found("u")])


def test_a_lease_that_ran_out_hands_the_unit_on_and_fences_the_first_worker_off(work, clock):
    run = queued(work, 1)
    slow = work.claim(run, worker_id(), lease=60)
    clock.now += 59
    assert work.claim(run, worker_id()) is None
    clock.now += 2
    quick = work.claim(run, worker_id(), lease=60)
    assert (quick.unit, quick.attempt, quick.token) == (slow.unit, 2, slow.token + 1)
    with pytest.raises(StaleAttempt):
        work.finish(slow, [found("slow")])
    with pytest.raises(StaleAttempt):
        work.fail(slow, failed("slow"), retry=True)
    work.finish(quick, [found("quick")])
    assert [record.unit for _, record in work.outbox(9)] == ["quick"]


def test_a_late_worker_that_nobody_replaced_may_still_finish(work, clock):
    run = queued(work, 1)
    job = work.claim(run, worker_id(), lease=60)
    clock.now += 3600
    work.finish(job, [found("late")])
    assert work.counts(run)["done"] == 1


def test_a_heartbeat_holds_the_unit_for_another_lease(work, clock):
    run = queued(work, 1)
    job = work.claim(run, worker_id(), lease=60)
    for _ in range(5):
        clock.now += 50
        work.heartbeat(job)
        assert work.claim(run, worker_id()) is None
    assert work.jobs(run)[0].expires == clock.now + 60


def test_a_released_unit_costs_no_try(work):
    run = queued(work, 1)
    for _ in range(5):
        job = work.claim(run, worker_id())
        assert job.attempt == 1
        work.release(job)
        with pytest.raises(StaleAttempt):
            work.finish(job, [])
    assert work.counts(run)["queued"] == 1


def test_three_failed_tries_end_a_unit_and_each_is_recorded(work):
    run = queued(work, 1)
    again = []
    while job := work.claim(run, worker_id()):
        again.append(work.fail(job, failed(job.unit, job.attempt), retry=True))
    assert again == [True, True, False]
    assert [record.attempt for _, record in work.outbox(9)] == [1, 2, 3]
    assert work.counts(run)["failed"] == 1


def test_a_failure_that_no_retry_mends_ends_the_unit_at_once(work):
    run = queued(work, 1)
    assert work.fail(work.claim(run, worker_id()), failed("u"), retry=False) is False
    assert work.claim(run, worker_id()) is None


def test_a_unit_that_takes_its_workers_down_goes_last_and_is_failed_in_the_end(work, clock):
    run = queued(work, 3)
    order = []
    for _ in range(9):
        order.append(work.claim(run, worker_id(), lease=1).unit[-1])
        clock.now += 2
    assert order == list("210210210")
    assert work.claim(run, worker_id()) is None
    assert work.counts(run)["failed"] == 3
    lost = [record for _, record in work.outbox(9)]
    assert {(r.kind, r.attempt, r.unit, r.sign, r.run) for r in lost} == {
        ("lost", 3, f"m/5-mlp/{i}", 1, run) for i in range(3)
    }


def test_the_negative_side_is_recorded_with_its_sign(work, clock):
    run = work.open_run("key", {}, ["m/5-mlp/7-"]).id
    work.enqueue(run, ["m/5-mlp/7-"])
    for _ in range(4):
        work.claim(run, worker_id(), lease=1)
        clock.now += 2
    ((_, lost),) = work.outbox(9)
    assert (lost.unit, lost.sign) == ("m/5-mlp/7", -1)


def test_a_unit_keeps_its_rung_and_the_digest_of_its_input(work):
    run = work.open_run("key", {}, ["a", "b"]).id
    work.enqueue(run, ["a", "b"], digests=["d1", None])
    job = work.claim(run, worker_id())
    assert work.enqueue(run, ["a", "b"], digests=["another", "d2"]) == 0, "in hand it keeps the first, queued not"
    work.finish(job, [], rung="label")
    assert work.enqueue(run, ["a", "b"], digests=["another", "d3"]) == 0
    work.finish(work.claim(run, worker_id()), [])
    assert [(job.unit, job.rung, job.digest) for job in work.jobs(run)] == [("a", "label", "d1"), ("b", None, "d3")]
    with pytest.raises(ValueError):
        work.enqueue(run, ["c", "d"], digests=["one"])


# Held back, and once more


def test_of_a_paused_run_no_unit_can_be_had_and_what_is_held_may_be_finished(work):
    run, other = queued(work, 2), work.open_run("other", {}, ["x"]).id
    work.enqueue(other, ["x"])
    job = work.claim(run, worker_id())
    assert not work.paused(run)
    work.pause(run)
    work.pause(run)
    assert work.paused(run) and not work.paused(other)
    assert [state.paused for state in work.runs()] == [True, False]
    assert work.claim(run, worker_id()) is None and Work(work.path).claim(run, worker_id()) is None
    assert work.claim(other, worker_id()).unit == "x"
    work.heartbeat(job)
    work.finish(job, [found(job.unit)])
    work.resume(run)
    assert not work.paused(run) and work.claim(run, worker_id()) is not None


def test_a_paused_run_buries_no_unit(work, clock):
    run = queued(work, 1)
    for _ in range(MAX_ATTEMPTS):
        work.claim(run, worker_id(), lease=1)
        clock.now += 2
    work.pause(run)
    assert work.claim(run, worker_id()) is None and work.counts(run)["failed"] == 0
    work.resume(run)
    assert work.claim(run, worker_id()) is None and work.counts(run)["failed"] == 1


@pytest.mark.parametrize("act", [Work.pause, Work.resume, Work.paused, Work.requeue])
def test_a_run_that_is_not_there_is_refused(work, act):
    with pytest.raises(Refused, match="no run 'nope'.*lamplighter status"):
        act(work, "nope")


def test_failed_units_are_queued_again_as_if_untried_and_a_done_run_is_open_again(work):
    run = queued(work, 4)
    work.finish(work.claim(run, worker_id()), [])
    for _ in range(2):
        work.fail(work.claim(run, worker_id()), failed("u"), retry=False)
    still = work.claim(run, worker_id())
    work.finish(still, [])
    assert work.close_run(run, "done") == "done"
    bad = [job.unit for job in work.jobs(run) if job.status == "failed"]
    assert work.requeue(run, []) == [] and work.find_run("key").status == "done"
    assert work.requeue(run, [still.unit, "m/5-mlp/77"]) == [], "only what failed"
    assert work.requeue(run, [bad[1]]) == [bad[1]]
    assert work.find_run("key").status == "drained"
    assert work.requeue(run) == [bad[0]] and work.requeue(run) == []
    attempts = []
    while job := work.claim(run, worker_id()):
        attempts.append(job.attempt)
        work.fail(job, failed(job.unit), retry=True)
    assert sorted(attempts) == sorted([*range(1, MAX_ATTEMPTS + 1)] * 2)
    assert work.open_run("key", {}, []).id == run


def test_a_stale_attempt_cannot_finish_a_unit_that_was_queued_again(work):
    run = queued(work, 1)
    job = work.claim(run, worker_id())
    work.fail(job, failed(job.unit), retry=False)
    work.requeue(run)
    with pytest.raises(StaleAttempt):
        work.finish(job, [found(job.unit)])
    again = work.claim(run, worker_id())
    assert (again.attempt, again.token > job.token) == (1, True)
    with pytest.raises(StaleAttempt):
        work.finish(job, [found(job.unit)])
    work.finish(again, [])


def test_a_run_is_not_done_while_units_are_open(work):
    run = queued(work, 2)
    for _ in range(2):
        work.fail(work.claim(run, worker_id()), failed("u"), retry=False)
    work.requeue(run)                       # while the process that failed them was about to close the run
    assert work.close_run(run, "done") == "drained" and work.find_run("key").status == "drained"
    assert work.close_run(run, "budget") == "budget"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.sets(st.integers(0, 5)))
def test_requeue_touches_the_failed_units_that_are_named_and_no_other(tmp_path_factory, acts, named):
    work = Work(tmp_path_factory.mktemp("q") / "work.sqlite", Clock())
    run = queued(work, 6)
    for _, good in acts[:6]:
        job = work.claim(run, worker_id())
        work.finish(job, []) if good else work.fail(job, failed(job.unit), retry=False)
    before = {job.unit: job for job in work.jobs(run)}
    asked = {f"m/5-mlp/{i}" for i in named}
    queued_again = work.requeue(run, sorted(asked))
    assert queued_again == [u for u, job in before.items() if job.status == "failed" and u in asked]
    for job in work.jobs(run):
        was = before[job.unit]
        assert job == (replace(was, status="queued", attempt=0) if job.unit in queued_again else was)
    work.close()


REQUEUE = """
import sys
from pathlib import Path
from lamplighter.store.work import Work
work = Work(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(*work.requeue(sys.argv[2]))
"""


def test_of_two_processes_that_queue_a_unit_again_one_does(tmp_path):
    work = Work(tmp_path / "work.sqlite")
    run = queued(work, 20)
    for round_ in range(3):
        while job := work.claim(run, worker_id()):
            work.fail(job, failed(job.unit), retry=False)
        work.close_run(run, "done")
        racers = [
            subprocess.Popen([sys.executable, "-c", REQUEUE, work.path, run], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]  # fmt: skip
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        told = [racer.communicate(timeout=60)[0].split() for racer in racers]
        assert sorted(told[0] + told[1]) == sorted(f"m/5-mlp/{i}" for i in range(20)), round_
        assert work.find_run("key").status == "drained"


# Who works on a run


def test_processes_that_ask_for_units_are_known_also_between_two_units(work):
    run, mine = queued(work, 1), process_of(worker_id())
    assert work.workers(run) == []
    job = work.claim(run, worker_id("a"))
    assert work.workers(run) == [Worker(mine, [job.unit])] and work.workers(run)[0].pid == str(os.getpid())
    work.finish(job, [])
    assert work.workers(run) == [Worker(mine, [])]
    work.pause(run)
    work.claim(run, worker_id("b"))
    assert work.workers(run) == [Worker(mine, [])], "one process, whatever its threads are called"
    work.close_run(run, "drained")
    assert work.workers(run) == []


def test_an_ended_process_is_no_worker_whatever_its_lease(tmp_path):
    work = Work(tmp_path / "work.sqlite")
    run = queued(work, 2)
    ask = (
        "import sys, os; from pathlib import Path; from lamplighter.store.work import Work, worker_id;"
        "print(Work(Path(sys.argv[1])).claim(sys.argv[2], worker_id(), lease=3600).unit, flush=True);"
        "sys.stdin.read(); os._exit(9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", ask, work.path, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    unit = process.stdout.readline().strip()
    assert [(worker.pid, worker.units) for worker in work.workers(run)] == [(str(process.pid), [unit])]
    process.communicate("", timeout=30)
    assert work.workers(run) == []


def test_a_process_of_another_machine_is_known_by_what_it_asked_lately(work, clock):
    run = queued(work, 1)
    job = work.claim(run, "elsewhere/1/2/x", lease=60)
    clock.now += module.SILENT_SECONDS - 1
    assert work.workers(run) == [Worker("elsewhere/1/2", [])], "its lease is over"
    clock.now += 2
    assert work.workers(run) == []
    work.heartbeat(job)
    assert work.workers(run) == [Worker("elsewhere/1/2", [job.unit])]


def test_random_histories_finish_every_unit_exactly_once(tmp_path):
    """Workers that stall, die, let go and fail at random under a clock that jumps: the oracle is the outbox."""
    for seed in range(4):
        clock, rng = Clock(), random.Random(seed)
        work = Work(tmp_path / str(seed) / "work.sqlite", clock)
        run = queued(work, 8)
        held, tokens = [], {}
        for _ in range(150):
            clock.now += rng.choice([0, 1, 5, 40])
            if rng.random() < 0.5 and (job := work.claim(run, worker_id(), lease=30)):
                assert job.token > tokens.get(job.unit, 0)
                tokens[job.unit] = job.token
                held.append(job)
            if held and rng.random() < 0.6:
                job = held.pop(rng.randrange(len(held)))
                act = rng.choice(["finish", "finish", "twice", "release", "beat", "die", "fail"])
                try:
                    if act in ("finish", "twice"):
                        work.finish(job, [found(job.unit)])
                        assert job.token == tokens[job.unit]
                        held += [job] * (act == "twice")
                    elif act == "release":
                        work.release(job)
                    elif act == "beat":
                        work.heartbeat(job)
                        held.append(job)
                    elif act == "fail":
                        work.fail(job, failed(job.unit), retry=True)
                except StaleAttempt:
                    state = {s.unit: s for s in work.jobs(run)}[job.unit]
                    assert state.status != "running" or job.token < tokens[job.unit]
        results = Counter(r.unit for _, r in work.outbox(10**6) if isinstance(r, Evidence))
        states = {state.unit: state.status for state in work.jobs(run)}
        assert set(results.values()) == {1}
        assert results.keys() == {unit for unit, status in states.items() if status == "done"}


def test_threads_never_share_a_unit(tmp_path):
    work = Work(tmp_path / "work.sqlite")
    run = queued(work, 40)
    errors = []

    def toil(name):
        try:
            while job := work.claim(run, worker_id(name)):
                work.heartbeat(job)
                work.finish(job, [found(job.unit)])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=toil, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Counter(r.unit for _, r in work.outbox(99)) == Counter(f"m/5-mlp/{i}" for i in range(40))


# Killed processes

TOIL = """
import sys
from pathlib import Path
from lamplighter.store.records import Evidence
from lamplighter.store.work import Work, worker_id
work, run = Work(Path(sys.argv[1])), sys.argv[2]
while job := work.claim(run, worker_id(), lease=3600):
    print(job.unit, flush=True)
    work.remember(job.unit, "seen")
    work.finish(job, [Evidence(tool="t", summary="s", unit=job.unit, sign=1, rows=[{"n": n}]) for n in range(5)])
"""


def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path):
    work = Work(tmp_path / "work.sqlite")
    run = queued(work, 120)
    rng = random.Random(0)
    for _ in range(5):
        process = child(TOIL, work.path, run)
        for _ in range(rng.randrange(1, 15)):
            process.stdout.readline()
        time.sleep(rng.random() * 0.004)
        kill(process)
    before = work.counts(run)
    assert before["done"] >= 5
    last = child(TOIL, work.path, run)     # an hour's leases: only the dead workers' state frees their units
    last.communicate(timeout=30)
    assert work.counts(run) == {"queued": 0, "running": 0, "done": 120, "failed": 0}
    rows = Counter((record.unit, record.rows[0]["n"]) for _, record in work.outbox(10**6))
    assert rows == Counter((f"m/5-mlp/{i}", n) for i in range(120) for n in range(5))


KILLED_IN_FINISH = """
import os, signal, sys
from pathlib import Path
from lamplighter.store.records import Evidence
from lamplighter.store.work import Work, worker_id
work = Work(Path(sys.argv[1]))
job = work.claim(sys.argv[2], worker_id(), lease=3600)
post = Work._post
def post_then_die(self, con, records):
    post(self, con, records)
    os.kill(os.getpid(), signal.SIGKILL)
Work._post = post_then_die
work.finish(job, [Evidence(tool="t", summary="s")])
"""


def test_killed_inside_the_finishing_transaction_the_unit_is_free_and_nothing_is_recorded(tmp_path):
    work = Work(tmp_path / "work.sqlite")
    run = queued(work, 1)
    process = child(KILLED_IN_FINISH, work.path, run)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert (work.pending(), work.counts(run)["running"]) == (0, 1)
    assert work.claim(run, worker_id()).attempt == 2


def test_many_processes_may_make_the_file_at_once(tmp_path):
    make = "import sys; from pathlib import Path; from lamplighter.store.work import Work; Work(Path(sys.argv[1]))"
    path = tmp_path / "new" / "home" / "work.sqlite"
    processes = [child(make, path) for _ in range(5)]
    for process in processes:
        process.communicate(timeout=30)
    assert [process.returncode for process in processes] == [0] * 5
    assert Work(path).pending() == 0


def test_a_fork_uses_a_connection_of_its_own(tmp_path):
    work = Work(tmp_path / "work.sqlite")
    work.post([found("parent")])
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if work._held() is None and work.post([found("child")]) == 1 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    work.post([found("parent again")])
    assert [record.unit for _, record in work.outbox(9)] == ["parent", "child", "parent again"]


# Who is alive


def test_this_process_is_alive_and_an_ended_one_is_gone():
    assert not is_gone(worker_id())
    ask = "from lamplighter.store.work import worker_id; print(worker_id())"
    process = child(ask)
    said = process.stdout.readline().strip()
    process.communicate(timeout=30)
    assert is_gone(said)


def test_a_process_that_nobody_has_reaped_is_gone():
    ask = "from lamplighter.store.work import worker_id; print(worker_id(), flush=True)"
    process = child(ask)
    said = process.stdout.readline().strip()
    deadline = time.monotonic() + 10
    while not is_gone(said) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(said) or not os.path.exists("/proc/self/stat")
    process.communicate()


def test_another_process_with_the_same_number_is_not_taken_for_the_worker():
    place, pid, start, name = worker_id().split("/")
    if not start:
        pytest.skip("no /proc here: process start times are unknown")
    assert is_gone("/".join((place, pid, str(int(start) - 1), name)))


@pytest.mark.parametrize("worker", ["", "me", "elsewhere/1/2/x", f"{worker_id().partition('/')[0]}/x/1/y"])
def test_where_nothing_is_known_only_the_lease_decides(worker, work, clock):
    assert not is_gone(worker)
    run = queued(work, 1)
    work.claim(run, worker, lease=10)
    assert work.claim(run, worker_id()) is None
    clock.now += 11
    assert work.claim(run, worker_id()).attempt == 2


# Outbox, cache, locks


def test_the_outbox_keeps_order_and_takes_an_id_once(work):
    records = [found(str(i)) for i in range(7)]
    assert work.post(records) == 7
    assert work.post(records[:3]) == 0
    first = work.outbox(5)
    assert [record for _, record in first] == records[:5]
    assert work.delivered(seq for seq, _ in first) == 5
    assert work.delivered(seq for seq, _ in first) == 0
    assert [record for _, record in work.outbox(5)] == records[5:]
    assert work.pending() == 2
    work.delivered(seq for seq, _ in work.outbox(5))
    work.post(records)
    assert work.outbox(1)[0][0] > first[-1][0], "numbers of delivered records are never used again"


# Ledger


def call(run="r", **changed):
    base = LLMCall(
        purpose="plan", model="m", endpoint="embedded", outcome="ok", tokens_in=100, tokens_out=10, usd=0.25,
        request="d", seconds=1.5, run=run,
    )  # fmt: skip
    return replace(base, **changed)


def test_a_call_is_in_the_ledger_and_on_its_way_to_the_findings(work):
    made = call(unit="m/5-mlp/1", sign=-1, provenance={"ü": 1}, tokens_cached=7, estimated=True)
    work.charge(made)
    assert [record for _, record in work.outbox(10)] == [made]
    with sqlite3.connect(work.path) as con:
        con.row_factory = sqlite3.Row
        (row,) = con.execute("SELECT * FROM llm_calls").fetchall()
    con.close()
    kept = dict(row) | {"provenance": json.loads(row["provenance"]), "estimated": bool(row["estimated"])}
    assert LLMCall(**kept) == made
    work.delivered([1])
    assert (work.pending(), work.spent("r").calls) == (0, 1), "the ledger is kept for ever"


def test_a_run_has_spent_what_its_calls_add_up_to(work):
    assert work.spent("r") == Spent(calls=0, tokens=0, usd=0.0, unpriced=0, tokens_most=0, usd_most=0.0)
    lost = call(outcome="timeout", tokens_in=None, tokens_out=None, usd=None)
    for made in (call(), call(), lost, call(run="other")):
        work.charge(made)
    assert work.spent("r") == Work(work.path).spent("r") == Spent(3, 220, 0.5, 1, 220, 0.5)


def test_a_call_that_cannot_be_stored_is_in_neither_place(work):
    with pytest.raises(Refused, match="llm_calls cannot be stored"):
        work.charge(call(usd=float("nan")))
    assert (work.pending(), work.spent("r").calls) == (0, 0)


CHARGE_THEN_DIE = """
import os, signal, sys
from pathlib import Path
from lamplighter.store.records import LLMCall
from lamplighter.store.work import Work
work, post = Work(Path(sys.argv[1])), Work._post
made = dict(purpose="plan", model="m", endpoint="e", outcome="ok", request="d", seconds=1.0, run="r")
work.charge(LLMCall(**made))
def post_then_die(self, con, records):
    post(self, con, records)
    os.kill(os.getpid(), signal.SIGKILL)
Work._post = post_then_die
work.charge(LLMCall(**made))
"""


def test_killed_while_it_charges_a_call_is_in_both_places_or_in_neither(tmp_path):
    process = child(CHARGE_THEN_DIE, tmp_path / "work.sqlite")
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    work = Work(tmp_path / "work.sqlite")
    assert work.spent("r").calls == work.pending() == 1


# What waits, and copies


def test_what_waits_is_counted_and_read_by_run(work):
    mine, other = replace(failed("a"), run="r"), replace(failed("b"), run="s")
    work.post([mine, other, replace(found("a"), run="r"), found("c")])
    assert work.waiting() == {"r": 2, "s": 1, None: 1}
    assert work.waiting_of(Failure, "r") == [mine] and work.waiting_of(Failure, "x") == []


def test_a_copy_is_whole_and_of_one_moment(work, tmp_path):
    run = queued(work, 3)
    work.post([found("u")])
    work.copy_to(tmp_path / "copy.sqlite")
    work.finish(work.claim(run, worker_id()), [found("later")])
    copy = Work(tmp_path / "copy.sqlite")
    assert (copy.counts(run)["queued"], copy.pending(), schema(copy.path)[0]) == (3, 1, module.VERSION)
    assert work.counts(run)["done"] == 1
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        work.copy_to(tmp_path / "copy.sqlite")


# Caches and locks


def test_the_cache_remembers_the_first_text(work):
    assert work.recall("k") is None
    for text in ("né\0\n", "other"):
        work.remember("k", text)
    assert work.recall("k") == "né\0\n"
    work.remember("empty", "")
    assert work.recall("empty") == ""


def test_a_key_is_claimed_once_by_whichever_process_comes_first(work):
    assert [work.claim_once("score-side:h"), work.claim_once("score-side:h")] == [True, False]
    assert [Work(work.path).claim_once("score-side:h"), work.claim_once("score-side:g")] == [False, True]


def test_a_lock_has_one_holder_until_it_is_given_back_or_runs_out(work, clock):
    one, two = worker_id(), worker_id()
    assert work.lock("drain", one)
    assert work.lock("drain", one)
    assert not work.lock("drain", two)
    assert work.lock("other", two)
    work.unlock("drain", two)
    assert not work.lock("drain", two)
    work.unlock("drain", one)
    assert work.lock("drain", two)
    clock.now += module.LOCK_SECONDS + 1
    assert work.lock("drain", one)


def test_the_lock_of_an_ended_process_is_free(tmp_path):
    work = Work(tmp_path / "work.sqlite")
    take = (
        "import sys, os; from pathlib import Path; from lamplighter.store.work import Work, worker_id;"
        "print(Work(Path(sys.argv[1])).lock('drain', worker_id()), flush=True); os._exit(9)"
    )
    process = child(take, work.path)
    assert process.communicate(timeout=30)[0] == "True\n"
    assert work.lock("drain", worker_id())


# The file


def version_1(path):
    """A file as the first version made it, with a run, a unit and a record in it."""
    both, later = ddl_after(module._DDL, 0), ddl_after(module._DDL, 1)
    con = sqlite3.connect(path)
    con.execute("PRAGMA journal_mode = WAL")
    con.executescript(f"{both.removesuffix(later)} PRAGMA user_version = 1;")
    con.execute("INSERT INTO runs VALUES ('r', 'key', 'running', '{}', '[\"u\"]')")
    con.execute("INSERT INTO jobs (run, unit, position, priority) VALUES ('r', 'u', 0, 0)")
    con.execute("INSERT INTO outbox (id, kind, body) VALUES (?, ?, ?)", (A_FAILURE.id, "failures", A_FAILURE.to_json()))
    con.commit()
    con.close()


A_FAILURE = failed("m/5-mlp/1")


def schema(path):
    """(version, tables) of a file."""
    con = sqlite3.connect(path)
    tables = {name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    found = con.execute("PRAGMA user_version").fetchone()[0], tables - {"sqlite_sequence"}
    con.close()
    return found


def test_what_a_version_had_is_never_changed():
    first = ddl_after(module._DDL, 0).removesuffix(ddl_after(module._DDL, 1))
    assert sha256(first.strip().encode()).hexdigest()[:16] == "fcc41109af364d1b"


def test_a_file_of_version_1_is_brought_up_to_date_and_keeps_what_is_in_it(tmp_path):
    path = tmp_path / "work.sqlite"
    version_1(path)
    version, tables = schema(path)
    assert version == 1 and "llm_calls" not in tables
    work = Work(path)
    work.charge(call())
    assert work.spent("r").calls == 1
    assert [record for _, record in work.outbox(1)] == [A_FAILURE]
    assert work.claim("r", worker_id()).unit == "u"
    Work(tmp_path / "new.sqlite")
    later = {"llm_calls", "workers", "review_items", "review_slots", "review_looks", "boots"}
    assert schema(path) == schema(tmp_path / "new.sqlite") == (module.VERSION, tables | later)


def test_a_file_of_version_3_is_brought_up_to_date_and_keeps_everything(tmp_path):
    path = tmp_path / "work.sqlite"
    both, later = ddl_after(module._DDL, 0), ddl_after(module._DDL, 3)
    con = sqlite3.connect(path)
    con.execute("PRAGMA journal_mode = WAL")
    con.executescript(f"{both.removesuffix(later)} PRAGMA user_version = 3;")
    con.execute("INSERT INTO runs VALUES ('r', 'key', 'done', '{\"model\": \"m\"}', '[\"u\", \"v\"]')")
    for row in (("r", "u", 0, 1.5, "done", 2, 7), ("r", "v", 1, 0, "failed", 3, 3)):
        sql = "INSERT INTO jobs (run, unit, position, priority, status, attempt, token) VALUES (?, ?, ?, ?, ?, ?, ?)"
        con.execute(sql, row)
    con.execute("INSERT INTO cache VALUES ('k', 'text')")
    con.execute("INSERT INTO outbox (id, kind, body) VALUES (?, ?, ?)", (A_FAILURE.id, "failures", A_FAILURE.to_json()))
    con.commit()
    tables = [name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    before = {table: con.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    con.close()
    work = Work(path)
    with sqlite3.connect(path) as con:
        after = {table: con.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    con.close()
    assert {t: [row[: len(before[t][0])] for row in rows] for t, rows in after.items() if rows} == {
        t: rows for t, rows in before.items() if rows
    }
    assert not work.paused("r") and [(j.rung, j.digest) for j in work.jobs("r")] == [(None, None)] * 2
    assert work.requeue("r") == ["v"] and work.claim("r", worker_id()).attempt == 1


def test_many_processes_may_bring_a_file_up_to_date_at_once(tmp_path):
    path = tmp_path / "work.sqlite"
    version_1(path)
    script = "import sys; from pathlib import Path; from lamplighter.store.work import Work; Work(Path(sys.argv[1]))"
    made = [child(script, path) for _ in range(4)]
    assert [process.wait(60) for process in made] == [0] * 4
    for process in made:
        process.stdout.close()
    assert schema(path)[0] == module.VERSION


def test_whoever_waited_for_another_to_bring_a_file_up_to_date_leaves_it_so(tmp_path, monkeypatch):
    """While this process waits for its turn, a newer one may have gone further."""
    path = tmp_path / "work.sqlite"
    version_1(path)
    real = module.ddl_after

    class Late(sqlite3.Connection):
        def execute(self, sql, *arguments):
            if sql == "BEGIN IMMEDIATE" and schema(path)[0] == 1:
                other = sqlite3.connect(path)
                other.executescript(f"{real(module._DDL, 1)} PRAGMA user_version = 77;")
                other.close()
            return super().execute(sql, *arguments)

    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(module.sqlite3, "connect", lambda *a, **k: connect(*a, factory=Late, **k) if k else connect(*a))
        Work(path).close()
    assert schema(path)[0] == 77


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "work.sqlite"
    version_1(path)
    before = schema(path)
    monkeypatch.setattr(module, "ddl_after", lambda *_: "CREATE TABLE half (x INT);\nCREATE TABLE runs (x INT);\n")
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        Work(path)
    assert schema(path) == before


def test_a_newer_file_is_refused_with_both_versions(tmp_path):
    path = tmp_path / "work.sqlite"
    Work(path)
    with sqlite3.connect(path) as con:
        con.execute("PRAGMA user_version = 77")
    con.close()
    with pytest.raises(Refused, match=rf"newer version.* 77, .*knows {module.VERSION}\)"):
        Work(path)


def test_somebody_elses_database_is_left_alone(tmp_path):
    path = tmp_path / "work.sqlite"
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE theirs (x)")
    con.close()
    before = path.read_bytes()
    with pytest.raises(Refused, match="did not make"):
        Work(path)
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused_by_name_with_a_way_on(tmp_path):
    path = tmp_path / "work.sqlite"
    work = Work(path)
    work.post([found(str(i)) for i in range(200)])
    work.close()
    whole = path.read_bytes()
    for damaged in (os.urandom(5000), b"hello " * 1000, whole[: len(whole) // 2], whole[:4096]):
        path.write_bytes(damaged)
        with pytest.raises(Refused, match=r"work\.sqlite is damaged .*move it") as refusal:
            Work(path).outbox(1000)
        assert "\n" not in str(refusal.value)
    path.rename(tmp_path / "away")
    assert Work(path).pending() == 0, "the way on works"


def test_a_locked_file_is_busy_and_free_again_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    work = Work(tmp_path / "work.sqlite")
    hold = (
        "import sqlite3, sys; con = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "con.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, work.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    with pytest.raises(Busy, match="in use by another process"):
        work.post([found("u")])
    assert work.pending() == 0, "reading goes on beside a writer"
    process.communicate("", timeout=30)
    assert work.post([found("u")]) == 1


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be made"):
        Work(tmp_path / "file" / "work.sqlite")
    (tmp_path / "folder" / "work.sqlite").mkdir(parents=True)
    with pytest.raises(Refused, match="cannot be used"):
        Work(tmp_path / "folder" / "work.sqlite")


def test_an_interrupted_change_leaves_the_file_as_it_was(work, monkeypatch):
    run = queued(work, 1)
    job = work.claim(run, worker_id())

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "_post", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work.finish(job, [found("u")])
    assert work.counts(run)["running"] == 1
    work.finish(job, [found("u")])


# When the file cannot be used for a while


def full(work, pages=0):
    """The disk is full for this thread's connection, as far as SQLite can tell; 0 takes that away."""
    con = work._connection()
    now = con.execute("PRAGMA page_count").fetchone()[0]
    con.execute(f"PRAGMA max_page_count = {now if pages == 0 else pages}")


def test_a_full_disk_is_busy_and_nothing_of_the_transaction_stays(work):
    full(work)
    with pytest.raises(Busy, match="make room on its disk"):
        work.post([replace(found("m/5-mlp/0"), summary=os.urandom(50_000).hex())])
    assert work.pending() == 0
    full(work, 100_000)
    assert work.post([found("m/5-mlp/0")]) == 1


def test_a_patient_store_is_tried_again_until_it_can_be_used(work):
    asked = []

    def patience(busy):
        asked.append(str(busy))
        if len(asked) == 3:
            full(work, 100_000)
        return True

    work.patience = patience
    full(work)
    text = os.urandom(50_000).hex()
    work.remember("key", text)
    assert work.recall("key") == text
    assert len(asked) == 3 and all("make room" in why for why in asked)


def test_patience_ends_where_it_says_so(work):
    work.patience = lambda busy: False
    full(work)
    with pytest.raises(Busy):
        work.remember("key", os.urandom(50_000).hex())


@given(st.text(max_size=2_000))
@settings(max_examples=50, deadline=None)
def test_packed_texts_come_back_as_they_were(text):
    assert module._unpacked(module._packed(text)) == text


def test_evidence_is_packed_and_older_texts_are_read_as_they_stand(work):
    text = replace(found("m/5-mlp/0"), rows=[{"token": f"t{i}", "ratio": i / 7} for i in range(200)]).to_json()
    work.remember("new", text)
    with work.change() as con:
        con.execute("INSERT INTO cache VALUES ('old', ?)", (text,))
    assert work.recall("new") == work.recall("old") == text
    with work.use() as con:
        kept = {key: len(body) for key, body in con.execute("SELECT key, text FROM cache")}
    assert kept["new"] < kept["old"] / 2


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system does not tell the time since it started")
def test_a_clock_that_is_set_ends_no_lease(tmp_path, monkeypatch):
    path = tmp_path / "work.sqlite"
    work = Work(path)
    run = queued(work, 1)
    assert work.claim(run, worker_id("one"), 600.0) is not None
    real = time.time
    for step in (3_600.0, -3_600.0):
        monkeypatch.setattr(time, "time", lambda by=step: real() + by)
        other = Work(path)             # as another process that begins now
        assert abs(other.now - work.now) < 60
        assert other.claim(run, worker_id("other"), 600.0) is None
    naive = Work(path, clock=lambda: real() + 3_600.0)
    assert naive.claim(run, worker_id("other"), 600.0) is not None
