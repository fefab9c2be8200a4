"""Whole homes out and in: what the commands write and read, on a real run over a tiny model."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamplighter.agent import cli as commands
from lamplighter.agent.config import Home
from lamplighter.agent.exchange import bring_in, export
from lamplighter.agent.verify import verify
from lamplighter.store.exchange import Wanted, runs
from lamplighter.store.records import Evidence, Hypothesis, Refused, Score
from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.units import UnitId

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Exit code, stdout and stderr of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lamplighter", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            commands.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(end.value.code or 0), out, err

    return call


def explained(home: Home) -> list[dict[str, Any]]:
    return home.findings.sql("SELECT * FROM explanations ORDER BY unit, sign DESC")


# Out


def test_neuronpedia_gets_texts_with_the_readings_of_the_model(
    cli: Cli, finished: Any, project: Any, tmp_path: Path
) -> None:
    from lamplighter.tools.subject import Subject

    home, out = ("--home", finished.home.path), tmp_path / "out"
    code, said, _ = cli("export", "neuronpedia", out, "--model-id", "Tiny", *home, "--json")
    told = json.loads(said)
    assert code == 0 and told["folder"] == str(out) and told["explanations"] == 3
    calls = [json.loads((out / call["file"]).read_text("utf-8")) for call in told["calls"]]
    assert {(c["modelId"], c["source"]) for c in calls} == {
        ("tiny", "0-lamplighter-mlp"), ("tiny", "0-lamplighter-mlp-neg")
    }  # fmt: skip
    subject, compared = Subject.load(project.model), 0
    for call in calls:
        sign = -1 if call["source"].endswith("-neg") else 1
        for feature in call["features"]:
            unit = UnitId(project.model, "0-mlp", feature["index"], sign)
            assert feature["explanations"][0]["text"].startswith("fires on")
            for one in feature["activations"]:
                ids = subject.encode("".join(one["tokens"]))
                if subject.pieces(ids[1:]) == one["tokens"]:      # else a window that begins within a word
                    read = sign * subject.activations(ids, [unit])[0, 1:, 0]
                    assert one["values"] == pytest.approx(read.tolist(), rel=1e-4, abs=1e-5)
                    compared += 1
                if one["quantileFraction"] is not None:
                    low, high = one["quantileMin"], one["quantileMax"] or float("inf")
                    assert any(low - 1e-5 <= value <= high + 1e-5 for value in one["values"])
            assert max(max(one["values"]) for one in feature["activations"]) > 0
            assert {one["quantileFraction"] is None for one in feature["activations"]} == {True, False}
            assert feature["topLogits"] is None or len(feature["topLogits"]) <= 20
    assert compared > 10


def test_a_dry_run_says_the_same_and_writes_nothing(cli: Cli, finished: Any, tmp_path: Path) -> None:
    home = ("--home", finished.home.path, "--json")
    for form in ("neuronpedia", "delphi", "parquet", "jsonl"):
        place = tmp_path / form
        code, said, _ = cli("export", form, place, "--dry-run", *home)
        assert code == 0 and not place.exists() and json.loads(said)["folder"] is None
        real = json.loads(cli("export", form, place, *home)[1])
        same = {name: value for name, value in json.loads(said).items() if name != "folder"}
        assert same == {name: real[name] for name in same}
    assert not (finished.home.path / "exports").exists()


def test_what_is_not_accepted_goes_to_neuronpedia_only_when_asked(finished: Any, tmp_path: Path) -> None:
    rows = explained(finished.home)
    others = [row for row in rows if row["explanation"] and row["verdict"] != "accepted"]
    told = export(finished.home, "neuronpedia", None, Wanted(), dry=True)
    assert told["explanations"] == sum(row["verdict"] == "accepted" for row in rows)
    left = {"what": "left out: not accepted (--verdict chooses others)", "count": len(others)}
    assert not others or left in told["notes"]
    with pytest.raises(Refused, match="no explanation is to be exported"):
        export(finished.home, "neuronpedia", None, Wanted(verdict="rejected"), dry=True)


def test_units_that_cannot_be_read_are_left_out_with_the_reason(copied: Home, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(copied.path / "sweeps")
    with pytest.raises(Refused, match="0-mlp of .* was not swept .*lamplighter sweep"):
        export(copied, "neuronpedia", tmp_path / "out", Wanted())
    with pytest.raises(Refused, match="was not swept"):
        export(copied, "delphi", tmp_path / "out", Wanted())
    assert list(tmp_path.glob("*out*")) == [], "nothing is left of either"
    assert export(copied, "delphi", tmp_path / "out", Wanted(), no_text=True)["explanations"] == 3


def test_people_are_told_where_it_is_and_what_was_left_out(cli: Cli, finished: Any, tmp_path: Path) -> None:
    home = ("--home", finished.home.path)
    code, out, _ = cli("export", "neuronpedia", tmp_path / "out", *home)
    assert code == 0 and f"written to {tmp_path / 'out'}" in " ".join(out.split())
    assert "not carried: scores, rules" in out
    code, out, _ = cli("export", "jsonl", "--no-text", "--dry-run", *home)
    assert code == 0 and "nothing was written, without text" in out and "left empty: exemplars.text in" in out


def test_a_folder_that_is_there_is_not_written_to(cli: Cli, finished: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for form in ("neuronpedia", "delphi", "parquet", "jsonl"):
        code, out, err = cli("export", form, tmp_path / "mine", "--home", finished.home.path)
        assert code == 1 and "is there already and is not overwritten" in err and out == ""
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("form", ["delphi", "parquet", "jsonl"])
def test_no_text_of_a_real_corpus_leaves(finished: Any, project: Any, tmp_path: Path, form: str) -> None:
    """Of no document four words in a row; where text is written, the same search finds it."""
    documents = [runs(document.text) for document in load_corpus(project.corpus).documents]
    found = {}
    for silent in (True, False):
        told = export(finished.home, form, tmp_path / f"{form}{silent}", Wanted(), no_text=silent)
        out = runs(" ".join(re.findall(r"\w+", values_of(Path(told["folder"]), project))))
        found[silent] = sum(not known.isdisjoint(out) for known in documents)
    assert found[True] == 0 < 10 < found[False]


def values_of(folder: Path, project: Any) -> str:
    """All that stands in a folder, token ids as text."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    from lamplighter.tools.subject import Subject

    parts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            parts += [json.dumps(row, default=str) for row in pq.read_table(path).to_pylist()]
        elif path.suffix == ".safetensors":
            subject = Subject.load(project.model)
            parts += [subject.text(ids) for ids in load_file(path)["tokens"].tolist()]
        else:
            parts.append(path.read_text("utf-8"))
    return "\n".join(parts)


