"""The planner that asks a language model: it reads what the first experiments found and chooses what follows.

The first experiments are the playbook's, since every unit gets them anyway, and the rule inducer's rule is the first
candidate. From there on the model acts: it runs tools, tries rules of its own, which are run on explain text at once,
and submits a candidate or abstains. What it says never decides a score. Equal evidence and equal replies give equal
requests: there is no clock and no id in them.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from .. import prompts
from ..store.records import Evidence, Refused
from ..tools.induce import Induced
from ..tools.rules import Rule
from ..tools.subject import Subject
from ..tools.trials import minimal_rows
from .brief import brief, disputed, errors, number, plain, quoted, texts
from .candidates import Candidate, alive, beaten, best, candidates, labelled, one_line, predictions
from .dialogue import ENDS, OFFERED, SAYS, Act, Dialogue
from .llm import Capabilities, Client, LLMError, OutOfBudget, Reply, Stamps
from .playbook import Induce, experiments, undone
from .state import GOOD_ENOUGH, Abstain, Action, Call, State, Submit, by_tool

TURNS = 5        # actions of the model before a first submission, the last of which must submit or abstain
AGAIN = 2        # … and in each revision
SLIPS = 3        # replies in a row that are no usable action; the last of them may only end the unit
_USUAL: dict[str, Any] = {"need": [], "not": [], "position": None, "repeat": False, "piece": "last"}     # not shown


class LLMPlanner:
    """A Planner for one unit, on one language model. `decide` raises LLMError where the model gives no answer.

    It climbs a ladder: `induced`, the experiments and the inducer's rule alone; `label`, one reply of the model, which
    is enough where its rule is good and nothing contradicts it; `loop`, more of them. Each hypothesis says on which
    rung it was put forward.
    """

    def __init__(
        self, client: Client, can: Capabilities, induce: Induce, offered: Sequence[str], subject: Subject,
        stamps: Stamps,
    ) -> None:  # fmt: skip
        self.name = f"llm:{client.model}"
        self._client, self._can, self._induce, self._stamps = client, can, induce, stamps
        self._subject = subject
        self._offered = [name for name in offered if name in OFFERED]
        self._induced: Induced | None = None
        self._dialogue: Dialogue | None = None
        self._heard = self._revisions = 0
        self._left = TURNS

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model, where, by which prompts, and the rung of the ladder that was reached."""
        rung = ("induced", "label", "loop")[min(len(self.replies), 2)]
        told = {"llm": self._client.model, "endpoint": self._client.endpoint.label, "prompts": prompts.digest()}
        return {**told, "rung": rung}

    @property
    def replies(self) -> list[Reply]:
        """What the model has said of this unit, in order."""
        return self._dialogue.replies if self._dialogue else []

    def decide(self, state: State) -> Action:
        """The first experiments in order, the inducer's rule, then what the model chooses."""
        evidence = state.get("evidence", [])
        first = next(undone(self._first(state), evidence, self._offered), None)
        if first is not None:
            return first
        if not any(e.ok for e in by_tool(evidence, "top_examples")):
            return Abstain("no text could be shown on which it fires")
        chosen = best(evidence)
        if chosen is not None and self._enough(evidence):
            return Submit(chosen.sentence, chosen.rule, "its first rule is good, and nothing contradicts it")
        self._tell(state)
        try:
            return self._turn(state)
        except OutOfBudget:
            return self.conclude(state)

    def _enough(self, evidence: Sequence[Evidence]) -> bool:
        """Whether the model's one reply was a rule that is good on the explain side and that no candidate beats."""
        tried = [c for c in candidates(evidence) if c.tried is evidence[-1]]
        return len(self.replies) == 1 and any(c.f1 >= GOOD_ENOUGH for c in tried if c in alive(evidence))

    def conclude(self, state: State) -> Submit | Abstain:
        """The candidate of the highest F1 on the explain side, with no further question."""
        chosen = best(state.get("evidence", []))
        if chosen is None:
            return Abstain("the budget ended before any rule was tried")
        return Submit(chosen.sentence, chosen.rule, "the best candidate when the budget ended")

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
                calls.append(Call("try_rule", tried, "what the inducer makes of the experiments", "induce"))
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
            self._dialogue.tell(prompts.render("result", result=self._result(evidence)))
        self._heard = len(evidence)

    def _result(self, evidence: Sequence[Evidence]) -> str:
        """The last experiment, what it says of the candidates, and which of them are out now."""
        last, known = evidence[-1], candidates(evidence)
        head = brief(last)
        if last.tool == "try_rule" and last.ok:      # its letter and sentence stand before it
            head = f"{known[-1].letter}: {known[-1].sentence}\n{head}"
        elif last.tool == "separate" and last.ok:
            letters = [next(c.letter for c in known if c.rule.to_json() == rule) for rule in last.arguments["rules"]]
            head = disputed(last, letters)
        out = beaten(evidence).get(last.id, [])
        lost = [
            f"{b.letter} is out: the F1 of {b.by} is higher by {b.difference:.2f} ({b.low:.2f} to {b.high:.2f})"
            for b in out
        ]
        return "\n".join([head, *self._foretold(evidence), *lost])

    def _foretold(self, evidence: Sequence[Evidence]) -> list[str]:
        """On a text of the model's own: what each living candidate predicted, and what came."""
        last = evidence[-1]
        if last.tool != "activate" or not last.ok:
            return []
        seen = next(e for e in by_tool(evidence, "top_examples") if e.ok)
        told = labelled(last, seen.checks["threshold"])
        says = {c.letter: predictions(c.rule, told, self._subject)[0] for c in alive(evidence[:-1])}
        words = {True: "fires", False: "silent"}
        said = ", ".join(f"{letter} said {words[fires]}" for letter, fires in says.items())
        return [f"  that is {words[told[0].fires]}" + (f"; {said}" if said else "")]

    def _opening(self, evidence: Sequence[Evidence]) -> str:
        """What the first experiments found; those on the output side say nothing of when a unit fires."""
        seen = next(e for e in by_tool(evidence, "top_examples") if e.ok)
        needs = [row["kept_text"] for row in minimal_rows(evidence)]
        changes = (e for tool in ("substitute", "tokens_in_place", "shift") for e in by_tool(evidence, tool))
        found = [brief(e) for e in changes if e.ok and e.rows]
        made = [self._candidate(c) for c in candidates(evidence)]
        none = f"none yet: {self._induced.reason}" if self._induced else "none yet"
        return prompts.render(
            "unit", rate=f"{seen.checks['rate']:.3%}", texts="\n".join(texts(seen)), findings="\n".join(found),
            needs=", ".join(map(quoted, dict.fromkeys(needs))) or "not known", candidates="\n".join(made) or none,
        )  # fmt: skip

    def _candidate(self, candidate: Candidate) -> str:
        """A candidate as the model sees it: what it says, its rule, its score and its errors."""
        told = f"{candidate.letter}: {candidate.sentence}\n  rule {self._shown(candidate.rule)}"
        return f"{told}\n{brief(candidate.tried)}"

    def _shown(self, rule: Rule) -> str:
        """A rule as a planner would write it; one on token numbers, which a planner does not see, in words."""
        if any(clause.at.ids or any(n.match.ids for n in (*clause.need, *clause.avoid)) for clause in rule.clauses):
            return rule.text(lambda token: plain(self._subject.piece(token)))
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
        sentence = f"{self._client.model} gave no usable action {SLIPS} times; choose a larger model."
        raise LLMError("no action", sentence, {"messages": self._dialogue.messages})

    def _meant(self, act: Act, state: State) -> Action:
        """The action as the graph knows it. Raises Refused for an unknown candidate and a repeated call."""
        evidence = state.get("evidence", [])
        if act.tool == "abstain":
            return Abstain(str(act.arguments["reason"]))
        if act.tool == "submit":
            return _submission(act, evidence)
        arguments = dict(act.arguments)
        if act.tool == "try_rule":
            arguments["sentence"] = _said(act)
            self._refuse_known(Rule.from_json(arguments["rule"]), candidates(evidence))
            arguments["against"] = [c.rule.to_json() for c in alive(evidence)]
        elif act.tool == "separate":
            chosen = _chosen(str(arguments["candidates"]), evidence)
            if len(chosen) < 2:
                raise Refused("separate takes two candidates that are not out, such as A B.")
            arguments = {"rules": [c.rule.to_json() for c in chosen]}
        call = Call(act.tool, arguments, act.why, self.name)
        if next(undone([call], evidence, self._offered), None) is None:
            raise Refused(f"{act.tool} was already called with these arguments; its result stands above.")
        return call

    def _refuse_known(self, rule: Rule, found: Sequence[Candidate]) -> None:
        same = next((c for c in found if self._shown(c.rule) == self._shown(rule)), None)
        if same is not None:
            raise Refused(f"that is the rule of {same.letter}; submit {same.letter}, or try another rule.")


