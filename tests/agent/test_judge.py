"""The judge on a scripted endpoint: what it is asked, how answers are read, and what happens when they cannot be."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter import prompts
from lamplighter.agent.endpoint import Endpoint
from lamplighter.agent.judge import TEXTS, LLMJudge, _asked, _quoted, expected, shown
from lamplighter.agent.llm import Capabilities, Client, Later, OutOfBudget, Reply, Weighed
from lamplighter.store.records import LLMCall
from lamplighter.store.work import Work
from lamplighter.testing import CutJson, EmptyChoices, Say, ScriptedEndpoint, Status, Step
from lamplighter.tools.judged import EXPECTED, INTEGERS, METRICS, Judge, Unanswered, Written, score_judged
from lamplighter.tools.snippets import Marked, Snippet

CAR = "fires on the word “car”"
Body = dict[str, Any]


@pytest.fixture
def judge_on(tmp_path: Path) -> Callable[..., LLMJudge]:
    def make(server: ScriptedEndpoint, check: Callable[[Any], None] = lambda _: None, **can: bool) -> LLMJudge:
        client = Client(Endpoint(server.url, "scripted"), Work(tmp_path / "work.sqlite"), check, sleep=lambda _: None)
        able = {"tools": False, "schema": True, "logprobs": False, "usage": True} | can
        return LLMJudge(client, Capabilities(**able), {"run": "r", "unit": "m/0-mlp/1", "sign": 1})

    return make


def question(body: Body) -> str:
    return str(body["messages"][-1]["content"])


def numbered(body: Body) -> list[str]:
    """The texts of a question, without their quotation marks."""
    rows = [line for line in question(body).splitlines() if re.match(r"\d+: “", line)]
    assert [row.split(":")[0] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    return [row.partition("“")[2].removesuffix("”") for row in rows]


def says(answers: Sequence[Any]) -> Say:
    return Say(json.dumps({str(n): answer for n, answer in enumerate(answers, 1)}))


def sees_car(body: Body) -> Step:
    """Reads the texts and answers what is asked, as one who knows the neuron."""
    task = body["messages"][0]["content"]
    if task == prompts.render("generate"):
        count = int(re.findall(r"Write (\d+) texts", question(body))[0])
        texts = {what: [f"at {n} in the {word} of it" for n in range(count)]
                 for what, word in (("fires", "car"), ("silent", "al"))}  # fmt: skip
        return Say(json.dumps(texts))
    if task == prompts.render("simulate"):
        return says([9 * (token == " car") for token in numbered(body)])
    if task == prompts.render("fuzz"):
        return says([set(re.findall("«(.*?)»", text)) == {" car"} for text in numbered(body)])
    return says([" car" in text for text in numbered(body)])


def snippet(tokens: Sequence[str]) -> Snippet:
    return Snippet(tuple(tokens), (0.0,) * len(tokens), 0, 0, "random")


# Reading


@pytest.mark.parametrize("schema", [True, False])
def test_texts_are_asked_ten_at_a_time_and_answers_come_in_order(judge_on: Any, schema: bool) -> None:
    texts = [f"text {n} with {'a car' if n % 3 else 'nothing'}" for n in range(23)]
    with ScriptedEndpoint(sees_car, schema=schema) as server:
        judge = judge_on(server, schema=schema)
        assert judge.fires(CAR, texts) == [n % 3 > 0 for n in range(23)]
        bodies = [request.body or {} for request in server.requests]
    assert [len(numbered(body)) for body in bodies] == [TEXTS, TEXTS, 3]
    for body in bodies:
        assert ("response_format" in body) == schema and (body["temperature"], body["seed"]) == (0, 0)
        assert 'The neuron\'s explanation: fires on the word "car"' in question(body)
    if schema:
        asked = bodies[-1]["response_format"]["json_schema"]["schema"]
        assert asked["required"] == ["1", "2", "3"] == list(asked["properties"])
        assert asked["additionalProperties"] is False


def test_words_around_the_object_do_no_harm(judge_on: Any) -> None:
    with ScriptedEndpoint([Say('Here it is:\n```json\n{"1": true, "2": false}\n```')], schema=False) as server:
        assert judge_on(server, schema=False).fires(CAR, ["a", "b"]) == [True, False]


BAD = ['{"1": true}', '{"1": true, "2": "no"}', '{"1": true, "2": 0}', '{"1": true, "2": false, "3": true}', "yes, no",
       '[true, false]', '{"1": true, "2": null}', '{"1": true, "2": false']  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_read_is_asked_again_in_halves(judge_on: Any, bad: str) -> None:
    with ScriptedEndpoint(lambda body: Say(bad) if len(numbered(body)) > 1 else sees_car(body)) as server:
        assert judge_on(server).fires(CAR, ["a car", "no"]) == [True, False]
        assert [len(numbered(r.body or {})) for r in server.requests] == [2, 1, 1]


def test_what_stays_unreadable_has_no_answer(judge_on: Any) -> None:
    def stuck(body: Body) -> Step:
        return Say("hm") if any("odd" in text for text in numbered(body)) else sees_car(body)

    with ScriptedEndpoint(stuck) as server:
        judge = judge_on(server)
        texts = ["a car", "b", "odd", "c car", "d"]
        assert judge.fires(CAR, texts) == [True, False, None, True, False]
        marks = [Marked(snippet([" a", " car"]), (1,), True), Marked(snippet([" odd", " car"]), (1,), True)]
        assert judge.marks(CAR, marks) == [True, None]
        asked = len(server.requests)
        assert judge.fires(CAR, texts) == [True, False, None, True, False]
        assert len(server.requests) == asked, "replies are recalled, also those that could not be read"


@pytest.mark.parametrize("step", [CutJson('{"1": tr'), EmptyChoices()])
def test_an_answer_without_an_end_is_one_that_cannot_be_read(judge_on: Any, step: Step) -> None:
    with ScriptedEndpoint(lambda body: step if len(numbered(body)) > 1 else sees_car(body)) as server:
        assert judge_on(server).fires(CAR, ["a car", "no"]) == [True, False]


def test_where_no_reply_is_to_be_had_nothing_is_said(judge_on: Any) -> None:
    with ScriptedEndpoint(lambda body: Status(500)) as server, pytest.raises(Unanswered, match="failed"):
        judge_on(server).fires(CAR, ["a"])
    with ScriptedEndpoint(lambda body: Status(429, retry_after=900)) as server, pytest.raises(Later):
        judge_on(server).marks(CAR, [Marked(snippet([" a"]), (0,), True)])

    def spent(stamps: Any) -> None:
        raise OutOfBudget("budget", "the run's limit is reached")

    with ScriptedEndpoint(sees_car) as server:
        with pytest.raises(OutOfBudget):
            judge_on(server, check=spent).values(CAR, [[" a"]])
        assert server.requests == []


# Values


def test_plain_integers_where_there_are_no_log_probabilities(judge_on: Any) -> None:
    with ScriptedEndpoint(sees_car) as server:
        judge = judge_on(server)
        assert judge.form == INTEGERS
        assert judge.values(CAR, [[" a", " car"], ["car"]]) == [[0.0, 9.0], [0.0]]
        assert all("logprobs" not in (r.body or {}) for r in server.requests)


def weighed(text: str, tokens: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Reply:
    return Reply(text, [], "stop", weighed=tuple(Weighed(t, tuple(top)) for t, top in tokens))


def sure(token: str) -> tuple[str, list[tuple[str, float]]]:
    return token, [(token, 0.0)]


def test_the_expectation_over_digits() -> None:
    digits = [("8", math.log(0.5)), ("6", math.log(0.25)), (" 9", -0.1), ("x", -0.2), ("88", -0.3)]
    reply = weighed('{"1":8,"2": 0}', [sure('{"1":'), ("8", digits), sure(',"2":'), (" 0", [(" 0", -1), (" 2", -1)]),
                                       sure("}")])  # fmt: skip
    assert expected(reply, 2) == pytest.approx([(8 * 0.5 + 6 * 0.25) / 0.75, 1.0])
    glued = weighed('{"1":8}', [sure('{"1'), ('":8}', [('":8}', -1.0), ('":3}', -1.0), ('":3,', -0.1)])])
    assert expected(glued, 1) == pytest.approx([5.5])


def test_an_expectation_that_cannot_be_had_is_none() -> None:
    assert expected(weighed('{"1":8}', [sure('{"1":'), ("8", []), sure("}")]), 1) is None
    assert expected(weighed('{"1":8}', [sure('{"1":'), sure("}")]), 1) is None
    assert expected(weighed('{"1":8}', []), 1) is None


def test_expectations_are_asked_for_where_they_can_be_had(judge_on: Any) -> None:
    def unsure(body: Body) -> Step:
        assert body["logprobs"] is True and body["top_logprobs"] == 20
        top = [("4", math.log(0.5)), ("2", math.log(0.5))]
        return Say('{"1": 4}', weighed=[sure('{"1"'), sure(": "), ("4", top), sure("}")])

    with ScriptedEndpoint(unsure) as server:
        judge = judge_on(server, logprobs=True)
        assert judge.form == EXPECTED
        assert judge.values(CAR, [[" a"]]) == judge.values(CAR, [[" a"]]) == [pytest.approx([3.0])]
        assert len(server.requests) == 1, "log-probabilities are recalled as well"


def test_integers_never_stand_in_for_expectations(judge_on: Any) -> None:
    with ScriptedEndpoint(lambda body: Say('{"1": 4}', weighed=[])) as server:
        assert judge_on(server, logprobs=True).values(CAR, [[" a"]]) == [None]


# Writing


def test_written_texts_are_taken_as_they_are(judge_on: Any) -> None:
    made = {"fires": ["a car “x”", " ", "b\ncar"], "silent": ["c", "d", "e", "f"]}
    with ScriptedEndpoint([Say(json.dumps(made)), Say('{"fires": ["a"]}'), Say('{"fires": [1], "silent": []}')]) as s:
        judge = judge_on(s)
        assert judge.writes(CAR, 3) == Written(("a car “x”", "b\ncar"), ("c", "d", "e"))
        assert judge.writes(CAR, 4) is None and judge.writes(CAR, 5) is None


# Asking


MARKS = "“”«»\n\r\t\u2028"
tricky = st.text(st.sampled_from("ab {}[]\":1" + MARKS), max_size=30)


@given(st.lists(tricky, min_size=1, max_size=8), st.sets(st.integers(0, 7), min_size=1))
def test_no_text_ends_its_quotation_or_marks_itself(tokens: list[str], marks: set[int]) -> None:
    at = tuple(sorted(i for i in marks if i < len(tokens))) or (0,)
    for said in (_quoted("".join(tokens)), shown(Marked(snippet(tokens), at, True))):
        assert said[0] == "“" and said[-1] == "”" and len(said.splitlines()) == 1
        assert not set("“”") & set(said[1:-1])
    inside = shown(Marked(snippet(tokens), at, True))
    assert inside.count("«") == inside.count("»") == len(at)


@given(tricky, st.lists(tricky, min_size=1, max_size=4))
def test_a_question_has_one_line_a_text_whatever_stands_in_it(explanation: str, texts: list[str]) -> None:
    asked = _asked(explanation, [_quoted(text) for text in texts])
    assert len([line for line in asked.splitlines() if re.match(r"\d+: “.*”$", line)]) == len(texts)
    assert asked.count("“") == asked.count("”") == len(texts)


def test_equal_questions_make_equal_requests_and_only_the_last_message_differs(judge_on: Any, tmp_path: Path) -> None:
    sent = []
    for run in range(2):
        with ScriptedEndpoint(sees_car) as server:
            client = Client(Endpoint(server.url, "scripted"), Work(tmp_path / f"{run}.sqlite"))
            judge = LLMJudge(client, Capabilities(tools=False, schema=True, logprobs=False, usage=True))
            judge.fires(CAR, ["a car", "b"])
            judge.fires("fires on “x”", ["a"])
            judge.writes(CAR, 8)
            sent.append([json.dumps(request.body) for request in server.requests])
    assert sent[0] == sent[1]
    first, second, _ = (json.loads(one)["messages"] for one in sent[0])
    assert first[:-1] == second[:-1] and first[-1] != second[-1]
    assert [m["role"] for m in first] == ["system", *("user", "assistant") * 2, "user"]


def test_the_name_says_model_place_and_words(judge_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedEndpoint() as server:
        judge: Judge = judge_on(server)
        assert judge.name == f"llm:scripted@{server.url}/v1:{prompts.judge_digest()[:12]}"
        before, source = judge.name, prompts._source
        monkeypatch.setattr(prompts, "_source", lambda file: source(file) + " " * (file == "fuzz.md"))
        assert judge.name != before


# All of it


def test_a_sentence_is_judged_on_a_swept_model(finished: Any, project: Any, judge_on: Any, tmp_path: Path) -> None:
    """A neuron that fires on " car", by a judge that reads; the ledger has each request, the score side's alone."""
    from lamplighter.tools.subject import Subject
    from lamplighter.tools.sweep import find_sweep
    from lamplighter.tools.units import UnitId

    subject = Subject.load(project.model)
    sweep = find_sweep(finished.home.path, subject.site_digest("0-mlp"), "0-mlp")
    assert sweep is not None
    unit = UnitId(subject.name, "0-mlp", 0)
    with ScriptedEndpoint(sees_car) as server:
        judge = judge_on(server)
        work = Work(tmp_path / "claims.sqlite")
        found = score_judged(subject, sweep, unit, CAR, judge, hypothesis="h", claim=work.claim_once)
        texts = [text for request in server.requests for text in numbered(request.body or {})]
        rows = [record for _, record in judge._client.work.outbox(1000) if isinstance(record, LLMCall)]
    by_metric = {one.metric: one for one in found}
    assert list(by_metric) == list(METRICS) and all(one.judge == judge.name for one in found)
    for one in found:     # what else stands in a text moves the reading: now and then a " car" does not fire
        assert (one.value or 0) > 0.9, one
    assert by_metric["generation"].value == 1.0 and by_metric["simulation"].details["form"] == INTEGERS
    assert by_metric["detection"].details["margin"]["low"] > 0 and by_metric["detection"].details["p"] < 0.01
    assert len(rows) == len(server.requests) and {row.purpose for row in rows} == {"judge"}
    assert {row.unit for row in rows} == {"m/0-mlp/1"}
    seen = "\n".join(subject.text(ids) for side in ("explain", "tune") for _, _, ids in sweep.windows(side))
    plain = [re.sub("[«»]", "", text) for text in texts]
    assert [text for text in plain if len(text) > 40 and text in seen] == []


def test_a_reply_keeps_to_its_old_shape() -> None:
    assert Reply("a", [], "stop") == replace(Reply("a", [], "stop", weighed=(Weighed("a", ()),)), weighed=())
