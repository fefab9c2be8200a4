"""The one registry of tools: the same functions for the planner, the command line and Python.

A tool's schema is its signature and docstring: the first paragraph says what it does, `Args:` describes each option.
What it works on (subject, sweep, masked LM) is found by the types of its first parameters. A refusal becomes an
Evidence with `ok` false; nothing else is caught.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from .. import __version__
from ..store.records import Busy, Evidence, Refused, utc_now, uuid7
from . import measures
from .ablate import ablate
from .activate import activate
from .attribute import attribute
from .examples import top_examples
from .in_place import tokens_in_place
from .lens import lens
from .masked import MaskedLM
from .patch import patch
from .patch_grid import draw, patch_grid
from .path_patch import path_patch
from .prune import minimal_example
from .separate import separate
from .shift import shift
from .steer import steer
from .subject import Subject
from .substitute import substitute
from .sweep import Sweep
from .token_atlas import token_atlas
from .try_rule import try_rule
from .units import UnitId

# Each tool with the identities its numbers rest on (a key of subject.NEEDS).
REGISTRY: dict[str, tuple[Callable[..., Evidence], str]] = {
    "top_examples": (top_examples, "read"),
    "minimal_example": (minimal_example, "read"),
    "substitute": (substitute, "read"),
    "tokens_in_place": (tokens_in_place, "read"),
    "shift": (shift, "read"),
    "activate": (activate, "read"),
    "ablate": (ablate, "edit"),
    "patch": (patch, "edit"),
    "patch_grid": (patch_grid, "edit"),
    "path_patch": (path_patch, "edit"),
    "steer": (steer, "edit"),
    "lens": (lens, "project"),
    "attribute": (attribute, "project"),
    "token_atlas": (token_atlas, "read"),
    "try_rule": (try_rule, "read"),
    "separate": (separate, "read"),
}
TOOL_NAMES = tuple(REGISTRY)
FOR_PEOPLE = ("patch_grid", "path_patch", "steer", "attribute")    # no planner of the input side is offered these
# Tools that want a sweep for its text alone, or, where a pair of texts is given, not at all.
FOR_HEADS = ("ablate", "patch", "patch_grid", "path_patch")
PICTURES: dict[str, Callable[[Evidence], bytes | None]] = {"patch_grid": draw}


@dataclass(frozen=True)
class Tool:
    """A tool as seen from outside: its name, the sentence a planner reads, the schema of its options."""

    name: str
    description: str
    options: type[BaseModel]
    function: Callable[..., Evidence]
    injected: dict[str, type]

    def schema(self) -> dict[str, Any]:
        """JSON schema of the options."""
        return self.options.model_json_schema()

    def facts(self) -> dict[str, Any]:
        """What people read of it: {tool, description, told: its whole docstring, options: [{option, takes, …}]}."""
        told = (inspect.getdoc(self.function) or "").partition("Args:")[0].strip()
        schemas = self.schema()["properties"]
        options = [
            {"option": name, "takes": _takes(schemas[name]), "needed": field.is_required(),
             "default": None if field.is_required() else field.default, "told": field.description or ""}
            for name, field in self.options.model_fields.items()
        ]  # fmt: skip
        return {"tool": self.name, "description": self.description, "told": told, "options": options}


def describe(name: str) -> Tool:
    """The tool called `name`, from its signature and docstring. Raises Refused with the names there are."""
    if name not in REGISTRY:
        raise Refused(f"{name!r} is no tool; there are {', '.join(REGISTRY)}.")
    return _described(name, REGISTRY[name][0])


@cache
def _described(name: str, function: Callable[..., Evidence]) -> Tool:
    hints, doc = get_type_hints(function, include_extras=True), inspect.getdoc(function) or ""
    told = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", doc.partition("Args:")[2], flags=re.M))
    fields: dict[str, Any] = {}
    for option in inspect.signature(function).parameters.values():
        if option.kind is inspect.Parameter.KEYWORD_ONLY:
            text = re.sub(r"\s+", " ", told.get(option.name, ""))
            default = ... if option.default is inspect.Parameter.empty else option.default
            fields[option.name] = (hints[option.name], Field(default=default, description=text))
    options = create_model(f"{name}_options", __config__=ConfigDict(extra="forbid"), **fields)
    needs = {n: t for n, t in hints.items() if t in (Subject, Sweep, MaskedLM)}
    return Tool(name, re.sub(r"\s+", " ", doc.split("\n\n")[0]), options, function, needs)


@dataclass
class Toolbox:
    """Calls tools on one subject, with what they need handed in and finished evidence recalled.

    `sweep` and `masked` are called when a tool first wants one and may refuse. `recall(key)` and `remember(key, text)`
    keep evidence across runs, keyed on tool, unit, options, digests and code version; `keep(picture)` stores a PNG and
    gives its digest.
    """

    subject: Subject
    sweep: Callable[[UnitId], Sweep]
    masked: Callable[[], MaskedLM]
    recall: Callable[[str], str | None] = lambda key: None
    remember: Callable[[str, str], None] = lambda key, text: None
    keep: Callable[[bytes], str | None] = lambda picture: None

    def offered(self) -> list[str]:
        """Names of the tools whose identities hold on this subject."""
        return [name for name, (_, need) in REGISTRY.items() if self.subject.holds(need)]

    def call(self, name: str, unit: UnitId, arguments: Mapping[str, Any], **stamps: Any) -> Evidence:
        """Runs a tool, or recalls its finished evidence, and stamps it with `run` and `investigation`.

        A refusal (of the tool, its name or its arguments) is an Evidence with `ok` false and the reason as its summary.
        """
        try:
            tool = describe(name)
            if not self.subject.holds(REGISTRY[name][1]):
                raise Refused(f"{name} is not offered on {self.subject.name}: its load-time identities fail here.")
            options = _validate(tool, arguments)
            provided = self._provide(tool, unit, own_pair=options.get("corrupt") is not None)
        except Busy:
            raise
        except Refused as refusal:
            return _not_done(name, unit, arguments, refusal, stamps)
        provenance = self._provenance(unit, provided)
        key = _key(name, unit, options, provenance)
        known = self.recall(key)         # what a store refuses is no finding about the unit
        if known is not None:
            return _again(Evidence.from_json(known), stamps)
        try:
            made = tool.function(**provided, unit=unit, **options)
        except Refused as refusal:
            return _not_done(name, unit, arguments, refusal, stamps)
        said = [*made.warnings, *_on_ids(self.subject, options.get("ids")), *self.subject.doubts(unit.site)]
        made = replace(made, arguments=options, provenance=provenance, warnings=said, **stamps)
        picture = PICTURES[name](made) if name in PICTURES else None
        made = replace(made, artifact=self.keep(picture)) if picture else made
        self.remember(key, made.to_json())
        return made

    def _provide(self, tool: Tool, unit: UnitId, own_pair: bool) -> dict[str, Any]:
        """What the tool works on; where a pair of texts is given no other is searched for, in no sweep."""
        self.subject.check(unit)
        if unit.model != self.subject.name:
            raise Refused(f"{unit} is no unit of {self.subject.name}, the model that is loaded; name one of its own.")
        if unit.kind == "attn" and Sweep in tool.injected.values() and tool.name not in FOR_HEADS:
            raise Refused(f"{unit} is a head, which has no single activation that could be swept; name an mlp unit.")
        source: dict[type, Callable[[], Any]] = {
            Subject: lambda: self.subject,
            Sweep: lambda: self.sweep(unit),
            MaskedLM: self.masked,
        }
        if own_pair:
            source |= {Sweep: lambda: None, MaskedLM: lambda: None}
        return {name: source[kind]() for name, kind in tool.injected.items()}

    def _provenance(self, unit: UnitId, provided: Mapping[str, Any]) -> dict[str, Any]:
        subject = self.subject
        facts: dict[str, Any] = {
            "model": subject.digest,
            "tokenizer": subject.tokenizer_digest,
            "dtype": str(subject.dtype).removeprefix("torch."),
            "device": subject.device.type,
            "code": f"{__version__}+{code_digest('tools')}",
            "measures": measures.VERSION,
        }
        if unit.kind == "feature":
            facts["sae"] = subject.coder(unit.site).digest
        for thing in provided.values():
            if isinstance(thing, Sweep):
                facts |= {"sweep": thing.digest, "corpus": thing.facts["provenance"]["corpus"]}
            elif isinstance(thing, MaskedLM):
                facts["masked"] = thing.digest
        return facts


def _on_ids(subject: Subject, ids: list[int] | None) -> list[str]:
    """A warning where the first of given ids, which is read as the sink, is another token than the subject's."""
    if not ids or ids[0] == subject.sink:
        return []
    first, sink = subject.piece(ids[0]), subject.piece(subject.sink)
    return [f"ids begin with {first!r}, which is read as the sink; this model's is {sink!r}"]