def test_delphi_and_back_keeps_sentences_and_readings(finished: Any, project: Any, tmp_path: Path) -> None:
    """Every reading that comes back is what the model reads there, to the last bit of a float32."""
    from lamplighter.tools.subject import Subject

    told = export(finished.home, "delphi", tmp_path / "out", Wanted())
    assert told["places"] == ["0-mlp", "0-mlp@negative"] and told["windows"] > 50
    other = Home(tmp_path / "other")
    back = bring_in(other, "delphi", tmp_path / "out")
    mine = {(row["unit"], row["sign"]): row["explanation"] for row in explained(finished.home) if row["explanation"]}
    assert (back["explanations"], back["left_out"], back["known"]) == (len(mine), 0, 0)
    drained(other)
    theirs = {(h.unit, h.sign): h.sentence for h in other.findings.read(Hypothesis)}
    assert theirs == mine
    subject = Subject.load(project.model)
    for evidence in other.findings.read(Evidence):
        unit = UnitId.parse(f"{evidence.unit}{'-' if evidence.sign == -1 else ''}")
        least = 0.1 * Home(finished.home.path).sweep_for(unit, subject.site_digest("0-mlp")).statistics(unit).peak
        assert len(evidence.rows) == 10
        for row in evidence.rows:
            ids = row["ids"][: row["ids"].index(subject.sink, 1)] if subject.sink in row["ids"][1:] else row["ids"]
            read = unit.sign * subject.activations(ids, [unit])[0, :, 0].double()
            for value, y in zip(row["values"][1:], read[1:].tolist(), strict=False):
                assert value == pytest.approx(y, rel=1e-5) if value else y < least + 1e-5
    assert other.findings.sql("SELECT * FROM explanations") == [], "nothing of it counts as measured here"


def drained(home: Home) -> None:
    from lamplighter.store.findings import drain

    drain(home.work, home.findings)


# In


