"""Explanations of other tools, scored here: by a judge on our score side, beside our floors, decided by our rule."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lamplighter import prompts
from lamplighter.agent import cli as commands
from lamplighter.agent import llm, score_imported
from lamplighter.agent.config import Home
from lamplighter.agent.exchange import bring_in
from lamplighter.agent.score_imported import Asked
from lamplighter.agent.verify import verify
from lamplighter.store.findings import drain
from lamplighter.store.records import Busy, Hypothesis, ImportVerdict, LLMCall, Refused, Score
from lamplighter.testing import Hang, Say, ScriptedEndpoint, Status, Step
from lamplighter.tools.judged import METRICS, Qualification
from lamplighter.tools.rules import split_words

Body = dict[str, Any]
NEURONS = {0: 'words such as "car"', 1: 'words such as "the"'}      # the first is right, the second wrong


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "KEY", "MODEL"):
        monkeypatch.delenv(f"LAMPLIGHTER_JUDGE_{name}", raising=False)
    monkeypatch.setattr(llm, "BACKOFF", 0.0)


def reads(body: Body) -> Step:
    """A judge that takes a neuron to fire on the words in quotation marks in its explanation."""
    task, asked = (str(body["messages"][n]["content"]) for n in (0, -1))
    told, _, rest = asked.partition("\n")
    words = set(re.findall('"(.+?)"', told))
    if task == prompts.render("generate"):
        some, count = sorted(words) or ["nothing"], int(re.findall(r"\d+", asked)[-1])
        fires = [f"the {n} {some[0]}" for n in range(count)]
        return Say(json.dumps({"fires": fires, "silent": [f"the {n} of" for n in range(count)]}))
    texts = re.findall(r"(?m)^\d+: “(.*)”$", rest)
    if task == prompts.render("simulate"):
        said: list[Any] = [9 * (text.strip() in words) for text in texts]
    elif task == prompts.render("fuzz"):
        said = [all(one.strip() in words for one in re.findall("«(.*?)»", text)) for text in texts]
    else:
        said = [not words.isdisjoint(split_words(text)) for text in texts]
    return Say(json.dumps({str(n): value for n, value in enumerate(said, 1)}))


@pytest.fixture
def theirs(swept: Home, project: Any, tmp_path: Path) -> Home:
    """A home with the run's sweep and two explanations of OpenAI's shape: one right, one wrong."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for index, sentence in NEURONS.items():
        scored = {"explanation": sentence, "scored_simulation": {"ev_correlation_score": 0.9}}
        told = {"neuron_id": {"layer_index": 0, "neuron_index": index}, "scored_explanations": [scored]}
        (folder / f"{index}.jsonl").write_text(json.dumps(told))
    bring_in(swept, "openai", folder, model=project.model)
    return swept


def trusted(monkeypatch: pytest.MonkeyPatch, low: float = 0.8) -> None:
    """The small corpus has no twenty different rules to try a judge on: here it has been tried."""
    found = {metric: Qualification(metric, 0.9, low, 1.0, 20, 40, 0) for metric in METRICS}
    monkeypatch.setattr(score_imported, "qualify", lambda *_, **__: found)


def score(home: Home, told: Any, server: Any, **asked: Any) -> dict[str, Any]:
    return score_imported.score_imported(home, Asked(judge=server.url, **asked), told)


