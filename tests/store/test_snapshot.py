"""Free SQL: on a snapshot, in a child, with a sentence for whatever it may not do."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import duckdb
import numpy as np
import pytest

from lamplighter.store import findings as findings_module
from lamplighter.store import snapshot as module
from lamplighter.store.confined import Limits, answer, ask
from lamplighter.store.findings import Findings
from lamplighter.store.records import Busy, Refused
from lamplighter.store.snapshot import Snapshots

FILES = "The query reads or writes a file"
CHANGE = "The query would change the database"
SETTING = "The query changes a setting"
LONG = "The query took longer than 0.5 s and was stopped; narrow it."
LARGE = "The query took more than 100 MB of memory"


def only(kind):
    return f"Only one SELECT at a time is run here, and this query is {kind}; write one SELECT."


# What is asked, and what it is answered: a beginning of the refusal, or the rows.
HOSTILE = [
    # files and network
    ("SELECT * FROM read_csv('{secret}')", FILES),
    ("SELECT * FROM read_text('{secret}')", FILES),
    ("SELECT * FROM read_blob('{secret}')", FILES),
    ("SELECT * FROM read_json('{secret}')", FILES),
    ("SELECT * FROM read_parquet('{secret}')", FILES),
    ("SELECT * FROM parquet_metadata('{secret}')", FILES),
    ("SELECT * FROM sniff_csv('{secret}')", FILES),
    ("SELECT * FROM glob('{folder}/*')", FILES),
    ("SELECT * FROM '{secret}'", FILES),
    ("SELECT * FROM 'https://127.0.0.1:9/x.csv'", FILES),
    ("FROM read_duckdb('{other}', table_name = 'verdicts')", FILES),
    ("FROM '{other}'", FILES),
    ("SELECT * FROM duckdb_secrets()", FILES),
    ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/x.csv'", FILES),
    ("WITH t AS (SELECT 1) SELECT * FROM query('FROM read_text(''{secret}'')')", FILES),
    ("COPY (SELECT 1) TO '{folder}/x.csv'", only("COPY")),
    ("COPY verdicts FROM '{secret}'", only("COPY")),
    ("EXPORT DATABASE '{folder}/x'", only("EXPORT")),
    ("INSTALL httpfs", only("LOAD")),
    ("LOAD httpfs", only("LOAD")),
    ("SELECT * FROM sqlite_scan('{secret}', 't')", "The query needs an extension of DuckDB (sqlite_scanner)"),
    # other databases, and what is around
    ("ATTACH '{other}' AS o", only("ATTACH")),
    ("ATTACH ':memory:' AS m", only("ATTACH")),
    ("DETACH findings", only("DETACH")),
    ("USE memory", only("SET")),
    ("SELECT * FROM rows", "The query was refused: Catalog Error: Table with name rows does not exist"),
    ("SELECT getenv('HOME')", "The query was refused: Catalog Error"),
    ("FROM python_map_function()", "The query was refused: Binder Error"),
    # settings
    ("SET memory_limit = '64GB'", only("SET")),
    ("SET lock_configuration = false", only("SET")),
    ("RESET memory_limit", only("SET")),
    ("PRAGMA memory_limit = '64GB'", only("SET")),
    ("PRAGMA enable_profiling", only("PRAGMA")),
    ("SET VARIABLE x = 1", only("SET")),
    ("CALL enable_logging()", only("CALL")),
    ("SELECT set_config('memory_limit', '64GB', false)", "The query was refused: Catalog Error"),
    # changes
    ("CREATE TABLE x AS SELECT 1", only("CREATE")),
    ("CREATE TEMP TABLE x AS SELECT 1", only("CREATE")),
    ("CREATE MACRO f(x) AS x", only("CREATE")),
    ("CREATE SECRET s (TYPE s3)", only("CREATE")),
    ("INSERT INTO verdicts SELECT * FROM verdicts", only("INSERT")),
    ("UPDATE verdicts SET verdict = 'accepted'", only("UPDATE")),
    ("DELETE FROM verdicts", only("DELETE")),
    ("TRUNCATE verdicts", only("DELETE")),
    ("DROP TABLE verdicts", only("DROP")),
    ("ALTER TABLE verdicts ADD COLUMN x INT", only("ALTER")),
    ("EXPLAIN ANALYZE INSERT INTO verdicts SELECT * FROM verdicts", CHANGE),
    ("EXPLAIN CREATE TABLE x AS SELECT 1", CHANGE),
    ("VACUUM", only("VACUUM")),
    ("BEGIN", only("TRANSACTION")),
    ("PREPARE p AS SELECT 1", only("PREPARE")),
    ("EXECUTE p", only("EXECUTE")),
    # several, none, or no text
    ("SELECT 1; DROP TABLE verdicts", only("SELECT and DROP")),
    ("SELECT 1; SELECT 2", only("SELECT and SELECT")),
    ("", only("empty")),
    ("-- nothing", only("empty")),
    ("SELECT (", "The query was refused: Parser Error: syntax error"),
    ("SELECT '\ud83d'", "The query holds a character that is no text"),
    ("SELECT '\0'", "The query holds a character that is no text"),
    # too much
    ("SELECT count(*) FROM range(100000000000) a, range(1000) b", LONG),
    ("WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT max(x) FROM t", LONG),
    ("SELECT list(x) FROM range(100000000) t(x)", LARGE),
    ("SELECT repeat('x', 100000) FROM range(100)", "10 rows take more than 1 MB; select fewer columns or rows."),
    ("SELECT TIMESTAMPTZ '2026-01-01 00:00:00+00'", "The query was refused: a time with a zone cannot be shown"),
    # and what may be asked
    ("SELECT 1 AS a, 2 AS a", [{"a": 1, "a_1": 2}]),
    ("FROM (VALUES (1)) t(a)", [{"a": 1}]),
    ("SELECT * FROM query('SELECT 1 AS a')", [{"a": 1}]),
    ("SELECT verdict, explanation FROM explanations", [{"verdict": "accepted", "explanation": "fires on it"}]),
    ("SELECT current_setting('TimeZone') AS zone", [{"zone": "UTC"}]),
    ("WITH t AS (SELECT 1 AS a) SELECT * FROM t", [{"a": 1}]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, explanation):
    """A snapshot, and beside it what nobody may read."""
    folder = tmp_path_factory.mktemp("place")
    findings = Findings(folder / "home" / "findings.duckdb")
    findings.append(explanation("m/0-mlp/1", "fires on it"))
    (folder / "secret.csv").write_text("secret")
    shutil.copy(findings.path, folder / "other.duckdb")
    return folder, Snapshots(findings, folder / "snapshots").current().path


@pytest.mark.parametrize(("query", "told"), HOSTILE, ids=[ascii(query)[1:60] for query, _ in HOSTILE])
def test_a_hostile_statement_gets_its_sentence(place, query, told):
    folder, path = place
    rows = {"a": np.arange(2)}       # what a name in a query would stand for, if Python's variables were looked at
    limits = Limits(seconds=0.5 if told == LONG else 30, memory=100, rows=1000, answer=1)
    before, files = path.read_bytes(), sorted(folder.rglob("*"))
    asked = query
    for name, file in (("secret", "secret.csv"), ("other", "other.duckdb"), ("folder", "")):
        asked = asked.replace(f"{{{name}}}", str(folder / file))
    try:
        assert answer(path, asked, limits).rows == told and rows
    except Refused as refused:
        assert str(refused).startswith(str(told)), refused
        assert str(refused).count("\n") == 0 and str(refused).endswith((".", "those that there are."))
        assert "secret\n" not in str(refused)
    assert path.read_bytes() == before and sorted(folder.rglob("*")) == files


def test_every_refusal_of_the_table_is_one(place):
    """Negative control: without the limits, the same statements do what they say."""
    folder, path = place
    with duckdb.connect(str(path), read_only=True) as con:
        rows = {"a": np.arange(2)}
        assert con.execute("SELECT sum(a) FROM rows").fetchall() == [(1,)] and len(rows) == 1
        assert con.execute(f"SELECT content FROM read_text('{folder / 'secret.csv'}')").fetchall() == [("secret",)]
        con.execute("SET memory_limit = '2GB'")
        con.execute("CREATE TEMP TABLE x AS SELECT 1")
        assert con.execute(f"SELECT count(*) FROM glob('{folder}/*')").fetchall() == [(2,)]


# In a child


def test_a_child_answers_or_says_why_not(place):
    folder, path = place
    assert ask(path, "SELECT unit, sign FROM explanations").rows == [{"unit": "m/0-mlp/1", "sign": 1}]
    with pytest.raises(Refused, match=FILES):
        ask(path, f"SELECT * FROM read_text('{folder / 'secret.csv'}')")
    with pytest.raises(Refused, match="no text"):
        ask(path, "SELECT '\ud83d'")
    with pytest.raises(FileNotFoundError):
        ask(folder / "nowhere.duckdb", "SELECT 1")


def test_a_longer_answer_is_cut_and_says_so(place):
    _, path = place
    told = ask(path, "SELECT * FROM range(1001)", Limits(rows=1000))
    assert len(told.rows) == 1000 and told.cut
    assert not ask(path, "SELECT * FROM range(1000)", Limits(rows=1000)).cut


def test_what_duckdb_itself_does_not_bound_ends_with_the_child(place):
    """One call of a function that neither looks whether it is interrupted nor counts its memory."""
    _, path = place
    began = time.monotonic()
    with pytest.raises(Refused, match=r"took longer than 0.5 s|took more than 1,000 MB of memory"):
        ask(path, "SELECT length(repeat('x', 4000000000)) + length(repeat('y', 4000000000))", Limits(seconds=0.5))
    assert time.monotonic() - began < 30


def test_a_child_can_write_no_file_and_knows_no_secret(place, monkeypatch, tmp_path):
    _, path = place
    monkeypatch.setenv("LAMPLIGHTER_LLM_KEY", "sk-secret")
    seen = {}
    monkeypatch.setattr(subprocess, "run", lambda command, env, **_: seen.update(env) or pytest.fail("run"))
    with pytest.raises(pytest.fail.Exception):
        ask(path, "SELECT 1")
    assert "LAMPLIGHTER_LLM_KEY" not in seen and "PYTHONPATH" in seen
    monkeypatch.undo()
    probe = (
        "from lamplighter.store import confined as c; c._hold_to(c.Limits())\n"
        f"open({str(tmp_path / 'x')!r}, 'w', buffering=1).write('x' * 10 + chr(10))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode and "File too large" in done.stderr


def test_a_query_that_ends_its_process_is_refused(place, monkeypatch):
    _, path = place
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Refused, match=r"or ended its process \(1\)"):
        ask(path, "SELECT 1")


# Snapshots


@pytest.fixture
def snapshots(findings, explanation, tmp_path):
    findings.append(explanation("m/0-mlp/1", "fires on it"))
    later(findings, -100)      # so that no snapshot of these is fresh enough for what is written next
    return Snapshots(findings, tmp_path / "home" / "snapshots")


def later(findings, seconds=10.0):
    """The findings as if they had been written so much later."""
    then = findings.path.stat().st_mtime + seconds
    os.utime(findings.path, (then, then))


def units(snapshots):
    return [row["unit"] for row in snapshots.sql("SELECT unit FROM explanations ORDER BY unit").answer.rows]


def test_a_snapshot_has_every_table_and_view_with_the_same_rows(snapshots, findings):
    names = [row["name"] for row in findings.sql("SHOW TABLES")]
    path = snapshots.current().path
    assert [row["name"] for row in answer(path, "SHOW TABLES", Limits()).rows] == names
    for name in names:
        for query in (f"DESCRIBE {name}", f"FROM {name} ORDER BY ALL"):
            assert answer(path, query, Limits()).rows == findings.sql(query), name
    assert answer(path, "SELECT count(*) AS n FROM duckdb_views() WHERE NOT internal", Limits()).rows == [{"n": 0}]


def test_a_snapshot_is_made_once_for_what_it_holds(snapshots, findings, explanation):
    first = snapshots.current()
    assert snapshots.current() == first and not first.behind
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    later(findings)
    second = snapshots.current()
    assert second.path != first.path and second.as_of > first.as_of and not second.behind
    assert [path.name for path in snapshots.folder.iterdir()] == [second.path.name], "no old one, no draft"
    assert units(snapshots) == ["m/0-mlp/1", "m/0-mlp/2"]


def test_large_findings_are_not_copied_at_each_write_and_it_is_said(snapshots, findings, explanation, monkeypatch):
    first = snapshots.current()
    monkeypatch.setattr(module, "PACE", 10)       # bytes a second
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    told = snapshots.sql("SELECT unit FROM explanations")
    assert told.snapshot.behind and told.snapshot.as_of == first.as_of and len(told.answer.rows) == 1
    monkeypatch.undo()
    later(findings, 100)
    assert not snapshots.current().behind


def test_findings_of_an_earlier_day_put_back_are_copied_again(snapshots, findings, explanation, tmp_path):
    shutil.copy2(findings.path, tmp_path / "backup")
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    later(findings)
    assert len(units(snapshots)) == 2
    shutil.copy2(tmp_path / "backup", findings.path)
    assert units(snapshots) == ["m/0-mlp/1"] and not snapshots.current().behind


HOLD = """
import duckdb, sys
con = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
"""


def test_while_the_findings_are_held_an_older_snapshot_is_good(snapshots, findings, explanation, monkeypatch):
    first = snapshots.current()
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    later(findings)
    monkeypatch.setattr(findings_module, "WAIT_SECONDS", 0.1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(findings.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    holder.stdout.readline()
    try:
        held = snapshots.current()
        assert held.behind and held.path == first.path
        first.path.unlink()
        with pytest.raises(Busy, match=f"in use by process {holder.pid}"):
            snapshots.current()
    finally:
        holder.communicate("end\n")


READ = """
import duckdb, sys
con = duckdb.connect(sys.argv[1], read_only=True)
print("open", flush=True)
sys.stdin.readline()
print(con.execute("SELECT count(*) FROM explanations").fetchall()[0][0], flush=True)
"""


def test_a_reader_of_an_old_snapshot_reads_on_when_it_is_removed(snapshots, findings, explanation):
    first = snapshots.current()
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, str(first.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "open\n"
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    later(findings)
    assert len(units(snapshots)) == 2 and not first.path.exists()
    assert reader.communicate("go on\n")[0] == "1\n"


def test_one_that_was_removed_on_the_way_to_it_is_replaced(snapshots, monkeypatch):
    real = module.ask
    missed = []

    def gone_once(path, *rest):
        if not missed:
            missed.append(path)
            raise FileNotFoundError(path)
        return real(path, *rest)

    monkeypatch.setattr(module, "ask", gone_once)
    assert snapshots.sql("SELECT 1 AS a").answer.rows == [{"a": 1}] and missed

    def always_gone(path, *_):
        raise FileNotFoundError(path)

    monkeypatch.setattr(module, "ask", always_gone)
    with pytest.raises(Busy, match="are removed as they are made"):
        snapshots.sql("SELECT 1")


def test_several_makers_at_a_time_make_the_same_one(snapshots):
    errors, made = [], []

    def make():
        try:
            made.append(snapshots.current())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(set(made)) == 1
    assert [path.name for path in snapshots.folder.iterdir()] == [made[0].path.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from lamplighter.store import snapshot
from lamplighter.store.findings import Findings
snapshot.derive = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
snapshot.Snapshots(Findings(Path(sys.argv[1])), Path(sys.argv[2])).current()
"""


