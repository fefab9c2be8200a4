"""An OpenAI-compatible endpoint that answers from a script, on loopback, for tests of code that asks a language model.

    with ScriptedEndpoint([CallTool("lens", {}), Status(429, retry_after=1), Say("done")]) as endpoint:
        ...                              # ask endpoint.url; then look at endpoint.requests

By hand, with a JSON list of steps such as {"step": "CallTool", "name": "lens", "arguments": {}}:

    python -m lamplighter.testing --port 8765 --script steps.json
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from .agent.llm import PROBE, WORD


@dataclass(frozen=True)
class Say:
    """Answers with text. weighed: what it says of its tokens where log-probabilities are asked for, each the token
    and the tokens likeliest in its place with their log-probabilities; by default every word, as certain."""

    text: str
    weighed: Sequence[tuple[str, Sequence[tuple[str, float]]]] | None = None


@dataclass(frozen=True)
class CallTool:
    """Calls a tool. Arguments given as text are sent as they are; `as_object` sends an object where text belongs."""

    name: str
    arguments: dict[str, Any] | str
    as_object: bool = False


@dataclass(frozen=True)
class Status:
    """Answers with an HTTP status, and with Retry-After: seconds, or any text."""

    code: int
    retry_after: float | str | None = None
    message: str = "scripted"


@dataclass(frozen=True)
class Hang:
    """Says nothing for so many seconds, then closes the connection."""

    seconds: float


@dataclass(frozen=True)
class Drop:
    """Closes the connection in the middle of an answer."""


@dataclass(frozen=True)
class CutJson:
    """Runs into the limit on tokens within JSON: the arguments of a call where tools are offered, else the text."""

    text: str = '{"text": "the cou'
    name: str = "activate"


@dataclass(frozen=True)
class EmptyChoices:
    """Answers without a choice."""


@dataclass(frozen=True)
class NoUsage:
    """Answers as another step would, without counting tokens."""

    answer: "Say | CallTool | CutJson"


@dataclass(frozen=True)
class Raw:
    """Answers with this body, whatever it is."""

    body: str


Step = Say | CallTool | Status | Hang | Drop | CutJson | EmptyChoices | NoUsage | Raw
Script = Sequence[Step] | Callable[[dict[str, Any]], Step]
STEPS = {kind.__name__: kind for kind in (Say, CallTool, Status, Hang, Drop, CutJson, EmptyChoices, NoUsage, Raw)}


@dataclass(frozen=True)
class Request:
    """One request as it came: its path, its headers with lower-case names, and its JSON body (None for GET)."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None


class ScriptedEndpoint:
    """A server on loopback from `with` to its end; `requests` holds all that it was asked, `counted` the tokens of all
    answers that went out with a count.

    `script` is a list of steps, one a request, after which it answers 400; or a function from the request to a step.
    `tools=False`, `schema=False`, `logprobs=False`: answers 400 to requests with these, as servers without them do.
    `usage=False`: counts no tokens. Lamplighter's probes are answered by these four, without a step of the script,
    unless `probes=False`. With `key`, any other key is answered 401.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        models: Sequence[str] = ("scripted",),
        tools: bool = True,
        schema: bool = True,
        logprobs: bool = True,
        usage: bool = True,
        probes: bool = True,
        key: str | None = None,
        port: int = 0,
    ) -> None:
        self.requests: list[Request] = []
        self.counted = 0
        self.models, self.usage, self.probes, self.key = models, usage, probes, key
        lacks = {"tools": not tools, "response_format": not schema, "logprobs": not logprobs}
        self._lacks = [name for name, lacking in lacks.items() if lacking]
        self._steps: Iterator[Step] | None = None if callable(script) else iter(script)
        self._script = script
        self._turn, self._stopping = threading.Lock(), threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.endpoint = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, without /v1."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Dies: ends what hangs and refuses every later connection."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._server.shutdown()
            self._server.server_close()

    def wait(self, seconds: float) -> None:
        """Lets so many seconds go by, fewer if it is stopped meanwhile."""
        self._stopping.wait(seconds)

    def step_for(self, request: Request) -> Step:
        """Notes a request and says how it is to be answered."""
        with self._turn:
            self.requests.append(request)
            if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
                return Status(401, message="this key is not known")
            if request.body is None:
                return self._list(request.path)
            lacking = [name for name in self._lacks if request.body.get(name)]
            if lacking:
                return Status(400, message=f"{lacking[0]} cannot be had from this server")
            if self.probes and _is_probe(request.body):
                return _able(request.body)
            if self._steps is None and callable(self._script):
                return self._script(request.body)
            assert self._steps is not None
            return next(self._steps, Status(400, message="the script is over"))

    def _list(self, path: str) -> Step:
        if not path.endswith("/v1/models"):
            return Status(404, message="there is no such page")
        return Raw(json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    endpoint: ScriptedEndpoint


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._perform(self.server.endpoint.step_for(self._request(None)), {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = urlsplit(self.path).path == "/v1/chat/completions"
        step = self.server.endpoint.step_for(self._request(body))
        self._perform(step if known else Status(404, message="there is no such page"), body)

    def _request(self, body: dict[str, Any] | None) -> Request:
        return Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body)

    def _perform(self, step: Step, asked: dict[str, Any]) -> None:
        match step:
            case Hang(seconds):
                self.server.endpoint.wait(seconds)
            case Drop():
                self._send(200, "{", length=1000)
            case Status(code, retry_after, message):
                error = {"error": {"message": message, "type": "scripted", "code": code}}
                self._send(code, json.dumps(error), retry_after=retry_after)
            case Raw(body):
                self._send(200, body)
            case _:
                made = _completion(step, asked, self.server.endpoint.usage)
                self.server.endpoint.counted += made.get("usage", {}).get("total_tokens", 0)
                self._send(200, json.dumps(made))

    def _send(self, code: int, body: str, length: int = 0, retry_after: float | str | None = None) -> None:
        content = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(content)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing; `requests` has it all."""


