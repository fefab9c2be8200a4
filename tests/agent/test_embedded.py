"""The embedded server's child: its key, its port, its end; on a stand-in for llama.cpp, and on pulled weights."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamplighter.agent import embedded
from lamplighter.agent.embedded import CONTEXT, EmbeddedServer, lack
from lamplighter.agent.endpoint import Endpoint
from lamplighter.agent.llm import Client
from lamplighter.store.records import Refused
from lamplighter.store.work import Work
from lamplighter.tools import models

NAME = "qwen2.5-coder-0.5b"
PULLED = os.environ.get("LAMPLIGHTER_CACHE")     # the tests of this folder see an empty cache instead
PATIENCE = 30.0

# What of xllamacpp the child uses: a real server that wants its key, and that can be told to fail.
STAND_IN = '''
import http.server, json, os, sys, threading, types

class CommonParams:
    def __init__(self):
        self.model, self.cpuparams = types.SimpleNamespace(), types.SimpleNamespace()

class Server:
    def __init__(self, wish):
        if os.environ.get("STAND_IN") == "fails":
            sys.stderr.write("loading\\n\\n")
            raise RuntimeError("no tensor in " + wish.model.path)
        if os.environ.get("STAND_IN") == "crashes":
            os.abort()
        facts = {
            "model": wish.model.path, "context": wish.n_ctx, "pid": os.getpid(), "hosts": wish.hostnames,
            "key elsewhere": wish.api_keys[0] in " ".join([*sys.argv, *os.environ.values()]),
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.headers["Authorization"] == f"Bearer {wish.api_keys[0]}"
                body = json.dumps(facts if known else {}).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", wish.port), Handler)
        threading.Thread(target=server.serve_forever).start()
        self.listening_address = f"http://127.0.0.1:{server.server_port}"
'''


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which the model seems to be, and the stand-in where the child looks first."""
    folder = tmp_path / "cache" / NAME
    folder.mkdir(parents=True)
    facts = {"pins": models.entry(NAME).pins, "wheels": [], "files": {"model.gguf": {"bytes": 4, "sha256": "?"}}}
    (folder / "model.gguf").write_text("GGUF")
    (folder / "manifest.json").write_text(json.dumps(facts), "utf-8")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "xllamacpp.py").write_text(STAND_IN, "utf-8")
    monkeypatch.setenv("LAMPLIGHTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    monkeypatch.delenv("STAND_IN", raising=False)
    return folder / "model.gguf"


@pytest.fixture
def server(weights: Path) -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(NAME)
    yield made
    made.close()


def get(url: str, key: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


def gone(url: str) -> bool:
    """Whether nobody listens there any more, soon."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            get(url, "none")
        except urllib.error.HTTPError:
            time.sleep(0.02)
        except OSError:
            return True
    return False


def test_one_child_serves_the_weights_on_loopback(server: EmbeddedServer, weights: Path) -> None:
    url, key = server.connect()
    facts = get(url, key)
    assert (facts["model"], facts["context"], facts["hosts"]) == (str(weights), CONTEXT, ["127.0.0.1"])
    assert facts["pid"] != os.getpid()
    assert server.connect() == (url, key) and get(url, key)["pid"] == facts["pid"]


def test_the_key_is_random_wanted_and_in_no_list_of_processes(server: EmbeddedServer) -> None:
    url, key = server.connect()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(url, "none")
    facts = get(url, key)
    assert facts["key elsewhere"] is False and len(key) >= 24 and key != EmbeddedServer(NAME)._key
    if Path("/proc/self/cmdline").exists():
        seen = [Path(f"/proc/{facts['pid']}/{file}").read_bytes() for file in ("cmdline", "environ")]
        assert b"lamplighter.agent.embedded" in seen[0] and not any(key.encode() in text for text in seen)


def test_closing_ends_the_child_and_it_can_be_started_again(server: EmbeddedServer) -> None:
    server.close()     # nothing was begun
    url, key = server.connect()
    pid = get(url, key)["pid"]
    server.close()
    assert gone(url)
    server.close()
    url, key = server.connect()
    assert get(url, key)["pid"] != pid


def test_a_child_that_has_died_is_replaced(server: EmbeddedServer) -> None:
    url, key = server.connect()
    before = get(url, key)["pid"]
    os.kill(before, signal.SIGKILL)
    assert server._child is not None and server._child.wait(PATIENCE) == -signal.SIGKILL
    url, key = server.connect()
    assert get(url, key)["pid"] != before


def test_ctrl_c_is_for_the_parent(server: EmbeddedServer) -> None:
    url, key = server.connect()
    pid = get(url, key)["pid"]
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    assert get(url, key)["pid"] == pid


PARENT = f"""
import sys
from lamplighter.agent.embedded import EmbeddedServer
server = EmbeddedServer({NAME!r})
print(server.connect()[0], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent_however_that_ends(number: int, weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url, "none")
        parent.send_signal(number)
        assert parent.wait(PATIENCE) == -number
    assert gone(url)


def test_a_child_that_dies_at_its_start_is_quoted(
    server: EmbeddedServer, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "fails")
    words = f"{NAME} did not start: RuntimeError: no tensor in {weights}; run `lamplighter doctor`."
    with pytest.raises(Refused, match=words):
        server.connect()
    monkeypatch.delenv("STAND_IN")
    url, key = server.connect()
    assert get(url, key)["model"] == str(weights), "the next try is a new one"


def test_a_child_that_dies_without_a_word_is_told_so(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "crashes")
    with pytest.raises(Refused, match=f"{NAME} did not start: it said nothing; run"):
        server.connect()


def test_a_child_that_hangs_while_it_loads_is_given_up(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import time\ndef CommonParams():\n    time.sleep(60)\n"
    (tmp_path / "modules" / "xllamacpp.py").write_text(slow, "utf-8")
    short = (
        "import pathlib, sys\nfrom lamplighter.agent import embedded\n"
        "embedded.START_SECONDS = 1\nembedded._serve(pathlib.Path(sys.argv[-1]))\n"
    )
    (tmp_path / "short.py").write_text(short, "utf-8")
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -P {tmp_path / "short.py"} "$@"\n', "utf-8")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Refused, match="did not start"):
        server.connect()
    assert server._child is not None and server._child.wait(PATIENCE) == -signal.SIGALRM


def test_a_child_that_ends_before_it_reads_its_key_is_quoted(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho no such module >&2\nexit 1\n", "utf-8")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    server._key = "k" * 200_000     # more than a pipe holds, so that writing it waits for the reader, who is gone
    with pytest.raises(Refused, match="did not start: no such module; run"):
        server.connect()
    server.close()


# What may be lacking


def test_weights_that_are_not_here_are_told_before_anything_is_started() -> None:
    words = f"{NAME} is not here; run `lamplighter models pull {NAME}`"
    assert words in str(lack(NAME))
    with pytest.raises(Refused, match=words):
        EmbeddedServer(NAME).connect()


def test_a_missing_package_or_library_is_told_with_the_way_out(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    assert "package xllamacpp" in str(lack(NAME)) and "make setup" in str(lack(NAME))
    monkeypatch.setattr(embedded, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert "libgomp.so.1 is missing" in str(lack(NAME)) and "apt install libgomp1" in str(lack(NAME))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.1")
    assert lack(NAME) is None


# The real thing


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """The smallest embedded model that was pulled; `make test` pulls none, as they are large."""
    if PULLED is None:
        monkeypatch.delenv("LAMPLIGHTER_CACHE")
    else:
        monkeypatch.setenv("LAMPLIGHTER_CACHE", PULLED)
    name = next((name for name in (NAME, "qwen2.5-coder-1.5b") if models.installed(name)), None)
    if name is None:
        pytest.skip(f"no embedded language model is pulled: lamplighter models pull {NAME}")
    if lack(name) is not None:
        pytest.skip(str(lack(name)))
    made = EmbeddedServer(name)
    yield made
    made.close()


def test_the_real_server_answers_in_the_form_that_is_asked_for(real: EmbeddedServer, tmp_path: Path) -> None:
    client = Client(Endpoint.embedded(real.name, real.connect), Work(tmp_path / "work.sqlite"))
    schema = {"type": "object", "properties": {"word": {"const": "lamp"}}, "required": ["word"]}
    asked = [{"role": "user", "content": "Say hello."}]
    reply = client.ask("plan", asked, max_tokens=30, schema=schema | {"additionalProperties": False})
    assert json.loads(reply.text) == {"word": "lamp"}
    pid = real._child.pid if real._child else 0
    client.close()
    real.close()
    assert pid and not Path(f"/proc/{pid}").exists()
