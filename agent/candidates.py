"""The hypotheses of an investigation as its experiments leave them: which live, which were beaten, what each predicts.

A candidate is a rule that was tried on explain text. It is out once another is better there: the interval of the
paired difference of their F1 lies above 0. What a candidate predicts of an experiment is not a matter of opinion: its
rule is run on the experiment's texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..store.records import Evidence
from ..tools.measures import FIRES, KILLS, UNSURE
from ..tools.rules import Rule, Speller, Text
from .state import by_tool

SWAPS = ("substitute", "tokens_in_place", "shift")     # their rows are texts that were changed
NO_TOKEN = 0           # stands where the sink does, which no rule matches


@dataclass(frozen=True)
class Candidate:
    """A rule that was tried: its letter, sentence, F1 on the explain side, the rule with fitted values, its trial."""

    letter: str
    sentence: str
    rule: Rule
    f1: float
    tried: Evidence


@dataclass(frozen=True)
class Beaten:
    """A candidate that is out: the letter of the one that beat it, and by how much F1, with the interval."""

    letter: str
    by: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Labelled:
    """A text of an experiment, its last token read: whether the unit fires there (`anywhere`: at any token)."""

    ids: tuple[int, ...]
    fires: bool
    anywhere: bool = False


def candidates(evidence: Sequence[Evidence]) -> list[Candidate]:
    """The rules that were tried, in order; A is the inducer's where it made one."""
    made = [e for e in by_tool(evidence, "try_rule") if e.ok]
    return [_of(letter_of(number), e) for number, e in enumerate(made)]


def letter_of(number: int) -> str:
    """A, B, …, Z, then A1, B1, …"""
    again, place = divmod(number, 26)
    return chr(ord("A") + place) + (str(again) if again else "")


def _of(letter: str, tried: Evidence) -> Candidate:
    rule = Rule.from_json(tried.checks["rule"])
    return Candidate(letter, one_line(tried.arguments["sentence"]), rule, tried.checks["f1"] or 0.0, tried)


def one_line(sentence: Any) -> str:
    """A sentence of a model's, without breaks."""
    return " ".join(str(sentence).split())


def beaten(evidence: Sequence[Evidence]) -> dict[str, list[Beaten]]:
    """Which candidates each piece of evidence put out, by its id.

    A trial is held against the candidates alive before it, in their order; `separate` against those it was given.
    """
    found: dict[str, list[Beaten]] = {}
    out: set[str] = set()
    for number, one in enumerate(evidence):
        known = candidates(evidence[: number + 1])
        losers = [loss for loss in _losses(one, known, out) if loss.letter not in out and loss.by not in out]
        if losers:
            found[one.id] = losers
            out |= {loss.letter for loss in losers}
    return found


def _losses(one: Evidence, known: Sequence[Candidate], out: set[str]) -> Iterator[Beaten]:
    """What one piece of evidence says of pairs of candidates."""
    if not one.ok:
        return
    if one.tool == "try_rule":
        new, rivals = known[-1], [c for c in known[:-1] if c.letter not in out]
        against = one.checks["against"]
        pairs = [(new, rival, told) for rival, told in zip(rivals, against, strict=bool(against))]
    elif one.tool == "separate":
        held = [next(c for c in known if c.rule.to_json() == rule) for rule in one.arguments["rules"]]
        pairs = [(held[pair["first"]], held[pair["second"]], pair) for pair in one.checks["pairs"]]
    else:
        return
    for first, second, told in pairs:
        if told["low"] is not None and told["low"] > 0:
            yield Beaten(second.letter, first.letter, told["difference"], told["low"], told["high"])
        elif told["high"] is not None and told["high"] < 0:
            yield Beaten(first.letter, second.letter, -told["difference"], -told["high"], -told["low"])


def alive(evidence: Sequence[Evidence]) -> list[Candidate]:
    """The candidates that nothing has beaten."""
    out = {loss.letter for losses in beaten(evidence).values() for loss in losses}
    return [c for c in candidates(evidence) if c.letter not in out]


def best(evidence: Sequence[Evidence]) -> Candidate | None:
    """The living candidate of the highest F1 on the explain side, the later of equals: its sentence is the model's."""
    return max(reversed(alive(evidence)), key=lambda c: c.f1, default=None)


# What candidates predict


def labelled(one: Evidence, threshold: float) -> list[Labelled]:
    """The texts of an experiment on which a rule can be right or wrong; τ = `threshold`, in units of activation.

    Changed texts count as firing or silent by the shares of `Trials`; what lies between is left out.
    """
    if not one.ok:
        return []
    if one.tool in ("top_examples", "separate"):
        return [Labelled(tuple(row["ids"]), row["ratio"] >= FIRES) for row in one.rows if row["ratio"] is not None]
    if one.tool in SWAPS:
        told = [row for row in one.rows if not KILLS <= row["in_text"] < UNSURE]
        return [Labelled(tuple(row["ids"]), row["in_text"] >= UNSURE) for row in told]
    if one.tool == "activate":
        ids = (NO_TOKEN, *(row["id"] for row in one.rows))
        return [Labelled(ids, one.checks["peak"] >= threshold, anywhere=True)]
    return []


def predictions(rule: Rule, texts: Sequence[Labelled], speller: Speller) -> list[bool]:
    """Whether a rule says that the unit fires on each text."""
    if not texts:
        return []
    found = rule.predict_all(Text.of(speller, [text.ids for text in texts]))
    return [bool(np.any((said if t.anywhere else said[-1:]) > 0)) for t, said in zip(texts, found, strict=True)]
