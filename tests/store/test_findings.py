import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import fields, replace
from hashlib import sha256

import duckdb
import pytest
from hypothesis import given, settings

from lamplighter.store import findings as module
from lamplighter.store.findings import Findings, drain
from lamplighter.store.records import (
    TABLES,
    Busy,
    Embedding,
    Evidence,
    Exemplar,
    Failure,
    Hypothesis,
    Investigation,
    LLMCall,
    Refused,
    Score,
    Unit,
    Verdict,
)
from lamplighter.store.work import Work, ddl_after, line_of, worker_id

COLUMNS = """unit sign explanation rule output_explanation input_f1 input_f1_low input_f1_high input_auprc
    input_pearson output_score output_low output_high floor_f1 verdict planner run investigation created_at"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    findings = Findings(tmp_path_factory.mktemp("shared") / "findings.duckdb")
    findings.append(facts(3))
    return findings


@pytest.fixture
def unmade(tmp_path):
    return Findings(tmp_path / "home's" / "findings.duckdb")     # a quote in a path is nothing special


@pytest.fixture
def findings(unmade, blank):
    unmade.path.parent.mkdir()
    unmade.path.write_bytes(blank)
    return unmade


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """A findings file with nothing in it, made once."""
    findings = Findings(tmp_path_factory.mktemp("blank") / "findings.duckdb")
    findings._make()
    return findings.path.read_bytes()


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "work.sqlite")


def facts(n, start=0):
    return [
        Exemplar(side="explain", band="top", document=f"d{i}", position=i, activation=i / 7, text="a b", token=" b")
        for i in range(start, start + n)
    ]


def child(script, *arguments):
    """A process of its own that runs `script`, told over stdin to end."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# Round trips


@pytest.mark.parametrize("kind", TABLES.values())
def test_what_is_read_is_what_was_appended(shared, kind, records):
    drawn = {}

    @settings(max_examples=15, deadline=None, database=None)
    @given(records(kind))
    def draw(record):
        drawn.setdefault(record.id, record)

    draw()      # one append and one read for all examples: opening the file is what takes time
    assert shared.append(drawn.values()) == len(drawn) >= 5
    found = {record.id: record for record in shared.read(kind) if record.id in drawn}
    assert found == drawn
    for id in drawn:
        assert repr(found[id]) == repr(drawn[id])       # 1 and 1.0 are equal, and yet not the same


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_the_fields_of_the_record_in_their_order(shared, table):
    columns = [row["column_name"] for row in shared.sql(f"DESCRIBE {table}")]
    assert columns == [field.name for field in fields(TABLES[table])]


def test_the_way_through_outbox_and_drain_changes_nothing(work, findings):
    awkward = Evidence(
        tool="lens",
        summary="“é\u2028\0'\"\\",
        rows=[{"": [1e-320, -0.0, 1e300, 2**64, {"ß": None}]}],
        checks={"identity": 1e-7, "ok": True},
        unit="org/model/5-mlp/1",
        sign=-1,
    )
    work.post([awkward])
    assert drain(work, findings) == 1
    assert repr(findings.read(Evidence)) == repr([awkward])


def test_vectors_are_32_bit_floats(findings):
    findings.append([Embedding(hypothesis="h", model="m", vector=[0.1, 0.5])])
    (back,) = findings.read(Embedding)
    assert back.vector == [0.10000000149011612, 0.5]


def test_appending_again_adds_nothing(findings):
    some = facts(5)
    assert findings.append(some[:3] + some[:2]) == 3
    assert findings.append(some) == 2
    assert findings.append([]) == 0
    assert findings.append(record for record in facts(1, 9)) == 1
    assert len(findings.read(Exemplar)) == 6


def test_an_append_is_all_or_nothing(findings, monkeypatch):
    findings.append(facts(1))
    monkeypatch.setattr(module, "_insert", lambda *a, real=module._insert: [real(*a), 1 / 0])
    with pytest.raises(ZeroDivisionError):
        findings.append(facts(3, 5))
    monkeypatch.undo()
    with pytest.raises(Refused, match="failures cannot be stored"):
        findings.append([*facts(3, 5), Failure(kind="k", message="\ud83d", step="s", attempt=1)])
    assert len(findings.read(Exemplar)) == 1


