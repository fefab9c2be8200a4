"""Backups that can be gone back to, and checks that see what is wrong with a home or a backup."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lamplighter.agent import backup as module
from lamplighter.agent.backup import backup
from lamplighter.agent.config import Home
from lamplighter.agent.verify import verify
from lamplighter.store import findings as findings_module
from lamplighter.store.findings import Findings, drain, undrained
from lamplighter.store.records import Busy, Evidence, Failure, Investigation, LLMCall, Refused
from lamplighter.store.work import Work, worker_id


def wrong(folder: Path) -> dict[str, str]:
    """The checks that fail, with what is said of them."""
    found = verify(folder)
    assert found["ok"] == (not any(row["wrong"] for row in found["checks"]))
    return {row["check"]: row["told"] for row in found["checks"] if row["wrong"]}


def in_findings(home: Path, *statements: str) -> None:
    with duckdb.connect(str(home / "findings.duckdb")) as con:
        for statement in statements:
            con.execute(statement)


def in_work(home: Path, *statements: str) -> None:
    con = sqlite3.connect(home / "work.sqlite", isolation_level=None)
    for statement in statements:
        con.execute(statement)
    con.close()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and "-" not in path.suffix}


# Backups


def test_a_backup_is_whole_and_can_be_gone_back_to(copied: Any, tmp_path: Path) -> None:
    before = copied.findings.sql("SELECT * FROM explanations ORDER BY unit, sign")
    made = backup(copied, tmp_path / "kept" / "one")
    folder = Path(made["folder"])
    assert {path.name for path in folder.iterdir()} == {"work.sqlite", "findings.duckdb", "manifest.json"}
    assert json.loads((folder / "manifest.json").read_text()) == {k: v for k, v in made.items() if k != "folder"}
    assert made["rows"]["findings.duckdb"]["investigations"] == made["rows"]["work.sqlite"]["jobs"] == 5
    assert made["versions"]["findings.duckdb"] == findings_module.VERSION
    assert "sweeps" in made["left_out"]
    kept = bytes_of(folder)
    assert wrong(folder) == {} and verify(folder)["of"] == "backup"
    assert bytes_of(folder) == kept and {p.name for p in folder.iterdir()} == set(kept), "looking changes nothing"
    again = Home(tmp_path / "again")
    shutil.copytree(folder, again.path)
    assert again.findings.sql("SELECT * FROM explanations ORDER BY unit, sign") == before
    assert again.work.counts(again.work.runs()[0].id)["done"] == 5


def test_nothing_is_overwritten_and_nothing_half_made_is_left(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path(backup(copied)["folder"])
    assert made.parent == copied.path / "backups"
    with pytest.raises(Refused, match="is there already"):
        backup(copied, made)
    with pytest.raises(Refused, match="nothing to back up"):
        backup(Home(tmp_path / "none"))
    assert not (tmp_path / "none").exists()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Findings, "copy_to", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backup(copied, tmp_path / "kept" / "two")
    assert list((tmp_path / "kept").iterdir()) == []
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(module.SPARE + 1000))
    with pytest.raises(Refused, match="the backup takes up to .* MB"):
        backup(copied, tmp_path / "kept" / "two")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_home_without_findings_is_backed_up_as_it_is(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    run = home.work.open_run("k", {}, ["m/5-mlp/1"]).id
    home.work.enqueue(run, ["m/5-mlp/1"])
    made = backup(home)
    assert list(made["files"]) == ["work.sqlite"] and wrong(Path(made["folder"])) == {} == wrong(home.path)


def test_a_journal_that_a_killed_writer_left_is_part_of_the_backup(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.work.pending()
    home.findings.append([Failure(kind="a", message="", step="", attempt=1)])
    script = (
        "import duckdb, os, sys; con = duckdb.connect(sys.argv[1]);"
        "con.execute(\"INSERT INTO failures SELECT * REPLACE ('other' AS id) FROM failures\"); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(home.findings.path)], check=False, timeout=60)
    assert home.findings.path.with_name("findings.duckdb.wal").exists()
    made = backup(home)
    assert "findings.duckdb.wal" in made["files"] and made["rows"]["findings.duckdb"]["failures"] == 2
    assert wrong(Path(made["folder"])) == {}


TOIL = """
import sys, time
from pathlib import Path
from lamplighter.store.findings import Findings, drain
from lamplighter.store.records import Evidence, Investigation, Run, Unit, Verdict
from lamplighter.store.work import Work, worker_id
home = Path(sys.argv[1])
work, findings = Work(home / "work.sqlite"), Findings(home / "findings.duckdb")
units = [f"m/5-mlp/{i}" for i in range(400)]
run = work.open_run("k", {}, units).id
work.enqueue(run, units)
work.post([Run(key="k", asked={}, status="running", units=units, run=run)])
while job := work.claim(run, worker_id()):
    made = Investigation(planner="p", status="abstained", steps=1, cost={}, seconds=1.0, run=run, unit=job.unit, sign=1)
    stamps = dict(run=run, investigation=made.id, unit=job.unit, sign=1)
    work.finish(job, [
        Unit(model="m", site="5-mlp", index=1, peak=1.0, threshold=0.5, statistics={}, **stamps), made,
        Evidence(tool="t", summary="s", **stamps), Verdict(hypothesis=None, verdict="abstained", reason="r", **stamps),
    ])
    print(job.unit, flush=True)
    try:
        drain(work, findings, limit=3)
    except Busy:
        pass
    time.sleep(0.1)
