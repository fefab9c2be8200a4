"""Records out as JSON lines and Parquet: equal to what was recorded, filtered, and without a word of the corpus."""

import json
import os
import re
from collections import Counter
from dataclasses import fields
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from lamplighter.store import exchange
from lamplighter.store import findings as module
from lamplighter.store.exchange import TEXTUAL, Silent, Wanted, explained, new_folder, pages, runs, write_records
from lamplighter.store.findings import Findings
from lamplighter.store.records import (
    TABLES,
    Evidence,
    Exemplar,
    Failure,
    Hypothesis,
    Investigation,
    Model,
    Refused,
    Run,
    Score,
    Sweep,
    Turn,
    Unit,
    Verdict,
)
from lamplighter.store.work import Line

JSON_KINDS = (dict, list)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, records):
    """Findings with a few drawn records of every kind, and the records."""
    findings = Findings(tmp_path_factory.mktemp("drawn") / "findings.duckdb")
    known = {}
    for kind in TABLES.values():

        @settings(max_examples=12, deadline=None, database=None)
        @given(records(kind))
        def draw(record):
            known.setdefault((record.TABLE, record.id), record)

        draw()
    findings.append(known.values())
    return findings, known


def written(findings, folder, form, wanted=None, no_text=False):
    folder.mkdir()
    return write_records(findings, wanted or Wanted(), folder, form, "unknown", no_text)


def from_lines(folder):
    """Each line as the record that it is."""
    return [
        kind.from_json(line)
        for table, kind in TABLES.items()
        for line in (folder / f"{table}.jsonl").read_text("utf-8").split("\n") if line
    ]  # fmt: skip


def from_parquet(folder):
    """Rows of Parquet as records, by what the card says: JSON columns hold JSON text, times are UTC."""
    found = []
    for table, kind in TABLES.items():
        read = pq.read_table(folder / f"{table}.parquet")
        hints = kind.__dataclass_fields__
        for row in read.to_pylist():
            row["created_at"] = row["created_at"].isoformat(timespec="microseconds")
            for name, value in row.items():
                if isinstance(value, str) and re.search(r"\b(dict|list)\b|Any", str(hints[name].type)):
                    row[name] = json.loads(value)
            found.append(kind(**row))
    return found


@pytest.mark.parametrize(("form", "read"), [("jsonl", from_lines), ("parquet", from_parquet)])
def test_records_come_back_equal(drawn, tmp_path, monkeypatch, form, read):
    """Whatever their fields hold, on pages of any size."""
    findings, known = drawn
    monkeypatch.setattr(exchange, "PAGE", 5)
    told = written(findings, tmp_path / "out", form)
    found = {(record.TABLE, record.id): record for record in read(tmp_path / "out")}
    assert found == known
    for key in known:
        assert repr(found[key]) == repr(known[key])
    assert told["rows"] == Counter(table for table, _ in known) and set(told["rows"]) == set(TABLES)


def test_parquet_is_packed_and_typed(drawn, tmp_path):
    findings, _ = drawn
    written(findings, tmp_path / "out", "parquet")
    file = pq.ParquetFile(tmp_path / "out" / "scores.parquet")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    assert kinds["created_at"] == "timestamp[us]" and kinds["value"] == "double" and kinds["details"] == "string"
    assert list(kinds) == [field.name for field in fields(Score)]


def test_the_card_says_licence_tables_and_columns(drawn, tmp_path):
    findings, _ = drawn
    folder = tmp_path / "out"
    folder.mkdir()
    told = write_records(findings, Wanted(), folder, "parquet", "cc-by-4.0", no_text=False)
    card = (folder / "README.md").read_text("utf-8")
    head = card.split("---")[1]
    assert "license: cc-by-4.0" in head and "data_files: hypotheses.parquet" in head
    for table, kind in TABLES.items():
        section = card.partition(f"\n## {table}\n")[2].partition("\n## ")[0]
        assert f"{told['rows'][table]:,} rows." in section
        assert [name for name in re.findall(r"^\| `(\w+)` \|", section, re.M)] == [f.name for f in fields(kind)]