@cache
def code_digest(*folders: str) -> str:
    """A digest of the code in folders of this package: what was measured is recalled only by the code that made it."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted((Path(__file__).parent.parent / folder).glob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()[:12]


def _validate(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their defaults; raises Refused naming the first that does not fit."""
    try:
        return tool.options.model_validate(dict(arguments)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where, fields = ".".join(map(str, first["loc"])) or "arguments", tool.options.model_fields
        name = str(first["loc"][0]) if first["loc"] else ""
        if name not in fields:
            raise Refused(f"{tool.name} has no option {where!r}; its options are {', '.join(fields)}.") from error
        takes = _takes(tool.schema()["properties"][name])
        wanted = "is needed" if first["type"] == "missing" else f"is {first['input']!r}; it takes {takes}"
        raise Refused(f"{tool.name}: {where} {wanted}. Its options are {', '.join(fields)}.") from error


def _takes(schema: Mapping[str, Any]) -> str:
    """What an option may be, in words, from its schema."""
    kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    names = {"array": "a list", "string": "a text", "integer": "a whole number", "number": "a number",
             "boolean": "true or false", "object": "an object"}  # fmt: skip
    said = [names.get(part.get("type", ""), "another value") for part in kinds]
    said += [f"of {inner}s" for part in kinds if (inner := part.get("items", {}).get("type"))]
    return " ".join(said)


def _not_done(
    name: str, unit: UnitId, arguments: Mapping[str, Any], refusal: Refused, stamps: Mapping[str, Any]
) -> Evidence:
    return Evidence(
        tool=name, unit=unit.bare, sign=unit.sign, arguments=dict(arguments), ok=False, summary=str(refusal), **stamps
    )


def _key(name: str, unit: UnitId, options: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    parts = [name, str(unit), options, provenance]
    return "evidence:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _again(known: Evidence, stamps: Mapping[str, Any]) -> Evidence:
    """Recalled evidence as a row of its own, naming the one it repeats: of this run or of none, and at no cost."""
    provenance = known.provenance | {"recalled": known.id}
    now: dict[str, Any] = {"run": None, "investigation": None, **stamps}
    return replace(
        known, id=uuid7(), created_at=utc_now(), provenance=provenance, cost=dict.fromkeys(known.cost, 0), **now
    )