def test_a_maker_that_is_killed_leaves_no_half_snapshot_and_its_draft_goes_in_time(snapshots, findings, monkeypatch):
    subprocess.run([sys.executable, "-c", KILLED, str(findings.path), str(snapshots.folder)], timeout=60)
    (draft,) = snapshots.folder.iterdir()
    assert draft.name.startswith(".")
    assert units(snapshots) == ["m/0-mlp/1"]
    assert draft.exists(), "it could be at work"
    monkeypatch.setattr(module, "LEFT_SECONDS", -1)
    later(findings)
    snapshots.current()
    assert not draft.exists()


def test_no_room_is_said_unless_an_older_one_is_there(snapshots, findings, explanation, monkeypatch):
    monkeypatch.setattr(module, "SPARE", 10**18)
    with pytest.raises(Refused, match=r"a snapshot takes up to \d+ MB, and of the .* are kept free; make room"):
        snapshots.current()
    monkeypatch.undo()
    first = snapshots.current()
    findings.append(explanation("m/0-mlp/2", "fires on that"))
    later(findings)
    monkeypatch.setattr(module, "SPARE", 10**18)
    assert snapshots.current().behind and snapshots.current().path == first.path


def test_a_folder_that_cannot_be_made_is_said(findings, explanation, tmp_path):
    findings.append(explanation("m/0-mlp/1", "fires on it"))
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="no snapshot can be made in"):
        Snapshots(findings, tmp_path / "file" / "snapshots").current()