# A home made by hand, every text of which is a sentence of its own


SENTENCES = [
    f"{who} {does} the {what} beside {where}" for who in ("Anna", "Bertram") for does in ("paints", "carries")
    for what in ("barrel", "lantern", "kettle") for where in ("harbours", "meadows")
]  # fmt: skip
STAMPS: dict[str, Any] = {"run": "r", "investigation": "i", "unit": "org/m/5-mlp/1", "sign": 1}


def home_records():
    """One investigated unit; each text that the corpus could have lent stands somewhere."""
    text = iter(SENTENCES * 2)

    def one():
        return next(text)

    kept = Hypothesis(
        author="llm:x", sentence="fires on the word “barrel”", rule={"clauses": [{"at": {"words": [one()]}}]},
        rule_text=f"the words {one()}", kept=True, **STAMPS,
    )  # fmt: skip
    quoting = Hypothesis(
        author="llm:x", sentence=f"fires in “{SENTENCES[0]}”", rule=None, rule_text=None, kept=False, **STAMPS
    )  # fmt: skip
    shown = [
        Exemplar(side="explain", band="top", document="d", position=3, activation=2.0, text=s,
                 token=" " + s.split()[-1], **STAMPS) for s in SENTENCES
    ]  # fmt: skip
    return [
        Model(name="org/m", architecture="llama", layers=2, vocabulary=9, checks={"a": 0.1}, tools=["lens"]),
        Model(name="other", architecture="llama", layers=2, vocabulary=9, checks={}, tools=[]),
        Sweep(digest="s", model="org/m", corpus="texts", sites=["5-mlp"], tokens={"explain": 9}, documents={},
              overlap={}, seconds=1.0),
        Run(run="r", key="k", asked={"model": "org/m"}, status="done", units=["org/m/5-mlp/1"]),
        Unit(model="org/m", site="5-mlp", index=1, peak=2.0, threshold=1.0, statistics={"mean": 0.1}, **STAMPS),
        Investigation(id="i", planner="llm:x", status="submitted", steps=1, cost={}, seconds=1.0,
                      **{k: v for k, v in STAMPS.items() if k != "investigation"}),
        *shown, kept, quoting,
        Evidence(tool="minimal_example", arguments={"text": one(), "ids": None}, summary=f"kept “{one()}”",
                 rows=[{"text": one(), "tokens": one().split(" "), "kept_text": one(), "ids": [1, 2]}],
                 checks={"kept_text": one()}, warnings=[f"the word stands elsewhere: {one()}"], **STAMPS),
        Turn(question=f"does it need {one()}?", by="llm:x", tool="activate", evidence="e", ok=True,
             predictions={kept.id: [True]}, outcome=[True], **STAMPS),
        Score(hypothesis=kept.id, metric="f1", side="score", value=0.9, low=0.8, high=0.95, floors={"always_on": 0.1},
              details={"margin": {"value": 0.8, "low": 0.7, "high": 0.9}, "clauses": [{"clause": one(), "f1": 0.5}],
                       "firing": [one()], "n": 3}, **STAMPS),
        Score(hypothesis=kept.id, metric="hm", side="score", value=None, reason=f"no changed text of {SENTENCES[1]}",
              **STAMPS),
        Verdict(hypothesis=kept.id, verdict="accepted", reason="F1 0.90 (0.80 to 0.95)", **STAMPS),
        Verdict(hypothesis=None, verdict="abstained", reason="no rule. Held back: 'barrel' or 'kettle'",
                **STAMPS | {"investigation": "j", "unit": "org/m/5-mlp/2"}),
        Failure(kind="tool", message=f"cannot read {one()}", step=f"activate: {one()}", attempt=1, **STAMPS),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    findings = Findings(tmp_path_factory.mktemp("home") / "findings.duckdb")
    findings.append(home_records())
    return findings


def everything(folder):
    """All that stands in the files of a folder, as text: of Parquet the values."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            parts += [json.dumps(row, default=str, ensure_ascii=False) for row in pq.read_table(path).to_pylist()]
        elif path.is_file():
            parts.append(path.read_text("utf-8"))
    return re.sub(r"\\+", "", "\n".join(parts))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_no_sentence_of_the_corpus_leaves_without_text(home, tmp_path, form):
    told = written(home, tmp_path / "silent", form, no_text=True)
    out = everything(tmp_path / "silent")
    assert [sentence for sentence in SENTENCES if sentence in out] == []
    words = re.findall(r"\w+", out.casefold())
    left = runs(" ".join(words))
    assert not any(not runs(sentence).isdisjoint(left) for sentence in SENTENCES), "nor four words of one in a row"
    assert "Held back" not in out and "barrel' or" not in out
    assert "fires on the word “barrel”" in out, "an explanation that quotes no text stays"
    for number in ("0.95", "0.8", "always_on", '"f1": 0.5'):
        assert number in out, number
    assert told["dropped"]["exemplars.text"] == len(SENTENCES)
    assert told["dropped"]["hypotheses.sentence"] == 1, "the one that quotes"
    assert told["dropped"]["verdicts.reason"] == 1 and told["dropped"]["scores.reason"] == 1
    assert all(told["dropped"][f"evidence.{name}"] == 1 for name in TEXTUAL["evidence"])


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_with_text_every_sentence_is_there(home, tmp_path, form):
    """The control: the search above can find what it looks for."""
    told = written(home, tmp_path / "whole", form)
    out = everything(tmp_path / "whole")
    assert [sentence for sentence in SENTENCES if sentence not in out] == [] and told["dropped"] == {}


def test_every_column_of_text_was_looked_at():
    """A new field that could hold text must be put among those that are left out, or among those known to hold none."""
    silent = {table: {*TEXTUAL.get(table, ()), *exchange.QUOTING.get(table, ())} for table in TABLES}
    kept = {
        f"{table}.{field.name}" for table, kind in TABLES.items() for field in fields(kind)
        if field.name not in silent[table] and re.search(r"str|Any|dict|list", str(field.type))
    }  # fmt: skip
    stamps = ("id", "created_at", "run", "investigation", "unit", "provenance")
    common = {f"{table}.{name}" for table in TABLES for name in stamps}
    assert kept - common == {
        "models.name", "models.architecture", "models.checks", "models.tools", "sweeps.digest", "sweeps.model",
        "sweeps.corpus", "sweeps.sites", "sweeps.tokens", "sweeps.documents", "sweeps.overlap", "units.model",
        "units.site", "units.statistics", "exemplars.side", "exemplars.band", "exemplars.document", "runs.key",
        "runs.asked", "runs.status", "runs.units", "investigations.planner", "investigations.status",
        "investigations.cost", "evidence.tool", "evidence.artifact", "evidence.cost", "turns.by", "turns.tool",
        "turns.evidence", "turns.predictions", "turns.outcome", "turns.killed", "hypotheses.author",
        "hypotheses.evidence", "hypotheses.side", "scores.hypothesis", "scores.metric", "scores.side", "scores.floors",
        "scores.references", "scores.details", "scores.judge", "verdicts.hypothesis", "verdicts.verdict",
        "import_verdicts.hypothesis", "import_verdicts.verdict", "embeddings.hypothesis", "embeddings.model",
        "embeddings.vector", "failures.kind", "llm_calls.purpose", "llm_calls.model", "llm_calls.endpoint",
        "llm_calls.outcome", "llm_calls.request", "reviews.hypothesis", "reviews.reviewer", "reviews.verdict",
        "reviews.tags", "reviews.card", "reviews.client", "reviews.reasons", "reviews.edit", "reviews.undoes",
    }  # fmt: skip


# Filters


def units_of(folder):
    return {record.unit for record in from_lines(folder)}


def test_filters_keep_what_belongs_to_the_units(home, tmp_path):
    written(home, tmp_path / "model", "jsonl", Wanted(model="org/m"))
    found = from_lines(tmp_path / "model")
    assert {r.name for r in found if isinstance(r, Model)} == {"org/m"} and len(found) == len(home_records()) - 1
    written(home, tmp_path / "verdict", "jsonl", Wanted(verdict="accepted"))
    assert units_of(tmp_path / "verdict") == {None, "org/m/5-mlp/1"}
    written(home, tmp_path / "site", "jsonl", Wanted(site="8-mlp"))
    assert units_of(tmp_path / "site") == {None}
    assert not any(isinstance(r, Run) for r in from_lines(tmp_path / "site"))
    assert [row["unit"] for row in explained(home, Wanted(site="5-mlp", verdict="accepted"))] == ["org/m/5-mlp/1"]
    assert explained(home, Wanted(model="org")) == [], "a model's whole name"


def test_a_filter_is_a_value_and_no_sql(home):
    assert explained(home, Wanted(model="x' OR true --")) == []


def test_a_dry_run_counts_and_writes_nothing(home, tmp_path):
    told = write_records(home, Wanted(), None, "parquet", "unknown", no_text=True)
    assert told == written(home, tmp_path / "out", "parquet", no_text=True)


def test_files_of_older_versions_are_exported_with_what_they_have(tmp_path, monkeypatch):
    findings = Findings(tmp_path / "findings.duckdb")
    both, later = (module.ddl_after(module._DDL, version) for version in (0, 4))
    with duckdb.connect() as con:
        con.execute(both.removesuffix(later))
        known = {table: ["schema", *module._columns(con, table)] for table in TABLES}
    records = [r for r in home_records() if not isinstance(r, Turn)]
    kept = [{name: value for name, value in json.loads(r.to_json()).items() if name in known[r.TABLE]} for r in records]
    with monkeypatch.context() as patch:
        patch.setattr(module, "ddl_after", lambda *_: both.removesuffix(later))
        patch.setattr(module, "VERSION", 4)
        findings.append_lines(Line(r.TABLE, r.id, json.dumps(fields)) for r, fields in zip(records, kept, strict=True))
    told = written(findings, tmp_path / "out", "jsonl", no_text=True)
    assert "turns" not in told["rows"] and told["rows"]["hypotheses"] == 2


# Folders


def test_a_folder_is_there_when_it_is_whole_or_not_at_all(tmp_path):
    place = tmp_path / "deep" / "out"
    with new_folder(place) as folder:
        assert not place.exists()
        (folder / "a").write_text("x")
    assert (place / "a").read_text() == "x" and os.listdir(place.parent) == ["out"]
    with pytest.raises(Refused, match="is there already and is not overwritten"), new_folder(place):
        raise AssertionError("never begun")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other"):
        raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["deep"]
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be written"), new_folder(tmp_path / "file" / "out"):
        raise AssertionError("never begun")


def test_a_link_that_leads_nowhere_is_something(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused, match="is there already"), new_folder(tmp_path / "link"):
        raise AssertionError("never begun")


def test_a_full_disk_leaves_nothing_behind(home, tmp_path, room_for):
    with room_for(600), pytest.raises(Refused, match="cannot be written"), new_folder(tmp_path / "out") as folder:
        write_records(home, Wanted(), folder, "jsonl", "unknown", no_text=False)
    assert os.listdir(tmp_path) == []


def test_pages_hold_every_row_once(home, monkeypatch):
    monkeypatch.setattr(exchange, "PAGE", 4)
    found = [row["id"] for page in pages(home, "exemplars", Wanted()) for row in page]
    assert len(found) == len(set(found)) == len(SENTENCES)


def test_only_a_units_own_texts_make_a_quotation(home):
    """What nobody who explained a unit can have read is no quotation of theirs."""
    silent = Silent(home)
    row = {"unit": "org/m/5-mlp/2", "sign": 1, "explanation": f"fires in “{SENTENCES[0]}”", "rule": None}
    assert silent.explanations([row]) == [row | {"output_explanation": None}]
    own = row | {"unit": "org/m/5-mlp/1"}
    assert silent.explanations([own]) == [] and silent.dropped["explanations.explanation"] == 1
