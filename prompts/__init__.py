"""Says: every word that is sent to a language model, one Markdown file a decision."""

import hashlib
import json
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

NAMES = ("plan", "reply_json", "reply_call", "unit", "result", "invalid", "last", "revise", "label")


@cache
def _source(file: str) -> str:
    return files(__name__).joinpath(file).read_text("utf-8")


def render(name: str, **values: str) -> str:
    """The prompt `name` with `$placeholders` filled in. Raises ValueError for a value missing or one too many."""
    template = Template(_source(f"{name}.md"))
    wanted = set(template.get_identifiers())
    if wanted != values.keys() or not template.is_valid():
        raise ValueError(f"the prompt {name} takes {sorted(wanted)}, and was given {sorted(values)}")
    return template.substitute(values).strip()


def shots() -> list[dict[str, Any]]:
    """Worked examples in order, each {"user": what is seen, "assistant": the action taken}."""
    return list(json.loads(_source("shots.json")))


def digest() -> str:
    """sha256 over every prompt file: equal digests ask equally."""
    total = hashlib.sha256()
    for file in sorted([*(f"{name}.md" for name in NAMES), "shots.json"]):
        total.update(f"{file}\0{_source(file)}\0".encode())
    return total.hexdigest()
