"""The record of what each experiment asked: the question, what every live hypothesis predicted, and what it put out."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..store.records import Evidence, Hypothesis, Turn
from ..tools.subject import Subject
from .candidates import alive, beaten, candidates, labelled, predictions
from .state import Call

Asked = Sequence[tuple[Call, Evidence]]


def as_hypotheses(asked: Asked, drafts: Sequence[Hypothesis], subject: Subject, **stamps: Any) -> dict[str, Hypothesis]:
    """A hypothesis for each candidate, by its letter: the draft that has its rule, else one of its own."""
    authors = {e.id: call.by for call, e in asked}
    known: dict[str, Hypothesis] = {}
    for candidate in candidates([e for _, e in asked]):
        rule = candidate.rule.to_json()
        draft = next((h for h in drafts if h.rule == rule), None)
        known[candidate.letter] = draft or Hypothesis(
            author=authors[candidate.tried.id], sentence=candidate.sentence, rule=rule,
            rule_text=candidate.rule.text(subject.piece), kept=False, evidence=[candidate.tried.id], **stamps,
        )  # fmt: skip
    return known


def turns(
    asked: Asked, known: Mapping[str, Hypothesis], subject: Subject, threshold: float, **stamps: Any
) -> list[Turn]:
    """One record a tool call, in order. known: the hypothesis of each letter; threshold: τ, in units of activation."""
    evidence = [e for _, e in asked]
    out = beaten(evidence)
    made = []
    for number, (call, one) in enumerate(asked):
        texts, living = labelled(one, threshold), alive(evidence[:number])
        told = {known[c.letter].id: predictions(c.rule, texts, subject) for c in living}
        killed = [
            {"hypothesis": known[loss.letter].id, "by": known[loss.by].id, "difference": loss.difference,
             "low": loss.low, "high": loss.high}
            for loss in out.get(one.id, [])
        ]  # fmt: skip
        made.append(Turn(
            question=call.why, by=call.by, tool=one.tool, evidence=one.id, ok=one.ok, predictions=told,
            outcome=[text.fires for text in texts], killed=killed, **stamps,
        ))  # fmt: skip
    return made
