"""A judge in whole runs: its scores beside those of the rules, what it costs, and what it may decide."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lamplighter import prompts
from lamplighter.agent import llm
from lamplighter.agent.config import Home
from lamplighter.agent.night import _Night
from lamplighter.store.records import LLMCall, Refused, Score, Verdict
from lamplighter.testing import CallTool, Say, ScriptedEndpoint, Status, Step
from lamplighter.tools.judged import METRICS, Qualification
from lamplighter.tools.rules import split_words

TWO = "0-mlp/0,0-mlp/1"
Body = dict[str, Any]


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("LLM", "JUDGE"):
        for name in ("URL", "KEY", "MODEL"):
            monkeypatch.delenv(f"LAMPLIGHTER_{role}_{name}", raising=False)
    monkeypatch.setattr(llm, "BACKOFF", 0.0)


def reads(body: Body) -> Step:
    """Knows that a neuron fires on the words in quotation marks in its explanation, in any case."""
    task, asked = (str(body["messages"][n]["content"]) for n in (0, -1))
    told, _, rest = asked.partition("\n")
    named = re.findall('"(.+?)"', told) or ["nothing"]
    words = {word.lower() for word in named}
    if task == prompts.render("generate"):
        count, some = int(re.findall(r"\d+", asked)[-1]), named
        fires = [f"the {n} {some[n % len(some)]}" for n in range(count)]
        return Say(json.dumps({"fires": fires, "silent": [f"the {n} of" for n in range(count)]}))
    texts = re.findall(r"(?m)^\d+: “(.*)”$", rest)
    if task == prompts.render("simulate"):
        return answer([9 * (text.strip().lower() in words) for text in texts])
    if task == prompts.render("fuzz"):
        marked = [re.findall("«(.*?)»", text) for text in texts]
        return answer([all(one.strip().lower() in words for one in some) for some in marked])
    return answer([any(word.lower() in words for word in split_words(text)) for text in texts])


def answer(values: list[Any]) -> Say:
    return Say(json.dumps({str(n): value for n, value in enumerate(values, 1)}))


def judged(home: Home, run: str) -> list[Score]:
    return [s for s in home.findings.read(Score, run=run) if s.judge is not None]


def verdicts(home: Home, run: str) -> dict[str, Verdict]:
    """The last verdict of each neuron."""
    return {str(v.unit)[-1]: v for v in home.findings.read(Verdict, run=run)}


@pytest.fixture
def swept(finished: Any, tmp_path: Path) -> Home:
    """A home with the finished run's sweep and nothing else."""
    shutil.copytree(finished.home.path / "sweeps", tmp_path / "home" / "sweeps")
    return Home(tmp_path / "home")


def qualified(self: Any, state: Any) -> dict[str, Qualification]:
    return {metric: Qualification(metric, 0.9, 0.8, 1.0, 20, 40, 0) for metric in METRICS}


def test_sentences_are_judged_beside_the_rules_scores(swept: Home, project: Any, told: Any) -> None:
    """The small corpus has no twenty different rules to try a judge on: that is said, and it decides nothing."""
    with ScriptedEndpoint(reads, logprobs=False) as server:
        outcome = project.run(swept, told, units=TWO, judge=server.url)
    scores = judged(swept, outcome.run)
    assert [s.metric for s in scores] == 2 * list(METRICS)
    assert {s.judge for s in scores} == {f"llm:scripted@{server.url}/v1:{prompts.judge_digest()[:12]}"}
    for score in scores:
        least = 0.6 if score.metric == "generation" else 0.9     # a sentence does not say in which case a word fires
        assert score.value is not None and score.value > least, (score.metric, score.reason)
        assert score.floors.keys() == {"always_on", "shuffled", "another"}
        assert score.details["qualified"] is None and score.details["judge_is_author"] is False
        assert score.unit is not None and score.run == outcome.run and score.provenance["judged"]
    assert [step for unit, step in told.steps if unit == "the judge"][-1].startswith("not tried, so that its scores")
    assert [v.verdict for v in verdicts(swept, outcome.run).values()] == ["accepted", "accepted"]
    calls = [c for c in swept.findings.read(LLMCall) if c.purpose == "judge"]
    assert len(calls) > 8 and {str(c.unit)[-1] for c in calls} == {"0", "1"} and {c.run for c in calls} == {outcome.run}


