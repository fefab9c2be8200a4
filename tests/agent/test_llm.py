import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lamplighter.agent import llm as module
from lamplighter.agent.endpoint import Endpoint
from lamplighter.agent.llm import TRIES, Call, Capabilities, Client, Later, LLMError, Reply, probe
from lamplighter.store.records import LLMCall, Refused
from lamplighter.store.work import Spent, Work
from lamplighter.testing import (
    CallTool,
    CutJson,
    Drop,
    EmptyChoices,
    Hang,
    NoUsage,
    Raw,
    Say,
    ScriptedEndpoint,
    Status,
)

ASKED = [{"role": "user", "content": "Why?"}]
TOOL = {"type": "function", "function": {"name": "lens", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
KEY = "sk-Secret/0123456789"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("LAMPLIGHTER_LLM", "OPENAI_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "work.sqlite")


@pytest.fixture
def slept():
    return []


@pytest.fixture
def client(work, slept):
    """Makes a Client that asks an endpoint and notes its waits instead of waiting."""

    def make(server, endpoint=None, **how):
        place = endpoint or Endpoint(server.url, "scripted")
        return Client(place, work, **({"sleep": slept.append} | how))

    return make


def ledger(work):
    return [record for _, record in work.outbox(1000) if isinstance(record, LLMCall)]


def ask(client, **how):
    return client.ask("plan", ASKED, **({"max_tokens": 50} | how))


# Where the model is


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
        (" http://LocalHost:8080/v1/ ", "http://localhost:8080/v1"),
        ("https://example.org/openai/v1beta", "https://example.org/openai/v1beta"),
    ],
)
def test_a_url_is_taken_with_and_without_v1(given, base):
    assert (Endpoint(given).url, Endpoint(given).label) == (base, base)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_either_form_reaches_the_server(path, client):
    with ScriptedEndpoint([Say("yes")]) as server:
        assert ask(client(server, Endpoint(server.url + path, "scripted"))).text == "yes"
        assert [request.path for request in server.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("bad", ["", "127.0.0.1:8080", "ftp://a.b/v1", "http://", "http://[::1", "http://h:99999", "http://h:0"])
def test_what_is_no_url_is_refused(bad):
    with pytest.raises(Refused, match="is no address; give one such as"):
        Endpoint(bad)


@pytest.mark.parametrize("url", [f"http://u:{KEY}@h/v1", f"u:{KEY}@h", f"https://h/v1?key={KEY}", f"https://h/v1#{KEY}"])
def test_a_url_that_may_hold_a_secret_is_refused_without_quoting_it(url):
    with pytest.raises(Refused, match="holds a user name") as refusal:
        Endpoint(url)
    assert KEY not in str(refusal.value)


@pytest.mark.parametrize("key", ["", f"{KEY}\n", f"a {KEY}", f"{KEY}é"])
def test_what_is_no_key_is_refused_without_quoting_it(key):
    with pytest.raises(Refused, match="no key has") as refusal:
        Endpoint("http://h", key=key)
    assert KEY not in str(refusal.value)


def configure(home, text):
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(text, "utf-8")
    return home


FILE = 'url = "http://file:1"\nmodel = "m-file"\nkey = "k-file"\nusd_per_million_in = 1\nusd_per_million_out = 2.5\n'


def test_openai_variables_configure_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://openai:1/v1")
    monkeypatch.setenv("LAMPLIGHTER_LLM_KEY", KEY)
    monkeypatch.setenv("LAMPLIGHTER_LLM_URL", "")
    assert Endpoint.configured(None, tmp_path) is None


def test_the_option_goes_before_the_variable_and_that_before_the_file(tmp_path, monkeypatch):
    home = configure(tmp_path, f"[llm]\n{FILE}")
    file = Endpoint("http://file:1", "m-file", "k-file", (1, 2.5))
    assert Endpoint.configured(None, home) == file
    assert Endpoint.configured("http://file:1/v1", home) == file, "the same place by its other name"
    monkeypatch.setenv("LAMPLIGHTER_LLM_MODEL", "m-env")
    assert Endpoint.configured(None, home) == replace(file, model="m-env")
    monkeypatch.setenv("LAMPLIGHTER_LLM_URL", "http://env:1")
    assert Endpoint.configured(None, home) == Endpoint("http://env:1", "m-env"), "a key stays with its own server"
    monkeypatch.setenv("LAMPLIGHTER_LLM_KEY", "k-env")
    assert Endpoint.configured("http://option:1", home) == Endpoint("http://option:1", "m-env", "k-env")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[llm", "cannot be read"),
        ("llm = 3", "is no table"),
        ("[other]\nx = 1", "sets other, which is no setting"),
        (f"[llm]\n{FILE}colour = 1", "sets llm.colour, which is no setting"),
        (f'[llm]\nurl = "http://h"\nkey = ["{KEY}"]', "key under .llm. in .* must be a text"),
        ('[llm]\nurl = "http://h"\nmodel = ""', "model .* must be a text"),
        ('[llm]\nurl = "http://h"\nusd_per_million_in = -1\nusd_per_million_out = 1', "must be a number, 0 or more"),
        ('[llm]\nurl = "http://h"\nusd_per_million_in = nan\nusd_per_million_out = 1', "must be a number"),
        ('[llm]\nurl = "http://h"\nusd_per_million_in = true\nusd_per_million_out = 1', "must be a number"),
        ('[llm]\nurl = "http://h"\nusd_per_million_in = 1', "one price of two"),
        (f'[llm]\nkey = "{KEY}"', "names no url"),
    ],
)
def test_a_file_that_cannot_be_taken_as_it_stands_is_refused(text, said, tmp_path):
    for option in (None, "http://option:1"):
        with pytest.raises(Refused, match=said) as refusal:
            Endpoint.configured(option, configure(tmp_path, text))
        assert KEY not in str(refusal.value)


def test_the_price_is_explicit_else_public_else_nothing_on_this_machine_else_unknown():
    near, far = "http://localhost:1", "https://example.org"
    assert Endpoint(far, price=(2, 10)).usd("gpt-4o-mini", 1000, 0, 100) == pytest.approx(0.003)
    public = Endpoint(far).usd("gpt-4o-mini", 1000, 0, 100)
    assert public == pytest.approx(1000 * 0.15e-6 + 100 * 0.6e-6)
    assert Endpoint(far).usd("gpt-4o-mini", 1000, 1000, 100) < public, "cached tokens are cheaper"
    assert Endpoint(near).usd("gpt-4o-mini", 1000, 0, 100) == public, "a gateway here costs what it passes on"
    for host in (near, "http://127.0.0.2:1", "http://[::1]:1"):
        assert Endpoint(host).usd("nobody-knows-this", 1000, 0, 100) == 0.0
    assert Endpoint(far).usd("nobody-knows-this", 1000, 0, 100) is None


def test_a_client_knows_whether_a_limit_in_dollars_can_be_kept(work):
    assert Client(Endpoint("https://example.org", "gpt-4o-mini"), work).priced
    assert not Client(Endpoint("https://example.org", "nobody-knows-this"), work).priced


# What is asked and what comes back


def test_a_request_says_all_that_decides_the_reply(client):
    with ScriptedEndpoint([Say("text"), CallTool("lens", {}), Say('{"a": 1}')], key=KEY) as server:
        one = client(server, Endpoint(server.url, "m", KEY))
        assert ask(one) == Reply("text", [], "stop", tokens=server.counted) and server.counted > 1
        before = server.counted
        called = ask(one, tools=[TOOL])
        calls = [Call("call_scripted", "lens", {}, "{}")]
        assert called == Reply("", calls, "tool_calls", tokens=server.counted - before)
        assert ask(one, schema=SCHEMA).text == '{"a": 1}'
        plain = {"model": "m", "messages": ASKED, "max_tokens": 50, "temperature": 0, "seed": 0}
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
        extra = [{}, {"tools": [TOOL], "tool_choice": "auto"}, {"response_format": form}]
        assert [request.body for request in server.requests] == [plain | more for more in extra]


def test_tools_and_a_schema_in_one_request_are_a_mistake(client):
    with ScriptedEndpoint() as server, pytest.raises(ValueError, match="never both"):
        ask(client(server), tools=[TOOL], schema=SCHEMA)
    assert server.requests == []


def test_arguments_come_as_text_or_as_an_object(client):
    with ScriptedEndpoint([CallTool("lens", {"x": "é"}), CallTool("lens", {"x": "é"}, as_object=True)]) as server:
        text, thing = (ask(client(server), tools=[TOOL], max_tokens=n).calls[0] for n in (1, 2))
    assert text.arguments == thing.arguments == {"x": "é"}
    assert json.loads(text.raw) == json.loads(thing.raw) == {"x": "é"}


@pytest.mark.parametrize("broken", ["", "{", "[1]", "null", '{"x": NaN}', '{"x": "\\ud83d"}', "{'x': 1}", "[" * 99_999])
def test_broken_arguments_are_handed_back_as_they_are(broken, client):
    with ScriptedEndpoint([CallTool("lens", broken)]) as server:
        reply = ask(client(server), tools=[TOOL])
    assert reply.calls == [Call("call_scripted", "lens", None, broken)]


def test_a_tool_that_nobody_offered_is_handed_back_by_its_name(client):
    with ScriptedEndpoint([CallTool("no_such_tool", {"x": 1})]) as server:
        assert [call.name for call in ask(client(server), tools=[TOOL]).calls] == ["no_such_tool"]


def test_calls_without_an_id_and_without_arguments_are_told_apart():
    calls = [{"function": {"name": "a", "arguments": "{}"}}, {"id": None, "function": {"name": "b"}}]
    assert module._calls({"tool_calls": calls}) == [Call("call_0", "a", {}, "{}"), Call("call_1", "b", None, "null")]


def test_a_turn_can_be_repeated_to_any_server_even_with_broken_arguments():
    assert Reply("hm", [], "stop").message == {"role": "assistant", "content": "hm"}
    told = Reply("", [Call("1", "a", {"x": 1}, '{"x": 1}'), Call("2", "b", None, "{")], "tool_calls").message
    assert [call["function"]["arguments"] for call in told["tool_calls"]] == ['{"x": 1}', "{}"]
    assert [call["id"] for call in told["tool_calls"]] == ["1", "2"]


# Faults: each ends in one clear way, is one row a request, and is never an answer

PEG = "The model produced output that does not match the expected peg-native format"      # llama.cpp's words

FAULTS = {
    "wrong key": ([Status(401)], {}, "http 401", 1),
    "forbidden": ([Status(403)], {}, "http 403", 1),
    "refused": ([Status(400)], {}, "http 400", 1),
    "no such model": ([Status(404)], {}, "http 404", 1),
    "unprocessable": ([Status(422)], {}, "http 422", 1),
    "redirect": ([Status(307)], {}, "http 307", 1),
    "busy for ever": ([Status(429, 0)] * 3, {}, "http 429", 3),
    "broken for ever": ([Status(500)] * 3, {}, "http 500", 3),
    "slow for ever": ([Hang(5)] * 3, {}, "timeout", 3),
    "gone for ever": ([Hang(0)] * 3, {}, "connection", 3),
    "dropped for ever": ([Drop()] * 3, {}, "connection", 3),
    "no choice": ([EmptyChoices()], {}, "empty", 1),
    "an error as a reply": ([Raw('{"error": {"message": "overloaded"}}')], {}, "empty", 1),
    "no message": ([Raw('{"choices": [{"message": null}]}')], {}, "empty", 1),
    "no text": ([Raw('{"choices": [{"message": {"content": [1]}}]}')], {}, "unreadable", 1),
    "no calls": ([Raw('{"choices": [{"message": {"tool_calls": 1}}]}')], {}, "unreadable", 1),
    "no function": ([Raw('{"choices": [{"message": {"tool_calls": [{}]}}]}')], {}, "unreadable", 1),
    "no JSON": ([Raw("<html>")], {}, "unreadable", 1),
    "no object": ([Raw("[]")], {}, "unreadable", 1),
    "too deep": ([Raw("[" * 99_999)], {}, "unreadable", 1),
    "half a character": ([Raw('{"choices": [{"message": {"content": "\\ud83d"}}]}')], {}, "unreadable", 1),
    "of another form": ([Status(500, message=PEG)], {"schema": SCHEMA}, "unparsed", 1),
    "cut arguments": ([CutJson()], {"tools": [TOOL]}, "cut off", 1),
    "cut JSON": ([CutJson('{"a": ')], {"schema": SCHEMA}, "cut off", 1),
    "cut before the first word": ([CutJson("")], {}, "cut off", 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_in_one_clear_way_and_leaves_a_row_a_request(name, client, work, slept, monkeypatch):
    steps, how, kind, requests = FAULTS[name]
    with ScriptedEndpoint([*steps, Say("an answer")]) as server:
        with monkeypatch.context() as patch, pytest.raises(LLMError) as error:
            patch.setattr(module, "TIMEOUT", 0.2 if kind == "timeout" else module.TIMEOUT)
            ask(client(server), run="r", **how)
        assert error.value.kind == kind
        assert re.match(rf"the endpoint {server.url}/v1 .+ \(.+\); .+[.?]$", str(error.value))
        again = ["ok"] if requests == TRIES else []          # a plain question, whether the server is down
        assert [call.outcome for call in ledger(work)] == [kind] * requests + again
        assert [call.purpose for call in ledger(work)] == ["plan"] * requests + ["probe"] * len(again)
        assert len(server.requests) == work.spent("r").calls == requests + len(again)
        assert len(slept) == requests - 1
        assert error.value.passing == bool(again) and not isinstance(error.value, Later)
        assert error.value.request["messages"] == ASKED
        if kind.startswith("http") or kind in ("timeout", "connection"):
            assert {(call.tokens_in, call.tokens_out) for call in ledger(work)[:requests]} == {(None, None)}
        assert ask(client(server), **how).text == "an answer", "a fault is not remembered"


@pytest.mark.parametrize("step", [Status(429), Status(408), Status(409), Status(503), Hang(5), Hang(0), Drop()])
def test_what_passes_is_tried_again_and_each_try_is_a_row(step, client, work, slept, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    with ScriptedEndpoint([step, step, Say("at last")]) as server:
        assert ask(client(server), run="r").text == "at last"
        assert len(server.requests) == 3
    rows = ledger(work)
    assert rows[0].outcome == rows[1].outcome != rows[2].outcome == "ok"
    assert len({row.request for row in rows}) == 1 and rows[0].request != ""
    assert slept == [0.5, 1.0]


def test_a_limit_within_plain_text_or_after_whole_json_is_no_fault(client):
    steps = [CutJson("and then it"), CutJson('{"a": 1}'), CutJson('{"x": 1}', "lens")]
    with ScriptedEndpoint(steps) as server:
        one = client(server)
        assert (ask(one).text, ask(one).finish_reason) == ("and then it", "length")
        assert ask(one, schema=SCHEMA).text == '{"a": 1}'
        assert ask(one, tools=[TOOL]).calls[0].arguments == {"x": 1}


def test_a_server_that_dies_on_the_way_is_named_and_its_replies_are_still_known(client, work):
    with ScriptedEndpoint([Say("one")]) as server:
        one = client(server)
        assert ask(one, run="r").text == "one"
        server.stop()
        with pytest.raises(Later, match=r"cannot be reached \(connection, 3 times\); is the server running\?") as down:
            ask(one, run="r", max_tokens=7)
        assert down.value.seconds == module.DOWN_WAIT
        assert ask(one, run="r") == Reply("one", [], "stop", recalled=True, tokens=server.counted)
    assert [call.outcome for call in ledger(work)] == ["ok", *["connection"] * 4]
    assert len(server.requests) == 1, "the four that nobody received are requests all the same"


@pytest.mark.parametrize(("answer", "down"), [(Status(503), True), (Drop(), True), (Status(400), False),
                                              (CutJson(""), False), (EmptyChoices(), False), (Say("yes"), False)])
def test_a_server_is_down_where_a_plain_question_is_not_answered_either(answer, down, client, work):
    """What it refuses or cuts off is an answer: then it is the first request that it cannot answer."""
    with ScriptedEndpoint([*[Status(500)] * 3, answer], probes=False) as server, pytest.raises(LLMError) as error:
        ask(client(server))
    assert isinstance(error.value, Later) == down and error.value.kind == "http 500"
    assert [call.purpose for call in ledger(work)] == ["plan"] * 3 + ["probe"]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept_to(form, client, slept):
    asked = 7 if form == "seconds" else formatdate(time.time() + 20, usegmt=True)
    with ScriptedEndpoint([Status(429, asked), Say("yes")]) as server:
        assert ask(client(server)).text == "yes"
    assert slept == [7.0] if form == "seconds" else 15 < slept[0] <= 20


@pytest.mark.parametrize(("asked", "waited"), [("nonsense", 0.5), ("-3", 0.0), (formatdate(0, usegmt=True), 0.0)])
def test_odd_values_of_retry_after(asked, waited, client, slept):
    with ScriptedEndpoint([Status(503, asked), Say("yes")]) as server:
        ask(client(server))
    assert slept == [waited]


@pytest.mark.parametrize(("asked", "left"), [(61, None), (600, None), ("inf", None), (20, 10.0), (None, 0.3)])
def test_a_wait_that_is_too_long_is_not_begun(asked, left, client, work, slept):
    with ScriptedEndpoint([Status(429, asked), Say("yes")]) as server:
        with pytest.raises(LLMError, match="HTTP 429" if asked is None else rf"asks to wait {asked} seconds") as error:
            ask(client(server, seconds_left=lambda: left))
        assert len(server.requests) == len(ledger(work)) == 1
    assert (error.value.kind, slept) == ("http 429", [])


def test_a_request_goes_no_further_than_the_time_of_the_run(client, work):
    with ScriptedEndpoint([Hang(30)]) as server:
        began = time.monotonic()
        with pytest.raises(LLMError) as error:
            ask(client(server, seconds_left=lambda: 0.2))
        assert (error.value.kind, time.monotonic() - began < 10) == ("timeout", True)
        with pytest.raises(LLMError, match="time is spent") as error:
            ask(client(server, seconds_left=lambda: 0.0), max_tokens=7)
        assert (error.value.kind, len(server.requests)) == ("no time", 1)


def test_a_budget_is_asked_before_each_try_and_may_end_it(client, work):
    class Spending(Exception):
        pass

    def check(stamps):
        if len(ledger(work)) == 2:
            raise Spending

    with ScriptedEndpoint([Status(500)] * 3) as server:
        with pytest.raises(Spending):
            ask(client(server, check=check))
        assert len(server.requests) == len(ledger(work)) == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (401, r"refused the key \(HTTP 401: scripted\); set LAMPLIGHTER_LLM_KEY\."),
        (404, "set LAMPLIGHTER_LLM_MODEL"),
        (400, r"refused the request \(HTTP 400: scripted\)"),
    ],
)
def test_an_error_says_what_to_do(code, said, client):
    with ScriptedEndpoint([Status(code)]) as server, pytest.raises(LLMError, match=said):
        ask(client(server))


def test_a_redirect_is_not_followed(client):
    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(307)
            self.send_header("Location", f"{wrong.url}/v1/chat/completions")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ScriptedEndpoint([Say("no")]) as wrong, HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(LLMError, match="HTTP 307"):
            ask(client(None, Endpoint(f"http://127.0.0.1:{server.server_port}", "m", KEY)))
        assert wrong.requests == []


# A reasoning model's tastes


def test_what_a_model_does_not_take_is_said_in_another_way_once_and_for_all(client, work):
    def picky(asked):
        if "max_tokens" in asked:
            return Status(400, message="Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in asked:
            return Status(400, message="'temperature' does not support 0 with this model.")
        if "seed" in asked:
            return Status(422, message="extra_forbidden: seed")
        return Say("thought through")

    with ScriptedEndpoint(picky) as server:
        one = client(server)
        assert ask(one).text == "thought through"
        assert len(server.requests) == len(ledger(work)) == 4
        ask(one, max_tokens=9)
        assert server.requests[4].body == {"model": "scripted", "messages": ASKED, "max_completion_tokens": 9}
        assert ask(client(server)).recalled, "what was asked is the same, however it had to be said"


def test_a_value_out_of_range_is_not_said_in_another_way(client):
    with ScriptedEndpoint([Status(400, message="max_tokens is too large: 50")]) as server:
        with pytest.raises(LLMError):
            ask(client(server))
        assert len(server.requests) == 1


# What it costs


def test_the_servers_count_is_charged_at_the_price(client, work):
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 900}}
    body = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": usage}
    with ScriptedEndpoint([Raw(json.dumps(body))]) as server:
        place = Endpoint(server.url, "m", price=(1, 10))
        stamps = {"run": "r", "investigation": "i", "unit": "m/5-mlp/1", "sign": -1}
        ask(client(server, place), **stamps)
    (row,) = ledger(work)
    assert (row.tokens_in, row.tokens_cached, row.tokens_out, row.estimated) == (1000, 900, 20, False)
    assert row.usd == pytest.approx((1000 * 1 + 20 * 10) / 1e6)
    assert {name: getattr(row, name) for name in stamps} == stamps
    assert (row.purpose, row.model, row.endpoint, row.outcome) == ("plan", "m", f"{server.url}/v1", "ok")
    assert row.seconds >= 0 and work.spent("r") == Spent(1, 1020, row.usd, 0, 1020, row.usd)


@pytest.mark.parametrize(
    "usage",
    [None, [], {}, {"prompt_tokens": True, "completion_tokens": 1}, {"prompt_tokens": -1, "completion_tokens": 1}],
)
def test_without_a_count_a_quarter_of_the_bytes_is_charged_and_said_to_be_a_guess(usage, client, work):
    choices = [{"message": {"content": "é" * 40}, "finish_reason": "stop"}]
    with ScriptedEndpoint([Raw(json.dumps({"choices": choices, "usage": usage}))]) as server:
        ask(client(server))
    (row,) = ledger(work)
    assert (row.estimated, row.tokens_cached) == (True, None)
    assert row.tokens_in == -(-len(json.dumps({"messages": ASKED})) // 4)
    assert row.tokens_out == -(-len(json.dumps(choices, ensure_ascii=False).encode()) // 4)


def test_the_scripted_endpoint_leaves_the_count_out(client, work):
    with ScriptedEndpoint([NoUsage(Say("a")), Say("b")]) as server:
        one = client(server)
        ask(one), ask(one, max_tokens=7)
    assert [row.estimated for row in ledger(work)] == [True, False]


def test_what_a_lost_reply_cost_is_not_known_and_a_refusal_is_free(client, work, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    with ScriptedEndpoint([Hang(5), Status(500), Say("yes")]) as server:
        ask(client(server, Endpoint(server.url, "m", price=(1, 1))), run="r")
    assert [row.usd is None for row in ledger(work)] == [True, False, False]
    assert [row.usd for row in ledger(work)][1] == 0.0
    assert work.spent("r").unpriced == 1
    lost, refused, had = ledger(work)
    asked = -(-len(json.dumps({"messages": ASKED})) // 4)
    assert (lost.tokens_in, lost.tokens_most) == (None, asked + 50) and lost.usd_most == (asked + 50) / 1e6
    assert (refused.tokens_most, refused.usd_most) == (0, 0.0)
    assert (had.tokens_most, had.usd_most) == (had.tokens_in + had.tokens_out, had.usd)
    assert work.spent("r").usd_most == pytest.approx(lost.usd_most + had.usd) and work.spent("r").usd == had.usd
    with ScriptedEndpoint([Hang(0), Say("yes")]) as server:
        ask(client(server), run="free")
    assert (work.spent("free").unpriced, work.spent("free").usd) == (0, 0.0)


def test_a_model_without_a_price_is_counted_apart(client, work):
    with ScriptedEndpoint([Say("yes")]) as server:
        place = Endpoint("https://example.org", "nobody-knows-this", connect=lambda: (server.url, KEY))
        ask(client(server, place), run="r")
    assert work.spent("r").unpriced == 1


def test_a_reply_is_charged_before_it_is_read(client, work, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("killed here")

    monkeypatch.setattr(module, "_reply", broken)
    with ScriptedEndpoint([Say("yes")]) as server, pytest.raises(RuntimeError, match="killed here"):
        ask(client(server), run="r")
    (row,) = ledger(work)
    assert row.outcome == "ok" and row.tokens_in > 0
    assert work.spent("r").calls == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from lamplighter.agent import llm
from lamplighter.agent.endpoint import Endpoint
from lamplighter.store.work import Work
llm._reply = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
work = Work(Path(sys.argv[2]))
llm.Client(Endpoint(sys.argv[1], "scripted"), work).ask("plan", [], max_tokens=50, run="r")
"""


def test_kill_9_right_after_a_reply_keeps_its_row_and_the_reply(work):
    with ScriptedEndpoint([Say("paid for")]) as server:
        command = [sys.executable, "-c", KILLED, server.url, str(work.path)]
        assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
        assert work.spent("r").calls == len(server.requests) == 1
        again = Client(Endpoint(server.url, "scripted"), work).ask("plan", [], max_tokens=50, run="r")
        assert (again.text, again.recalled, work.spent("r").calls) == ("paid for", True, 1)


def test_a_request_that_was_interrupted_has_a_row(client, work, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_exchange", stopped)
    with ScriptedEndpoint() as server, pytest.raises(KeyboardInterrupt):
        ask(client(server))
    assert [row.outcome for row in ledger(work)] == ["interrupted"]


# What was had before


def test_the_same_request_is_asked_once(client, work):
    with ScriptedEndpoint([CallTool("lens", {"x": 1}), Say("other")]) as server:
        first = ask(client(server), tools=[TOOL], run="r1", unit="m/5-mlp/1")
        again = ask(client(server), tools=[TOOL], run="r2", unit="m/5-mlp/2")
        assert again == replace(first, recalled=True)
        assert len(server.requests) == work.pending() == work.spent("r1").calls == 1
        assert work.spent("r2") == Spent(0, 0, 0.0, 0, 0, 0.0)


@pytest.mark.parametrize(
    "other",
    [
        {"max_tokens": 51}, {"tools": [TOOL]}, {"schema": SCHEMA}, {"messages": ASKED * 2}, {"model": "m2"},
        {"label": "b"},
    ],
)  # fmt: skip
def test_whatever_decides_the_reply_makes_it_another_request(other, client):
    with ScriptedEndpoint([Say("one"), Say("two")]) as server:
        place = Endpoint(server.url, other.get("model", "scripted"), label=other.get("label", ""))
        how = {name: other[name] for name in ("tools", "schema") if name in other}
        ask(client(server))
        asked = client(server, place).ask(
            "plan", other.get("messages", ASKED), max_tokens=other.get("max_tokens", 50), **how
        )
        assert (asked.text, asked.recalled) == ("two", False)


def test_the_embedded_server_may_start_late_and_move_and_is_the_same_to_the_cache(client, work):
    started = []
    with ScriptedEndpoint([Say("one")], key=KEY) as first, ScriptedEndpoint([Say("two")], key="other") as second:

        def connect():
            started.append(1)
            return (first.url, KEY) if len(started) == 1 else (second.url, "other")

        one = client(None, Endpoint.embedded("m", connect))
        assert started == []
        assert ask(one).text == "one"
        assert ask(one, max_tokens=7).text == "two", "it came back on another port, with another key"
        moved = client(None, Endpoint.embedded("m", connect))
        assert ask(moved).recalled and len(started) == 2
    assert {(row.endpoint, row.usd) for row in ledger(work)} == {("embedded", 0.0)}


def test_a_server_that_cannot_be_started_is_an_error_of_the_model_without_a_row(client, work):
    def connect():
        raise Refused("the weights are not here; run `lamplighter models pull planner`.")

    with pytest.raises(LLMError, match="the weights are not here; run") as error:
        ask(client(None, Endpoint.embedded("m", connect)))
    assert (error.value.kind, ledger(work)) == ("connection", [])


# Which model


def test_the_only_model_of_a_server_is_taken(client, work):
    with ScriptedEndpoint([Say("yes"), Say("and")], models=["only/one"]) as server:
        one = client(server, Endpoint(server.url))
        ask(one), ask(one, max_tokens=7)
        assert (one.model, len(server.requests), server.requests[1].body["model"]) == ("only/one", 3, "only/one")
        assert [row.purpose for row in ledger(work)] == ["models", "plan", "plan"]


@pytest.mark.parametrize(("count", "said"), [(0, "lists no model"), (12, r"serves 12 models \(m0, .*m9, …\)")])
def test_a_choice_of_models_is_not_made_for_anybody(count, said, client):
    names = [f"m{i}" for i in range(count)]
    with ScriptedEndpoint(models=names) as server, pytest.raises(Refused, match=said) as refusal:
        ask(client(server, Endpoint(server.url)))
    assert str(refusal.value).endswith("name the one to ask in LAMPLIGHTER_LLM_MODEL.")
    assert "m10" not in str(refusal.value)


@pytest.mark.parametrize("rows", ['{"data": null}', '{"data": [1, {}]}', "{}"])
def test_a_list_of_models_in_an_odd_form_is_an_empty_one(rows, client, monkeypatch):
    with ScriptedEndpoint() as server:
        monkeypatch.setattr(server, "_list", lambda _: Raw(rows))
        with pytest.raises(Refused, match="lists no model"):
            ask(client(server, Endpoint(server.url)))


# What it can do


@pytest.mark.parametrize("can", list(itertools.product([True, False], repeat=4)), ids=str)
def test_capabilities_are_seen_in_every_combination(can, client, work):
    able = Capabilities(*can)
    with ScriptedEndpoint(tools=able.tools, schema=able.schema, logprobs=able.logprobs, usage=able.usage) as server:
        assert probe(client(server), run="r") == able
        assert len(server.requests) == work.spent("r").calls == 4
        assert {row.purpose for row in ledger(work)} == {"probe"}
    assert Capabilities.from_json(able.to_json()) == able


@pytest.mark.parametrize(
    "answer",
    [
        Say("I would call the tool."), CallTool("other", {"word": "lamplighter"}), CallTool("probe", {"word": "x"}),
        CallTool("probe", "{"), CutJson(name="probe"), EmptyChoices(), Raw("[]"), Status(404), Status(500),
    ],
)  # fmt: skip
def test_what_comes_back_wrong_is_no_capability(answer, client):
    def odd(asked):
        return answer if "tools" in asked or "response_format" in asked else Say("lamplighter")

    with ScriptedEndpoint(odd, probes=False) as server:
        assert probe(client(server)) == Capabilities(tools=False, schema=False, logprobs=True, usage=True)


def test_log_probabilities_without_other_tokens_are_none(client):
    def alone(body):
        return Say(module.WORD, weighed=[(module.WORD, [(module.WORD, -0.1)])])

    with ScriptedEndpoint(alone, probes=False) as server:
        assert probe(client(server)).logprobs is False


@pytest.mark.parametrize(
    "said",
    [[{"token": 3}], [{"token": "a", "top_logprobs": 3}], [{"token": "a", "top_logprobs": [{"token": "b"}]}], "no"],
)
def test_log_probabilities_of_another_form_are_none(client, said):
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": said}}
    with ScriptedEndpoint([Raw(json.dumps({"choices": [choice]}))]) as server:
        reply = ask(client(server), top_logprobs=5)
        assert (reply.text, reply.weighed) == ("a", ())
        assert server.requests[0].body["top_logprobs"] == 5 and server.requests[0].body["logprobs"] is True


@pytest.mark.parametrize("step", [Status(401), Status(403), Status(429), Status(503), Hang(0), Drop()])
@pytest.mark.parametrize("special", [False, True])
def test_an_endpoint_that_cannot_be_asked_is_not_called_incapable(step, special, client):
    def odd(asked):
        return step if ("tools" in asked) is special else Say("lamplighter")

    with ScriptedEndpoint(odd, probes=False) as server, pytest.raises(LLMError):
        probe(client(server))


def test_a_model_that_does_not_exist_is_not_called_incapable(client):
    with ScriptedEndpoint([Status(404)], probes=False) as server, pytest.raises(LLMError, match="_LLM_MODEL"):
        probe(client(server))


def test_capabilities_are_probed_once_for_a_key(client):
    with ScriptedEndpoint(tools=False) as server:
        seen = client(server).capabilities("llm-capabilities:r1", run="r1")
        assert client(server).capabilities("llm-capabilities:r1") == seen == Capabilities(False, True, True, True)
        assert len(server.requests) == 4
        client(server).capabilities("llm-capabilities:r2")
        assert len(server.requests) == 8


# Secrets


@pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 500])
def test_the_key_is_nowhere_but_in_the_request(code, client, work, caplog, monkeypatch):
    caplog.set_level(0)
    step = Status(code, 600, message=f"Incorrect API key provided: {KEY}. {KEY}")
    with ScriptedEndpoint([step]) as server:
        place = Endpoint(server.url, "m", KEY)
        one = client(server, place)
        with pytest.raises(LLMError, match=r"\[key\]") as error:
            ask(one)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    chain = [error.value, error.value.__cause__, error.value.__context__]
    told = [*map(str, chain), repr(error.value), repr(place), repr(one), caplog.text, str(ledger(work))]
    assert KEY not in "\n".join(told)
    work.close()
    assert KEY.encode() not in b"".join(path.read_bytes() for path in work.path.parent.iterdir())


def test_nothing_of_openais_variables_reaches_a_server(client, monkeypatch):
    with ScriptedEndpoint([Say("yes")]) as server, ScriptedEndpoint([Say("no")]) as wrong:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{wrong.url}/v1")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Mine: {KEY}\nAuthorization: Bearer {KEY}\nUser-Agent: {KEY}")
        for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
            monkeypatch.setenv(f"OPENAI_{name}", KEY)
        assert ask(client(server)).text == "yes"
        (request,) = server.requests
        assert KEY not in str(request)
        assert request.headers["authorization"] == "Bearer none"
        assert not [name for name in request.headers if name.startswith("openai") or name == "x-mine"]
        assert wrong.requests == []


def test_a_proxy_is_not_asked_for_what_is_on_this_machine(client, monkeypatch):
    with ScriptedEndpoint([Say("yes")]) as server, ScriptedEndpoint([Say("no")]) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert ask(client(server)).text == "yes"
        assert proxy.requests == []


def test_the_embedded_server_is_waited_for_longer_than_others(client, work, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    with ScriptedEndpoint(lambda request: Hang(0.8)) as server:
        for place in (Endpoint(server.url, "m"), Endpoint.embedded("m", lambda: (server.url, "none"))):
            with pytest.raises(LLMError):
                ask(client(None, place))
    assert {(row.endpoint, row.outcome) for row in ledger(work) if row.purpose == "plan"} == {
        (f"{server.url}/v1", "timeout"), ("embedded", "connection")
    }  # fmt: skip
