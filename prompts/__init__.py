"""Says: every word that is sent to a language model, one Markdown file a decision."""

import hashlib
import json
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

JUDGE = ("detect", "fuzz", "simulate", "generate", "judge_text", "judge_write")     # what a judge is asked
NAMES = ("plan", "reply_json", "reply_call", "unit", "result", "invalid", "last", "revise", "label", *JUDGE)


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


def judge_shots(name: str) -> list[dict[str, Any]]:
    """Worked examples of one question to a judge, each {"explanation", "texts", "answers"}; no texts where it writes
    them, and one text as its tokens where it gives values."""
    return list(json.loads(_source("judge_shots.json"))[name])


def digest() -> str:
    """sha256 over every prompt file: equal digests ask equally."""
    return _digest([*(f"{name}.md" for name in NAMES), "shots.json", "judge_shots.json"])


def judge_digest() -> str:
    """sha256 over what a judge is asked: judges of equal names and digests are asked equally."""
    return _digest([*(f"{name}.md" for name in JUDGE), "judge_shots.json"])


def _digest(names: list[str]) -> str:
    total = hashlib.sha256()
    for file in sorted(names):
        total.update(f"{file}\0{_source(file)}\0".encode())
    return total.hexdigest()
