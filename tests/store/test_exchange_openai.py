"""Files of OpenAI's neuron-explainer, made here in the shape that its dataclasses are stored in.

Shapes: neuron_explainer/explanations/explanations.py (NeuronSimulationResults) and activations/activations.py
(NeuronRecord) of github.com/openai/automated-interpretability; `dataclass_name` stands in each object, as
fast_dataclasses.py writes it.
"""

import json

import pytest

from lamplighter.store.exchange_openai import read_openai
from lamplighter.store.foreign import Faults
from lamplighter.store.imported import CLAIMED, CONTEXT, TEXTS
from lamplighter.store.records import Evidence, Hypothesis, Refused, Score


def simulated(tokens, true, score):
    simulation = {
        "dataclass_name": "SequenceSimulation", "tokens": tokens, "expected_activations": [1.0] * len(tokens),
        "activation_scale": "simulated_normalized_activations", "distribution_values": [[0.0, 1.0]] * len(tokens),
        "distribution_probabilities": [[0.5, 0.5]] * len(tokens), "uncalibrated_simulation": None,
    }  # fmt: skip
    return {
        "dataclass_name": "ScoredSequenceSimulation", "simulation": simulation, "true_activations": true,
        "ev_correlation_score": score, "rsquared_score": 0.1, "absolute_dev_explained_score": 0.2,
    }  # fmt: skip


def results(layer=5, neuron=131, sentence="fires on years", score=0.37, sequences=None):
    if sequences is None:
        sequences = [simulated(["in", " 1942", "."], [0.0, 3.5, -0.1], 0.9)]
    return {
        "dataclass_name": "NeuronSimulationResults",
        "neuron_id": {"dataclass_name": "NeuronId", "layer_index": layer, "neuron_index": neuron},
        "scored_explanations": [{
            "dataclass_name": "ScoredExplanation", "explanation": sentence,
            "scored_simulation": {
                "dataclass_name": "ScoredSimulation", "scored_sequence_simulations": sequences,
                "ev_correlation_score": score, "rsquared_score": 0.12, "absolute_dev_explained_score": 0.05,
            },
        }],
    }  # fmt: skip


