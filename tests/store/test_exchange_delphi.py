"""delphi's folders: made here as it makes them and read; written, and read back equal.

Shapes: delphi/__main__.py, latents/cache.py (save_splits: float16 activations, uint16 or uint32 locations less the
first latent), latents/loader.py, scorers/classifier/sample.py and scorers/simulator/simulation/types.py of eai-delphi
0.1.3.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lamplighter.store.exchange_delphi import OURS, Readings, read_delphi, write_delphi
from lamplighter.store.foreign import Faults
from lamplighter.store.imported import CLAIMED, CONTEXT, TEXTS
from lamplighter.store.records import Evidence, Hypothesis, Score


def classified(activating, prediction, distance=1):
    return {
        "str_tokens": ["a", " b"], "activations": [0.0, 1.0], "distance": distance, "activating": activating,
        "prediction": prediction, "probability": None,
        "correct": None if prediction is None else prediction == activating,
    }  # fmt: skip


FUZZ = [
    *(classified(True, True) for _ in range(3)), classified(True, False), classified(False, False, -1),
    classified(False, True, -1), classified(True, None),
]  # fmt: skip
SIMULATED = [
    {"distance": q, "scored_sequence_simulations": [{}] * 4, "ev_correlation_score": score, "rsquared_score": 0,
     "absolute_dev_explained_score": 0}
    for q, score in ((1, 0.9), (-1, 0.41))
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A finished run over one hook point with three latents, cached in two splits."""
    path = tmp_path / "results" / "mine"
    for name in ("explanations", "scores/fuzz", "scores/detection", "scores/simulation", "latents/layers.5.mlp", "log"):
        (path / name).mkdir(parents=True)
    config = {
        "model": "EleutherAI/pythia-160m", "sparse_model": "EleutherAI/sae-pythia-32x", "hookpoints": ["layers.5.mlp"],
        "explainer_model": "llama-70b", "scorers": ["fuzz", "detection"], "seed": 22,
    }  # fmt: skip
    (path / "run_config.json").write_text(json.dumps(config, indent=4))
    for latent, sentence in ((2, "fires on “years”"), (3, "Explanation could not be parsed."), (70, "fires on cars")):
        (path / "explanations" / f"layers.5.mlp_latent{latent}.txt").write_text(json.dumps(sentence))
    (path / "scores" / "fuzz" / "layers.5.mlp_latent2.txt").write_text(json.dumps(FUZZ))
    (path / "scores" / "simulation" / "layers.5.mlp_latent2.txt").write_text(json.dumps(SIMULATED))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (40, 32))
    for first, last in ((0, 63), (64, 127)):
        rows = np.array([(r, p, i) for i in (2, 3, 70) if first <= i <= last for r in range(15) for p in (4, 9)])
        save_file({
            "locations": (rows - [0, 0, first]).astype(np.uint16),
            "activations": (rows[:, 0] + rows[:, 1] / 10).astype(np.float16), "tokens": tokens,
        }, path / "latents" / "layers.5.mlp" / f"{first}_{last}.safetensors")  # fmt: skip
    (path / "latents" / "layers.5.mlp" / "config.json").write_text(json.dumps({"ctx_len": 32, "model_name": "m"}))
    return path


asked = []


def named(model, place, index, known_as):
    asked.append((model, place, index, known_as))
    return f"{model}/{place}/{index}", 1


def read(path):
    asked.clear()
    faults = Faults()
    return list(read_delphi(path, named, faults)), faults


def of(records, kind):
    return [record for record in records if isinstance(record, kind)]