def _is_probe(asked: dict[str, Any]) -> bool:
    return any(str(message.get("content")).startswith(PROBE) for message in asked.get("messages", []))


def _able(asked: dict[str, Any]) -> Step:
    """What a server that can do everything answers to a probe."""
    if asked.get("tools"):
        return CallTool("probe", {"word": WORD})
    return Say(json.dumps({"word": WORD}) if "response_format" in asked else WORD)


def _completion(step: Step, asked: dict[str, Any], usage: bool = True) -> dict[str, Any]:
    """The body that a step stands for. One token a word is counted."""
    if isinstance(step, NoUsage):
        return _completion(step.answer, asked, usage=False)
    message: dict[str, Any] = {"role": "assistant", "content": None}
    finish = "length" if isinstance(step, CutJson) else "stop"
    weighed: Sequence[tuple[str, Sequence[tuple[str, float]]]] | None = None
    match step:
        case Say(text, given):
            message["content"] = text
            weighed = given
        case CallTool(name, arguments, as_object):
            sent = arguments if as_object or isinstance(arguments, str) else json.dumps(arguments)
            message["tool_calls"] = [_function(name, sent)]
            finish = "tool_calls"
        case CutJson(text, name) if asked.get("tools"):
            message["tool_calls"] = [_function(name, text)]
        case CutJson(text):
            message["content"] = text
    choice = {"index": 0, "message": message, "finish_reason": finish}
    if asked.get("logprobs"):
        words = [(word, [(word, -0.01), ("a", -5.0)]) for word in str(message["content"] or "").split()]
        choice["logprobs"] = {"content": [_weighed(*one) for one in (words if weighed is None else weighed)]}
    choices = [] if isinstance(step, EmptyChoices) else [choice]
    body = {"id": "scripted", "object": "chat.completion", "model": asked.get("model"), "choices": choices}
    counts = [len(json.dumps(one).split()) for one in (asked.get("messages"), message)]
    counted = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
    return body | {"usage": counted} if usage else body


def _weighed(token: str, likeliest: Sequence[tuple[str, float]]) -> dict[str, Any]:
    top = [{"token": other, "logprob": p, "bytes": list(other.encode())} for other, p in likeliest]
    return {"token": token, "logprob": dict(likeliest).get(token), "bytes": list(token.encode()), "top_logprobs": top}


def _function(name: str, arguments: dict[str, Any] | str) -> dict[str, Any]:
    return {"id": "call_scripted", "type": "function", "function": {"name": name, "arguments": arguments}}


def _step(row: dict[str, Any]) -> Any:
    """The step that one object of a script file describes; a step within it (NoUsage) likewise."""
    values = {k: _step(value) if isinstance(value, dict) and "step" in value else value for k, value in row.items()}
    return STEPS[values.pop("step")](**values)


def main() -> None:
    """Serves a script from a file until Ctrl-C."""
    parser = argparse.ArgumentParser("python -m lamplighter.testing", description="A scripted endpoint on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path, required=True, help="a JSON list of steps")
    asked = parser.parse_args()
    steps = [_step(row) for row in json.loads(asked.script.read_text("utf-8"))]
    with ScriptedEndpoint(steps, port=asked.port) as endpoint:
        sys.stdout.write(f"{endpoint.url}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stderr.write(f"answered {len(endpoint.requests)} requests\n")


if __name__ == "__main__":
    main()