def test_read_filters_by_equality_and_null(findings):
    a, b = (Failure(kind="k", message="m", step="s", attempt=i, unit=unit) for i, unit in ((1, "u"), (2, None)))
    findings.append([b, a])
    assert findings.read(Failure, unit=None) == [b]
    assert findings.read(Failure, attempt=1, unit="u") == [a]
    assert findings.read(Failure, unit="' OR true --") == []
    with pytest.raises(Refused, match="no field 'colour'"):
        findings.read(Failure, colour="red")
    assert findings.read(Unit) == []


# Views


def outcome(unit, verdict, *, at, sign=1, kept=True, f1=0.5, floors=None, investigation=None, judge=None):
    """Everything that one decided investigation leaves behind; `at` in seconds orders them."""
    when = f"2026-01-01T00:00:{at:02d}.000000"
    base = {"investigation": investigation or f"i{at}-{unit}{sign}", "unit": unit, "sign": sign, "run": f"r{at}"}
    base["created_at"] = when
    rows = [Investigation(**base, planner=f"p{at}", status="x", steps=1, cost={}, seconds=1.0)]
    hypothesis = Hypothesis(
        **base, author="p", sentence=f"s{at}", rule={"at": at}, rule_text=f"rule {at}", kept=kept
    )
    rows.append(hypothesis)
    if f1 is not None:
        rows += [
            Score(**base, hypothesis=hypothesis.id, metric="f1", side=side, value=value, low=value - 0.1,
                  high=value + 0.1, floors=floors or {}, judge=judge)
            for side, value in (("score", f1), ("tune", f1 + 0.3))
        ]
        rows += [
            Score(**base, hypothesis=hypothesis.id, metric="auprc", side="score", value=0.25),
            Score(**base, hypothesis=hypothesis.id, metric="pearson", side="score", value=None, reason="constant"),
        ]
    if verdict:
        rows.append(Verdict(**base, hypothesis=hypothesis.id, verdict=verdict, reason="why"))
    return rows


def explained(findings):
    return {(row["unit"], row["sign"]): row for row in findings.sql("SELECT * FROM explanations")}


def test_the_view_has_exactly_the_columns_of_the_contract(findings):
    findings.append(facts(1))
    assert [row["column_name"] for row in findings.sql("DESCRIBE explanations")] == COLUMNS.split()


def test_an_explanation_with_its_headline_scores(findings):
    floors = {"always": 0.1, "shift": None, "near": 0.31}
    rows = outcome("m/5-mlp/1", "accepted", at=1, sign=-1, floors=floors)
    findings.append(rows)
    assert explained(findings)["m/5-mlp/1", -1] == {
        "unit": "m/5-mlp/1", "sign": -1, "explanation": "s1", "rule": "rule 1", "output_explanation": None,
        "input_f1": 0.5, "input_f1_low": 0.4, "input_f1_high": 0.6, "input_auprc": 0.25, "input_pearson": None,
        "output_score": None, "output_low": None, "output_high": None, "floor_f1": 0.31, "verdict": "accepted",
        "planner": "p1", "run": "r1", "investigation": "i1-m/5-mlp/1-1",
        "created_at": "2026-01-01T00:00:01.000000",
    }
    hypothesis = next(row for row in rows if isinstance(row, Hypothesis))
    pushes = replace(hypothesis, id="pushes", sentence="pushes up the word “car”", side="output")
    score = Score(hypothesis="pushes", metric="output_auc", side="score", value=0.9, low=0.8, high=1.0)
    findings.append([pushes, score])
    row = explained(findings)["m/5-mlp/1", -1]
    assert (row["output_score"], row["output_low"], row["output_high"]) == (0.9, 0.8, 1.0)
    assert (row["explanation"], row["output_explanation"]) == ("s1", "pushes up the word “car”")


def test_the_newest_decided_explanation_stands_and_signs_are_apart(findings):
    findings.append(
        outcome("u", "accepted", at=5)
        + outcome("u", "rejected", at=3)
        + outcome("u", "unclear", at=1, sign=-1)
        + outcome("u", "failed", at=8)
        + outcome("u", None, at=9)
        + outcome("u", "abstained", at=10, f1=None)
    )
    rows = explained(findings)
    assert {key: (row["explanation"], row["verdict"]) for key, row in rows.items()} == {
        ("u", 1): ("s5", "accepted"),
        ("u", -1): ("s1", "unclear"),
    }