def _weakness(state: State) -> str:
    tune = state["drafts"][-1].tune
    scores = {name: number(tune[name]) for name in ("f1", "precision", "recall")}
    return prompts.render("revise", errors="\n".join(errors(state["misses"])), **scores)


def _said(act: Act) -> str:
    """The sentence of an action. Raises Refused where it does not say on what the unit fires."""
    sentence = one_line(act.arguments["sentence"])
    if not re.fullmatch(SAYS["pattern"], sentence, re.IGNORECASE):
        raise Refused("sentence must begin with 'fires on', be of 180 characters at most and hold no « or ».")
    return sentence


def _submission(act: Act, evidence: Sequence[Evidence]) -> Submit:
    """A candidate, several as one rule of all their clauses, or a sentence alone."""
    letters, sentence = str(act.arguments["candidate"]).strip(), _said(act)
    if letters.lower() == "none":
        return Submit(sentence, None, act.why)
    clauses = chain.from_iterable(c.rule.clauses for c in _chosen(letters, evidence))
    return Submit(sentence, Rule.from_json(Rule(tuple(dict.fromkeys(clauses))).to_json()), act.why)


def _chosen(letters: str, evidence: Sequence[Evidence]) -> list[Candidate]:
    """The candidates that a model names. Raises Refused where one is unknown or out, or none is named."""
    known, out = {c.letter: c for c in candidates(evidence)}, chain.from_iterable(beaten(evidence).values())
    lost = {b.letter: b.by for b in out}
    named = list(dict.fromkeys(name for name in re.split(r"[\s,+&]+", letters.upper()) if name not in ("", "AND")))
    there = ", ".join(letter for letter in known if letter not in lost) or "none, since no rule was tried"
    for letter in named or [letters]:
        if letter not in known:
            raise Refused(f"there is no candidate {letter[:40]!r}; there are {there}.")
        if letter in lost:
            raise Refused(f"{letter} is out, since {lost[letter]} is better; there are {there}.")
    return [known[letter] for letter in named]
