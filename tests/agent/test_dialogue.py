"""What is said to a language model: every call answered, the roles in turn, and nothing guessed from a faulty reply."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from lamplighter import prompts
from lamplighter.agent.dialogue import ENDS, MAX_TOKENS, SHOWN, WHY, Act, Dialogue
from lamplighter.agent.endpoint import Endpoint
from lamplighter.agent.llm import Capabilities, Client, LLMError
from lamplighter.store.records import Refused
from lamplighter.store.work import Work
from lamplighter.testing import CallTool, CutJson, Raw, Say, ScriptedEndpoint, Status

NATIVE, SCHEMA, PLAIN = (Capabilities(t, s, False, True) for t, s in ((True, True), (False, True), (False, False)))
FORMS = pytest.mark.parametrize("can", [NATIVE, SCHEMA, PLAIN], ids=["native", "schema", "plain"])
TOOLS = ("top_examples", "activate", "try_rule")
NAMES = (*TOOLS, *ENDS)
RULE = {"clauses": [{"at": {"word": "car"}}]}


def reply(can: Capabilities, tool: str, why: str = "", **arguments: Any) -> CallTool | Say:
    """An action in the form that the endpoint is asked for."""
    if can.tools:
        return CallTool(tool, {"why": why, **arguments})
    return Say(json.dumps({"why": why, "tool": tool, "args": arguments}))


def raw(*calls: tuple[str, dict[str, Any]], text: str | None = None) -> Raw:
    """A reply with several calls, whose ids are drawn as real servers draw them."""
    made = [
        {"id": f"chatcmpl-{uuid4()}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
        for n, a in calls
    ]
    message = {"role": "assistant", "content": text, "tool_calls": made}
    return Raw(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}))


class Talk:
    """A dialogue with a server, in which a unit was opened."""

    def __init__(self, script: Any, can: Capabilities, folder: Path) -> None:
        self.server = ScriptedEndpoint(script).__enter__()
        self.client = Client(Endpoint(self.server.url, "scripted"), Work(folder / f"{uuid4()}.sqlite"))
        self.dialogue = Dialogue(self.client, can, TOOLS, {})
        self.dialogue.tell("A new neuron.")

    def ask(self, names: tuple[str, ...] = NAMES) -> Act:
        return self.dialogue.ask("plan", names)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [request.body for request in self.server.requests if request.body]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Any]:
    made: list[Talk] = []

    def begin(can: Capabilities, *script: Any) -> Talk:
        made.append(Talk(script, can, tmp_path))
        return made[-1]

    yield begin
    for one in made:
        one.client.close()
        one.server.stop()


def in_order(messages: list[dict[str, Any]]) -> None:
    """The system speaks once and first; then the roles alternate, and every call is answered by its id."""
    roles = ["user" if m["role"] == "tool" else m["role"] for m in messages]
    assert roles[0] == "system" and roles[1] == "user" and "system" not in roles[1:]
    native = any(m["role"] == "tool" for m in messages)
    for said, then in pairwise(messages[1:]):
        called = [call["id"] for call in said.get("tool_calls", [])]
        answered = [then["tool_call_id"]] if then["role"] == "tool" else []
        assert called == answered and len(called) <= 1
        if native and then["role"] == "user":     # the next unit of the examples comes after an answered call
            assert said["role"] == "tool" or not called
        else:
            assert (said["role"] == "assistant") != (then["role"] == "assistant")


@FORMS
def test_the_worked_examples_are_told_in_the_form_that_is_wanted(can: Capabilities, talk: Any) -> None:
    messages = talk(can).dialogue.messages
    in_order(messages)
    said = [m for m in messages if m["role"] == "assistant"]
    assert len(said) == len(prompts.shots())
    for message, shot in zip(said, prompts.shots(), strict=True):
        did = shot["assistant"]
        if can.tools:
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == did["tool"]
            assert json.loads(call["function"]["arguments"]) == {"why": did["why"], **did["args"]}
        else:
            assert json.loads(message["content"]) == did and "tool_calls" not in message
    assert [m["content"] for m in messages if m["role"] == "user"][-1].endswith("A new neuron.")
    assert ("- activate" in messages[0]["content"]) is not can.tools, "tools are listed once"


@FORMS
def test_an_action_is_the_same_in_every_form(can: Capabilities, talk: Any) -> None:
    one = talk(can, reply(can, "try_rule", "cars, so " + "x" * WHY, sentence="fires on cars", rule=RULE))
    act = one.ask()
    assert act == Act("try_rule", {"sentence": "fires on cars", "rule": RULE}, ("cars, so " + "x" * WHY)[:WHY])
    one.dialogue.tell("found")
    in_order(one.dialogue.messages)
    assert one.dialogue.messages[-1]["content"] == "found"
    assert one.dialogue.messages[-1]["role"] == ("tool" if can.tools else "user")


@FORMS
def test_a_request_offers_what_may_be_done_and_in_one_form_alone(can: Capabilities, talk: Any) -> None:
    one = talk(can, *2 * [reply(can, "abstain", reason="nothing holds")])
    one.ask()
    one.dialogue.tell("go on")
    one.ask(tuple(ENDS))
    for body, names in zip(one.sent, (NAMES, tuple(ENDS)), strict=True):
        assert body["max_tokens"] == MAX_TOKENS and ("tools" in body, "response_format" in body) == (
            can.tools, can.schema and not can.tools,
        )  # fmt: skip
        if can.tools:
            assert [t["function"]["name"] for t in body["tools"]] == list(names)
        elif can.schema:
            shapes = body["response_format"]["json_schema"]["schema"]["anyOf"]
            assert [shape["properties"]["tool"]["const"] for shape in shapes] == list(names)
            assert all(shape["required"] == ["why", "tool", "args"] for shape in shapes)


def test_a_tool_is_offered_without_what_nobody_could_fill_in(talk: Any) -> None:
    one = talk(NATIVE, reply(NATIVE, "abstain", reason="no"))
    one.ask((*SHOWN, *ENDS))
    shown = {t["function"]["name"]: t["function"]["parameters"] for t in one.sent[0]["tools"]}
    assert {name: tuple(s["properties"]) for name, s in shown.items() if name in SHOWN} == {
        name: ("why", *options) for name, options in SHOWN.items()
    }
    assert not {"ids", "side", "kept", "document"} & {key for s in shown.values() for key in s["properties"]}
    assert shown["try_rule"]["required"] == ["sentence", "rule"] and shown["top_examples"]["required"] == []
    assert all(s["additionalProperties"] is False for s in shown.values())


FAULTS: dict[str, tuple[Any, str]] = {
    "unknown tool": (("guess", {}), "'guess' is not offered now"),
    "not offered": (("ablate", {}), "'ablate' is not offered now"),
    "missing": (("try_rule", {"sentence": "fires on cars"}), "try_rule lacks 'rule'; its arguments are sentence, rule"),
    "empty": (("activate", {"text": ""}), "activate lacks 'text'"),
    "unknown argument": (("activate", {"text": "a", "ids": [1]}), "activate does not take 'ids'"),
    "score side": (("top_examples", {"band": "top", "side": "score"}), "top_examples does not take 'side'"),
    "no reason": (("abstain", {}), "abstain lacks 'reason'"),
}


@FORMS
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_usable_action_is_refused_with_the_reason(can: Capabilities, fault: str, talk: Any) -> None:
    (tool, arguments), words = FAULTS[fault]
    one = talk(can, reply(can, tool, **arguments), reply(can, "activate", text="a car"))
    with pytest.raises(Refused, match=words):
        one.ask()
    one.dialogue.tell("that was none")
    assert one.ask() == Act("activate", {"text": "a car"}, "")
    assert "that was none" in str(one.sent[1]["messages"][-1]), "and what it did stands before that"
    assert tool in str(one.sent[1]["messages"][-2])
    one.dialogue.tell("found")
    in_order(one.dialogue.messages)


@pytest.mark.parametrize(
    ("can", "step", "words"),
    [
        (NATIVE, Say("I would call activate."), "no tool was called"),
        (NATIVE, CallTool("activate", '{"text": "a'), "the arguments of activate are no JSON object"),
        (NATIVE, CallTool("activate", "[1]"), "the arguments of activate are no JSON object"),
        (NATIVE, CutJson(), f"longer than {MAX_TOKENS} tokens"),
        (SCHEMA, CutJson(), f"longer than {MAX_TOKENS} tokens"),
        (SCHEMA, Status(500, message="output that does not match the expected peg-native format"), "of another form"),
        (PLAIN, Say("I would call activate."), "no JSON object"),
        (PLAIN, Say('{"tool": "activate", "args": {"text": "a'), "no JSON object"),
        (PLAIN, Say("[1]"), "no JSON object"),
        (PLAIN, Say('{"tool": "activate", "args": "a car"}'), "an object args"),
        (PLAIN, Say('{"tool": "activate", "args": {"text": NaN}}'), "no JSON object"),
        (PLAIN, Say('{"tool": "activate", "args": {"text": "\\ud800"}}'), "no JSON object"),
        (PLAIN, Say("[" * 100_000), "no JSON object"),
        (PLAIN, Say('{"args": {}}'), "'' is not offered"),
    ],
)
def test_a_reply_that_cannot_be_read_is_refused_and_the_talk_goes_on(
    can: Capabilities, step: Any, words: str, talk: Any
) -> None:
    one = talk(can, step, reply(can, "activate", text="a car"))
    with pytest.raises(Refused, match=words):
        one.ask()
    one.dialogue.tell("that was none")
    assert one.ask().tool == "activate"
    one.dialogue.tell("found")
    in_order(one.dialogue.messages)


def test_of_several_calls_the_first_is_taken_and_no_other_is_left_unanswered(talk: Any) -> None:
    calls = [("activate", {"text": "a car"}), ("activate", {"text": "a bus"}), ("guess", {})]
    one = talk(NATIVE, raw(*calls), raw(*calls[::-1], text="both"), raw(*calls))
    assert one.ask().arguments == {"text": "a car"}
    one.dialogue.tell("found")
    with pytest.raises(Refused, match="'guess' is not offered"):
        one.ask()
    one.dialogue.tell("that was none")
    one.ask()
    one.dialogue.tell("found")
    in_order(one.dialogue.messages)
    assert "a bus" not in json.dumps(one.sent)


def test_equal_replies_make_equal_requests_whatever_ids_the_server_draws(talk: Any) -> None:
    def story() -> list[dict[str, Any]]:
        one = talk(NATIVE, raw(("activate", {"text": "a"})), raw(("guess", {})), raw(("abstain", {"reason": "r"})))
        one.ask()
        one.dialogue.tell("found")
        with pytest.raises(Refused):
            one.ask()
        one.dialogue.tell("that was none")
        one.ask()
        return one.sent

    first, second = story(), story()
    assert first == second and len(first) == 3
    calls = [c["id"] for m in first[-1]["messages"] for c in m.get("tool_calls", [])]
    assert len(set(calls)) == len(calls) and all(len(one) == 9 and one.isalnum() for one in calls)


def test_calls_of_a_server_that_has_none_are_not_repeated_to_it(talk: Any) -> None:
    one = talk(PLAIN, raw(("activate", {"text": "a"})), reply(PLAIN, "activate", text="a"))
    with pytest.raises(Refused, match="no JSON object"):
        one.ask()
    one.dialogue.tell("that was none")
    one.ask()
    assert not any("tool_calls" in m or m["role"] == "tool" for m in one.sent[1]["messages"])


@FORMS
def test_what_is_said_twice_in_a_row_is_one_message(can: Capabilities, talk: Any) -> None:
    one = talk(can, reply(can, "activate", text="a"))
    one.dialogue.tell("More.")
    assert one.dialogue.messages[-1]["content"].endswith("A new neuron.\n\nMore.")
    one.ask()
    one.dialogue.tell("found")
    one.dialogue.tell("last")
    roles = [m["role"] for m in one.dialogue.messages[-3:]]
    assert roles == (["assistant", "tool", "user"] if can.tools else ["user", "assistant", "user"])


def test_an_answer_that_was_not_had_is_an_error_of_the_model(talk: Any) -> None:
    one = talk(NATIVE, Status(400))
    before = list(one.dialogue.messages)
    with pytest.raises(LLMError, match="refused the request") as error:
        one.ask()
    assert error.value.kind == "http 400" and one.dialogue.messages == before
