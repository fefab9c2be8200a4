"""A language model behind an OpenAI-compatible endpoint: asked, charged, remembered.

Each HTTP request is one row of the ledger, a failed one too, written before anything is made of the reply: a process
killed at any point has at most the request in flight that no row tells of. A reply that was had once is recalled, not
asked for again, so an investigation that starts anew pays nothing for what it has already asked.
"""

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, Unpack

from .. import __version__
from ..store.records import LLMCall, Refused
from ..store.work import Work
from .endpoint import NO_KEY, Endpoint, is_loopback

if TYPE_CHECKING:
    from openai import OpenAI

TRIES = 3               # requests for one question, the first included
TIMEOUT = 120.0         # seconds of silence after which a request is given up
BACKOFF = 0.5           # seconds before the second try; twice that before the third
LONGEST_WAIT = 60.0     # seconds; where a server asks for more, the caller is told so
DOWN_WAIT = 30.0        # seconds until a server that answers nothing at all is asked again
BYTES_A_TOKEN = 4       # of UTF-8, where the server does not count
PROBE = "This is a test of the connection."     # begins every question of `probe`
WORD = "lamplighter"

_PASSING = ("http 408", "http 409", "http 429", "timeout", "connection")    # and every http 5xx: may be well next time
_LACKING = re.compile(r"http (400|404|405|415|422|500|501)|empty|cut off|unparsed|unreadable")   # a probe: not capable
# How llama.cpp's server tells, with a 500, that what its model said is not of the form asked for, most often since it
# was cut off: at temperature 0 it would come the same again.
_UNPARSED = re.compile(r"output that does not match the expected \S+ format")
UNUSABLE = ("cut off", "unparsed")       # kinds of LLMError that the model made: to another question it may do well
# What reasoning models refuse, and how it is said to them instead; None: not at all.
_ELSEWISE = {"seed": None, "temperature": None, "max_tokens": "max_completion_tokens"}
_UNSUPPORTED = re.compile(r"(?i)unsupported|not support|not permitted|extra_forbidden|unrecogni[sz]ed|unknown")

Message = dict[str, Any]


class LLMError(RuntimeError):
    """No usable reply was had. `kind` is the outcome in the ledger; the sentence says what to do.

    request: what was asked, where that is known. passing: another time the same request may be answered.
    """

    def __init__(
        self, kind: str, sentence: str, request: dict[str, Any] | None = None, passing: bool = False
    ) -> None:
        super().__init__(sentence)
        self.kind, self.request, self.passing = kind, request, passing


class Later(LLMError):
    """The server takes no request for so many `seconds`: it asks for that, or answers nothing at all just now."""

    def __init__(self, kind: str, sentence: str, seconds: float) -> None:
        super().__init__(kind, sentence)
        self.seconds = seconds


class OutOfBudget(LLMError):
    """A limit on tokens or money is reached, so the model is not asked."""


class Stamps(TypedDict, total=False):
    """What a ledger row is about."""

    run: str | None
    investigation: str | None
    unit: str | None
    sign: int | None
    provenance: dict[str, Any]


# What comes back


@dataclass(frozen=True)
class Call:
    """A tool call as the model wrote it; `arguments` None: `raw` is no JSON object. Nothing is guessed or mended."""

    id: str
    name: str
    arguments: dict[str, Any] | None
    raw: str


