"""What a planner makes of a unit, without the rest of a run: its experiments, its rule, one revision."""

from collections.abc import Callable, Sequence

from ..agent.playbook import Induce, Playbook
from ..agent.state import GOOD_ENOUGH, Abstain, Call, Draft, Planner, State, Submit
from ..store.records import Evidence, Hypothesis
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

Heard = Callable[[Sequence[Evidence]], None]


def playbook_rule(subject: Subject, sweep: Sweep, masked: MaskedLM, unit: UnitId) -> Rule | None:
    """The rule that the playbook would submit, revised once where it is weak on tune; None where it abstains."""
    end = playbook_end(subject, sweep, masked, unit)
    return end.rule if isinstance(end, Submit) else None


def playbook_end(subject: Subject, sweep: Sweep, masked: MaskedLM, unit: UnitId) -> Submit | Abstain:
    """What the playbook ends with: the better on tune of its first explanation and one revision, or an abstention."""
    toolbox = Toolbox(subject, lambda _: sweep, lambda: masked)
    return planner_end(toolbox, sweep, Playbook(inducer(subject, sweep), TOOLS), unit)[0]


def inducer(subject: Subject, sweep: Sweep) -> Induce:
    """The rule inducer on one sweep."""
    return lambda unit, evidence: induce(subject, sweep, unit, evidence)


def planner_end(
    toolbox: Toolbox, sweep: Sweep, planner: Planner, unit: UnitId, heard: Heard = lambda evidence: None
) -> tuple[Submit | Abstain, list[Evidence]]:
    """What a planner ends with, as a run would have it: the better on tune of its first explanation and one revision.

    heard(evidence) is called after each decision. Raises what the planner raises.
    """
    state: State = {"unit": unit, "evidence": [], "calls": [], "drafts": [], "misses": [], "revisions": 0, "steps": 0}
    first = _submitted(toolbox, planner, state, heard)
    if not isinstance(first, Submit) or first.rule is None:
        return first, state["evidence"]
    tried = trial(toolbox.subject, sweep, unit, first.rule, "tune")
    if (tried["f1"] or 0) >= GOOD_ENOUGH or not tried["misses"]:
        return first, state["evidence"]
    draft = Hypothesis(author=planner.name, sentence=first.sentence, rule=None, rule_text=None, kept=False)
    state["drafts"].append(Draft(draft, first.rule, tried))
    state["misses"], state["revisions"] = tried["misses"], 1
    second = _submitted(toolbox, planner, state, heard)
    rule = second.rule if isinstance(second, Submit) else None
    again = None if rule is None else trial(toolbox.subject, sweep, unit, rule, "tune")["f1"]
    return (second if (again or 0) > (tried["f1"] or 0) else first), state["evidence"]


def _submitted(toolbox: Toolbox, planner: Planner, state: State, heard: Heard) -> Submit | Abstain:
    for _ in range(STEPS):
        action = planner.decide(state)
        heard(state["evidence"])
        if not isinstance(action, Call):
            return action
        state["evidence"].append(toolbox.call(action.tool, state["unit"], action.arguments))
        state["calls"].append(action)
    raise AssertionError(f"{planner.name} did not end within {STEPS} steps on {state['unit']}")


__all__ = ["inducer", "planner_end", "playbook_end", "playbook_rule"]
