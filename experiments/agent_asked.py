"""Language-model planners for the benches, and what one costs on a unit."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agent.budget import Budget
from ..agent.candidates import best
from ..agent.config import Home
from ..agent.llm import LLMError
from ..agent.planner import LLMPlanner
from ..agent.planners import ByLLM, choose
from ..agent.playbook import Induce
from ..agent.state import Submit
from ..store.records import Evidence
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from ..tools.units import UnitId
from .by_planner import planner_end


@dataclass(frozen=True)
class Asked:
    """What a planner ended with on one unit, and its cost.

    rule: as JSON, None where it abstained or failed; tokens: of the language model, in and out, as the server counted
    them when each reply was had; seconds: of tools and of waiting for replies; did: its tool calls with their
    arguments; curve: after each decision the tokens so far, and the rule that would be handed in there; failed: the
    error, if there was one.
    """

    rule: dict[str, Any] | None
    sentence: str | None
    rung: str
    tokens: int
    seconds: float
    did: list[str]
    recalled: int
    failed: str | None
    curve: list[tuple[int, dict[str, Any] | None]] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Tool calls."""
        return len(self.did)


@contextmanager
def planners(folder: Path) -> Iterator[ByLLM]:
    """Planners on the language model of LAMPLIGHTER_LLM_URL, else the embedded one; replies are kept in `folder`."""
    made = choose("llm", None, Home(folder), Budget())
    assert isinstance(made, ByLLM)
    made.ready(None)
    try:
        yield made
    finally:
        made.close()


def ask_about(by: ByLLM, arm: str, toolbox: Toolbox, sweep: Sweep, induce: Induce, unit: UnitId) -> Asked:
    """Puts one unit to a planner on the language model. arm: which comparison it is of, for the ledger."""
    planner = by.make(toolbox, induce, {"run": arm, "unit": unit.bare, "sign": unit.sign})
    assert isinstance(planner, LLMPlanner)
    curve: list[tuple[int, dict[str, Any] | None]] = []
    seen: list[Evidence] = []

    def heard(evidence: Sequence[Evidence]) -> None:
        seen[:] = evidence
        found = best(evidence)
        curve.append((_tokens(planner), None if found is None else found.rule.to_json()))

    began, failed, end = time.monotonic(), None, None
    try:
        end, _ = planner_end(toolbox, sweep, planner, unit, heard)
    except LLMError as error:
        failed = f"{error.kind}: {error}"
    submitted = end if isinstance(end, Submit) else None
    return Asked(
        rule=submitted.rule.to_json() if submitted and submitted.rule else None,
        sentence=submitted.sentence if submitted else None, rung=planner.provenance["rung"], tokens=_tokens(planner),
        seconds=time.monotonic() - began + recalled_seconds(seen),
        did=[f"{e.tool} {json.dumps(e.arguments, sort_keys=True)}" for e in seen],
        recalled=sum(reply.recalled for reply in planner.replies),
        failed=failed, curve=curve,
    )  # fmt: skip


def _tokens(planner: LLMPlanner) -> int:
    return sum(reply.tokens for reply in planner.replies)


def recalled_seconds(evidence: Sequence[Evidence]) -> float:
    """What recalled tool calls took when they were made."""
    return float(sum(e.cost.get("seconds", 0.0) for e in evidence if "recalled" in e.provenance))


__all__ = ["Asked", "ask_about", "planners"]