def activations(layer=5, neuron=131, count=12):
    def record(value):
        return {"dataclass_name": "ActivationRecord", "tokens": ["a", " b"], "activations": [0.0, value]}

    return {
        "dataclass_name": "NeuronRecord", "neuron_id": {"layer_index": layer, "neuron_index": neuron},
        "random_sample": [record(0.1)], "random_sample_by_quantile": None, "quantile_boundaries": None, "mean": 0.1,
        "variance": float("nan"), "skewness": 0.0, "kurtosis": 0.0,
        "most_positive_activation_records": [record(float(i)) for i in range(count)],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A part of the released data: explanations/LAYER/NEURON.jsonl, collated-activations/LAYER/NEURON.json."""
    for kind in ("explanations", "collated-activations"):
        (tmp_path / kind / "5").mkdir(parents=True)
    (tmp_path / "explanations" / "5" / "131.jsonl").write_text(json.dumps(results()))
    (tmp_path / "collated-activations" / "5" / "131.json").write_text(json.dumps(activations()))
    return tmp_path


def named(model, place, index, known_as):
    return f"gpt2-xl/{place}-mlp/{index}", 1


def read(path):
    faults = Faults()
    return list(read_openai(path, named, faults)), faults


def of(records, kind):
    return [record for record in records if isinstance(record, kind)]


def test_an_explanation_with_what_is_claimed_of_it_and_its_texts(folder):
    records, faults = read(folder / "explanations" / "5" / "131.jsonl")
    (hypothesis,), (claim,), (texts,) = (of(records, kind) for kind in (Hypothesis, Score, Evidence))
    assert faults.count == 0
    assert (hypothesis.unit, hypothesis.sign, hypothesis.sentence) == ("gpt2-xl/5-mlp/131", 1, "fires on years")
    assert (hypothesis.author, hypothesis.kept, hypothesis.rule) == ("openai", False, None)
    assert hypothesis.provenance["explain_text"] == "unknown"
    assert (claim.metric, claim.side, claim.value, claim.n) == (CLAIMED, "source", 0.37, 1)
    assert claim.hypothesis == hypothesis.id and claim.low is None and claim.floors == {}
    assert claim.details == {
        "scorer": "simulation", "metric": "ev_correlation_score", "rsquared_score": 0.12,
        "absolute_dev_explained_score": 0.05,
    }  # fmt: skip
    row = {"tokens": ["in", " 1942", "."], "ids": None, "values": [0.0, 3.5, -0.1], "peak": 3.5, "position": 1}
    assert texts.rows == [row] and texts.tool == "import"


def test_a_folder_holds_both_kinds_and_the_strongest_texts_are_kept(folder):
    records, faults = read(folder)
    assert faults.count == 0 and len(of(records, Hypothesis)) == 1
    strongest = of(records, Evidence)[0]
    assert [row["peak"] for row in strongest.rows] == [float(i) for i in range(11, 1, -1)][:TEXTS]


def test_reading_twice_makes_the_same_ids(folder):
    first, second = read(folder)[0], read(folder)[0]
    assert [record.id for record in first] == [record.id for record in second]
    assert len({record.id for record in first}) == len(first) == 4


def test_an_undefined_score_has_no_number(folder):
    path = folder / "explanations" / "5" / "131.jsonl"
    path.write_text(json.dumps(results(score=float("nan"))))     # NaN as such a simulation leaves it
    (claim,) = of(read(path)[0], Score)
    assert claim.value is None and claim.reason == "openai states no number"


def test_a_long_text_is_cut_around_its_strongest_token(folder):
    path = folder / "explanations" / "5" / "131.jsonl"
    values = [0.0] * 200
    values[150] = 4.0
    path.write_text(json.dumps(results(sequences=[simulated([f" {i}" for i in range(200)], values, 0.5)])))
    (row,) = of(read(path)[0], Evidence)[0].rows
    assert len(row["tokens"]) == len(row["values"]) == CONTEXT
    assert row["tokens"][row["position"]] == " 150" and row["values"][row["position"]] == row["peak"] == 4.0


BAD = {
    "no neuron": ({"scored_explanations": []}, "no JSON object"),
    "negative": (results(neuron=-1), "neuron_index is '-1'"),
    "no kind": ({"neuron_id": {"layer_index": 1, "neuron_index": 1}}, "neither scored explanations nor"),
    "no sentence": (results(sentence=None), "explanation is no text"),
    "long": (results(sentence="x" * 5000), "5,000 characters"),
    "half a character": (results(sentence="\ud800"), "half a character"),
    "uneven": (results(sequences=[simulated(["a", "b"], [1.0], 0.1)]), "1 values for 2 tokens"),
    "infinite": (results(sequences=[simulated(["a"], [float("inf")], 0.1)]), "no finite number"),
    "list": ([1, 2], "no JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_line_is_named_and_the_others_are_read(tmp_path, case):
    value, why = BAD[case]
    path = tmp_path / "n.jsonl"
    path.write_text("\n".join([json.dumps(results(neuron=1)), json.dumps(value), json.dumps(results(neuron=2))]))
    records, faults = read(path)
    assert [h.unit for h in of(records, Hypothesis)] == ["gpt2-xl/5-mlp/1", "gpt2-xl/5-mlp/2"]
    assert faults.count == 1 and (faults.named[0]["file"], faults.named[0]["line"]) == ("n.jsonl", 2)
    assert why in faults.named[0]["why"]


def test_a_file_that_is_malformed_is_named_without_a_line(folder):
    (folder / "collated-activations" / "5" / "7.json").write_text("{")
    records, faults = read(folder)
    assert len(of(records, Evidence)) == 2
    assert faults.named[0]["file"] == "collated-activations/5/7.json" and faults.named[0]["line"] is None


def test_a_unit_that_has_no_name_here_is_a_fault(folder):
    def refuses(model, place, index, known_as):
        raise Refused("the files do not say which model they are about; name it with --model.")

    faults = Faults()
    assert list(read_openai(folder, refuses, faults)) == []
    assert faults.count == 2 and "--model" in str(faults)