"""


def test_backups_and_checks_beside_a_process_at_work_are_of_one_moment(tmp_path: Path) -> None:
    """What is done in a backup's queue is in its findings or its outbox, and nothing else is."""
    home = Home(tmp_path / "home")
    process = subprocess.Popen([sys.executable, "-c", TOIL, home.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for _ in range(8):
            process.stdout.readline()
        for number in range(6):
            for _ in range(3):
                process.stdout.readline()
            made = Path(backup(home, tmp_path / f"b{number}")["folder"])
            assert wrong(made) == {} == wrong(home.path)
            kept = Home(made)
            recorded = {row["unit"] for row in kept.findings.sql("SELECT unit FROM investigations")}
            recorded |= {record.unit for _, record in kept.work.outbox(10**6) if isinstance(record, Investigation)}
            done = {job.unit for job in kept.work.jobs(kept.work.runs()[0].id) if job.status == "done"}
            assert recorded == done and done
    finally:
        process.kill()
        process.communicate()


def test_results_stay_where_they_are_while_a_backup_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAIT_SECONDS", "LOCK_SECONDS"):
        monkeypatch.setattr(findings_module, name, 1.0)
    work, findings = Work(tmp_path / "work.sqlite"), Findings(tmp_path / "findings.duckdb")
    work.post([Evidence(tool="t", summary="s")])
    with undrained(work) as hold:
        hold()
        assert drain(work, findings) == 0 and work.pending() == 1
        with pytest.raises(Busy, match="moves results"), undrained(work):
            raise AssertionError("two at a time")
        with pytest.raises(Busy):
            hold()
    assert drain(work, findings) == 1


# Checks

UNIT = "(SELECT id FROM investigations WHERE status = 'submitted' ORDER BY id LIMIT 1)"
SPOILT: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an investigation deleted": (
        lambda home: in_findings(home, f"DELETE FROM investigations WHERE id = {UNIT}"),
        "units that are done have one investigation", "has 0",
    ),
    "its parts are then without it": (
        lambda home: in_findings(home, f"DELETE FROM investigations WHERE id = {UNIT}"),
        "rows have their investigation", "exemplars",
    ),
    "an investigation twice": (
        lambda home: in_findings(
            home, f"INSERT INTO investigations SELECT * REPLACE ('new' AS id) FROM investigations WHERE id = {UNIT}"
        ),
        "units that are done have one investigation", "has 2",
    ),
    "an id twice": (
        lambda home: in_findings(home, "INSERT INTO evidence SELECT * FROM evidence LIMIT 1"),
        "no id is there twice", "2 rows of evidence have the id",
    ),
    "no id": (
        lambda home: in_findings(home, "INSERT INTO scores SELECT * REPLACE (NULL AS id) FROM scores LIMIT 1"),
        "no id is there twice", "1 rows of scores have the id None",
    ),
    "a step's evidence deleted": (
        lambda home: in_findings(home, "DELETE FROM evidence WHERE id = (SELECT max(id) FROM evidence)"),
        "investigations have the evidence of each step", "has not",
    ),
    "a score deleted": (
        lambda home: in_findings(home, f"DELETE FROM scores WHERE metric = 'f1' AND investigation = {UNIT}"),
        "what was submitted has its F1", "has not",
    ),
    "a hypothesis deleted": (
        lambda home: in_findings(
            home, f"DELETE FROM hypotheses WHERE kept AND side = 'input' AND investigation = {UNIT}"
        ),
        "scores and verdicts have their hypothesis", "names",
    ),
    "verdicts deleted": (
        lambda home: in_findings(home, f"DELETE FROM verdicts WHERE investigation = {UNIT}"),
        "investigations have their verdict", "has not",
    ),
    "a unit's statistics deleted": (
        lambda home: in_findings(home, f"DELETE FROM units WHERE investigation = {UNIT}"),
        "investigations have their unit", "has not",
    ),
    "the run's record deleted": (
        lambda home: in_findings(home, "DELETE FROM runs"), "runs have their record", "has none",
    ),
    "a unit failed that has no failure": (
        lambda home: in_work(home, "UPDATE jobs SET status = 'failed' WHERE position = 0"),
        "units that failed have a failure", "has none",
    ),
    "a job of no run": (
        lambda home: in_work(home, "PRAGMA foreign_keys = OFF", "UPDATE jobs SET run = 'x' WHERE position = 0"),
        "work.sqlite is sound", "names no row of runs",
    ),
    "a newer queue": (
        lambda home: in_work(home, "PRAGMA user_version = 99"), "work.sqlite is sound", "schema is 99",
    ),
    "a table gone": (
        lambda home: in_findings(home, "DROP TABLE turns"), "findings.duckdb can be read", "turns is missing",
    ),
    "no queue any more": (
        lambda home: (home / "work.sqlite").write_bytes(b"no database" * 1000) and None,
        "work.sqlite is sound", "cannot be read",
    ),
    "findings damaged": (
        lambda home: (home / "findings.duckdb").write_bytes(b"no database" * 1000), "findings.duckdb can be read", "",
    ),
    "a file of a sweep gone": (
        lambda home: next(home.glob("sweeps/*/0-mlp.safetensors")).unlink(),
        "sweeps that are here are whole", "0-mlp.safetensors is missing",
    ),
    "a file of a sweep cut short": (
        lambda home: os.truncate(next(home.glob("sweeps/*/0-mlp.atlas.safetensors")), 2000),
        "sweeps that are here are whole", "0-mlp.atlas.safetensors cannot be read",
    ),
    "the documents of a sweep gone": (
        lambda home: next(home.glob("sweeps/*/documents.parquet")).unlink(),
        "sweeps that are here are whole", "documents.parquet cannot be read",
    ),
    "another sweep's facts": (
        lambda home: (path := next(home.glob("sweeps/*/sweep.json"))).write_text(
            json.dumps(json.loads(path.read_text()) | {"digest": "d"})
        ) and None,
        "sweeps that are here are whole", "sweep.json is that of d",
    ),
}  # fmt: skip