def test_failed_units_do_not_appear_and_abstained_ones_without_an_explanation(findings):
    findings.append(outcome("f", "failed", at=1) + outcome("a", "abstained", at=2))
    findings.append([Failure(kind="tool", message="m", step="s", attempt=1, unit="f", sign=1)])
    rows = explained(findings)
    assert rows.keys() == {("a", 1)}
    assert (rows["a", 1]["explanation"], rows["a", 1]["rule"], rows["a", 1]["input_f1"]) == (None, None, None)
    assert (rows["a", 1]["verdict"], rows["a", 1]["planner"]) == ("abstained", "p2")


def test_the_newest_verdict_of_the_investigation_counts(findings):
    findings.append(outcome("u", "accepted", at=1, investigation="i"))
    later = Verdict(
        investigation="i", unit="u", sign=1, hypothesis=None, verdict="unclear", reason="q", q=0.2,
        created_at="2026-01-01T01:00:00.000000",
    )
    findings.append([later])
    row = explained(findings)["u", 1]
    assert (row["verdict"], row["created_at"]) == ("unclear", "2026-01-01T00:00:01.000000")


def test_a_score_by_rule_goes_before_a_judges(findings):
    rows = outcome("u", "accepted", at=1, f1=0.5)
    hypothesis = next(row.id for row in rows if isinstance(row, Hypothesis))
    judged = Score(hypothesis=hypothesis, metric="f1", side="score", value=0.99, judge="an-llm")
    findings.append([*rows, judged])
    assert explained(findings)["u", 1]["input_f1"] == 0.5


def test_the_view_against_brute_force(findings):
    """Random histories; the oracle walks the records in Python."""
    rng = random.Random(1)
    history, wanted = [], {}
    verdicts = ["accepted", "rejected", "unclear", "undefined", "abstained", "failed", None]
    for at in rng.sample(range(60), 60):
        unit, sign, verdict = rng.choice("abcde"), rng.choice([1, -1]), rng.choice(verdicts)
        kept, floors = rng.random() < 0.8, {name: rng.choice([None, rng.random()]) for name in "xyz"}
        history += outcome(unit, verdict, at=at, sign=sign, kept=kept, f1=rng.random(), floors=floors)
        if verdict in (None, "failed"):
            continue
        sentence = f"s{at}" if kept and verdict != "abstained" else None
        floor = max((v for v in floors.values() if v is not None), default=None) if sentence else None
        rank = (sentence is not None, at)
        if (unit, sign) not in wanted or rank > wanted[unit, sign][0]:
            wanted[unit, sign] = rank, (sentence, verdict, floor)
    rng.shuffle(history)
    findings.append(history)
    found = {key: (r["explanation"], r["verdict"], r["floor_f1"]) for key, r in explained(findings).items()}
    assert found == {key: row for key, (_, row) in wanted.items()}
    assert len(found) == 10


def test_a_card_counts_tool_calls_and_their_cost_even_for_a_failed_unit(findings):
    def called(unit, **cost):
        return Evidence(tool="t", summary="s", unit=unit, sign=1, cost=cost)

    def measured(unit, peak, second):
        return Unit(
            model="m", site="5-mlp", index=1, peak=peak, threshold=peak / 2, statistics={}, unit=unit, sign=1,
            created_at=f"2026-01-01T00:00:{second:02d}.000000",
        )

    findings.append(outcome("good", "accepted", at=1))
    findings.append([measured("good", 1.0, 1), measured("good", 2.0, 2), measured("bad", 3.0, 1)])
    findings.append([called("good", forward_rows=3, seconds=0.5), called("good", forward_rows=4), called("bad")])
    cards = {row["unit"]: row for row in findings.sql("SELECT * FROM unit_cards")}
    good, bad = cards["good"], cards["bad"]
    assert (good["explanation"], good["peak"], good["evidence"]) == ("s1", 2.0, 2)
    assert (good["forward_rows"], good["seconds"], good["backward"]) == (7.0, 0.5, None)
    assert (bad["explanation"], bad["verdict"], bad["peak"], bad["evidence"]) == (None, None, 3.0, 1)
    assert len(cards) == 2


