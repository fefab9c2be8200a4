"""What the pages read: the newest snapshot, whoever made it, replaced beside the readers."""

import logging
import shutil
import threading
import time

import pytest

from lamplighter.store import mirror as module
from lamplighter.store import snapshot as snapshot_module
from lamplighter.store.background import repeated
from lamplighter.store.mirror import Mirror
from lamplighter.store.records import Busy, Refused
from lamplighter.store.snapshot import Snapshots

UNITS = "SELECT unit FROM pages.units ORDER BY place"


@pytest.fixture
def snapshots(findings, explanation, tmp_path):
    findings.append(explanation("m/0-mlp/1", "fires on it"))
    return Snapshots(findings, tmp_path / "home" / "snapshots")


def units(mirror):
    return [row["unit"] for row in mirror.copy.ask(UNITS)]


def wait(what):
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_recorded_is_read_after_the_next_look(snapshots, findings, explanation):
    mirror = Mirror(snapshots)
    assert units(mirror) == ["m/0-mlp/1"]
    first = mirror.copy
    assert not mirror.refresh() and mirror.copy is first
    findings.append(explanation("m/0-mlp/0", "fires on that"))
    assert units(mirror) == ["m/0-mlp/1"]
    assert mirror.refresh(now=True)
    assert units(mirror) == ["m/0-mlp/0", "m/0-mlp/1"] and mirror.copy.as_of > first.as_of
    assert first.ask(UNITS) == [{"unit": "m/0-mlp/1"}], "who reads the old one reads on"


def test_a_snapshot_of_another_process_is_taken_as_it_is(snapshots, findings, monkeypatch):
    made = Snapshots(findings, snapshots.folder).current()
    monkeypatch.setattr(Snapshots, "_make", lambda *_: pytest.fail("it was made again"))
    mirror = Mirror(snapshots)
    assert mirror.copy.snapshot == made and mirror.sql("SELECT 1 AS a").snapshot == made


def test_a_thread_keeps_it_fresh(snapshots, findings, explanation, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    seen = []
    mirror = Mirror(snapshots, ready=lambda copy: seen.append(copy.once("n", lambda c: len(c.ask(UNITS)))))
    with mirror.kept_fresh():
        wait(lambda: seen == [1])
        findings.append(explanation("m/0-mlp/2", "fires on that"))
        wait(lambda: seen == [1, 2])
        assert mirror.copy.once("n", lambda _: pytest.fail("computed again")) == 2


def test_trouble_is_told_once_and_the_older_copy_is_read(snapshots, findings, explanation, monkeypatch, caplog):
    mirror = Mirror(snapshots)
    first = mirror.copy
    monkeypatch.setattr(snapshot_module, "SPARE", 10**18)
    monkeypatch.setattr(snapshot_module, "PACE", 10**18)
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    with caplog.at_level(logging.WARNING, "lamplighter"):
        mirror._try()
        mirror._try()
    assert mirror.copy is first and first.snapshot.behind
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.endswith("are kept free; make room.") and first.snapshot.why.endswith("are kept free; make room.")
    monkeypatch.undo()
    wait(lambda: mirror._try() or len(units(mirror)) == 2)       # it is new enough for a moment
    assert mirror.copy.snapshot.why is None


def test_without_a_snapshot_the_reason_is_the_readers(findings, explanation, tmp_path, monkeypatch):
    mirror = Mirror(Snapshots(findings, tmp_path / "snapshots"))
    with pytest.raises(Refused, match="Nothing is recorded"):
        _ = mirror.copy
    findings.append(explanation("m/0-mlp/1", "fires on it"))

    def held(*_, **__):
        raise Busy("it is in use by process 7; wait.")

    monkeypatch.setattr(findings, "copy_to", held)
    with pytest.raises(Busy, match="process 7"):
        _ = mirror.copy
    monkeypatch.undo()
    assert units(mirror) == ["m/0-mlp/1"]


def test_nobody_waits_for_a_copy_that_takes_long(snapshots, findings, explanation, monkeypatch):
    mirror = Mirror(snapshots)
    assert len(units(mirror)) == 1
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    monkeypatch.setattr(module, "QUICK_SECONDS", 0.0)
    assert not mirror.retry() and len(units(mirror)) == 1
    monkeypatch.setattr(module, "QUICK_SECONDS", 60.0)
    assert mirror.retry() and len(units(mirror)) == 2


def test_one_that_was_removed_before_it_was_opened_is_replaced(snapshots, monkeypatch):
    real, missed = module.duckdb.connect, []

    def connect(path, **more):
        if not missed:
            missed.append(path)
            shutil.rmtree(snapshots.folder)
        return real(path, **more)

    made = snapshots.current()
    monkeypatch.setattr(module.duckdb, "connect", connect)
    assert units(Mirror(snapshots)) == ["m/0-mlp/1"] and missed == [str(made.path)]


def test_the_pages_tables_say_what_the_views_say(snapshots, findings, explanation):
    findings.append(explanation("org/m/3-resid:s/7", "fires on that", sign=-1, f1=None, verdict="unclear"))
    findings.append(explanation("m/0-mlp/2", None, verdict="abstained"))
    names = 'unit, sign, explanation, rule, input_f1, verdict, planner, run, created_at'
    rows = Mirror(snapshots).copy.ask(f"SELECT {names} FROM pages.units ORDER BY unit, sign")
    assert rows == findings.sql(f"SELECT {names} FROM explanations ORDER BY unit, sign")
    placed = Mirror(snapshots).copy.ask('SELECT model, site, "index", layer, kind FROM pages.units ORDER BY place')
    assert [tuple(row.values()) for row in placed] == [
        ("m", "0-mlp", 1, 0, "mlp"), ("m", "0-mlp", 2, 0, "mlp"), ("org/m", "3-resid:s", 7, 3, "feature"),
    ]  # fmt: skip


def test_what_is_repeated_rests_and_ends(monkeypatch):
    done = []
    with repeated(lambda: done.append(time.sleep(0.05)), 0.0, "often"):
        time.sleep(0.3)
    n = len(done)
    assert 1 <= n <= 2, "it rests nine times as long as it worked"
    time.sleep(0.1)
    assert len(done) == n and not [thread for thread in threading.enumerate() if thread.name == "often"]
