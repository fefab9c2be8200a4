"""What a unit does to the next token, in words: made by rule from its ablation, and scored elsewhere (score_output)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import re2

from ..store.records import Evidence
from .atlas import tokens_of_text
from .lexicon import KNOWN, called, spelled
from .score_output import Pushes
from .subject import Subject

STRONG = 0.25          # × the largest change: tokens that move at least as far are named
NO_EFFECT = "no effect on the next token's prediction was found"
NO_TEXT = "moves no token that could be named as much as some that are no text"


@dataclass(frozen=True)
class OutputClaim:
    """A sentence, and what it claims; None where no effect is claimed."""

    sentence: str
    pushes: Pushes | None
    evidence: str


def explain_output(subject: Subject, evidence: Sequence[Evidence]) -> OutputClaim | None:
    """The claim that the newest mean ablation of the unit alone supports; None where there is none to go by.

    Named are the tokens, at most ten each way, whose centred logits the unit's presence at explain firings raises or
    lowers by at least a quarter of the largest change. Where the ablation shows that there is no effect (`ablate`), it
    is said so and no token is named, nor where only tokens that are no text move so far; where an effect is only not
    shown, tokens are named all the same, and the score decides.
    """
    found = [e for e in evidence if e.tool == "ablate" and e.ok and _of_the_unit(e.arguments)]
    if not found or not found[-1].checks["pushed"]:
        return None
    checks, text = found[-1].checks, {i for i in tokens_of_text(subject) if _sayable(subject.piece(i))}
    if checks["effect"] == "none":
        return OutputClaim(NO_EFFECT, None, found[-1].id)
    most = max(abs(change) for name in ("pushed", "held_down") for _, change, _ in checks[name])
    raises, lowers = (
        tuple(i for _, change, i in checks[name] if i in text and sign * change >= STRONG * most > 0)
        for name, sign in (("pushed", 1), ("held_down", -1))
    )
    if not raises and not lowers:
        return OutputClaim(NO_TEXT if most > 0 else NO_EFFECT, None, found[-1].id)
    said = [f"{verb} {_named(spelled(subject.piece, ids))}" for verb, ids in (("up", raises), ("down", lowers)) if ids]
    return OutputClaim(f"pushes {' and '.join(said)}", Pushes(raises, lowers), found[-1].id)


def _of_the_unit(asked: dict[str, Any]) -> bool:
    """Whether an ablation held this unit at its mean, and no other."""
    return asked["kind"] == "mean" and not asked.get("also")


def _sayable(piece: str) -> bool:
    """Whether people can read it: no piece of a character, nothing that does not print."""
    return "�" not in piece and piece.replace("\n", " ").replace("\t", " ").isprintable()


def _named(words: Sequence[str]) -> str:
    """What people call all of these, with examples; else the words themselves."""
    for name, pattern in KNOWN if len(words) > 1 else ():
        if all(re2.fullmatch(pattern, word) for word in words):
            return f"{name}, such as {called(words[:3]).partition(' ')[2].partition(' ')[2]}"
    return called(words)


def rule_of(pushes: Pushes) -> dict[str, Any]:
    """The claim as it is stored."""
    return {"raises": list(pushes.raises), "lowers": list(pushes.lowers)}


def rule_text(subject: Subject, pushes: Pushes) -> str:
    """The claim's tokens, spelled."""
    parts = (("raises", pushes.raises), ("lowers", pushes.lowers))
    return "; ".join(f"{verb} {', '.join(map(repr, subject.pieces(ids)))}" for verb, ids in parts if ids)


__all__ = ["NO_EFFECT", "NO_TEXT", "OutputClaim", "explain_output", "rule_of", "rule_text"]
