"""The planner that asks a language model: it reads what the first experiments found and chooses what follows.

The first experiments are the playbook's, since every unit gets them anyway, and the rule inducer's rule is the first
candidate. From there on the model acts: it runs tools, tries rules of its own, which are run on explain text at once,
and submits a candidate or abstains. What it says never decides a score. Equal evidence and equal replies give equal
requests: there is no clock and no id in them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import prompts
from ..store.records import Evidence, Refused
from ..tools.induce import Induced
from ..tools.rules import Rule
from ..tools.trials import minimal_rows
from .brief import brief, errors, number, plain, quoted, texts
from .dialogue import ENDS, SHOWN, Act, Dialogue
from .llm import Capabilities, Client, LLMError, Stamps
from .playbook import Induce, experiments, undone
from .state import Abstain, Action, Call, State, Submit, by_tool

TURNS = 5        # actions of the model before a first submission, the last of which must submit or abstain
AGAIN = 2        # … and in each revision
SLIPS = 3        # replies in a row that are no usable action; the last of them may only end the unit
_USUAL: dict[str, Any] = {"need": [], "not": [], "position": None, "repeat": False, "piece": "last"}     # not shown


@dataclass(frozen=True)
class Candidate:
    """A rule that was tried: its letter, sentence, F1 on the explain side, and the rule with fitted values."""

    letter: str
    sentence: str
    rule: Rule
    f1: float


class LLMPlanner:
    """A Planner for one unit, on one language model. `decide` raises LLMError where the model gives no answer."""

    def __init__(
        self, client: Client, can: Capabilities, induce: Induce, offered: Sequence[str],
        piece: Callable[[int], str], stamps: Stamps,
    ) -> None:  # fmt: skip
        self.name = f"llm:{client.model}"
        self.provenance = {"llm": client.model, "endpoint": client.endpoint.label, "prompts": prompts.digest()}
        self._client, self._can, self._induce, self._stamps = client, can, induce, stamps
        self._piece = piece
        self._offered = [name for name in offered if name in SHOWN]
        self._induced: Induced | None = None
        self._dialogue: Dialogue | None = None
        self._heard = self._revisions = 0
        self._left = TURNS

    def decide(self, state: State) -> Action:
        """The first experiments in order, the inducer's rule, then what the model chooses."""
        evidence = state.get("evidence", [])
        first = next(undone(self._first(state), evidence, self._offered), None)
        if first is not None:
            return first
        if not any(e.ok for e in by_tool(evidence, "top_examples")):
            return Abstain("no text could be shown on which it fires")
        self._tell(state)
        try:
            return self._turn(state)
        except OutOfBudget:
            return self.conclude(state)

    def conclude(self, state: State) -> Submit | Abstain:
        """The candidate of the highest F1 on the explain side, with no further question."""
        found = candidates(state.get("evidence", []))
        if not found:
            return Abstain("the budget ended before any rule was tried")
        best = max(found, key=lambda c: c.f1)
        return Submit(best.sentence, best.rule, "the best candidate when the budget ended")

    def _first(self, state: State) -> list[Call]:
        """What is done before the model is asked: every unit's experiments, then a trial of the inducer's rule."""
        evidence = state.get("evidence", [])
        calls = list(experiments(evidence))
        if next(undone(calls, evidence, self._offered), None) is None:
            if self._induced is None:
                self._induced = self._induce(state["unit"], [e for e in evidence if e.ok])
            made = self._induced
            if made.rule is not None and made.sentence is not None:
                tried = {"rule": made.rule.to_json(), "sentence": made.sentence}
                calls.append(Call("try_rule", tried, "what the inducer makes of the experiments"))
        return calls

    def _tell(self, state: State) -> None:
        """Says what is new since the model was last heard."""
        evidence = state.get("evidence", [])
        if self._dialogue is None:
            self._dialogue = Dialogue(self._client, self._can, self._offered, self._stamps)
            self._dialogue.tell(self._opening(evidence))
        elif state["revisions"] > self._revisions:
            self._revisions, self._left = state["revisions"], AGAIN
            self._dialogue.tell(_weakness(state))
        elif len(evidence) > self._heard:
            self._dialogue.tell(prompts.render("result", result=_result(evidence)))
        self._heard = len(evidence)

    def _opening(self, evidence: Sequence[Evidence]) -> str:
        """What the first experiments found; those on the output side say nothing of when a unit fires."""
        seen = next(e for e in by_tool(evidence, "top_examples") if e.ok)
        needs = [row["kept_text"] for row in minimal_rows(evidence)]
        changes = (e for tool in ("substitute", "tokens_in_place", "shift") for e in by_tool(evidence, tool))
        found = [brief(e) for e in changes if e.ok and e.rows]
        made = [self._candidate(e, c) for e, c in _tried(evidence)]
        none = f"none yet: {self._induced.reason}" if self._induced else "none yet"
        return prompts.render(
            "unit", rate=f"{seen.checks['rate']:.3%}", texts="\n".join(texts(seen)), findings="\n".join(found),
            needs=", ".join(map(quoted, dict.fromkeys(needs))) or "not known", candidates="\n".join(made) or none,
        )  # fmt: skip

    def _candidate(self, tried: Evidence, candidate: Candidate) -> str:
        """A candidate as the model sees it: what it says, its rule, its score and its errors."""
        return f"{candidate.letter}: {candidate.sentence}\n  rule {self._shown(candidate.rule)}\n{brief(tried)}"

    def _shown(self, rule: Rule) -> str:
        """A rule as a planner would write it; one on token numbers, which a planner does not see, in words."""
        if any(clause.at.ids or any(n.match.ids for n in (*clause.need, *clause.avoid)) for clause in rule.clauses):
            return rule.text(lambda token: plain(self._piece(token)))
        clauses = [
            {key: value for key, value in clause.items() if key != "value" and _USUAL.get(key, "") != value}
            for clause in rule.to_json()["clauses"]
        ]
        return json.dumps({"clauses": clauses}, ensure_ascii=False, separators=(",", ":"))

    def _turn(self, state: State) -> Action:
        """One action of the model; what is none is shown to it, SLIPS times at most.

        A small model repeats itself: before it is given up it is offered nothing but to submit or to abstain.
        """
        assert self._dialogue is not None
        self._left -= 1
        names = [*self._offered, *ENDS] if self._left > 0 else list(ENDS)
        if self._left <= 0:
            self._dialogue.tell(prompts.render("last"))
        for slips in range(1, SLIPS + 1):
            try:
                return self._meant(self._dialogue.ask("revise" if self._revisions else "plan", names), state)
            except Refused as refusal:
                names = list(ENDS) if slips == SLIPS - 1 else names
                self._dialogue.tell(prompts.render("invalid", reason=str(refusal), names=", ".join(names)))
        raise LLMError("no action", f"{self._client.model} gave no usable action {SLIPS} times; choose a larger model.")

    def _meant(self, act: Act, state: State) -> Action:
        """The action as the graph knows it. Raises Refused for an unknown candidate and a repeated call."""
        evidence = state.get("evidence", [])
        if act.tool == "abstain":
            return Abstain(str(act.arguments["reason"]))
        if act.tool == "submit":
            return _submission(act, candidates(evidence))
        if act.tool == "try_rule":
            self._refuse_known(Rule.from_json(act.arguments["rule"]), candidates(evidence))
        call = Call(act.tool, act.arguments, act.why)
        if next(undone([call], evidence, self._offered), None) is None:
            raise Refused(f"{act.tool} was already called with these arguments; its result stands above.")
        return call

    def _refuse_known(self, rule: Rule, found: Sequence[Candidate]) -> None:
        same = next((c for c in found if self._shown(c.rule) == self._shown(rule)), None)
        if same is not None:
            raise Refused(f"that is the rule of {same.letter}; submit {same.letter}, or try another rule.")