def test_recalled_evidence_is_counted_and_costs_nothing(findings):
    """Its `cost` is the row's that it repeats, which has paid already."""
    cost = {"forward_rows": 3, "forward_tokens": 30, "backward": 0, "seconds": 0.5}
    made = [("u", {}), ("u", {"recalled": "x"}), ("u", {"recalled": "x"}), ("v", {"recalled": "y"})]
    rows = [Evidence(tool="t", summary="s", unit=u, sign=1, cost=cost, provenance=known) for u, known in made]
    findings.append([*outcome("u", "accepted", at=1), *outcome("v", "accepted", at=1), *rows])
    told = {row["unit"]: row for row in findings.sql("SELECT * FROM unit_cards")}
    assert [told["u"][name] for name in ("evidence", *cost)] == [3, 3.0, 30.0, 0.0, 0.5]
    assert [told["v"][name] for name in ("evidence", *cost)] == [1, 0.0, 0.0, 0.0, 0.0]


# Free SQL


def test_json_columns_are_unpacked_where_asked_for(findings):
    findings.append([Evidence(tool="{}", summary="[1]", rows=[{"a": None}], checks={"b": 1.5})])
    (row,) = findings.sql('SELECT tool, summary, "rows", checks, artifact FROM evidence', unpack=True)
    assert row == {"tool": "{}", "summary": "[1]", "rows": [{"a": None}], "checks": {"b": 1.5}, "artifact": None}
    (row,) = findings.sql('SELECT tool, summary, "rows", checks, artifact FROM evidence')
    assert row["rows"] == '[{"a":null}]' and row["checks"] == '{"b":1.5}'


def test_a_table_that_is_not_there_is_told_with_where_to_see_those_that_are(findings):
    with pytest.raises(Refused, match='nope does not exist; `lamplighter sql "SHOW TABLES"` names those'):
        findings.sql("SELECT * FROM nope")


def test_sql_answers_in_json_values(findings):
    findings.append([replace(facts(1)[0], created_at="2026-11-21T10:00:00.000000", provenance={"a": [1]})])
    (row,) = findings.sql(
        """SELECT created_at, provenance, activation, NULL AS nothing, 1.5 AS dec, 'nan'::DOUBLE AS nan,
                  [1, 2] AS l, {'a': DATE '2026-01-02'} AS s, map {1: 'x'} AS m, '\\xC3\\xA9'::BLOB AS b,
                  sum(1) OVER () AS big, INTERVAL 1 DAY AS i, TIME '10:00' AS t FROM exemplars"""
    )
    assert row == {
        "created_at": "2026-11-21T10:00:00.000000", "provenance": '{"a":[1]}', "activation": 0.0, "nothing": None,
        "dec": 1.5, "nan": None, "l": [1, 2], "s": {"a": "2026-01-02"}, "m": {"1": "x"}, "b": "c3a9", "big": 1,
        "i": "1 day, 0:00:00", "t": "10:00:00",
    }


def test_sql_takes_parameters_and_keeps_columns_of_one_name(findings):
    findings.append(facts(3))
    assert findings.sql("SELECT document FROM exemplars WHERE position = ?", [2]) == [{"document": "d2"}]
    assert findings.sql("SELECT $a AS x", {"a": "';--"}) == [{"x": "';--"}]
    assert findings.sql("SELECT 1 AS a, 2 AS a, 3 AS a_1") == [{"a": 1, "a_1": 2, "a_1_1": 3}]
    assert findings.sql("-- a comment\nSELECT 1 AS a;") == [{"a": 1}]
    for query in ("FROM exemplars", "VALUES (1), (2), (3)", "TABLE exemplars"):
        assert len(findings.sql(query)) == 3
    assert findings.sql("SHOW TABLES") and findings.sql("EXPLAIN SELECT 1") and findings.sql("SUMMARIZE exemplars")