def test_a_whole_home_passes_every_check(copied: Any) -> None:
    found = verify(copied.path)
    assert found["ok"] and found["of"] == "home" and wrong(copied.path) == {}
    looked_at = {row["check"]: row["looked_at"] for row in found["checks"]}
    assert looked_at["units that are done have one investigation"] == 5
    assert looked_at["sweeps that are here are whole"] == 1 and looked_at["what was submitted has its F1"] >= 1


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_is_found_and_named(copied: Any, case: str) -> None:
    spoil, check, told = SPOILT[case]
    copied.work.close()
    spoil(copied.path)
    found = wrong(copied.path)
    assert check in found and told in found[check], found


def test_a_sweep_or_a_queue_that_was_moved_away_is_no_fault(copied: Any) -> None:
    shutil.rmtree(copied.path / "sweeps")
    assert wrong(copied.path) == {}
    copied.work.close()
    (copied.path / "work.sqlite").unlink()
    assert wrong(copied.path) == {}


def test_what_waits_in_the_outbox_is_there(copied: Any, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    run = home.work.open_run("k", {}, ["m/5-mlp/1"]).id
    home.work.enqueue(run, ["m/5-mlp/1"])
    job = home.work.claim(run, worker_id())
    assert job is not None
    home.work.charge(LLMCall(purpose="p", model="m", endpoint="e", outcome="ok", request="d", seconds=1.0, run=run))
    home.work.fail(job, Failure(kind="a", message="", step="", attempt=1, run=run, unit=job.unit, sign=1), retry=False)
    assert list(wrong(home.path)) == ["runs have their record"]
    drain(home.work, home.findings)
    in_findings(home.path, "DELETE FROM llm_calls")
    assert "requests of the ledger are recorded" in wrong(home.path)


def test_a_backup_that_was_changed_is_found(copied: Any, tmp_path: Path) -> None:
    made = Path(backup(copied, tmp_path / "b")["folder"])
    for name in ("findings.duckdb", "work.sqlite"):
        spoilt = tmp_path / f"spoilt-{name}"
        shutil.copytree(made, spoilt)
        data = bytearray((spoilt / name).read_bytes())
        data[len(data) // 2] ^= 1
        (spoilt / name).write_bytes(data)
        assert f"{name} is not as it was written" in wrong(spoilt)["files are as the manifest says"]
    (made / "findings.duckdb").unlink()
    found = wrong(made)
    assert "findings.duckdb is missing" in found["files are as the manifest says"]
    assert "findings.duckdb can be read" in found
    (made / "manifest.json").write_text("{")
    assert "the manifest can be read" in wrong(made)
    with pytest.raises(Refused, match="neither a home nor a backup"):
        verify(tmp_path / "elsewhere")
