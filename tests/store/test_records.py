import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.store.records import SCHEMA, TABLES, Embedding, Evidence, Exemplar, Failure, Score, uuid7


def a_failure(**changed):
    return replace(Failure(kind="tool", message="no", step="act", attempt=1), **changed)


def test_ids_sort_by_time_and_are_version_7(monkeypatch):
    stamps = [1_700_000_000_000, 1_700_000_000_001, 1_800_000_000_000, 2**48 - 1]
    ids = []
    for stamp in stamps:
        monkeypatch.setattr("time.time_ns", lambda stamp=stamp: stamp * 1_000_000)
        ids.append(uuid7())
    assert ids == sorted(ids)
    assert [int(i.replace("-", "")[:12], 16) for i in ids] == stamps
    assert {i[14] for i in ids} == {"7"}
    assert {i[19] for i in ids} <= set("89ab")
    assert len({uuid7() for _ in range(2000)}) == 2000


def test_tables_are_named_by_their_record():
    assert all(table == kind.TABLE for table, kind in TABLES.items())
    assert {"evidence", "hypotheses", "verdicts", "embeddings", "failures"} <= TABLES.keys()


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.text())
def test_json_gives_the_record_back(message, number, key):
    record = Evidence(tool="lens", summary=message, rows=[{key: number}], checks={key: [None, True, {key: 1}]})
    assert Evidence.from_json(record.to_json()) == record
    assert "\n" not in record.to_json()


def test_an_undefined_number_is_null_and_never_nan():
    score = Score(hypothesis="h", metric="f1", side="score", value=None, reason="constant")
    assert json.loads(score.to_json())["value"] is None
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError):
            replace(score, value=bad).to_json()
        with pytest.raises(ValueError):
            replace(score, details={"deep": [bad]}).to_json()


@pytest.mark.parametrize(
    "changed",
    [
        {"attempt": 1.5},
        {"attempt": True},
        {"attempt": 2**63},
        {"attempt": None},
        {"message": b"no"},
        {"sign": "1"},
        {"provenance": [1]},
        {"created_at": "yesterday"},
        {"created_at": "2026-11-21T10:00:00"},
        {"created_at": "2026-11-21T10:00:00.000000+00:00"},
    ],
)
def test_a_value_that_a_column_would_change_is_refused(changed):
    name = next(iter(changed))
    with pytest.raises(ValueError, match=name if name != "created_at" else "created_at|isoformat"):
        a_failure(**changed).to_json()
    a_failure().to_json()


def test_whole_numbers_are_fine_floats_and_none_where_it_is_allowed():
    exemplar = Exemplar(
        side="explain", band="top", document="d", position=3, activation=2, text="a b", token=" b", sign=-1
    )
    assert Exemplar.from_json(exemplar.to_json()) == exemplar
    vector = Embedding(hypothesis="h", model="m", vector=[0.5, 1.0])
    assert Embedding.from_json(vector.to_json()) == vector


def test_another_schema_and_unknown_fields_are_refused():
    values = json.loads(a_failure().to_json())
    with pytest.raises(ValueError, match=f"schema {SCHEMA + 1}"):
        Failure.from_json(json.dumps(values | {"schema": SCHEMA + 1}))
    with pytest.raises(ValueError, match="colour"):
        Failure.from_json(json.dumps(values | {"colour": "red"}))


def test_a_report_writes_the_sign_as_the_command_line_does():
    base = Evidence(tool="lens", summary="s", unit="m/5-mlp/1", sign=-1, cost={"seconds": 1.0})
    assert base.report()["unit"] == "m/5-mlp/1-"
    assert replace(base, sign=1).report()["unit"] == "m/5-mlp/1"
    assert replace(base, unit=None).report()["unit"] is None
    keys = {"ok", "tool", "unit", "summary", "rows", "artifact", "checks", "warnings", "cost"}
    assert base.report().keys() == keys
