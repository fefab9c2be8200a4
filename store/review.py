"""Where people review explanations: what waits and why, the card that they judge by, and what is shown afterwards.

Blind first: a card holds what is said of a unit and the texts behind it, and neither scores, verdict, author, what
others said, nor why it waits. `reveal` has those, once the person has said something. What waits is computed in the
findings (the view review_queue) and kept in the work file, so that a card is lent without opening the findings.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .claims import OVERLAP, Claims, Item, Said, reviewer_name
from .edits import Edit, replacing
from .findings import VERSION, Findings
from .records import Hypothesis, Refused, Review, signed
from .work import Work

EACH = 3                 # texts of a band on a card
MINIMAL = 6              # minimal examples
WORDS = 24               # words put in place, and
OF_A_WORD = 6            # of each that they are put in the place of
BANDS = ("top", "high", "mid", "boundary")

_QUEUE = """
    SELECT hypothesis AS item, unit, sign, run, investigation, author, reasons FROM review_queue ORDER BY turn, lane
"""
_STANDING = """
    SELECT * FROM standing_reviews
    QUALIFY row_number() OVER (PARTITION BY hypothesis, reviewer ORDER BY created_at DESC, id DESC) = 1
"""

# Two statements: what is read by a number that is written in them is found without reading the rest of a table, which
# a number found on the way is not. The tune side is left out: planners try their rules there.
_THIS = """
    SELECT unit, sign, sentence, rule_text, coalesce(provenance->>'$.origin', investigation) AS origin
    FROM hypotheses WHERE id = $item LIMIT 1
"""
_CARD = """
    WITH texts AS (
        SELECT band, text, token, activation FROM exemplars
        WHERE investigation = $origin AND side = 'explain' AND list_contains($bands, band)
        QUALIFY row_number() OVER (PARTITION BY text ORDER BY activation DESC, id) = 1
    ), chosen AS (
        SELECT * FROM texts QUALIFY row_number() OVER (PARTITION BY band ORDER BY activation DESC, text) <= $each
    ), tried AS (
        SELECT tool, "rows", created_at, id FROM evidence
        WHERE investigation = $origin AND ok AND tool IN ('minimal_example', 'substitute')
    )
    SELECT (SELECT sentence FROM hypotheses WHERE investigation = $origin AND kept AND side = 'output'
            ORDER BY created_at DESC, id DESC LIMIT 1) AS pushes,
           (SELECT {'peak': peak, 'threshold': threshold} FROM units WHERE investigation = $origin
            ORDER BY created_at DESC, id DESC LIMIT 1) AS measured,
           (SELECT list({'band': band, 'text': text, 'token': token, 'activation': activation}
                        ORDER BY activation DESC, text) FROM chosen) AS examples,
           (SELECT list({'tool': tool, 'rows': CAST("rows" AS VARCHAR)} ORDER BY created_at, id) FROM tried) AS tried
"""
_BEHIND = """
    WITH decided AS (
        SELECT verdict, reason, q FROM verdicts WHERE hypothesis = $item ORDER BY created_at DESC, id DESC LIMIT 1
    ), newest AS (
        SELECT metric, value, low, high, n, floors, judge, reason, details->>'$.qualified' AS qualified, created_at, id
        FROM scores WHERE hypothesis = $item AND side = 'score'
        QUALIFY row_number() OVER (PARTITION BY metric, judge ORDER BY created_at DESC, id DESC) = 1
    )
    SELECT (SELECT any_value(author) FROM hypotheses WHERE id = $item) AS author,
           (SELECT {'verdict': verdict, 'reason': reason, 'q': q} FROM decided) AS decided,
           (SELECT list({'metric': metric, 'value': value, 'low': low, 'high': high, 'n': n,
                         'floors': CAST(floors AS VARCHAR), 'judge': judge, 'qualified': qualified, 'reason': reason}
                        ORDER BY judge IS NOT NULL, created_at, id) FROM newest) AS scores