class OutOfBudget(LLMError):
    """The run's limit on tokens or money is reached, so the model is not asked."""


def candidates(evidence: Sequence[Evidence]) -> list[Candidate]:
    """The rules that were tried, in order; A is the inducer's where it made one."""
    return [candidate for _, candidate in _tried(evidence)]


def _tried(evidence: Sequence[Evidence]) -> list[tuple[Evidence, Candidate]]:
    made = [e for e in by_tool(evidence, "try_rule") if e.ok]
    return [(e, _of(chr(ord("A") + number), e)) for number, e in enumerate(made)]


def _of(letter: str, tried: Evidence) -> Candidate:
    rule = Rule.from_json(tried.checks["rule"])
    return Candidate(letter, _one_line(tried.arguments["sentence"]), rule, tried.checks["f1"] or 0.0)


def _one_line(sentence: Any) -> str:
    return " ".join(str(sentence).split())


def _result(evidence: Sequence[Evidence]) -> str:
    """The last experiment; a rule that was tried comes with its letter."""
    last = evidence[-1]
    if last.tool != "try_rule" or not last.ok:
        return brief(last)
    candidate = candidates(evidence)[-1]
    return f"{candidate.letter}: {candidate.sentence}\n{brief(last)}"


def _weakness(state: State) -> str:
    tune = state["drafts"][-1].tune
    scores = {name: number(tune[name]) for name in ("f1", "precision", "recall")}
    return prompts.render("revise", errors="\n".join(errors(state["misses"])), **scores)


def _submission(act: Act, found: Sequence[Candidate]) -> Submit:
    letter, sentence = str(act.arguments["candidate"]).strip(), _one_line(act.arguments["sentence"])
    if letter.lower() == "none":
        return Submit(sentence, None, act.why)
    chosen = next((c for c in found if c.letter == letter.upper()), None)
    if chosen is None:
        letters = ", ".join(c.letter for c in found) or "none, since no rule was tried"
        raise Refused(f"there is no candidate {letter!r}; there are {letters}.")
    return Submit(sentence, chosen.rule, act.why)
