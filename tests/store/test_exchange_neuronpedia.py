"""Neuronpedia's shapes: calls of its upload API made and held to their limits, and its bulk exports read.

Shapes: requests/feature_request.py of the package neuronpedia 1.2.1; the models Explanation, Activation and Neuron of
apps/webapp/prisma/schema.prisma, and the folders that app/api/admin/import/route.ts reads, of
github.com/hijohnnylin/neuronpedia.
"""

import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.exchange_neuronpedia import (
    CHARACTERS,
    FEATURES,
    LOGITS,
    TOKENS,
    Shown,
    read_neuronpedia,
    uploads,
)
from lamplighter.store.foreign import Faults
from lamplighter.store.imported import CLAIMED, TEXTS
from lamplighter.store.records import Evidence, Hypothesis, Refused, Score

# Out


def row(unit="org/Model-X/5-mlp/3", sign=1, explanation="fires on years", planner="llm:GPT-Z@http://h/v1"):
    return {"unit": unit, "sign": sign, "explanation": explanation, "planner": planner}


def shown(unit, sign):
    return [Shown(["in", " 1942"], [0.0, 3.5]), Shown([" a"], [1.0], (0.5, 1.0, 0.01))]


def none(unit, sign):
    return {}


def lens(unit, sign):
    return {"topLogits": [{"token": f" t{i}", "value": 9.0 - i} for i in range(30)], "bottomLogits": []}


def made(rows, texts=shown, logits=none, model_id=None, source_set=None):
    return uploads(rows, texts, logits, model_id, source_set)


def test_a_call_as_its_own_client_sends_it():
    (call,) = made([row()], logits=lens).calls
    assert call.keys() == {"modelId", "source", "features"}
    assert (call["modelId"], call["source"]) == ("model-x", "5-lamplighter-mlp")
    (feature,) = call["features"]
    assert feature.keys() == {"index", "density", "activations", "explanations", "topLogits", "bottomLogits"}
    assert feature["index"] == 3 and feature["density"] is None and feature["bottomLogits"] is None
    assert feature["topLogits"] == lens("", 1)["topLogits"][:LOGITS]
    assert feature["explanations"] == [{"text": "fires on years", "methodName": "lamplighter", "modelName": "gpt-z"}]
    first, second = feature["activations"]
    assert first == {
        "tokens": ["in", " 1942"], "values": [0.0, 3.5], "quantileMin": None, "quantileMax": None,
        "quantileFraction": None,
    }  # fmt: skip
    assert (second["quantileMin"], second["quantileMax"], second["quantileFraction"]) == (0.5, 1.0, 0.01)


def test_names_are_lower_cased_and_each_source_has_its_own_calls():
    rows = [
        row(), row(sign=-1), row("org/Model-X/8-resid:My-SAE/1"), row("org/Model-X/8-resid/1"), row("Other/5-mlp/1"),
    ]  # fmt: skip
    sources = {(call["modelId"], call["source"]) for call in made(rows).calls}
    assert sources == {
        ("model-x", "5-lamplighter-mlp"), ("model-x", "5-lamplighter-mlp-neg"), ("model-x", "8-my-sae"),
        ("model-x", "8-lamplighter-resid"), ("other", "5-lamplighter-mlp"),
    }  # fmt: skip
    (call,) = made([row()], model_id="GPT2-small", source_set="My-Set").calls
    assert (call["modelId"], call["source"]) == ("gpt2-small", "5-my-set")


def test_what_is_cut_or_left_out_is_counted():
    tokens = [f" {i}" for i in range(TOKENS + 500)]
    values = [0.0] * len(tokens)
    values[1300] = 5.0

    def texts(unit, sign):
        return [Shown(tokens, values)] if unit.endswith("3") else []

    upload = made([row(explanation="y" * 600), row("m/5-mlp/4")], texts, lens)
    (feature,) = upload.calls[0]["features"]
    assert upload.features == 1 and len(feature["explanations"][0]["text"]) == CHARACTERS
    assert feature["explanations"][0]["text"].endswith("y…")
    cut = feature["activations"][0]
    assert len(cut["tokens"]) == len(cut["values"]) == TOKENS and cut["values"][cut["tokens"].index(" 1300")] == 5.0
    assert {what: n for what, n in upload.notes.items() if n} == {
        "left out: no text with readings": 1, "cut: explanations of more than 512 characters": 1,
        "cut: lists of more than 20 logits": 1, "cut: texts of more than 1024 tokens": 1,
    }  # fmt: skip
    assert made([row()]).notes["without logits: no `lens` of the unit is recorded"] == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4000), st.sampled_from([1, -1]), st.integers(1, 700)), max_size=400),
    st.integers(0, 1400), st.integers(0, 40),
)  # fmt: skip
def test_limits_hold_whatever_is_exported(units, length, count):
    rows = [row(f"M/5-mlp/{index}", sign, "z" * size) for index, sign, size in units]
    text = Shown([" a"] * length, [float(i) for i in range(length)])
    ends = {"topLogits": [{"token": "A", "value": 1.0}] * count, "bottomLogits": []}
    upload = made(rows, lambda *_: [text] if length else [], lambda *_: ends)
    assert upload.features == (len(rows) if length else 0) == sum(len(call["features"]) for call in upload.calls)
    for call in upload.calls:
        assert 0 < len(call["features"]) <= FEATURES
        assert call["modelId"] == call["modelId"].lower() and call["source"] == call["source"].lower()
        for feature in call["features"]:
            assert len(feature["explanations"][0]["text"]) <= CHARACTERS
            assert len(feature["activations"]) >= 1 and len(feature["topLogits"] or []) <= LOGITS
            for one in feature["activations"]:
                assert len(one["tokens"]) == len(one["values"]) <= TOKENS
                assert max(one["values"]) == length - 1, "the strongest token is never cut away"