"""


@dataclass(frozen=True)
class Card:
    """What a person judges by. unit: with its sign; explanation, rule, output: what is said of it.

    examples: {band, text, token, activation}, strongest first; `text` ends in the token that was read. minimal: {text,
    kept_text, peak, retention}, what a text was cut down to. substitutes: {original, substitute, ratio, effect}. peak,
    threshold: the unit's P and τ. expires: until when the card is lent (seconds since 1970), which the digest leaves
    out.
    """

    item: str
    unit: str
    explanation: str
    rule: str | None
    output: str | None
    peak: float | None
    threshold: float | None
    examples: list[dict[str, Any]]
    minimal: list[dict[str, Any]]
    substitutes: list[dict[str, Any]]
    expires: float | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """sha256 of all that is shown."""
        shown = {name: value for name, value in asdict(self).items() if name != "expires"}
        return hashlib.sha256(json.dumps(shown, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """As JSON, with the digest."""
        return asdict(self) | {"digest": self.digest}


class Desk:
    """Hands out cards and takes what people say of them. Any number of processes may sit at one.

    Every method takes names as people write them, and raises Refused for what is no name; and Busy where others hold a
    file for too long.
    """

    def __init__(self, work: Work, findings: Findings, overlap: int = OVERLAP) -> None:
        self.findings, self.claims = findings, Claims(work, overlap)

    # What waits

    def refresh(self, after: float = 0.0) -> bool:
        """Looks through the findings for what waits; False where nothing was recorded since the last look.

        Also False, unlooked, where that was less than `after` seconds ago, or another process looks just now. Raises
        Refused where nothing is recorded.
        """
        last = self.claims.looked()
        if last is not None and self.claims.work.now - last[1] < after:
            return False
        look = self._look()
        if last is not None and last[0] == look:
            return False
        self.findings.bring_up_to_date()
        look = self._look()
        items = [Item(**row) for row in self.findings.sql(_QUEUE)]
        said = [Review(**row) for row in self.findings.sql(_STANDING, unpack=True)]
        return self.claims.take_in(items, said, look)

    def _look(self) -> str:
        if not self.findings.path.exists():
            return "none"
        written, size = self.findings.state()
        return f"{VERSION} {written} {size}"

    def waiting(self, reviewer: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """What waits, in order; see `Claims.waiting`. To a named person reasons are not told."""
        return self.claims.waiting(None if reviewer is None else reviewer_name(reviewer), limit)

    # Cards

    def next(self, reviewer: str) -> Card | None:
        """The card in this person's hand, else the next; None where nothing waits for them."""
        name = reviewer_name(reviewer)
        claim = self.claims.claim(name)
        return None if claim is None else self.card(claim.item, name)

    def card(self, item: str, reviewer: str) -> Card:
        """A card that this person has or had in hand. Raises Refused for any other, and for what is on no record."""
        name = reviewer_name(reviewer)
        slot = self.claims.slot(item, name)
        if slot is None:
            raise Refused(f"{item} was not given to {name}; `lamplighter review next` gives a card.")
        this = self.findings.sql(_THIS, {"item": item})
        if not this:
            raise Refused(f"the explanation {item} is not in {self.findings.path} any more; take another card.")
        asked = {"origin": this[0]["origin"], "each": EACH, "bands": list(BANDS)}
        row = this[0] | self.findings.sql(_CARD, asked)[0]
        card = _card(item, row, slot["expires"] if slot["status"] == "held" else None)
        self.claims.shown(item, name, card.digest)
        return card

    def in_hand(self, reviewer: str) -> str | None:
        """The explanation on the card that this person was shown last; None where they have none in hand."""
        return self.claims.in_hand(reviewer_name(reviewer))

    def heartbeat(self, item: str, reviewer: str) -> float:
        """Holds the card for another lease, until the time returned."""
        return self.claims.heartbeat(item, reviewer_name(reviewer))

    def submit(
        self, item: str, reviewer: str, verdict: str, *, tags: Sequence[str] = (), edit: Edit | None = None, **more: Any
    ) -> Said:
        """Records what a person says of the card in hand; see `Claims.submit`, which also takes what is in `more`.

        edit: what is to stand in the explanation's place; it is queued to be scored, and stands from now on.
        """
        name = reviewer_name(reviewer)
        made = None
        if edit is not None:
            known = self.findings.read(Hypothesis, id=item)
            if not known:
                raise Refused(f"the explanation {item} is not in {self.findings.path} any more; take another card.")
            made = replacing(known[0], name, edit)
        return self.claims.submit(item, name, verdict, tags=tags, edit=made, **more)

    def undo(self, reviewer: str, item: str | None = None, **more: Any) -> Said:
        """Takes back this person's last event, or that on `item`; see `Claims.undo`."""
        return self.claims.undo(reviewer_name(reviewer), item, **more)

    # Afterwards

    def reveal(self, item: str, reviewer: str) -> dict[str, Any]:
        """What stands behind an explanation, for somebody who has said what they think of it.

        {item, unit, own, author, reasons, verdict, reason, q, scores, others}: own, others: {verdict, tags} of this
        person and, with `reviewer`, of each other; scores: {metric, value, low, high, n, floors, judge, qualified,
        reason}, read on the score side. Raises Refused before this person has said something.
        """
        name = reviewer_name(reviewer)
        others, slot = self.claims.reveal(item, name), self.claims.slot(item, name)
        assert slot is not None
        (row,) = self.findings.sql(_BEHIND, {"item": item})
        decided = row["decided"] or {"verdict": None, "reason": None, "q": None}
        scores = [
            score | {"floors": json.loads(score["floors"]), "qualified": _flag(score["qualified"])}
            for score in row["scores"] or []
        ]
        return {
            "item": item, "unit": signed(slot), "own": {"verdict": slot["verdict"], "tags": json.loads(slot["tags"])},
            "author": row["author"], "reasons": json.loads(slot["reasons"]), **decided, "scores": scores,
            "others": others,
        }  # fmt: skip

    def recent(self, reviewer: str) -> list[dict[str, Any]]:
        """This person's last events, newest first: those that can be taken back."""
        return self.claims.recent(reviewer_name(reviewer))

    def progress(self, reviewer: str) -> dict[str, Any]:
        """How much there is to do, and how it goes; see `Claims.progress`."""
        return self.claims.progress(reviewer_name(reviewer))