secret = "a local variable that a query must not see"
HOSTILE = [
    "", "   ", "-- nothing", "SELEC 1", "SELECT * FROM nowhere", "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE units",
    "DELETE FROM exemplars", "UPDATE exemplars SET side = 'x'", "DROP TABLE exemplars", "TRUNCATE exemplars",
    "INSERT INTO exemplars (id) VALUES ('x')", "CREATE TABLE x (a INT)", "CREATE TEMP TABLE x (a INT)",
    "CREATE OR REPLACE VIEW explanations AS SELECT 1", "ALTER TABLE exemplars ADD COLUMN x INT",
    "WITH x AS (INSERT INTO exemplars (id) VALUES ('x') RETURNING id) SELECT * FROM x",
    "EXPLAIN ANALYZE DELETE FROM exemplars", "EXPLAIN ANALYZE INSERT INTO exemplars (id) VALUES ('x')",
    "MERGE INTO exemplars USING exemplars AS o ON o.id = exemplars.id WHEN MATCHED THEN DELETE",
    "ATTACH '{there}/other.duckdb' AS o", "DETACH findings", "USE memory", "SET memory_limit = '50GB'",
    "SET enable_external_access = true", "RESET lock_configuration", "PRAGMA enable_profiling", "BEGIN", "COMMIT",
    "CHECKPOINT", "VACUUM", "CALL enable_logging()", "LOAD httpfs", "INSTALL httpfs",
    "COPY exemplars TO '{there}/out.csv'", "COPY (SELECT 1) TO '/dev/stdout'", "EXPORT DATABASE '{there}/out'",
    "IMPORT DATABASE '{there}'", "PREPARE x AS SELECT 1", "EXECUTE x", "SELECT * FROM '{there}/theirs.csv'",
    "SELECT * FROM read_csv('{there}/theirs.csv')", "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')", "SELECT * FROM glob('/etc/*')", "SELECT getenv('HOME')",
    "SELECT * FROM read_json('http://127.0.0.1:9/x')", "SELECT * FROM sniff_csv('{there}/theirs.csv')",
    "SELECT * FROM read_duckdb('{there}/other.duckdb')", "SELECT * FROM duckdb_secrets()", "SELECT * FROM secret",
    "SELECT * FROM HOSTILE", "SELECT error('x')", "SELECT 1 WHERE ? = 1", "SELECT now()", "SELECT 'x'::INT",
]


@pytest.mark.parametrize("query", HOSTILE)
def test_everything_but_one_reading_select_is_refused_in_one_sentence(tmp_path, shared, query):
    (tmp_path / "theirs.csv").write_text("secret\n1\n")
    before = shared.path.read_bytes()
    with pytest.raises(Refused) as refusal:
        shared.sql(query.format(there=tmp_path))
    said = str(refusal.value)
    assert said.endswith(".") and "\n" not in said and len(said) < 300
    assert os.listdir(tmp_path) == ["theirs.csv"]
    assert shared.path.read_bytes() == before


def test_without_the_cut_the_same_query_reads_files(tmp_path):
    """Negative control: what is refused above is a file that a plain connection reads."""
    (tmp_path / "theirs.csv").write_text("secret\n1\n")
    with duckdb.connect() as con:
        assert con.execute(f"SELECT * FROM read_csv('{tmp_path}/theirs.csv')").fetchall() == [(1,)]


# The file


def test_nothing_recorded_yet_is_said_and_makes_no_file(unmade):
    for ask in (lambda: unmade.sql("SELECT 1"), lambda: unmade.read(Unit)):
        with pytest.raises(Refused, match="Nothing is recorded .* run `lamplighter run` first"):
            ask()
    assert unmade.append([]) == 0
    assert not unmade.path.parent.exists()


def test_two_that_make_the_file_at_once_both_keep_their_facts(unmade, monkeypatch):
    create = module._create

    def slow(draft):
        create(draft)
        monkeypatch.setattr(module, "_create", create)
        unmade.append(facts(1))             # the other one, while ours is still a draft

    monkeypatch.setattr(module, "_create", slow)
    unmade.append(facts(1, 5))
    assert {record.document for record in unmade.read(Exemplar)} == {"d0", "d5"}
    assert [path.name for path in unmade.path.parent.iterdir()] == ["findings.duckdb"]


