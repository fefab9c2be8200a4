"""What is said between a planner and a language model, in the form that the endpoint understands.

A capable endpoint gets native tool calls; any other gets one JSON action a turn, held to a schema where that works
(never both in one request: several servers then drop the tool calls). An action is the same either way:
{"why", "tool", "args"}.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import prompts
from ..store.records import Refused
from ..tools.toolbox import describe
from .llm import UNUSABLE, Capabilities, Client, LLMError, Reply, Stamps, json_object

MAX_TOKENS = 400
WHY = 120        # characters of a reason
# The options of each tool that a planner is shown: the others are of no use to whoever sees no token numbers.
SHOWN: dict[str, tuple[str, ...]] = {
    "top_examples": ("band",), "minimal_example": ("text",), "substitute": ("text",), "activate": ("text",),
    "lens": (), "ablate": ("kind",), "patch": ("text",), "try_rule": ("sentence", "rule"),
}  # fmt: skip
REQUIRED = ("text", "sentence", "rule")
_SENTENCE = {"type": "string", "minLength": 1, "maxLength": 200}
# A small model that is left free here copies a text of the corpus in place of what it is to say of it.
SAYS: dict[str, Any] = {"type": "string", "pattern": "^fires on [^«»]{1,180}$"}
_LETTERS = {"type": "string", "minLength": 1, "maxLength": 12}
# The ways to end, beside the tools: what each does, and the schema of its arguments.
ENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "submit": (
        "Hands in a candidate as the explanation.",
        {
            "candidate": {**_LETTERS, "description": "its letter; several as A+B; none: a sentence alone"},
            "sentence": {**SAYS, "description": "fires on …"},
        },
    ),
    "abstain": ("Says that the evidence supports no candidate.", {"reason": _SENTENCE}),
}
# A planner names candidates by their letters, where the tool itself takes their rules.
BY_LETTER: dict[str, tuple[str, dict[str, Any]]] = {
    "separate": (
        "Shows texts on which candidates disagree, and what the neuron does there.",
        {"candidates": {**_LETTERS, "description": "two letters, such as A B"}},
    ),
}
OFFERED = (*SHOWN, *BY_LETTER)


@dataclass(frozen=True)
class Act:
    """One usable action of a language model; `arguments` are valid for the tool."""

    tool: str
    arguments: dict[str, Any]
    why: str


@dataclass
class Dialogue:
    """The messages so far with one language model, its replies as they came, and the form in which it acts."""

    client: Client
    can: Capabilities
    tools: Sequence[str]
    stamps: Stamps
    messages: list[dict[str, Any]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    _pending: str = ""

    def __post_init__(self) -> None:
        listed = "\n".join(f"- {line}" for line in map(_line, (*self.tools, *ENDS)))
        reply = prompts.render("reply_call") if self.can.tools else prompts.render("reply_json", tools=listed)
        self.messages.append({"role": "system", "content": prompts.render("plan", reply=reply)})
        for shot in prompts.shots():
            did = shot["assistant"]
            self.tell(shot["user"])
            self._acted(Act(did["tool"], did["args"], did["why"]))
            if did["tool"] in ENDS and self._pending:     # the next example is of another unit
                self.tell("recorded")

    def tell(self, text: str) -> None:
        """Says what was found; it answers the last call where calls are native.

        What is said twice in a row is one message: some chat templates want the roles to alternate.
        """
        if self._pending:
            self.messages.append({"role": "tool", "tool_call_id": self._pending, "content": text})
        elif self.messages[-1]["role"] == "user":
            self.messages[-1] = {"role": "user", "content": f"{self.messages[-1]['content']}\n\n{text}"}
        else:
            self.messages.append({"role": "user", "content": text})
        self._pending = ""

    def _acted(self, act: Act) -> None:
        """Notes an action among the messages, as the model's own words."""
        if not self.can.tools:
            said = {"why": act.why, "tool": act.tool, "args": act.arguments}
            self.messages.append({"role": "assistant", "content": _compact(said)})
            return
        function = {"name": act.tool, "arguments": _compact({"why": act.why, **act.arguments})}
        self._pending = self._number()
        calls = [{"id": self._pending, "type": "function", "function": function}]
        self.messages.append({"role": "assistant", "content": None, "tool_calls": calls})

    def _number(self) -> str:
        """A call's id: the server's own is drawn anew each time. Some chat templates want nine letters and digits."""
        return f"call{len(self.messages):05}"

    def ask(self, purpose: str, names: Sequence[str]) -> Act:
        """The model's next action among the tools `names`. Raises Refused, fit to be shown to it, for anything else.

        What it said is among the messages then. Raises LLMError where there was no answer.
        """
        form: dict[str, Any] = {}
        if self.can.tools:
            form = {"tools": [_function(name) for name in names]}
        elif self.can.schema:
            form = {"schema": {"anyOf": [_action(name) for name in names]}}
        try:
            reply = self.client.ask(purpose, self.messages, max_tokens=MAX_TOKENS, **form, **self.stamps)
        except LLMError as error:
            if error.kind not in UNUSABLE:
                raise
            raise Refused(f"the reply was longer than {MAX_TOKENS} tokens, or of another form.") from error
        self.replies.append(reply)
        try:
            act = self._read(reply, names)
        except Refused:
            self._note(reply)
            raise
        self._acted(act)
        return act

    def _note(self, reply: Reply) -> None:
        """Keeps what was no usable action among the messages, so that the model sees what it did."""
        kept = reply.calls[:1] if self.can.tools else []     # each call in a message must be answered
        self._pending = self._number() if kept else ""
        self.messages.append(replace(reply, calls=[replace(call, id=self._pending) for call in kept]).message)

    def _read(self, reply: Reply, names: Sequence[str]) -> Act:
        if self.can.tools:
            if not reply.calls:
                raise Refused("no tool was called.")
            call = reply.calls[0]
            if call.arguments is None:
                raise Refused(f"the arguments of {call.name} are no JSON object.")
            arguments = dict(call.arguments)
            return _valid(call.name, arguments, str(arguments.pop("why", "")), names)
        said = json_object(reply.text)
        if said is None or not isinstance(said.get("args", {}), dict):
            raise Refused("the reply is no JSON object with an object args.")
        return _valid(str(said.get("tool", "")), said.get("args", {}), str(said.get("why", "")), names)