def test_a_run_is_read_with_its_scores_and_its_strongest_texts(run):
    records, faults = read(run)
    found = of(records, Hypothesis)
    assert [(h.unit, h.sentence, h.author) for h in found] == [
        ("EleutherAI/pythia-160m/layers.5.mlp/2", "fires on “years”", "delphi:llama-70b"),
        ("EleutherAI/pythia-160m/layers.5.mlp/70", "fires on cars", "delphi:llama-70b"),
    ]  # fmt: skip
    assert asked[0] == ("EleutherAI/pythia-160m", "layers.5.mlp", 2, "sae-pythia-32x")
    assert {h.provenance["explain_text"] for h in found} == {"unknown"}
    fuzz, simulation = of(records, Score)
    assert (fuzz.metric, fuzz.side, fuzz.n, fuzz.judge) == (CLAIMED, "source", 6, "llama-70b")
    assert fuzz.value == pytest.approx((3 / 4 + 1 / 2) / 2), "class-balanced, as delphi sums it up"
    assert fuzz.details["unanswered"] == 1 and fuzz.details["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert (simulation.value, simulation.n, simulation.details["scorer"]) == (0.41, 4, "simulation")
    assert faults.named == [{
        "file": "explanations/layers.5.mlp_latent3.txt", "line": None,
        "why": "it is no explanation: delphi says that it got none",
    }]  # fmt: skip
    texts = {str(e.unit).rpartition("/")[2]: e.rows for e in of(records, Evidence)}
    assert texts.keys() == {"2", "70"} and len(texts["70"]) == TEXTS
    held = load_file(run / "latents" / "layers.5.mlp" / "64_127.safetensors")["tokens"]
    best = texts["70"][0]
    assert best["ids"] == held[14].tolist() and best["tokens"] is None
    assert best["position"] == 9 and best["peak"] == pytest.approx(14.9, abs=0.01)
    assert [i for i, value in enumerate(best["values"]) if value] == [4, 9]


def test_one_label_alone_has_no_balanced_accuracy(run):
    (run / "scores" / "fuzz" / "layers.5.mlp_latent2.txt").write_text(json.dumps([classified(True, True)]))
    score = of(read(run)[0], Score)[0]
    assert score.value is None and score.details["f1"] == 1.0


def test_reading_twice_makes_the_same_ids(run):
    assert [r.id for r in read(run)[0]] == [r.id for r in read(run)[0]]


def test_long_windows_are_cut_around_the_strongest_token(run):
    tokens, part = np.arange(512).reshape(2, 256), "latents/layers.5.mlp/0_63.safetensors"
    save_file({"locations": np.array([[1, 200, 2]], dtype=np.uint32), "activations": np.array([2.0], dtype=np.float32),
               "tokens": tokens}, run / part)  # fmt: skip
    (row,) = next(e for e in of(read(run)[0], Evidence) if str(e.unit).endswith("/2")).rows
    assert len(row["ids"]) == CONTEXT and row["ids"][row["position"]] == 256 + 200


def tensors(**changed):
    whole = {
        "locations": np.array([[0, 1, 2]], dtype=np.uint16), "activations": np.array([1.0], dtype=np.float16),
        "tokens": np.zeros((2, 8), dtype=np.int64),
    }  # fmt: skip
    return {name: value for name, value in (whole | changed).items() if value is not None}


BAD_TENSORS = {
    "no tokens": (tensors(tokens=None), "lacks tokens"),
    "row outside": (tensors(locations=np.array([[2, 1, 2]], dtype=np.uint16)), "outside of its tokens"),
    "position outside": (tensors(locations=np.array([[0, 8, 2]], dtype=np.uint16)), "outside of its tokens"),
    "negative": (tensors(locations=np.array([[0, -1, 2]], dtype=np.int32)), "outside of its tokens"),
    "two columns": (tensors(locations=np.array([[0, 1]], dtype=np.uint16)), "do not fit together"),
    "uneven": (tensors(activations=np.ones(2, dtype=np.float16)), "do not fit together"),
    "not finite": (tensors(activations=np.array([np.nan], dtype=np.float32)), "no activations or no tokens"),
    "tokens below 0": (tensors(tokens=np.full((2, 8), -1)), "no activations or no tokens"),
    "kinds": (tensors(tokens=np.zeros((2, 8))), "other kinds"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named_and_the_rest_is_read(run, case):
    given_tensors, why = BAD_TENSORS[case]
    save_file(given_tensors, run / "latents" / "layers.5.mlp" / "0_63.safetensors")
    records, faults = read(run)
    assert len(of(records, Hypothesis)) == 2 and len(of(records, Evidence)) == 1
    fault = faults.named[-1]
    assert fault["file"] == "latents/layers.5.mlp/0_63.safetensors" and why in fault["why"]


@pytest.mark.parametrize("raw", [b"", b"\xff" * 100, (2**62).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_files_that_are_no_tensors_are_named(run, raw):
    (run / "latents" / "layers.5.mlp" / "0_63.safetensors").write_bytes(raw)
    assert read(run)[1].named[-1]["file"].endswith("0_63.safetensors")


def test_files_of_tensors_are_bounded(run, monkeypatch):
    monkeypatch.setattr("lamplighter.store.foreign.TENSORS", 100)
    records, faults = read(run)
    assert not of(records, Evidence) and "more than 100 bytes" in faults.named[-1]["why"]


BAD_FILES = {
    "explanations/no-latent.txt": ('"x"', "not PLACE_latentN.txt"),
    "explanations/layers.5.mlp_latent9.txt": ("fires on cars", "no JSON"),
    "explanations/layers.5.mlp_latent8.txt": ('["x"]', "the explanation is no text"),
    "scores/fuzz/layers.5.mlp_latent70.txt": ("[{}]", "no score of a kind that is known"),
    "scores/detection/layers.5.mlp_latent70.txt": ('{"a": 1}', "the score is no list"),
    "latents/layers.5.mlp/x.safetensors": ("", "not FIRST_LAST.safetensors"),
    "run_config.json": ("{", "no JSON"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_malformed_is_named_and_the_others_are_read(run, name):
    raw, why = BAD_FILES[name]
    (run / name).write_text(raw)
    records, faults = read(run)
    assert len(of(records, Hypothesis)) == 2
    assert any(fault["file"] == name and why in fault["why"] for fault in faults.named), faults.named


def test_nothing_outside_the_folder_is_read(run, tmp_path):
    """Not through a link, and not by a name that leads out of it."""
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    save_file(tensors(), secret / "inner" / "0_63.safetensors")
    (secret / "layers.5.mlp_latent70.txt").write_text(json.dumps(FUZZ))
    (run / "scores" / "detection").rmdir()
    (run / "scores" / "detection").symlink_to(secret)
    (run / "latents" / "elsewhere").symlink_to(secret / "inner")
    (run / "explanations" / "elsewhere_latent2.txt").write_text('"by a link"')
    folder = run / "explanations" / ".."
    assert folder.exists()
    (run / "explanations" / "..--..--secret--inner_latent2.txt").write_text('"by a name"')
    records, _ = read(run)
    assert len(of(records, Hypothesis)) == 4 and len(of(records, Evidence)) == 2
    assert [s.details["scorer"] for s in of(records, Score)] == ["fuzz", "simulation"]


def test_places_of_gemma_scope_hold_slashes(run):
    (run / "explanations" / "layer_12" / "width_16k").mkdir(parents=True)
    (run / "explanations" / "layer_12" / "width_16k" / "average_l0_82_latent4.txt").write_text('"x"')
    (run / "scores" / "fuzz" / "layer_12--width_16k--average_l0_82_latent4.txt").write_text(json.dumps(FUZZ))
    records, _ = read(run)
    assert [h.unit for h in of(records, Hypothesis)][-1] == "EleutherAI/pythia-160m/layer_12/width_16k/average_l0_82/4"
    assert len(of(records, Score)) == 3


# Ours, out and in again


SITES = ("5-mlp", "5-mlp@negative", "8-resid:my--sae")


def own(model, place, index, known_as):
    site = place.removesuffix("@negative")
    return f"{model}/{site}/{index}", -1 if site != place else 1


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(SITES), st.integers(0, 60)), st.text(min_size=1, max_size=40), min_size=1, max_size=8
    ),
    st.integers(0, 2**32 - 1), st.integers(2, 64), st.integers(1, 12),
)  # fmt: skip
def test_what_is_written_is_read_back_equal(tmp_path_factory, explained, seed, context, count):
    """Sentences, and readings to the bit: float32, of which a window's strongest are all kept."""
    folder = tmp_path_factory.mktemp("delphi")
    rng = np.random.default_rng(seed)
    rows, values = [], {}
    for (place, index), sentence in explained.items():
        unit, sign = own("org/m", place, index, None)
        if sentence.strip():
            rows.append({"unit": unit, "sign": sign, "explanation": sentence, "planner": "playbook", "rule": None})
    windows = [rng.integers(1, 500, rng.integers(2, context + 1)).tolist() for _ in range(count)]

    def readings(units):
        read = np.full((count, max(map(len, windows)), len(units)), np.nan, dtype=np.float32)
        for line, ids in enumerate(windows):
            read[line, 1 : len(ids)] = rng.normal(size=(len(ids) - 1, len(units)))
        for number, unit in enumerate(units):
            values[unit] = read[:, :, number]
        return Readings(windows, [read[:5], read[5:]], np.zeros(len(units)), 61, 0)

    if not rows:
        return
    told = write_delphi(folder, rows, "org/m", "@negative", readings)
    assert told["explanations"] == len(rows)
    faults = Faults()
    records = list(read_delphi(folder, own, faults))
    assert faults.count == 0
    assert {(h.unit, h.sign, h.sentence) for h in of(records, Hypothesis)} == {
        (row["unit"], row["sign"], row["explanation"]) for row in rows
    }
    found = {(e.unit, e.sign): e.rows for e in of(records, Evidence)}
    for (unit, sign), read in values.items():
        positive = np.where(np.nan_to_num(read) >= 1e-5, read, 0.0)
        order = sorted((line for line in range(count) if positive[line].any()), key=lambda n: (-positive[n].max(), n))
        rows_found = found.get((unit, sign), [])
        assert len(rows_found) == min(len(order), TEXTS)
        for line, row in zip(order, rows_found, strict=False):
            assert row["ids"][: len(windows[line])] == windows[line]
            assert row["values"] == positive[line].astype(float).tolist()
    kept = [json.loads(line) for line in (folder / OURS).read_text("utf-8").split("\n") if line]
    assert kept == rows


def test_without_readings_there_are_no_latents(tmp_path):
    row = {"unit": "m/5-mlp/3", "sign": 1, "explanation": "x", "planner": "playbook"}
    write_delphi(tmp_path, [row], "m", "@negative", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["explanations", OURS, "run_config.json"]
    assert json.loads((tmp_path / "explanations" / "5-mlp_latent3.txt").read_text()) == "x"