def by_neuron(home: Home, kind: Any, **equals: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in home.findings.read(kind, **equals):
        found.setdefault(str(record.unit)[-1], []).append(record)
    return found


def test_their_explanations_get_our_scores_and_our_verdict(
    theirs: Home, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(monkeypatch)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        found = score(theirs, told, server)
        judge = f"llm:scripted@{server.url}/v1:{prompts.judge_digest()[:12]}"
    assert (found["status"], found["waiting"], found["judge"], found["left_out"]) == ("done", 0, judge, [])
    scores = by_neuron(theirs, Score, side="score")
    for index in ("0", "1"):
        assert [s.metric for s in scores[index]] == list(METRICS)
        for one in scores[index]:
            assert (one.judge, one.run, one.investigation) == (judge, found["run"], None)
            assert one.provenance["explain_text"] == "unknown" and one.provenance["sides"]["score"]
            assert one.floors.keys() == {"always_on", "shuffled", "another"} and one.details["qualified"] is True
    right, wrong = ({s.metric: s for s in scores[index]} for index in ("0", "1"))
    assert right["detection"].value > 0.9 and right["detection"].low is not None
    assert wrong["detection"].value < right["detection"].value
    verdicts = {index: one[-1] for index, one in by_neuron(theirs, ImportVerdict).items()}
    assert verdicts["0"].verdict == "accepted" and verdicts["0"].reason.startswith("detection by llm:scripted@")
    assert verdicts["0"].q is not None and verdicts["1"].verdict == "rejected"
    rows = {str(row["unit"])[-1]: row for row in found["scored"]}
    assert rows["0"]["claimed"][0]["value"] == 0.9 and rows["0"]["verdict"] == "accepted"
    assert theirs.findings.sql("SELECT count(*) AS n FROM explanations") == [{"n": 0}], "they stand for no unit"
    calls = theirs.findings.read(LLMCall)
    assert {c.run for c in calls if c.unit} == {found["run"]} and verify(theirs.path)["ok"]


def test_a_second_look_is_taken_by_nobody(theirs: Home, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted(monkeypatch)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        first = score(theirs, told, server)
        verdicts = theirs.findings.read(ImportVerdict)
        asked = len(server.requests)
        again = score(theirs, told, server)
        probes = [r for r in server.requests[asked:] if r.body and not llm_probe(r.body)]
    assert probes == [] and again["scored"] == [] and again["status"] == "done"
    assert theirs.findings.read(ImportVerdict) == verdicts and len(first["scored"]) == 2
    (hypothesis, *_) = theirs.findings.read(Hypothesis)
    key = f"score-side:{hypothesis.id}:judged:{first['judge']}"
    assert not theirs.work.claim_once(key), "the mark that it was read is there"


def llm_probe(body: Body) -> bool:
    return str(body["messages"][0]["content"]).startswith(llm.PROBE)


def test_a_judge_that_was_not_tried_decides_nothing(theirs: Home, told: Any) -> None:
    with ScriptedEndpoint(reads, logprobs=False) as server:
        score(theirs, told, server)
    assert any("not tried, so that its scores enter no verdict" in what for _, what in told.steps)
    for one in theirs.findings.read(ImportVerdict):
        assert one.verdict == "undefined" and "not tried in detection" in one.reason
    assert len(theirs.findings.read(Score, metric="detection")) == 2, "what it said is kept all the same"


def test_a_judge_that_failed_its_trial_decides_nothing(
    theirs: Home, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(monkeypatch, low=0.6)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        score(theirs, told, server)
    assert {v.reason for v in theirs.findings.read(ImportVerdict)} == {
        "the judge did not qualify for detection, so that its scores decide nothing"
    }


def test_what_was_cut_off_goes_on_where_it_was(theirs: Home, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies within the second explanation: of it nothing is kept, and nothing is lost."""
    trusted(monkeypatch)
    count = 0

    def dies(body: Body) -> Step:
        nonlocal count
        count += 1
        return reads(body) if count <= 75 else Status(500)

    with ScriptedEndpoint(dies, logprobs=False) as server, pytest.raises(Refused, match="the same command goes on"):
        score(theirs, told, server)
    kept = by_neuron(theirs, Score, side="score")
    assert len(kept) == 1 and all(len(scores) == len(METRICS) for scores in kept.values())
    assert not any("no answer" in str(s.reason) for scores in kept.values() for s in scores)
    with ScriptedEndpoint(reads, logprobs=False, port=int(server.url.rpartition(":")[2])) as again:
        found = score(theirs, told, again)
    assert len(found["scored"]) == 1 and found["status"] == "done"
    assert by_neuron(theirs, ImportVerdict).keys() == {"0", "1"}


def test_a_budget_ends_it_and_the_next_call_goes_on(theirs: Home, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted(monkeypatch)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        found = score(theirs, told, server, llm_tokens=1)
        assert found["status"] == "budget" and found["waiting"] == 2 and found["scored"] == []
        assert score(theirs, told, server)["status"] == "done"


def test_minutes_end_it_in_the_middle_of_an_answer(theirs: Home, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted(monkeypatch)
    with ScriptedEndpoint(lambda _: Hang(60), logprobs=False) as server:
        found = score(theirs, told, server, minutes=0.1)
    assert (found["status"], found["waiting"]) == ("budget", 2)
    assert theirs.findings.read(Score, side="score") == [], "nothing is made of an answer that did not come"


def test_texts_that_came_with_it_are_left_out_of_the_score_side(
    theirs: Home, project: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their text may be of our score side: what shares thirteen tokens with it is not scored on."""
    from lamplighter.tools.subject import Subject

    trusted(monkeypatch)
    subject = Subject.load(project.model)
    sweep = theirs.sweep_for(unit_of(project, 0), subject.site_digest("0-mlp"))
    ids = next(window for _, _, window in sweep.windows("score") if len(window) > 20)[1:]
    told_of = {"neuron_id": {"layer_index": 0, "neuron_index": 0}, "most_positive_activation_records": [
        {"tokens": subject.pieces(ids), "activations": [1.0] * len(ids)}]}  # fmt: skip
    (tmp_path / "texts.json").write_text(json.dumps(told_of))
    bring_in(theirs, "openai", tmp_path / "texts.json", model=project.model)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        score(theirs, told, server)
    scores = by_neuron(theirs, Score, metric="detection")
    assert scores["0"][0].details["dropped_windows"] >= 1 and scores["1"][0].details["dropped_windows"] == 0


def unit_of(project: Any, index: int) -> Any:
    from lamplighter.tools.units import UnitId

    return UnitId(project.model, "0-mlp", index)


def test_too_few_firings_are_unclear_and_nobody_is_asked(
    swept: Home, project: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(monkeypatch)
    (tmp_path / "e.jsonl").write_text("\n".join(
        json.dumps({"modelId": "x", "layer": "0", "index": str(index), "description": "rare"}) for index in (3, 99)
    ))  # fmt: skip
    bring_in(swept, "neuronpedia", tmp_path / "e.jsonl", model=project.model)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        found = score(swept, told, server)
        assert all(r.body is None or llm_probe(r.body) for r in server.requests)
    (one,) = swept.findings.read(ImportVerdict)
    assert one.verdict == "unclear" and one.reason.startswith("too few positives")
    assert len(found["left_out"]) == 1 and "99 is out of range" in found["left_out"][0]["why"]
    assert found["left_out"][0]["count"] == 1 and found["waiting"] == 0


def test_several_models_and_sites_that_are_not_here_are_left_out_with_the_reason(
    theirs: Home, project: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(monkeypatch)
    lines = [{"modelId": "no-such-model", "layer": "0", "index": "1", "description": "x"},
             {"modelId": "no-such-model", "layer": "1", "index": "1", "description": "x"}]  # fmt: skip
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bring_in(theirs, "neuronpedia", tmp_path / "e.jsonl")
    (tmp_path / "f.jsonl").write_text(json.dumps(lines[1]))
    bring_in(theirs, "neuronpedia", tmp_path / "f.jsonl", model=project.model)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        found = score(theirs, told, server)
        assert found["status"] == "done" and len(found["scored"]) == 2
        left = {row["why"].partition(" ")[0]: row["count"] for row in found["left_out"]}
        assert sum(left.values()) == 3 and any("was not swept" in row["why"] for row in found["left_out"])
        only = score(theirs, told, server, source="openai")
        assert only["left_out"] == [] and only["scored"] == []


def test_one_process_at_a_time(theirs: Home, told: Any) -> None:
    with ScriptedEndpoint(reads) as server, score_imported._alone(theirs), pytest.raises(Busy, match="another process"):
        score(theirs, told, server)


def test_without_a_judge_or_an_import_it_is_said_what_is_missing(
    theirs: Home, copied: Home, told: Any, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="takes a judge to be scored; name one with --judge"):
        score_imported.score_imported(theirs, Asked(), told)
    with pytest.raises(Refused, match="no language model plans here"):
        score_imported.score_imported(theirs, Asked(judge="planner"), told)
    with ScriptedEndpoint(reads) as server:
        with pytest.raises(Refused, match="nothing was imported"):
            score(copied, told, server)
        with pytest.raises(Refused, match="nothing is recorded"):
            score(Home(tmp_path / "none"), told, server)


def test_a_rival_is_told_beside_ours(
    copied: Home, project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command: their claim, what was measured here, and our own explanation of the same unit."""
    trusted(monkeypatch)
    line = {"modelId": "x", "layer": "0", "index": "0", "description": 'the "car"'}
    (tmp_path / "e.jsonl").write_text(json.dumps(line))
    bring_in(copied, "neuronpedia", tmp_path / "e.jsonl", model=project.model)
    before = copied.findings.sql("SELECT * FROM explanations ORDER BY unit, sign")

    def command(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lamplighter", "score", "--home", str(copied.path), *words])
        with pytest.raises(SystemExit) as end:
            commands.main()
        return int(end.value.code or 0), capsys.readouterr().out

    with ScriptedEndpoint(reads, logprobs=False) as server:
        assert command("--judge", server.url, "--llm-tokens", "1", "--json")[0] == 3
        code, out = command("--judge", server.url)
    told = " ".join(out.split())
    assert code == 0 and "neuronpedia" in told and "accepted" in told and "accepted, F1" in told
    assert copied.findings.sql("SELECT * FROM explanations ORDER BY unit, sign") == before
    (row,) = copied.findings.sql("SELECT * FROM imported")
    assert row["verdict"] == "accepted" and row["detection"] > row["floor"] and row["qualified"] is True


def test_false_discovery_is_over_all_that_a_judge_has_scored(
    theirs: Home, project: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes later changes the rate of what was there, and a verdict is written again only where it changed."""
    trusted(monkeypatch)
    with ScriptedEndpoint(reads, logprobs=False) as server:
        score(theirs, told, server)
        before = {v.hypothesis: v for v in theirs.findings.read(ImportVerdict)}
        lines = [json.dumps({"modelId": "x", "layer": "0", "index": "1", "description": f'"{word}"'}) for word in "abc"]
        (tmp_path / "e.jsonl").write_text("\n".join(lines))
        bring_in(theirs, "neuronpedia", tmp_path / "e.jsonl", model=project.model)
        score(theirs, told, server)
    drain(theirs.work, theirs.findings)
    rows = theirs.findings.read(ImportVerdict)
    newest = {v.hypothesis: v for v in rows}
    good = next(v for v in before.values() if v.verdict == "accepted")
    assert newest[good.hypothesis].q > good.q and newest[good.hypothesis].verdict == "accepted"
    changed = [h for h, v in before.items() if (v.q, v.reason) != (newest[h].q, newest[h].reason)]
    assert len(rows) == 2 + 3 + len(changed)