def test_a_qualified_judge_that_cannot_believe_a_sentence_sends_it_to_review(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accepted rule whose sentence says something else."""
    monkeypatch.setattr(_Night, "_qualify", qualified)

    def denies(body: Body) -> Step:
        step = reads(body)
        said = json.loads(step.text) if isinstance(step, Say) else {}
        return Say(json.dumps({n: not value if isinstance(value, bool) else value for n, value in said.items()}))

    with ScriptedEndpoint(denies) as server:
        outcome = project.run(swept, units=TWO, judge=server.url)
    found = verdicts(swept, outcome.run)
    for verdict in found.values():
        assert verdict.verdict == "unclear"
        assert verdict.reason.startswith("disagreement: detection by llm:scripted@") and "fails; F1 " in verdict.reason


def test_a_sentence_without_a_rule_is_decided_by_a_qualified_judge(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Night, "_qualify", qualified)
    sentences = iter(["fires on “car”", "fires on “the”"])

    def both(body: Body) -> Step:
        if "response_format" in body:      # the judge's questions are held to a schema
            return reads(body)
        return CallTool("submit", {"why": "", "candidate": "none", "sentence": next(sentences)})

    with ScriptedEndpoint(both) as server:
        outcome = project.run(swept, units=TWO, planner="llm", endpoint=server.url, judge="planner")
        bodies = [request.body for request in server.requests if request.body]
        probes = [body for body in bodies if body["messages"][0]["content"].startswith(llm.PROBE)]
    assert len(probes) == 4, "what it can do is tried once, though it plans and judges"
    found = verdicts(swept, outcome.run)
    assert found["0"].verdict == "accepted" and found["0"].reason.startswith("detection by llm:scripted@")
    assert found["1"].verdict == "rejected"
    scores = judged(swept, outcome.run)
    assert all(s.details["judge_is_author"] for s in scores if s.metric in METRICS)
    rebuilt = [s for s in scores if s.metric == "ce_recovered"]
    assert len(rebuilt) == 2 and all(s.value is not None or s.reason for s in rebuilt), "the sentence's own prediction"


def test_a_judge_that_fails_leaves_scores_undefined_with_the_reason(swept: Home, project: Any) -> None:
    with ScriptedEndpoint(lambda body: Status(400, message="too much")) as server:
        outcome = project.run(swept, units="0-mlp/0", judge=server.url)
    assert (outcome.status, outcome.failed) == ("done", [])
    scores = judged(swept, outcome.run)
    assert [s.value for s in scores] == [None] * len(METRICS)
    assert all(str(s.reason).startswith("the judge gave no answer: ") and "too much" in str(s.reason) for s in scores)
    assert verdicts(swept, outcome.run)["0"].verdict == "accepted", "the rule stands"


def test_tokens_that_are_spent_end_the_judging_and_not_the_unit(swept: Home, project: Any) -> None:
    with ScriptedEndpoint(reads) as server:
        outcome = project.run(swept, units="0-mlp/0", judge=server.url, unit_llm_tokens=1)
    scores = judged(swept, outcome.run)
    assert len(scores) == len(METRICS) and {s.value for s in scores} == {None}
    assert all("tokens of language model are spent" in str(s.reason) for s in scores)
    assert outcome.failed == [] and outcome.status == "done"


def test_the_judge_of_a_run_is_part_of_what_the_run_is(swept: Home, project: Any) -> None:
    with ScriptedEndpoint(reads) as server:
        first = project.run(swept, units="0-mlp/4", judge=server.url)
        asked = len(server.requests)
        again = project.run(swept, units="0-mlp/4", judge=server.url)
        assert again.repeated and again.run == first.run and len(server.requests) == asked + 1, "which model it is"
    without = project.run(swept, units="0-mlp/4")
    assert without.run != first.run and not judged(swept, without.run)


def test_a_judge_is_configured_apart_from_the_planner(
    swept: Home, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedEndpoint(reads, key="of-the-judge") as server:
        monkeypatch.setenv("LAMPLIGHTER_JUDGE_KEY", "of-the-judge")
        (swept.path / "config.toml").write_text(f'[judge]\nurl = "{server.url}"\nmodel = "m"\n', "utf-8")
        outcome = project.run(swept, units="0-mlp/0")
    assert {s.judge for s in judged(swept, outcome.run)} == {f"llm:m@{server.url}/v1:{prompts.judge_digest()[:12]}"}


def test_nobody_can_judge_where_nobody_plans(swept: Home, project: Any) -> None:
    with pytest.raises(Refused, match="no language model plans here, so none can judge; name one with --judge URL"):
        project.run(swept, units="0-mlp/0", judge="planner")
