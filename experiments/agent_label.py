"""The field's usual method, as a baseline: one request, from the strongest texts alone, for a sentence and a rule."""

import json
from dataclasses import dataclass
from typing import Any

from .. import prompts
from ..agent.brief import texts
from ..agent.llm import Capabilities, Client, LLMError, json_object
from ..store.records import Refused
from ..tools.examples import top_examples
from ..tools.rules import RULE_SCHEMA, Rule
from ..tools.subject import Subject
from ..tools.sweep import Sweep
from ..tools.units import UnitId

MAX_TOKENS = 400
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"sentence": {"type": "string", "minLength": 1, "maxLength": 200}, "rule": RULE_SCHEMA},
    "required": ["sentence", "rule"], "additionalProperties": False,
}  # fmt: skip


@dataclass(frozen=True)
class Label:
    """What came back: a rule as JSON (None where it was none), the sentence, the tokens, and why there is no rule."""

    rule: dict[str, Any] | None
    sentence: str | None
    tokens: int
    failed: str | None = None


def one_shot(client: Client, can: Capabilities, subject: Subject, sweep: Sweep, unit: UnitId) -> Label:
    """Asks once for a label of the unit; a reply that is no rule is a failure and nothing is asked again."""
    seen = "\n".join(texts(top_examples(subject, sweep, unit)))
    messages = [{"role": "system", "content": prompts.render("label")}, *_examples(), _asked(seen)]
    stamps: Any = {"run": "one-shot", "unit": unit.bare, "sign": unit.sign}
    schema = SCHEMA if can.schema else None
    try:
        reply = client.ask("label", messages, max_tokens=MAX_TOKENS, schema=schema, **stamps)
    except LLMError as error:
        return Label(None, None, 0, f"{error.kind}: {error}")
    said = json_object(reply.text) or {}
    try:
        rule = Rule.from_json(said.get("rule")).to_json()
    except Refused as refusal:
        return Label(None, None, reply.tokens, str(refusal))
    return Label(rule, " ".join(str(said.get("sentence", "")).split()), reply.tokens)


def _asked(seen: str) -> dict[str, str]:
    return {"role": "user", "content": f"A neuron fires here:\n{seen}"}


def _examples() -> list[dict[str, str]]:
    """The planner's worked examples in which a rule is tried: their strongest texts, their sentence and rule."""
    made = []
    for shot in prompts.shots():
        did = shot["assistant"]
        if shot["user"].startswith("A new neuron.") and did["tool"] == "try_rule":
            lines = shot["user"].splitlines()
            seen = "\n".join(line for line in lines[1:] if line.startswith("  ") and "«" in line and line[2].isdigit())
            told = {key: did["args"][key] for key in ("sentence", "rule")}
            made += [_asked(seen), {"role": "assistant", "content": json.dumps(told, ensure_ascii=False)}]
    return made


__all__ = ["Label", "one_shot"]
