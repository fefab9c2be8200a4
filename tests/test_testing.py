import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lamplighter.testing import CallTool, Hang, NoUsage, Say, ScriptedEndpoint, Status


def post(url, body, key=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


ASKED = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}


def test_steps_are_taken_in_order_and_then_the_script_is_over():
    with ScriptedEndpoint([Say("one"), CallTool("lens", {"x": 1})]) as server:
        assert post(server.url, ASKED)["choices"][0]["message"]["content"] == "one"
        (call,) = post(server.url, ASKED)["choices"][0]["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("lens", {"x": 1})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(server.url, ASKED)
        assert [request.body for request in server.requests] == [ASKED] * 3


def test_a_function_answers_what_it_is_asked():
    with ScriptedEndpoint(lambda asked: NoUsage(Say(asked["messages"][0]["content"]))) as server:
        reply = post(server.url, ASKED)
    assert reply["choices"][0]["message"]["content"] == "Why?" and "usage" not in reply


def test_a_wrong_key_and_a_wrong_page_are_told():
    with ScriptedEndpoint([Say("yes")], key="right") as server:
        for key in (None, "wrong"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                post(server.url, ASKED, key)
        assert post(server.url, ASKED, "right")["choices"]
    with ScriptedEndpoint() as server, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.url}/v2/models", timeout=10)


def test_stopping_ends_what_hangs_and_refuses_what_follows():
    with ScriptedEndpoint([Hang(60)]) as server:
        with pytest.raises(OSError), ScriptedEndpoint(lambda _: server.stop() or Status(500)) as other:
            post(other.url, ASKED)
        with pytest.raises(urllib.error.URLError):
            post(server.url, ASKED)


def test_a_script_in_a_file_is_served_by_hand(tmp_path: Path):
    call = {"step": "CallTool", "name": "lens", "arguments": {"x": 3}}
    steps = [{"step": "Status", "code": 429, "retry_after": 1}, {"step": "NoUsage", "answer": call}]
    (tmp_path / "steps.json").write_text(json.dumps(steps), "utf-8")
    command = [sys.executable, "-m", "lamplighter.testing", "--script", str(tmp_path / "steps.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            url = process.stdout.readline().strip()
            with pytest.raises(urllib.error.HTTPError, match="429") as refused:
                post(url, ASKED)
            assert refused.value.headers["Retry-After"] == "1"
            (call,) = post(url, ASKED)["choices"][0]["message"]["tool_calls"]
            assert json.loads(call["function"]["arguments"]) == {"x": 3}
        finally:
            process.terminate()