def neuron(folder: Path, index: int, sentence: str = "cars", **changed: Any) -> Path:
    """One file of OpenAI's explanations."""
    told = {
        "neuron_id": {"layer_index": 0, "neuron_index": index},
        "scored_explanations": [{"explanation": sentence, "scored_simulation": {
            "ev_correlation_score": 0.5, "scored_sequence_simulations": []}}],
    } | changed  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / f"{index}.jsonl").write_text(json.dumps(told))
    return folder


def test_importing_twice_adds_nothing_and_says_so(cli: Cli, copied: Home, project: Any, tmp_path: Path) -> None:
    folder = neuron(neuron(tmp_path / "theirs", 0), 1)
    before = explained(copied)
    asked = ("import", "openai", folder, "--model", project.model, "--home", copied.path, "--json")
    code, out, _ = cli(*asked)
    first = json.loads(out)
    assert code == 0 and (first["explanations"], first["claimed_scores"], first["known"]) == (2, 2, 0)
    assert first["explain_text"] == "unknown" and first["left_out"] == 0
    rows = copied.findings.sql("SELECT * FROM imported ORDER BY unit", unpack=True)
    again = json.loads(cli(*asked)[1])
    assert (again["explanations"], again["claimed_scores"], again["known"]) == (0, 0, 2)
    assert copied.findings.sql("SELECT * FROM imported ORDER BY unit", unpack=True) == rows and len(rows) == 2
    neuron(tmp_path / "theirs", 2)
    third = json.loads(cli(*asked)[1])
    assert (third["explanations"], third["known"]) == (1, 2)
    assert explained(copied) == before, "ours stand as they stood"
    assert verify(copied.path)["ok"]


def test_what_was_imported_is_shown_by_its_source(cli: Cli, copied: Home, project: Any, tmp_path: Path) -> None:
    folder = neuron(neuron(tmp_path / "theirs", 0, "cars\u202e<b>"), 7)
    cli("import", "openai", folder, "--model", project.model, "--home", copied.path)
    (row,) = copied.findings.sql("SELECT * FROM imported WHERE unit LIKE '%/0'", unpack=True)
    assert row["claimed"] == [{"scorer": "simulation", "metric": "ev_correlation_score", "value": 0.5, "n": 0}]
    assert (row["source"], row["explain_text"], row["verdict"], row["detection"]) == ("openai", "unknown", None, None)
    out = " ".join(cli("show", f"{project.model}/0-mlp/0", "--home", copied.path)[1].split())
    assert "explanations by other tools; which text they were made from is unknown" in out
    assert "simulation ev_correlation_score 0.50" in out and "not scored here" in out
    assert "\u202e" not in out and "\\u202e<b>" in out and "fires on" in out
    code, out, _ = cli("show", f"{project.model}/0-mlp/7", "--home", copied.path)
    assert code == 0 and "was not investigated" in out and "openai" in out


def test_a_new_home_can_begin_with_an_import(cli: Cli, project: Any, tmp_path: Path) -> None:
    folder, home = neuron(tmp_path / "theirs", 0), ("--home", tmp_path / "home")
    assert cli("import", "openai", folder, "--model", "org/m", *home)[0] == 0
    assert json.loads(cli("sql", "SELECT unit FROM imported", *home)[1]) == [{"unit": "org/m/0-mlp/0"}]


def test_faults_are_listed_for_people(cli: Cli, tmp_path: Path) -> None:
    folder = neuron(neuron(tmp_path / "theirs", 0), 1, neuron_id=None)
    code, out, _ = cli("import", "openai", folder, "--model", "m", "--home", tmp_path / "home")
    told = " ".join(out.split())
    assert code == 0 and "1 explanations of openai imported, 0 were here before" in told
    assert "which text they were made from: unknown" in told and "left out: 1" in told
    assert "1.jsonl 1 it is no JSON object" in told


def refused(said: tuple[int, str, str], *words: str) -> None:
    code, out, err = said
    assert code == 1 and out == "", said
    (line,) = err.splitlines()
    assert all(word in line for word in words), line