def _card(item: str, row: dict[str, Any], expires: float | None) -> Card:
    tried = [(one["tool"], json.loads(one["rows"])) for one in row["tried"] or []]
    minimal = [r for tool, rows in tried if tool == "minimal_example" for r in rows if r.get("mode") == "resample"]
    words: dict[Any, list[dict[str, Any]]] = {}
    for row_of in (r for tool, rows in tried if tool == "substitute" for r in rows):
        words.setdefault(row_of.get("original"), []).append(row_of)
    swapped = [r for rows in words.values() for r in rows[:OF_A_WORD]]
    measured = row["measured"] or {"peak": None, "threshold": None}
    return Card(
        item=item, unit=signed(row), explanation=row["sentence"], rule=row["rule_text"], output=row["pushes"],
        peak=measured["peak"], threshold=measured["threshold"], examples=row["examples"] or [],
        minimal=[_some(r, "text", "kept_text", "peak", "retention") for r in minimal[:MINIMAL]],
        substitutes=[_some(r, "original", "substitute", "ratio", "effect") for r in swapped[:WORDS]], expires=expires,
    )  # fmt: skip


def _some(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row.get(name) for name in names}


def _flag(text: str | None) -> bool | None:
    """What JSON's true and false are when DuckDB takes them out of an object."""
    return None if text is None else text == "true"


__all__ = ["Card", "Desk"]
