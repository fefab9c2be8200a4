"""The answer key put to planners: the playbook, and a language model with and without the inducer's rule to begin from.

All three get the same first experiments. Recovered: balanced accuracy of at least .99 on fresh text that breaks one
condition at a time; failures and abstentions count as not recovered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..agent.config import MASKED_LM
from ..agent.planners import ByLLM
from ..agent.playbook import Playbook
from ..agent.state import Submit
from ..store.records import Evidence
from ..tools.induce import Induced
from ..tools.masked import MaskedLM
from ..tools.rules import Rule
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from ..tools.units import UnitId
from .agent_asked import Asked, ask_about, planners
from .by_planner import TOOLS, inducer, planner_end
from .by_unit import by_unit
from .input_planted import planted_models
from .planted import RECOVERED, AnswerKey
from .report import Claim, Part, Progress, paired

ARMS = ("playbook", "llm", "llm alone")
HIDDEN = "hidden"      # the family whose held-out members never occur in explain text


@dataclass(frozen=True)
class Tried:
    """One unit by each arm: balanced accuracy on fresh text, and what the two language-model arms cost."""

    family: str
    accuracy: dict[str, float]
    playbook_calls: int
    playbook_seconds: float
    asked: dict[str, Asked]


def planted(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Every planted unit by each arm; the tables have a row a family, and one an arm."""
    masked, tried = MaskedLM.load(MASKED_LM), []
    with planners(folder) as by:
        for key, sweep in planted_models(folder, seed, size):
            units = {unit.id: unit for unit in key.units}

            def one(unit: UnitId, key: AnswerKey = key, sweep: Sweep = sweep, units: Any = units) -> Tried:
                return _try(by, key, sweep, masked, units[unit])

            file = folder / "units" / f"agent-planted-{key.shape}-{key.seed}"
            tried += by_unit(one, Tried, sweep, list(units), file, progress)
    return _tables(tried, seed)


def _try(by: ByLLM, key: AnswerKey, sweep: Sweep, masked: MaskedLM, unit: Any) -> Tried:
    known: dict[str, str] = {}
    toolbox = Toolbox(key.subject, lambda _: sweep, lambda: masked, known.get, known.__setitem__)
    induce = inducer(key.subject, sweep)
    end, evidence = planner_end(toolbox, sweep, Playbook(induce, TOOLS), unit.id)
    rules = {"playbook": end.rule if isinstance(end, Submit) else None}
    asked = {}
    for arm, made in (("llm", induce), ("llm alone", _nothing)):
        asked[arm] = ask_about(by, arm, toolbox, sweep, made, unit.id)
        rules[arm] = None if asked[arm].rule is None else Rule.from_json(asked[arm].rule)
    accuracy = {arm: key.recovered(rule, unit) for arm, rule in rules.items()}
    seconds = float(sum(e.cost["seconds"] for e in evidence))
    return Tried(unit.family, accuracy, len(evidence), seconds, asked)


def _nothing(unit: UnitId, evidence: Sequence[Evidence]) -> Induced:
    """No rule to begin from."""
    return Induced(None, None, "no rule was made", None, None, None, 0)


def _tables(tried: Sequence[Tried], seed: int) -> Part:
    families = []
    for family in sorted({t.family for t in tried}):
        some = [t for t in tried if t.family == family]
        families.append({"family": family, "units": len(some)} | {
            arm: sum(t.accuracy[arm] >= RECOVERED for t in some) for arm in ARMS
        })  # fmt: skip
    arms = [_arm(tried, arm) for arm in ARMS]
    hidden = [t for t in tried if HIDDEN in t.family]
    claims = [
        _more("recovered, language model less playbook", tried, "llm", seed),
        _more("recovered, language model alone less playbook", tried, "llm alone", seed),
        _more("the same where members never occur in explain text, language model less playbook", hidden, "llm", seed),
    ]
    return {"recovered by family": families, "cost of a unit": arms}, claims


def _arm(tried: Sequence[Tried], arm: str) -> dict[str, Any]:
    asked = [t.asked[arm] for t in tried if arm in t.asked]
    row: dict[str, Any] = {
        "arm": arm, "units": len(tried),
        "recovered": float(np.mean([t.accuracy[arm] >= RECOVERED for t in tried])),
        "tool calls": float(np.mean([a.calls for a in asked] or [t.playbook_calls for t in tried])),
        "seconds": float(np.mean([a.seconds for a in asked] or [t.playbook_seconds for t in tried])),
        "tokens": float(np.mean([a.tokens for a in asked])) if asked else 0.0,
        "failed": sum(a.failed is not None for a in asked),
        "replies recalled": sum(a.recalled for a in asked),
    }  # fmt: skip
    return row


def _more(name: str, tried: Sequence[Tried], arm: str, seed: int) -> Claim:
    """Paired difference of the share recovered, over units."""
    differences = [(t.accuracy[arm] >= RECOVERED) - float(t.accuracy["playbook"] >= RECOVERED) for t in tried]
    return paired(name, differences, seed)


__all__ = ["planted"]