# In


def an_explanation(index=7, **changed):
    return {
        "id": f"cl{index}", "modelId": "gemma-2-2b", "layer": "5-gemmascope-res-16k", "index": str(index),
        "description": f"words about {index}", "authorId": "np", "triggeredByUserId": None, "notes": None,
        "scoreV1": 0, "scoreV2": None, "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini",
        "createdAt": "2024-08-01T00:00:00.000Z", "embedding": [0.1] * 256,
    } | changed  # fmt: skip


def an_activation(index=7, value=3.0, **changed):
    return {
        "id": f"a{value}", "tokens": ["<bos>", " the", f" year{value}"], "dataIndex": None, "index": str(index),
        "layer": "5-gemmascope-res-16k", "modelId": "gemma-2-2b", "dataSource": None, "maxValue": value,
        "maxValueTokenIndex": 2, "minValue": 0, "values": [0.0, 0.5, value], "dfaValues": [], "creatorId": "np",
        "createdAt": "2024-08-01T00:00:00.000Z", "lossValues": [], "logitContributions": None, "binMin": 0.1,
        "binMax": 4.0, "binContains": 0.01, "qualifyingTokenIndex": None,
    } | changed  # fmt: skip


def a_feature(index=7, **changed):
    return {
        "modelId": "gemma-2-2b", "layer": "5-gemmascope-res-16k", "index": str(index), "maxActApprox": 4.0,
        "hasVector": False, "vector": [], "hookName": "blocks.5.hook_resid_post", "frac_nonzero": 0.01,
        "pos_str": [" year"], "pos_values": [1.2], "neg_str": [], "neg_values": [],
    } | changed  # fmt: skip


def write(folder, kind, *batches):
    (folder / kind).mkdir(parents=True)
    for number, rows in enumerate(batches):
        raw = "".join(json.dumps(one) + "\n" for one in rows).encode()
        (folder / kind / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(raw))


@pytest.fixture
def folder(tmp_path):
    """What the bulk export of one source looks like."""
    root = tmp_path / "gemma-2-2b" / "5-gemmascope-res-16k"
    root.mkdir(parents=True)
    (root / "source.jsonl").write_text(json.dumps({"id": "5-gemmascope-res-16k", "modelId": "gemma-2-2b"}))
    write(root, "explanations", [an_explanation(7), an_explanation(8)], [an_explanation(9)])
    write(root, "activations", [an_activation(7, float(v)) for v in range(25)], [an_activation(99), an_activation(8)])
    write(root, "features", [a_feature(7), a_feature(8), a_feature(9)])
    return root


calls = []


def named(model, place, index, known_as):
    calls.append((model, place, index, known_as))
    return f"{model}/{place}/{index}", 1


def read(path, by=named):
    calls.clear()
    faults = Faults()
    return list(read_neuronpedia(path, by, faults)), faults


def of(records, kind):
    return [record for record in records if isinstance(record, kind)]


def test_a_bulk_export_is_read_with_the_texts_of_what_it_explains(folder):
    records, faults = read(folder)
    assert faults.count == 0
    found = of(records, Hypothesis)
    assert [(h.unit, h.sentence, h.author) for h in found] == [
        (f"gemma-2-2b/blocks.5.hook_resid_post/{i}", f"words about {i}", "neuronpedia:gpt-4o-mini") for i in (7, 8, 9)
    ]
    assert found[2].provenance == {
        "imported_from": "neuronpedia", "origin": "explanations/batch-1.jsonl.gz:1", "explain_text": "unknown",
        "method": "oai_token-act-pair",
    }  # fmt: skip
    assert set(calls) >= {("gemma-2-2b", "blocks.5.hook_resid_post", 7, "gemmascope-res-16k")}
    texts = {str(e.unit).rpartition("/")[2]: e.rows for e in of(records, Evidence)}
    assert texts.keys() == {"7", "8"}, "nothing of units without an explanation"
    assert [one["peak"] for one in texts["7"]] == [float(v) for v in range(24, 14, -1)] and len(texts["7"]) == TEXTS
    assert texts["8"][0]["tokens"] == ["<bos>", " the", " year3.0"] and of(records, Score) == []