def test_new_files_have_the_older_format_that_both_versions_read(tmp_path, findings):
    def file_format(path):
        return int.from_bytes(path.read_bytes()[12:20], "little")

    findings.append(facts(1))
    assert file_format(findings.path) <= 68
    with duckdb.connect(str(tmp_path / "plain.duckdb")) as con:
        con.execute("CREATE TABLE t (i INT)")
    assert duckdb.__version__ < "2" or file_format(tmp_path / "plain.duckdb") > 68, "the default is newer"


def test_a_write_packs_few_rows_and_leaves_no_journal(findings):
    """In DuckDB's own groups of 122,880 rows each write packs all those of the last group again."""
    groups = "SELECT count(DISTINCT row_group_id) AS n FROM pragma_storage_info('exemplars')"
    many = 2 * module.GROUP
    findings.append(facts(many))
    assert findings.sql(groups) == [{"n": 2}]
    findings.append(facts(1, many))
    assert findings.sql(groups) == [{"n": 3}] and not list(findings.path.parent.glob("*.wal"))
    with duckdb.connect(str(findings.path)) as con:
        con.execute("INSERT INTO exemplars FROM exemplars LIMIT 1")
    assert findings.sql(groups) == [{"n": 1}], "so nobody else may write the file"


@pytest.fixture
def version_1(unmade, monkeypatch):
    """A file as the first version made it, with three records in it."""
    both, later = ddl_after(module._DDL, 0), ddl_after(module._DDL, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "ddl_after", lambda *_: both.removesuffix(later))
        patch.setattr(module, "VERSION", 1)
        unmade.append(facts(3))
    return unmade


A_CALL = LLMCall(purpose="plan", model="m", endpoint="embedded", outcome="ok", request="d", seconds=1.5)


def versions(findings):
    return [row["version"] for row in findings.sql("SELECT version FROM schema_version ORDER BY version")]


def test_what_a_version_had_is_never_changed():
    first = ddl_after(module._DDL, 0).removesuffix(ddl_after(module._DDL, 1)).replace(" USING COMPRESSION zstd", "")
    assert sha256(first.strip().encode()).hexdigest()[:16] == "3ab1d10ea56f4df8"
    second = ddl_after(module._DDL, 1).removesuffix(ddl_after(module._DDL, 2))
    assert sha256(second.strip().encode()).hexdigest()[:16] == "7ac6eb84ffb491ce"


def test_a_file_of_version_1_is_read_as_it_is(version_1):
    before = version_1.path.read_bytes()
    assert len(version_1.read(Exemplar)) == 3 and version_1.read(LLMCall) == []
    assert version_1.sql("SELECT count(*) AS n FROM exemplars") == [{"n": 3}]
    assert version_1.sql("SELECT * FROM unit_cards") == []
    assert versions(version_1) == [1]
    assert version_1.path.read_bytes() == before


def test_a_field_that_a_file_is_too_old_for_has_its_default(version_1):
    with duckdb.connect(str(version_1.path)) as con:
        con.execute("INSERT INTO hypotheses (id, created_at, author, sentence, kept, evidence, provenance) "
                    "VALUES ('h', '2026-01-01', 'p', 's', true, '[]', '{}')")  # fmt: skip
    assert [h.side for h in version_1.read(Hypothesis)] == ["input"]


def test_the_next_append_brings_a_file_of_version_1_up_to_date(work, version_1):
    work.charge(A_CALL)
    assert drain(work, version_1) == 1
    assert version_1.read(LLMCall) == [A_CALL] and len(version_1.read(Exemplar)) == 3
    version_1.append(facts(1, start=3))
    assert versions(version_1) == [1, module.VERSION]


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(version_1, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "ddl_after", lambda *_: "CREATE TABLE half (x INT); CREATE TABLE runs (x INT);")
        with pytest.raises(duckdb.CatalogException, match="already exists"):
            version_1.append(facts(1))
    assert versions(version_1) == [1]
    assert version_1.sql("SELECT count(*) AS n FROM duckdb_tables() WHERE table_name = 'half'") == [{"n": 0}]
    version_1.append([A_CALL])
    assert version_1.read(LLMCall) == [A_CALL]


def test_a_newer_schema_is_refused_with_both_versions(findings):
    findings.append(facts(1))
    with duckdb.connect(str(findings.path)) as con:
        con.execute("INSERT INTO schema_version VALUES (77, '2030-01-01')")
    for ask in (lambda: findings.sql("SELECT 1"), lambda: findings.append(facts(1))):
        with pytest.raises(Refused, match=rf"newer version.*schema is 77, this one knows {module.VERSION}\)"):
            ask()