def test_nothing_recorded_and_damaged_findings_are_said_as_ever(findings, tmp_path):
    snapshots = Snapshots(findings, tmp_path / "snapshots")
    with pytest.raises(Refused, match="Nothing is recorded"):
        snapshots.sql("SELECT 1")
    findings.path.parent.mkdir()
    findings.path.write_bytes(b"hello " * 999)
    with pytest.raises(Refused, match=r"findings\.duckdb is damaged"):
        snapshots.sql("SELECT 1")
    assert not (tmp_path / "snapshots").exists() or list((tmp_path / "snapshots").iterdir()) == []


def test_what_a_killed_writer_left_beside_the_findings_is_in_the_snapshot(findings, explanation, tmp_path):
    findings.append(explanation("m/0-mlp/1", "fires on it"))
    more = explanation("m/0-mlp/2", "fires on that")
    lines = json.dumps([(record.TABLE, {record.id: record.to_json()}) for record in more])
    script = (
        "import json, os, signal, sys, duckdb\n"
        "from lamplighter.store import findings as f\n"
        "con = duckdb.connect(sys.argv[1])\n"
        "for table, lines in json.loads(sys.argv[2]):\n"
        "    f._insert(con, table, lines)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(findings.path), lines], timeout=60)
    assert findings.path.with_name("findings.duckdb.wal").exists()
    assert units(Snapshots(findings, tmp_path / "snapshots")) == ["m/0-mlp/1", "m/0-mlp/2"]