def test_the_source_says_where_it_is_if_its_features_do_not(folder):
    (folder / "features" / "batch-0.jsonl.gz").unlink()
    assert of(read(folder)[0], Hypothesis)[0].unit == "gemma-2-2b/5-gemmascope-res-16k/7"


def test_one_file_and_one_that_is_not_packed(folder, tmp_path):
    assert len(of(read(folder / "explanations" / "batch-1.jsonl.gz")[0], Hypothesis)) == 1
    (tmp_path / "e.jsonl").write_text(json.dumps(an_explanation(1)))
    assert len(of(read(tmp_path / "e.jsonl")[0], Hypothesis)) == 1


def test_scores_beside_an_explanation_are_its_sources_claims(tmp_path):
    scores = [
        {"value": 0.71, "explanationScoreTypeName": "eleuther_fuzz", "explanationScoreModelName": "gpt-4o-mini"},
        {"value": None, "explanationScoreTypeName": "recall_alt", "explanationScoreModelName": None},
    ]
    (tmp_path / "e.jsonl").write_text(json.dumps(an_explanation(1, scores=scores)))
    found = of(read(tmp_path / "e.jsonl")[0], Score)
    assert [(s.metric, s.side, s.value, s.judge, s.details["scorer"]) for s in found] == [
        (CLAIMED, "source", 0.71, "gpt-4o-mini", "eleuther_fuzz"), (CLAIMED, "source", None, None, "recall_alt"),
    ]  # fmt: skip


BAD = {
    "description": {"description": ""}, "index": {"index": "x"}, "model": {"modelId": None}, "layer": {"layer": 5},
    "scores": {"scores": "many"}, "long": {"description": "x" * 10_000}, "half": {"description": "\ud800"},
    "author": {"explanationModelName": "m" * 1000}, "nested": {"scores": [[]]},
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_line_is_named_and_the_others_are_read(tmp_path, case):
    rows = [an_explanation(1), an_explanation(2) | BAD[case], an_explanation(3)]
    write(tmp_path, "explanations", rows)
    records, faults = read(tmp_path)
    assert [str(h.unit)[-1] for h in of(records, Hypothesis)] == ["1", "3"]
    (fault,) = faults.named
    assert (fault["file"], fault["line"]) == ("explanations/batch-0.jsonl.gz", 2) and fault["why"]


def test_lines_that_are_no_json_are_named_once(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"\xff\xfe\n" + json.dumps(an_explanation(1)).encode() + b"\n[]\n{}\n")
    records, faults = read(path)
    assert len(of(records, Hypothesis)) == 1
    assert [(f["line"], f["why"][:12]) for f in faults.named] == [
        (1, "it is no JSO"), (3, "it is no JSO"), (4, "modelId is n"),
    ]  # fmt: skip


def test_a_file_of_faults_alone_is_named(folder):
    (folder / "explanations" / "batch-0.jsonl.gz").write_bytes(b"no gzip")
    (folder / "explanations" / "batch-2.jsonl.gz").write_bytes(b"")
    records, faults = read(folder)
    assert len(of(records, Hypothesis)) == 1
    assert [f["file"] for f in faults.named] == ["explanations/batch-0.jsonl.gz"]


def test_a_unit_that_does_not_fit_is_a_fault_of_its_line(folder):
    def refuses(model, place, index, known_as):
        if index == 8:
            raise Refused("'x' is no place that is known here.")
        return named(model, place, index, known_as)

    records, faults = read(folder, refuses)
    assert len(of(records, Hypothesis)) == 2
    assert {(f["file"], f["line"]) for f in faults.named} == {
        ("explanations/batch-0.jsonl.gz", 2), ("activations/batch-1.jsonl.gz", 2),
    }  # fmt: skip


def test_reading_twice_makes_the_same_ids_in_any_order(folder, tmp_path):
    first = {record.id for record in read(folder)[0]}
    assert first == {record.id for record in read(folder)[0]}
    rows = [an_explanation(i) for i in (7, 8, 9)]
    random.Random(0).shuffle(rows)
    write(tmp_path / "again", "explanations", rows)
    again = of(read(tmp_path / "again")[0], Hypothesis)
    assert len(again) == 3 and all(a.provenance["origin"] for a in again)