def test_a_newer_file_format_is_refused_with_both_versions(findings, monkeypatch):
    findings.append(facts(1))
    said = "IO Error: Trying to read a database file with version number 99, but we can only read versions 64 to 69."

    def connect(*_, **__):
        raise duckdb.IOException(said)

    monkeypatch.setattr(duckdb, "connect", connect)
    with pytest.raises(Refused, match=f"file format is 99, which DuckDB {duckdb.__version__} cannot read"):
        findings.sql("SELECT 1")


def test_somebody_elses_database_is_left_alone(findings):
    findings.path.unlink()
    with duckdb.connect(str(findings.path)) as con:
        con.execute("CREATE TABLE schema_version (theirs INT)")
    for ask in (lambda: findings.sql("SELECT 1"), lambda: findings.append(facts(1))):
        with pytest.raises(Refused, match="did not make"):
            ask()


def test_a_damaged_file_is_refused_by_name_with_a_way_on(work, findings):
    findings.append(facts(2000))
    whole = findings.path.read_bytes()
    flipped = bytearray(whole)
    flipped[12288 + 100] ^= 255
    work.post(facts(3))
    for damaged in (b"", os.urandom(9000), b"hello " * 999, whole[:100], whole[:12288], whole[:-9], bytes(flipped)):
        findings.path.write_bytes(damaged)
        asked = [lambda: findings.sql("FROM exemplars"), lambda: findings.read(Exemplar)]
        for ask in [*asked, lambda: drain(work, findings)]:
            with pytest.raises(Refused, match=r"findings\.duckdb is damaged .*move it") as refusal:
                ask()
            assert "\n" not in str(refusal.value)
        assert findings.path.read_bytes() == damaged
    assert work.pending() == 3
    findings.path.rename(findings.path.with_name("away"))
    assert drain(work, findings) == 3, "the way on works"


HOLD = """
import duckdb, sys
con = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_file_held_by_another_process_is_waited_for_and_then_its_holder_named(work, findings, monkeypatch):
    findings.append(facts(1))
    work.post(facts(2, 5))
    holder = child(HOLD, findings.path)
    holder.stdout.readline()
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    for ask in (lambda: findings.sql("SELECT 1"), lambda: findings.append(facts(1)), lambda: drain(work, findings)):
        with pytest.raises(Busy, match=f"in use by process {holder.pid}"):
            ask()
    assert work.pending() == 2
    monkeypatch.setattr(module, "WAIT_SECONDS", 10.0)
    threading.Timer(0.2, lambda: holder.communicate("end\n")).start()
    assert drain(work, findings) == 2
    assert len(findings.read(Exemplar)) == 3


def test_threads_take_turns(findings):
    findings.append(facts(1))
    errors = []

    def toil(i):
        try:
            for n in range(2):
                findings.append(facts(1, 100 * i + n))
                findings.sql("SELECT count(*) FROM exemplars")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=toil, args=(i,)) for i in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(findings.read(Exemplar)) == 7


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be made"):
        Findings(tmp_path / "file" / "findings.duckdb").append(facts(1))


# Draining

DRAIN = """
import os, signal, sys
from pathlib import Path
from lamplighter.store import findings as module
from lamplighter.store.work import Work
work, findings = Work(Path(sys.argv[1])), module.Findings(Path(sys.argv[2]))
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if "before delivery" in sys.argv:
    Work.delivered = die
if "before the file is in place" in sys.argv:
    os.link = die
if "within the transaction" in sys.argv:
    insert = module._insert
    module._insert = lambda *a: (insert(*a), die())
print("started", flush=True)
while work.pending():
    module.drain(work, findings, limit=10)
