"""Explanations that other tools made, as records: the sentence, what its source claims of it, and the texts with it.

Nothing of them counts as measured here: a source's own scores are `claimed_score`, and which text an explanation was
made from is unknown. Ids are made from what a record says, so that importing the same thing again adds nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

from .records import Evidence, Hypothesis, Record, Score

CLAIMED = "claimed_score"
TOOL = "import"            # of the evidence that holds a source's texts
UNKNOWN = "unknown"
TEXTS = 10                 # kept of each unit, the strongest
CONTEXT = 64               # tokens kept of a text
BEFORE = 48                # of them up to the strongest one and with it, where there are so many

_SPACE = UUID("8d4f3f0e-6a53-5c39-9a51-0c2b8c8f6a4e")

# named(model, place, index, known_as): (bare name, sign) of the unit that a source calls so; `known_as` is what it
# calls the SAE there, where the place does not say. Raises Refused.
Named = Callable[[str | None, str, int, str | None], tuple[str, int]]


@dataclass(frozen=True)
class Claim:
    """A number that a source states of an explanation: how it was scored, by whom, on how many texts."""

    scorer: str
    metric: str
    value: float | None
    n: int = 0
    judge: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A text of a source with the unit's value at each token; tokens are texts, or ids of the model's tokenizer."""

    values: Sequence[float]
    tokens: Sequence[str] | None = None
    ids: Sequence[int] | None = None

    @property
    def position(self) -> int:
        """Of the largest value."""
        return max(range(len(self.values)), key=self.values.__getitem__)

    def cut(self) -> "Text":
        """CONTEXT tokens of it, around the largest value."""
        first = max(0, min(self.position + 1 - BEFORE, len(self.values) - CONTEXT))
        part = slice(first, first + CONTEXT)
        return Text(
            self.values[part], None if self.tokens is None else self.tokens[part],
            None if self.ids is None else self.ids[part],
        )  # fmt: skip

    def row(self) -> dict[str, Any]:
        """As a row of evidence."""
        return {
            "tokens": None if self.tokens is None else list(self.tokens),
            "ids": None if self.ids is None else list(self.ids),
            "values": list(self.values), "peak": self.values[self.position], "position": self.position,
        }  # fmt: skip


def explanation(
    source: str, unit: str, sign: int, sentence: str, *, author: str | None, origin: str, claims: Sequence[Claim] = (),
    method: str | None = None,
) -> list[Record]:  # fmt: skip
    """The records of one explanation: a hypothesis, and a score for each claim.

    author, method: the model that wrote it, and how it was asked, where the source says so. One sentence by one author
    is one explanation, in whatever file it stands.
    """
    by = f"{source}:{author}" if author else source
    told = {"imported_from": source, "origin": origin, "explain_text": UNKNOWN, "method": method}
    made = Hypothesis(
        id=_id("hypothesis", unit, sign, by, sentence), unit=unit, sign=sign, author=by, sentence=sentence, rule=None,
        rule_text=None, kept=False, provenance=told,
    )  # fmt: skip
    return [made, *(_claimed(made, source, claim) for claim in claims)]


def _claimed(of: Hypothesis, source: str, claim: Claim) -> Score:
    said = {"scorer": claim.scorer, "metric": claim.metric}
    return Score(
        id=_id("claim", of.id, claim.scorer, claim.metric, claim.value, claim.n), unit=of.unit, sign=of.sign,
        hypothesis=of.id, metric=CLAIMED, side="source", value=claim.value, n=claim.n, judge=claim.judge,
        details=said | claim.details, provenance=of.provenance,
        reason=None if claim.value is not None else f"{source} states no number",
    )  # fmt: skip


def texts(source: str, unit: str, sign: int, found: Sequence[Text], origin: str) -> list[Record]:
    """The strongest TEXTS texts that a source holds of a unit, as one piece of evidence; nothing if it holds none."""
    strongest = sorted(found, key=lambda one: -one.values[one.position])[:TEXTS]
    rows = [one.cut().row() for one in strongest]
    if not rows:
        return []
    summary = f"{len(rows)} texts that came from {source}; which of them its explanations were made from is unknown."
    evidence = Evidence(
        id=_id("texts", source, unit, sign, rows), unit=unit, sign=sign, tool=TOOL, summary=summary, rows=rows,
        arguments={"source": source, "origin": origin},
        provenance={"imported_from": source, "origin": origin, "explain_text": UNKNOWN},
    )  # fmt: skip
    return [evidence]


def _id(*parts: Any) -> str:
    return str(uuid5(_SPACE, json.dumps(parts, ensure_ascii=True)))
