"""What an investigation knows while it runs, and what a planner may do next."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypedDict

from ..store.records import Evidence, Failure, Hypothesis, Record, Score, Verdict
from ..tools.rules import Rule
from ..tools.units import UnitId


@dataclass(frozen=True)
class Call:
    """Run a tool on the unit; `why` is the question, kept with the step, and `by` says who asks it."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    by: str = "playbook"


@dataclass(frozen=True)
class Submit:
    """Put an explanation forward: a sentence, and where there is one a rule that predicts where the unit fires."""

    sentence: str
    rule: Rule | None
    why: str = ""


@dataclass(frozen=True)
class Abstain:
    """Say that no explanation is supported by the evidence, and why. weak: the best rule found, where there is one."""

    reason: str
    weak: Rule | None = None


Action = Call | Submit | Abstain
GOOD_ENOUGH = 0.8      # a rule of this F1 is worth no other question: a draft on tune, a candidate on explain


@dataclass(frozen=True)
class Draft:
    """A submitted hypothesis with its rule and its score on the tune side (F1, precision, recall, misses)."""

    hypothesis: Hypothesis
    rule: Rule | None
    tune: dict[str, Any]


class State(TypedDict, total=False):
    """The graph's state; lists grow, everything else is replaced. It holds no clock, so a replay sees the same.

    calls[i] is what evidence[i] answers.
    """

    unit: UnitId
    evidence: Annotated[list[Evidence], operator.add]
    calls: Annotated[list[Call], operator.add]
    drafts: Annotated[list[Draft], operator.add]
    action: Action
    steps: int
    revisions: int
    misses: list[dict[str, Any]]
    kept: Hypothesis | None
    output: Hypothesis | None
    scores: list[Score]
    failures: list[Failure]
    verdict: Verdict
    records: list[Record]


class Planner(Protocol):
    """Decides the next step of an investigation from what is known so far.

    provenance: what its words rest on besides the evidence, for the record of each hypothesis.
    """

    name: str

    @property
    def provenance(self) -> dict[str, Any]: ...

    def decide(self, state: State) -> Action: ...

    def conclude(self, state: State) -> Submit | Abstain:
        """What to put forward with no further experiment, as when the budget is spent."""
        ...


def by_tool(evidence: Sequence[Evidence], tool: str) -> list[Evidence]:
    """The evidence of one tool, refusals included, in order."""
    return [e for e in evidence if e.tool == tool]