def test_imports_that_bring_nothing_are_refused_with_the_first_fault(cli: Cli, tmp_path: Path) -> None:
    home, folder = ("--home", tmp_path / "home"), neuron(tmp_path / "theirs", 0)
    refused(cli("import", "openai", folder, *home), "nothing that could be imported", "--model", "0.jsonl, line 1")
    refused(cli("import", "openai", tmp_path / "nowhere", *home), "there is no file or folder")
    refused(cli("import", "delphi", folder, *home), "nothing that could be imported")
    refused(cli("import", "openai", folder, "--model", "m", "--site", "x", *home), "'x' is no site")
    (tmp_path / "pipe").mkdir()
    import os

    os.mkfifo(tmp_path / "pipe" / "0.jsonl")
    refused(cli("import", "openai", tmp_path / "pipe" / "0.jsonl", "--model", "m", *home), "there is no file or folder")
    assert cli("import", "pickle", folder, *home)[0] == 2
    code, out, _ = cli("import", "openai", folder, "--json", *home)
    assert code == 1 and json.loads(out)["ok"] is False


def test_exports_that_cannot_be_are_refused(cli: Cli, finished: Any, tmp_path: Path) -> None:
    home = ("--home", finished.home.path)
    refused(cli("export", "jsonl", "--home", tmp_path / "none"), "Nothing is recorded")
    refused(cli("export", "neuronpedia", "--no-text", *home), "takes no unit without a text")
    refused(cli("export", "jsonl", "--verdict", "good", *home), "'good' is no verdict")
    refused(cli("export", "jsonl", "--licence", "MIT\nx: y", *home), "no name of a licence")
    refused(cli("export", "delphi", "--model", "other", *home), "no explanation is to be exported")
    assert cli("export", "csv", *home)[0] == 2


def test_units_get_their_place_here_from_the_files_or_the_options(tmp_path: Path) -> None:
    """A delphi run over SAEs: the SAE's name comes from the run, or from --coder, or the whole site from --site."""
    run = tmp_path / "run"
    (run / "explanations").mkdir(parents=True)
    (run / "run_config.json").write_text(json.dumps({"model": "org/m", "sparse_model": "org/sae-32x"}))
    (run / "explanations" / "layers.5.mlp_latent7.txt").write_text('"cars"')
    (run / "explanations" / "somewhere_latent7.txt").write_text('"cars"')
    for number, (options, unit, faults) in enumerate([
        ({}, "org/m/5-mlp:sae-32x/7", 1), ({"coder": "mine", "model": "here"}, "here/5-mlp:mine/7", 1),
        ({"site": "8-resid:x"}, "org/m/8-resid:x/7", 0),
    ]):  # fmt: skip
        home = Home(tmp_path / f"home{number}")
        told = bring_in(home, "delphi", run, **options)
        drained(home)
        assert {h.unit for h in home.findings.read(Hypothesis)} == {unit} and told["left_out"] == faults
        assert told["explanations"] == 1, "the same sentence of the same unit, from two files"


def test_an_sae_of_this_home_says_by_itself_where_it_is(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    home = Home(tmp_path / "home")
    folder = home.saes / "mine"
    folder.mkdir(parents=True)
    weights = {"W_enc": torch.zeros(4, 6), "W_dec": torch.zeros(6, 4), "b_enc": torch.zeros(6), "b_dec": torch.zeros(4)}
    save_file(weights, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": 4, "d_sae": 6, "hook_name": "blocks.5.hook_mlp_out"}
    (folder / "cfg.json").write_text(json.dumps(config))
    line = {"modelId": "m", "index": "3", "description": "cars"}
    (tmp_path / "e.jsonl").write_text("\n".join(json.dumps(line | {"layer": f"{n}-res-x"}) for n in (5, 6)))
    bring_in(home, "neuronpedia", tmp_path / "e.jsonl", coder="mine")
    drained(home)
    units = {h.unit for h in home.findings.read(Hypothesis)}
    assert units == {"m/5-mlp:mine/3", "m/6-resid:mine/3"}, "of layer 5 it is known; no other layer is its"


def test_claims_never_count_as_scores(copied: Home, project: Any, tmp_path: Path) -> None:
    bring_in(copied, "openai", neuron(tmp_path / "theirs", 0), model=project.model)
    drained(copied)
    claims = copied.findings.read(Score, metric="claimed_score")
    assert len(claims) == 1 and claims[0].side == "source" and claims[0].low is None
    verdicts = copied.findings.sql("SELECT count(*) AS n FROM import_verdicts")
    assert verdicts == [{"n": 0}]