@dataclass(frozen=True)
class Weighed:
    """One token of a reply, and the likeliest tokens in its place with their log-probabilities, where they came."""

    token: str
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """One turn of the model. `recalled`: it was had before, and nothing was asked or charged. `weighed`: its tokens in
    order, where log-probabilities were asked for and came."""

    text: str
    calls: list[Call]
    finish_reason: str | None
    recalled: bool = False
    weighed: tuple[Weighed, ...] = ()
    tokens: int = 0      # in and out, what it cost when it was had, without the tries that were lost

    @property
    def message(self) -> Message:
        """This turn as the next request repeats it, before the results of its calls."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        # Servers parse the arguments of earlier calls and fail on broken ones: those are for the tool message to quote.
        functions = [{"name": c.name, "arguments": "{}" if c.arguments is None else c.raw} for c in self.calls]
        made = [{"id": c.id, "type": "function", "function": f} for c, f in zip(self.calls, functions, strict=True)]
        return {"role": "assistant", "content": self.text, "tool_calls": made}


@dataclass(frozen=True)
class Capabilities:
    """What an endpoint was seen to do: call a tool, keep to a schema, say what else a token could have been and how
    likely it was, count tokens."""

    tools: bool
    schema: bool
    logprobs: bool
    usage: bool

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Capabilities":
        """What `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class _Answer:
    """One HTTP exchange: how it went, the JSON object that came, the server's own words, and what it asks to wait."""

    outcome: str
    body: dict[str, Any] | None = None
    said: str = ""
    wait: float | None = None

    @property
    def passing(self) -> bool:
        return self.outcome in _PASSING or self.outcome.startswith("http 5")


# Asking


class Client:
    """Asks one endpoint, and writes what that cost into `work`.

    `check` is called before each request, with its stamps, and may raise; `seconds_left` is what the run may still
    take, None for no limit: no request and no wait goes beyond it. `sleep` can be replaced in tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        work: Work,
        check: Callable[[Stamps], None] = lambda stamps: None,
        seconds_left: Callable[[], float | None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint, self.work = endpoint, work
        self._check, self._seconds_left, self._sleep = check, seconds_left, sleep
        self._refused: set[str] = set()     # fields of _ELSEWISE that this model does not take
        self._connected: tuple[tuple[str, str], OpenAI] | None = None
        self._connecting = threading.Lock()

    @cached_property
    def model(self) -> str:
        """The endpoint's model: the one configured, else the only one that it lists (one request).

        Raises Refused if it lists none or several, LLMError if it cannot be asked.
        """
        if self.endpoint.model is not None:
            return self.endpoint.model
        rows = self._answer("models", None, {}).get("data")
        listed = rows if isinstance(rows, list) else []
        names = [str(row["id"]) for row in listed if isinstance(row, dict) and "id" in row]
        if len(names) == 1:
            return names[0]
        many = f"serves {len(names)} models ({', '.join(names[:10])}{', …' if names[10:] else ''})"
        raise Refused(
            f"the endpoint {self.endpoint.label} {many if names else 'lists no model'}; "
            "name the one to ask in LAMPLIGHTER_LLM_MODEL."
        )

    @property
    def priced(self) -> bool:
        """Whether a limit in dollars can be kept: what a call costs is known."""
        return self.endpoint.usd(self.model, 0, 0, 0) is not None

    def ask(
        self,
        purpose: str,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        schema: dict[str, Any] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        top_logprobs: int | None = None,
        **stamps: Unpack[Stamps],
    ) -> Reply:
        """The model's next turn after `messages`, at temperature 0 and seed 0, at most `max_tokens` long.

        `tools` are the API's tool objects, among which the model may choose. `schema` is a JSON schema that the reply
        is to fit; a server that ignores it is not corrected here. Both in one request is a ValueError: many servers
        then drop one of them without a word. `top_logprobs` asks for the log-probabilities of so many tokens in each
        place of the reply. The same request is asked once, and recalled ever after.

        Raises Later where the server asks for a long wait, LLMError if no usable reply was had, and what `check`
        raises.
        """
        request = self._request(messages, max_tokens, schema, tools, top_logprobs)
        key = f"llm:{self._digest(request)}"
        known = self.work.recall(key)
        if known is not None:
            body = json.loads(known)
        else:
            body = self._answer(purpose, request, stamps)
            self.work.remember(key, json.dumps(body))
        tokens_in, _, tokens_out, _ = _tokens(request, body)
        return replace(_reply(body), recalled=known is not None, tokens=tokens_in + tokens_out)

    def capabilities(self, key: str, **stamps: Unpack[Stamps]) -> Capabilities:
        """What the endpoint can do, as remembered under `key`, or probed and then remembered."""
        known = self.work.recall(key)
        if known is None:
            known = probe(self, **stamps).to_json()
            self.work.remember(key, known)
        return Capabilities.from_json(known)

    def close(self) -> None:
        """Closes the connections; the next request opens another."""
        if self._connected is not None:
            self._connected[1].close()
        self._connected = None

    def _request(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        schema: dict[str, Any] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        top_logprobs: int | None = None,
    ) -> dict[str, Any]:
        if schema is not None and tools is not None:
            raise ValueError("a request holds tools or a schema, never both")
        request = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens}
        request |= {"temperature": 0, "seed": 0}
        if tools is not None:
            request |= {"tools": list(tools), "tool_choice": "auto"}
        if schema is not None:
            form = {"name": "answer", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        if top_logprobs is not None:
            request |= {"logprobs": True, "top_logprobs": top_logprobs}
        return request

    def _digest(self, request: dict[str, Any] | None) -> str:
        """sha256 of what is asked of whom: the label is in it, and a port that changes from run to run is not."""
        asked = json.dumps([self.endpoint.label, request], sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(asked.encode()).hexdigest()

    def _answer(self, purpose: str, request: dict[str, Any] | None, stamps: Stamps) -> dict[str, Any]:
        """What the endpoint says to a request (None: asks which models there are), past the cache.

        Tries again what may pass. The OpenAI client could do that by itself, but then the ledger would not see each
        try. A reply that was cut off or empty would come the same again, at temperature 0. Raises LLMError: Later where
        a plain question is not answered either, so that it is not this request that the server cannot answer.
        """
        tries = 1
        while True:
            answer = self._send(purpose, request, stamps)
            if answer.outcome == "ok" and answer.body is not None:
                return answer.body
            if request is not None and self._yields(answer, request):
                continue
            wait = BACKOFF * 2 ** (tries - 1) if answer.wait is None else answer.wait
            if answer.passing and answer.wait is not None and self._longest_wait() < wait < math.inf:
                raise Later(answer.outcome, self._sentence(answer, tries), wait)
            if not answer.passing or tries == TRIES or wait > self._longest_wait():
                sentence = self._sentence(answer, tries)
                if tries == TRIES and request is not None and self._is_down(stamps):
                    raise Later(answer.outcome, sentence, DOWN_WAIT)
                raise LLMError(answer.outcome, sentence, request, answer.passing)
            self._sleep(wait)
            tries += 1

    def _is_down(self, stamps: Stamps) -> bool:
        """Whether a short question gets no answer either, not even one that is refused, cut off or empty."""
        return self._send("probe", _question(self, f"Say {WORD}."), stamps).passing

    def _send(self, purpose: str, request: dict[str, Any] | None, stamps: Stamps) -> _Answer:
        """One HTTP request and its row in the ledger."""
        self._check(stamps)
        left = self._seconds_left()
        if left is not None and left <= 0:
            raise LLMError("no time", "the run's time is spent, so nothing more is asked; raise --minutes.")
        longest = TIMEOUT * self.endpoint.patience
        timeout = longest if left is None else min(longest, left)
        api = self._connection()
        answer, began = _Answer("interrupted"), time.monotonic()
        try:
            answer = _exchange(api, request and self._spoken(request), timeout)
        finally:                # a request that Ctrl-C cut short was made, and may have to be paid
            self._charge(purpose, request, answer, time.monotonic() - began, stamps)
        return answer

    def _charge(
        self, purpose: str, request: dict[str, Any] | None, answer: _Answer, seconds: float, stamps: Stamps
    ) -> None:
        tokens_in = cached = tokens_out = usd = None
        estimated, tokens_most = False, 0
        usd_most: float | None = 0.0
        model = "" if request is None else request["model"]
        if request is None or answer.outcome.startswith("http"):
            usd = 0.0                                     # lists and refusals are free everywhere
        elif answer.body is not None:
            tokens_in, cached, tokens_out, estimated = _tokens(request, answer.body)
            tokens_most = tokens_in + tokens_out
            usd = usd_most = self.endpoint.usd(model, tokens_in, cached or 0, tokens_out)
        else:                                             # what was lost may have to be paid, up to its last token
            asked, allowed = _size(request), request["max_tokens"]
            tokens_most, usd_most = asked + allowed, self.endpoint.usd(model, asked, 0, allowed)
            usd = 0.0 if usd_most == 0.0 else None
        self.work.charge(
            LLMCall(
                purpose=purpose, model=model, endpoint=self.endpoint.label, outcome=answer.outcome, tokens_in=tokens_in,
                tokens_cached=cached, tokens_out=tokens_out, estimated=estimated, usd=usd,
                tokens_most=tokens_most, usd_most=usd_most, request=self._digest(request), seconds=round(seconds, 3),
                **stamps,
            )
        )  # fmt: skip

    def _connection(self) -> "OpenAI":
        """The client for the address of this moment. Raises LLMError where there is no server to be had."""
        with self._connecting:           # a server that starts when it is first needed starts once
            try:
                address = self.endpoint.address()
            except Refused as refusal:
                raise LLMError("connection", str(refusal)) from refusal
            if self._connected is None or self._connected[0] != address:
                self.close()
                self._connected = address, _openai(*address)
            return self._connected[1]

    def _yields(self, answer: _Answer, request: dict[str, Any]) -> bool:
        """Whether the model refused one of the fields of _ELSEWISE, which is then said to it in another way."""
        if answer.outcome not in ("http 400", "http 422") or not _UNSUPPORTED.search(answer.said):
            return False
        open_to_it = [name for name in _ELSEWISE if name in request and name not in self._refused]
        named = [name for name in open_to_it if re.search(rf"\b{name}\b", answer.said)]
        self._refused.update(named[:1])
        return bool(named)

    def _spoken(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request in the words that this model takes."""
        said = {(_ELSEWISE[name] if name in self._refused else name): value for name, value in request.items()}
        return {name: value for name, value in said.items() if name is not None}

    def _longest_wait(self) -> float:
        left = self._seconds_left()
        return LONGEST_WAIT if left is None else min(LONGEST_WAIT, left)

    def _sentence(self, answer: _Answer, tries: int) -> str:
        """What went wrong and what to do, with the server's own words where it has any, and never with the key."""
        words = _words(answer.said)
        for key in {self.endpoint.key, self._connected[0][1] if self._connected else NO_KEY} - {NO_KEY}:
            words = words.replace(key, "[key]")
        times = f", {tries} times" if tries > 1 else ""
        asks = "" if answer.wait is None else f", asks to wait {answer.wait:.0f} seconds"
        reason = f"{answer.outcome.replace('http', 'HTTP')}{times}{asks}{': ' + words[:200] if words else ''}"
        what, way = _ENDS.get(answer.outcome, _ENDS["http 5" if answer.passing else "http 4"])
        return f"the endpoint {self.endpoint.label} {what} ({reason}); {way}"


_KEY = ("refused the key", "set LAMPLIGHTER_LLM_KEY.")
_ENDS = {
    "http 401": _KEY,
    "http 403": _KEY,
    "http 404": ("does not know the model or the address", "set LAMPLIGHTER_LLM_MODEL, or give the URL up to /v1."),
    "http 429": ("takes no more requests at the moment", "wait, then run the same command again."),
    "http 4": ("refused the request", "its words say what it does not take."),
    "http 5": ("failed", "look at its log, then run the same command again."),
    "timeout": ("gave no answer in time", "see whether it is overloaded, or choose a smaller model."),
    "connection": ("cannot be reached", "is the server running?"),
    "unreadable": ("sent what is no chat completion", "is it an OpenAI-compatible server?"),
    "empty": ("sent a reply without an answer", "try another model."),
    "cut off": ("was cut off before its answer was whole", "choose a model that says less."),
    "unparsed": ("could not read what its model said", "choose a model that keeps to a form."),
}


def _openai(url: str, key: str) -> "OpenAI":
    """The client for one address, whose headers are these and no others.

    The stock one adds headers that it finds in OPENAI_* variables. Redirects are not followed: they would be requests
    that no row tells of. A proxy is not asked for what is on this machine.
    """
    from openai import DefaultHttpxClient, Omit, OpenAI

    class Plain(OpenAI):
        @property
        def default_headers(self) -> dict[str, str | Omit]:
            form = "application/json"
            return {"Accept": form, "Content-Type": form, "User-Agent": f"lamplighter/{__version__}"}

    http = DefaultHttpxClient(trust_env=not is_loopback(url), follow_redirects=False)
    return Plain(api_key=key, admin_api_key="", base_url=url, max_retries=0, http_client=http)


def _exchange(api: "OpenAI", request: dict[str, Any] | None, timeout: float) -> _Answer:
    """Sends one request and looks at what comes just closely enough for the ledger."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    try:
        if request is None:
            raw = api.models.with_raw_response.list(timeout=timeout).http_response
        else:
            raw = api.chat.completions.with_raw_response.create(**request, timeout=timeout).http_response
    except APITimeoutError:
        return _Answer("timeout", said=f"{timeout:.0f} seconds")
    except APIConnectionError:
        return _Answer("connection")
    except APIStatusError as error:
        if _UNPARSED.search(error.response.text):
            return _Answer("unparsed", said=error.response.text)
        wait = _retry_after(error.response.headers.get("retry-after"))
        return _Answer(f"http {error.status_code}", said=error.response.text, wait=wait)
    body = json_object(raw.content)
    if body is None:
        return _Answer("unreadable", said=raw.text[:200])
    fault = None if request is None else _fault(body, request)
    return _Answer(fault or "ok", body, json.dumps(body["error"]) if fault and "error" in body else "")


def _retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, which holds them or an HTTP date; None if it holds neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds)


def _words(said: str) -> str:
    """The message in what a server said, on one line; all of it where it is not of the usual form."""
    error = (json_object(said) or {}).get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join((message if isinstance(message, str) else said).split())


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that `text` is, or None: also where no other program could read it (NaN, half a character)."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fault(body: dict[str, Any], request: dict[str, Any]) -> str | None:
    """Why a reply cannot be used, or None: no answer in it, not of the API's form, or ended by the limit too early."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if choice is None or message is None:
        return "empty"
    if not _well_formed(message):
        return "unreadable"
    calls, text = _calls(message), message.get("content") or ""
    whole = all(call.arguments is not None for call in calls)
    if not calls:
        whole = json_object(text) is not None if "response_format" in request else text != ""
    return None if whole or choice.get("finish_reason") != "length" else "cut off"


def _well_formed(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        return False
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return False
    functions = [call.get("function") for call in calls]
    return all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in functions)


def _reply(body: dict[str, Any]) -> Reply:
    """The first choice of a reply that `_fault` found well formed."""
    choice = body["choices"][0]
    message = choice["message"]
    text, calls = message.get("content") or "", _calls(message)
    return Reply(text, calls, choice.get("finish_reason"), weighed=_weighed(choice.get("logprobs")))


def _weighed(logprobs: Any) -> tuple[Weighed, ...]:
    """The log-probabilities that came; none at all where any of them is not of the API's form."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    rows = content if isinstance(content, list) else []
    made = [_weighed_token(row) for row in rows]
    return tuple(one for one in made if one is not None) if None not in made else ()


def _weighed_token(row: Any) -> Weighed | None:
    token = row.get("token") if isinstance(row, dict) else None
    others = row.get("top_logprobs", []) if isinstance(row, dict) else None
    if not isinstance(token, str) or not isinstance(others, list):
        return None
    pairs = [(o.get("token"), o.get("logprob")) if isinstance(o, dict) else (None, None) for o in others]
    formed = all(isinstance(t, str) and isinstance(p, int | float) for t, p in pairs)
    return Weighed(token, tuple((str(t), float(p)) for t, p in pairs if p is not None)) if formed else None


def _calls(message: dict[str, Any]) -> list[Call]:
    """The tool calls; arguments come as text, as the API has it, or as an object, as some servers send them."""
    calls = []
    for number, call in enumerate(message.get("tool_calls") or []):
        arguments = call["function"].get("arguments")
        raw = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(Call(str(call.get("id") or f"call_{number}"), call["function"]["name"], json_object(raw), raw))
    return calls


def _tokens(request: dict[str, Any], body: dict[str, Any]) -> tuple[int, int | None, int, bool]:
    """Tokens in, cached among them, and out, as the server counts them; else by their bytes, and True for estimated."""
    counted = _usage(body)
    if counted is not None:
        return *counted, False
    return _size(request), None, _estimated(body.get("choices")), True


def _size(request: dict[str, Any]) -> int:
    """Tokens of what is asked, by its bytes."""
    return _estimated({name: request[name] for name in ("messages", "tools", "response_format") if name in request})


def _estimated(value: Any) -> int:
    return math.ceil(len(json.dumps(value, ensure_ascii=False).encode()) / BYTES_A_TOKEN)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _usage(body: dict[str, Any]) -> tuple[int, int | None, int] | None:
    """The server's own count, or None if it gave none that could be one."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if not _is_count(tokens_in) or not _is_count(tokens_out):
        return None
    return tokens_in, cached if _is_count(cached) and cached <= tokens_in else None, tokens_out


# What it can do


def probe(client: Client, **stamps: Unpack[Stamps]) -> Capabilities:
    """Finds out by four short requests (purpose `probe`) what an endpoint can do; each is asked anew.

    The first, with nothing special in it, must be answered. Of the others, one that is refused, fails in the server or
    comes back wrong says "not capable". Raises LLMError if the endpoint cannot be asked at all.
    """
    plain = client._answer("probe", _question(client, f"Say {WORD}."), stamps)

    def told(request: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return client._answer("probe", request, stamps)
        except LLMError as error:
            if _LACKING.fullmatch(error.kind):
                return None
            raise

    called = told(_question(client, f"Call the tool probe with the word {WORD}.", tools=[_PROBE_TOOL]))
    shaped = told(_question(client, "Name a colour.", schema=_PROBE_SCHEMA))
    weighed = told(_question(client, f"Say {WORD}.", top_logprobs=2))
    return Capabilities(
        tools=called is not None and ("probe", {"word": WORD}) in [(c.name, c.arguments) for c in _reply(called).calls],
        schema=shaped is not None and json_object(_reply(shaped).text) == {"word": WORD},
        logprobs=weighed is not None and any(len(one.likeliest) > 1 for one in _reply(weighed).weighed),
        usage=_usage(plain) is not None,
    )


# Only a server that keeps to the schema names this word as a colour.
_PROBE_SCHEMA = {
    "type": "object", "properties": {"word": {"type": "string", "enum": [WORD]}}, "required": ["word"],
    "additionalProperties": False,
}  # fmt: skip
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "Takes one word.", "parameters": _PROBE_SCHEMA},
}


def _question(client: Client, text: str, **how: Any) -> dict[str, Any]:
    return client._request([{"role": "user", "content": f"{PROBE} {text}"}], max_tokens=512, **how)