def _valid(name: str, arguments: Mapping[str, Any], why: str, names: Sequence[str]) -> Act:
    """The action, if it names a tool that is offered and gives it what it takes; the tool itself checks the rest."""
    if name not in names:
        raise Refused(f"{name[:40]!r} is not offered now.")
    _, schema = _described(name)
    unknown = [key for key in arguments if key not in schema["properties"]]
    missing = [key for key in schema["required"] if arguments.get(key) in (None, "")]
    if unknown or missing:
        wrong = f"lacks {missing[0]!r}" if missing else f"does not take {unknown[0][:40]!r}"
        raise Refused(f"{name} {wrong}; its arguments are {', '.join(schema['properties']) or 'none'}.")
    return Act(name, dict(arguments), why[:WHY])


def _described(name: str) -> tuple[str, dict[str, Any]]:
    """What a tool does, and the JSON schema of the arguments that a planner may give it."""
    if name in ENDS or name in BY_LETTER:
        about, options = (ENDS | BY_LETTER)[name]
        required = list(options)
    else:
        tool = describe(name)
        about, known = tool.description, tool.schema()["properties"]
        options = {key: _bounded(key, known[key]) for key in SHOWN[name]}
        required = [key for key in options if key in REQUIRED]
    return about, {"type": "object", "properties": options, "required": required, "additionalProperties": False}


def _bounded(name: str, option: dict[str, Any]) -> dict[str, Any]:
    """Texts that a model writes are short, and not left out."""
    form: dict[str, Any] | None = {"text": _SENTENCE, "sentence": SAYS}.get(name)
    return option if form is None else {**form, "description": option["description"]}


def _line(name: str) -> str:
    about, schema = _described(name)
    told = [f'"{key}": {option.get("description", "")}' for key, option in schema["properties"].items()]
    return f"{name} {{{'; '.join(told)}}}: {about}"


def _function(name: str) -> dict[str, Any]:
    about, schema = _described(name)
    with_why = schema | {"properties": {"why": {"type": "string", "maxLength": WHY}} | schema["properties"]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": with_why}}


def _action(name: str) -> dict[str, Any]:
    parts = {"why": {"type": "string", "maxLength": WHY}, "tool": {"const": name}, "args": _described(name)[1]}
    return {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
