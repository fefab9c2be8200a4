"""What the playbook makes of a unit, without the rest of a run: its experiments, its rule, one revision."""

from typing import Any

from ..agent.playbook import Playbook
from ..agent.state import GOOD_ENOUGH, Abstain, Call, State, Submit
from ..store.records import Evidence
from ..tools import trials
from ..tools.induce import induce
from ..tools.masked import MaskedLM
from ..tools.rules import Rule
from ..tools.subject import Subject
from ..tools.sweep import Sweep
from ..tools.toolbox import Toolbox
from ..tools.try_rule import trial
from ..tools.units import UnitId

TOOLS = ("top_examples", *trials.TOOLS)     # what the inducer learns from
STEPS = 40


def playbook_rule(subject: Subject, sweep: Sweep, masked: MaskedLM, unit: UnitId) -> Rule | None:
    """The rule that the playbook would submit, revised once where it is weak on tune; None where it abstains."""
    end = playbook_end(subject, sweep, masked, unit)
    return end.rule if isinstance(end, Submit) else None


def playbook_end(subject: Subject, sweep: Sweep, masked: MaskedLM, unit: UnitId) -> Submit | Abstain:
    """What the playbook ends with: the better on tune of its first explanation and one revision, or an abstention."""
    toolbox = Toolbox(subject, lambda _: sweep, lambda: masked)
    planner = Playbook(lambda u, evidence: induce(subject, sweep, u, evidence), TOOLS)
    evidence: list[Evidence] = []
    first = _submitted(toolbox, planner, unit, evidence, [])
    if not isinstance(first, Submit) or first.rule is None:
        return first
    tried = trial(subject, sweep, unit, first.rule, "tune")
    if (tried["f1"] or 0) >= GOOD_ENOUGH or not tried["misses"]:
        return first
    second = _submitted(toolbox, planner, unit, evidence, tried["misses"])
    rule = second.rule if isinstance(second, Submit) else None
    again = None if rule is None else trial(subject, sweep, unit, rule, "tune")["f1"]
    return second if (again or 0) > (tried["f1"] or 0) else first


def _submitted(
    toolbox: Toolbox, planner: Playbook, unit: UnitId, evidence: list[Evidence], misses: list[dict[str, Any]]
) -> Submit | Abstain:
    for _ in range(STEPS):
        state: State = {"unit": unit, "evidence": evidence, "misses": misses}
        action = planner.decide(state)
        if not isinstance(action, Call):
            return action
        evidence.append(toolbox.call(action.tool, unit, action.arguments))
    raise AssertionError(f"the playbook did not end within {STEPS} steps on {unit}")


__all__ = ["playbook_end", "playbook_rule"]