"""


def exactly_once(findings, n):
    return Counter(record.document for record in findings.read(Exemplar)) == Counter(f"d{i}" for i in range(n))


def test_a_drain_moves_everything_in_order_and_in_batches(work, findings):
    work.post(facts(25))
    sizes, append = [], findings.append_lines
    findings.append_lines = lambda batch: sizes.append(append(batch))
    assert drain(work, findings, limit=10) == 25
    assert sizes == [10, 10, 5]
    assert (work.pending(), drain(work, findings)) == (0, 0)
    assert exactly_once(findings, 25)


@pytest.mark.parametrize("moment", ["before delivery", "before the file is in place", "within the transaction"])
def test_killed_at_the_worst_moment_a_drain_repeats_and_loses_nothing(work, unmade, moment):
    findings = unmade
    work.post(facts(25))
    process = child(DRAIN, work.path, findings.path, moment)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert work.pending() == 25
    if moment == "before delivery":
        assert len(findings.read(Exemplar)) == 10, "the batch is in both stores now"
    assert drain(work, findings) == 25
    assert exactly_once(findings, 25)
    assert not list(findings.path.parent.glob("*.wal"))


def posted(work, record, change):
    """Puts a record into the outbox as other code wrote it."""
    work.post([record])
    body = json.dumps(change(json.loads(line_of(record))))
    with work.change() as con:
        con.execute("UPDATE outbox SET body = ? WHERE id = ?", (body, record.id))


def test_what_older_code_left_in_the_outbox_gets_the_default_of_a_newer_field(work, findings):
    kept = Hypothesis(author="p", sentence="s", rule=None, rule_text=None, kept=True)
    posted(work, kept, lambda row: {name: value for name, value in row.items() if name != "side"})
    work.post(facts(3))
    assert drain(work, findings) == 4
    assert findings.read(Hypothesis) == [kept] and exactly_once(findings, 3)


@pytest.mark.parametrize("more", [{"schema": 99}, {"of_tomorrow": 1}])
def test_what_newer_code_left_in_the_outbox_stays_there_whole(work, findings, more):
    findings.append(facts(1))
    posted(work, facts(1, 7)[0], lambda row: row | more)
    with pytest.raises(ValueError, match="schema 99|of_tomorrow"):
        drain(work, findings)
    assert work.pending() == 1 and len(findings.read(Exemplar)) == 1


def test_a_drain_ends_a_batch_by_its_text(work, findings, monkeypatch):
    monkeypatch.setattr(module, "BATCH_TEXT", 1)
    sizes, append = [], findings.append_lines
    findings.append_lines = lambda batch: sizes.append(append(batch))
    work.post(facts(4))
    assert drain(work, findings) == 4 and sizes == [1, 1, 1, 1]
    assert exactly_once(findings, 4)


def test_deleting_before_appending_would_lose_the_batch(work, findings, monkeypatch):
    """The naive order, killed at the same place: negative control of the test above."""
    work.post(facts(25))
    batch = work.outbox(10)
    work.delivered(seq for seq, _ in batch)       # … and here the process dies
    drain(work, findings)
    assert not exactly_once(findings, 25)


def test_kill_9_at_random_moments_and_two_drainers_at_once(work, findings):
    work.post(facts(60))
    rng = random.Random(3)
    for _ in range(3):
        process = child(DRAIN, work.path, findings.path)
        process.stdout.readline()
        time.sleep(rng.random() * 0.25)
        process.kill()
        process.communicate()
    work.post(facts(40, 60))
    both = [child(DRAIN, work.path, findings.path) for _ in range(2)]
    work.post(facts(20, 100))
    assert [process.communicate(timeout=60) and process.returncode for process in both] == [0, 0]
    drain(work, findings)
    assert exactly_once(findings, 120)
    assert work.pending() == 0


def test_while_another_drains_this_one_leaves_it_to_it(work, findings, monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    work.post(facts(3))
    other = worker_id()
    assert work.lock("drain", other)
    assert drain(work, findings) == 0
    assert work.pending() == 3
    work.unlock("drain", other)
    assert drain(work, findings) == 3


def test_a_full_disk_at_the_end_of_a_transaction_is_busy(findings):
    """Worded as DuckDB 1.5 words it (met on a file system of 8 MB)."""
    told = 'TransactionContext Error: Failed to commit: Could not write file "x.wal": No space left on device'
    refusal = findings._refusal(duckdb.TransactionException(told))
    assert isinstance(refusal, Busy) and "make room on its disk" in str(refusal)
    assert findings._refusal(duckdb.TransactionException("TransactionContext Error: conflict")) is None
