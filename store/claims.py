"""Who has which card: explanations lent to people for a time, and what these said, in the work file.

A card is lent for LEASE seconds and held by signs of life; whoever asks again has the same card. No more than `overlap`
people review an explanation, and nobody gets one twice that was reviewed. What ran out is seen on reading, and nobody
sweeps it up. Each change is one transaction that also puts its event on the way to the findings, so that any number of
processes may lend cards, and one that is killed has lent or recorded all or nothing.
"""

import json
import math
import re
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from sqlite3 import Connection, Row
from statistics import median
from typing import Any

from .. import __version__
from .edits import queue_edit, unqueue_edit
from .records import PERSON, REVIEWS, Hypothesis, Refused, Review, signed
from .work import Work, worker_id

LEASE = 300.0            # seconds for which a card is lent
OVERLAP = 2              # people who review an explanation
UNDO_LAST = 20           # events of one's own that can be taken back
SECOND_THOUGHTS = 600.0  # seconds after its last review at which an explanation that has all its reviews is closed
LONGEST = 86_400.0       # seconds spent on a card that are believed
PACE_OF = 50             # last reviews of a person that tell the pace
PART = 2000              # rows that are written in one transaction
WAIT = 2.0               # seconds for which another process's look is waited for

# Why an explanation is not, or not quite, right; in the order of the digits 1 to 9.
TAGS = (
    "too-broad", "too-narrow", "wrong-token", "wrong-context", "several-things", "vague", "rule-differs",
    "too-little-evidence", "output-wrong",
)  # fmt: skip

_LOOK = "review-look"       # the lock of whoever takes in what waits
_NAME = re.compile(r"[^\W_](?:[\w.@-]{0,62}[^\W_])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LIVE = "(s.status = 'submitted' OR (s.status = 'held' AND s.expires > :now))"
_ROOM = f"""(SELECT count(*) FROM review_slots s WHERE s.item = {{item}} AND s.reviewer <> :reviewer AND {_LIVE})
            < :overlap"""
# Of review_waiting i: whether :reviewer, who has it not in hand, could be given it. (+: by place, not by this index.)
_FREE = f"""+i.reviews < :overlap AND i.author IS NOT :person
    AND i.item NOT IN (
        SELECT item FROM review_slots WHERE reviewer = :reviewer AND (status = 'submitted' OR expires > :now))
    AND i.item NOT IN (
        SELECT item FROM review_slots h WHERE status = 'held' AND expires > :now AND reviewer <> :reviewer
        AND NOT {_ROOM.format(item="h.item")})"""
# What waits and is not free in that sense: few of many, each found by an index. (CROSS: in this order.)
_TAKEN = f"""
    SELECT i.item FROM review_waiting i WHERE +i.reviews < :overlap AND i.author = :person
    UNION SELECT i.item FROM review_slots s CROSS JOIN review_waiting i ON i.item = s.item
    WHERE +i.reviews < :overlap AND s.reviewer = :reviewer AND (s.status = 'submitted' OR s.expires > :now)
    UNION SELECT i.item FROM review_slots h CROSS JOIN review_waiting i ON i.item = h.item
    WHERE +i.reviews < :overlap AND h.status = 'held' AND h.expires > :now AND h.reviewer <> :reviewer
        AND NOT {_ROOM.format(item="h.item")}"""
_COUNTED = """UPDATE review_items SET reviews = (
    SELECT count(*) FROM review_slots s WHERE s.item = review_items.item AND s.status = 'submitted')"""
_TAKE_ITEM = """
    INSERT INTO review_items VALUES (:item, :look, :place, :unit, :sign, :run, :investigation, :author, :reasons,
        (SELECT count(*) FROM review_slots s WHERE s.item = :item AND s.status = 'submitted'))"""
_FORGET = "DELETE FROM review_items WHERE rowid IN (SELECT rowid FROM review_items WHERE look <> ? LIMIT ?)"
_STAMPS = "unit, sign, run, investigation, reasons"
_TAKE_SLOT = f"""
    INSERT INTO review_slots (item, reviewer, status, since, expires, revealed, card, review, verdict, tags, seconds,
        edit, at, {_STAMPS})
    VALUES (:item, :reviewer, :status, :at, :expires, 1, :card, :review, :verdict, :tags, :seconds, :edit, :at, :unit,
        :sign, :run, :investigation, :reasons)
    ON CONFLICT (item, reviewer) DO NOTHING"""
_CLEARED = """since = :now, expires = :until, review = NULL, verdict = NULL, tags = NULL, seconds = NULL,
              edit = NULL, edit_run = NULL, at = NULL"""


@dataclass(frozen=True)
class Item:
    """An explanation that waits: a hypothesis, of which unit and investigation, by whom, and why it waits."""

    item: str
    unit: str
    sign: int | None
    run: str | None
    investigation: str | None
    author: str | None
    reasons: list[str]


@dataclass(frozen=True)
class Claim:
    """A card that is lent to a person until `expires` (seconds since 1970). `since`: when it was given."""

    item: str
    reviewer: str
    unit: str
    sign: int | None
    since: float
    expires: float


@dataclass(frozen=True)
class Said:
    """What was recorded: the event's id. repeated: it was recorded before, and nothing was added."""

    review: str
    item: str
    reviewer: str
    verdict: str
    edit: str | None = None
    edit_run: str | None = None
    undoes: str | None = None
    repeated: bool = False


def reviewer_name(text: str) -> str:
    """The name under which a person's reviews are kept: of letters, digits and . _ @ -, in lower case, 64 at most."""
    name = unicodedata.normalize("NFKC", text).strip().lower()
    if not _NAME.fullmatch(name):
        raise Refused(f"the reviewer {text!r} is no name; give one of letters, digits and . _ @ -, as in ann or b.lee.")
    return name


class Claims:
    """Lends cards out of `work`, each to `overlap` people at most, and records what they say.

    Names of reviewers are as `reviewer_name` gives them.
    """

    def __init__(self, work: Work, overlap: int = OVERLAP) -> None:
        if overlap < 1:
            raise Refused(f"{overlap} reviews of an explanation cannot be had; ask for at least 1.")
        self.work, self.overlap = work, overlap

    # What waits

    def looked(self) -> tuple[str, float] | None:
        """What the findings looked like at the last `take_in`, and when that was; None before the first."""
        with self.work.use() as con:
            row = con.execute("SELECT findings, at FROM review_looks").fetchone()
        return None if row is None else (str(row["findings"]), float(row["at"]))

    def take_in(self, items: Sequence[Item], said: Sequence[Review] = (), findings: str = "") -> bool:
        """Has `items` wait, in this order, in place of those before; False, unchanged, while another process does so.

        said: reviews that stand in the findings; those that this file does not know, as it was moved away, are taken in
        as given with everything in sight. findings: what `looked` is to return. What people hold and said stays as it
        is. It is written in parts, so that others who write need not wait long.
        """
        me, deadline = worker_id(), time.monotonic() + WAIT
        while not self.work.lock(_LOOK, me):
            if time.monotonic() > deadline:
                return False
            time.sleep(WAIT / 40)
        try:
            self._take_in(items, said, findings, lambda: self.work.lock(_LOOK, me))
        finally:
            self.work.unlock(_LOOK, me)
        return True

    def _take_in(self, items: Sequence[Item], said: Sequence[Review], findings: str, hold: Callable[[], bool]) -> None:
        with self.work.change() as con:
            row = con.execute("SELECT look FROM review_looks").fetchone()
            look = 1 + (row["look"] if row else 0)
            con.execute("DELETE FROM review_items WHERE look = ?", (look,))      # of one that was killed
        for part in _parts([_slot(one) for one in said]):
            with self.work.change() as con:
                if con.executemany(_TAKE_SLOT, part).rowcount:
                    con.executemany(f"{_COUNTED} WHERE item = ?", [(row["item"],) for row in part])
        rows = [vars(one) | {"reasons": json.dumps(one.reasons), "look": look} for one in items]
        for part in _parts([row | {"place": place} for place, row in enumerate(rows)]):
            with self.work.change() as con:
                con.executemany(_TAKE_ITEM, part)
            hold()
        with self.work.change() as con:
            con.execute("DELETE FROM review_looks")
            con.execute("INSERT INTO review_looks VALUES (?, ?, ?)", (look, findings, self.work.now))
        gone = 1
        while gone:
            with self.work.change() as con:
                gone = con.execute(_FORGET, (look, PART)).rowcount

    def waiting(self, reviewer: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """What waits, in order: {item, unit, sign, reviews, held, author, reasons}; with a reviewer `yours`.

        reviews: how many it has; held: people who have it in hand; yours: whether this person could be given it now.
        Author and reasons are not told to a reviewer, as reasons tell of scores.
        """
        sql = f"""
            SELECT i.*, {_FREE} AS yours, (
                SELECT count(*) FROM review_slots s
                WHERE s.item = i.item AND s.status = 'held' AND s.expires > :now) AS held
            FROM review_waiting i WHERE reviews < :overlap ORDER BY place LIMIT :limit"""
        asked = self._asked(reviewer or "") | {"limit": -1 if limit is None else limit}
        with self.work.use() as con:
            rows = con.execute(sql, asked).fetchall()
        found = []
        for row in rows:
            facts = {key: row[key] for key in ("item", "unit", "sign", "reviews", "held")}
            more = {"author": row["author"], "reasons": json.loads(row["reasons"])}
            found.append(facts | (more if reviewer is None else {"yours": bool(row["yours"])}))
        return found

    # Lending

    def claim(self, reviewer: str) -> Claim | None:
        """The card that this person has in hand, else the next that can be lent; None where there is none.

        Not lent: what has `overlap` people already, what this person wrote, reviewed, or skipped today. What ran out
        while nobody else took it up is still in hand.
        """
        with self.work.change() as con:
            asked = self._asked(reviewer)
            row = con.execute(
                f"""SELECT item, expires <= :now AS lapsed FROM review_slots m
                    WHERE reviewer = :reviewer AND status = 'held' AND (expires > :now OR (
                        {_ROOM.format(item="m.item")} AND item IN (SELECT item FROM review_waiting)))
                    ORDER BY lapsed, since DESC LIMIT 1""",
                asked,
            ).fetchone()
            if row is None:
                row = con.execute(
                    f"""INSERT INTO review_slots (item, reviewer, status, since, expires, {_STAMPS})
                        SELECT item, :reviewer, 'held', :now, :until, {_STAMPS} FROM review_waiting i
                        WHERE {_FREE} ORDER BY place LIMIT 1
                        ON CONFLICT (item, reviewer) DO UPDATE
                        SET status = 'held', {_CLEARED}
                        RETURNING item, 1 AS lapsed""",
                    asked,
                ).fetchone()
            if row is None:
                return None
            held = con.execute(
                """UPDATE review_slots SET expires = :until, since = CASE WHEN :lapsed THEN :now ELSE since END
                   WHERE item = :item AND reviewer = :reviewer RETURNING *""",
                asked | {"item": row["item"], "lapsed": row["lapsed"]},
            ).fetchone()
            return Claim(**{name: held[name] for name in Claim.__dataclass_fields__})

    def in_hand(self, reviewer: str) -> str | None:
        """The explanation on the card that this person was shown last and has in hand; None where there is none."""
        sql = """SELECT item FROM review_slots WHERE reviewer = ? AND status = 'held' AND card IS NOT NULL
                 ORDER BY expires <= ?, since DESC LIMIT 1"""
        with self.work.use() as con:
            row = con.execute(sql, (reviewer, self.work.now)).fetchone()
        return None if row is None else str(row["item"])

    def heartbeat(self, item: str, reviewer: str) -> float:
        """Holds a card for another lease, until the time returned. Raises Refused if it is no longer theirs."""
        with self.work.change() as con:
            asked = self._asked(reviewer) | {"item": item}
            if not self._holds(con, asked):
                raise _not_held(item, reviewer)
            con.execute("UPDATE review_slots SET expires = :until WHERE item = :item AND reviewer = :reviewer", asked)
            return float(asked["until"])

    def shown(self, item: str, reviewer: str, card: str) -> None:
        """Remembers the digest of what this person was shown. Raises Refused where the card was never theirs."""
        with self.work.change() as con:
            sql = "UPDATE review_slots SET card = ? WHERE item = ? AND reviewer = ?"
            if con.execute(sql, (card, item, reviewer)).rowcount != 1:
                raise _not_held(item, reviewer)

    def slot(self, item: str, reviewer: str) -> dict[str, Any] | None:
        """What is known of one card and one person."""
        with self.work.use() as con:
            row = con.execute("SELECT * FROM review_slots WHERE item = ? AND reviewer = ?", (item, reviewer)).fetchone()
        return None if row is None else dict(row)

    # Events

    def submit(
        self, item: str, reviewer: str, verdict: str, *, tags: Sequence[str] = (), edit: Hypothesis | None = None,
        seconds: float | None = None, card: str | None = None, client: str = f"lamplighter {__version__}",
    ) -> Said:  # fmt: skip
        """Records what a person says of the card in hand, one of REVIEWS.

        edit: the explanation that is to stand in its place; it is queued to be scored, in a run of its own kind.
        seconds: spent on it (by default since it was given). card: digest of what was seen (by default, of what was
        shown last). The same verdict and tags sent again are recorded once. Raises Refused where the card is not in
        hand, was reviewed already, ran out and others have it, and for what is no review.
        """
        _check(verdict, tags, edit, seconds, card, client)
        with self.work.change() as con:
            asked = self._asked(reviewer) | {"item": item}
            sql = "SELECT * FROM review_slots WHERE item = :item AND reviewer = :reviewer"
            slot = con.execute(sql, asked).fetchone()
            if slot is None or (slot["status"] == "held" and not self._holds(con, asked)):
                raise _not_held(item, reviewer)
            if slot["status"] != "held":
                return _repeated(slot, verdict, tags)
            spent = min(max(0.0, asked["now"] - slot["since"]), LONGEST) if seconds is None else seconds
            run = None if edit is None else queue_edit(con, edit)
            event = Review(
                **_stamps(slot), hypothesis=item, reviewer=reviewer, verdict=verdict, tags=list(tags),
                seconds=round(spent, 3), card=card or slot["card"], client=client, blind=not slot["revealed"],
                edit=None if edit is None else edit.id,
            )  # fmt: skip
            self.work.post_within(con, [event] if edit is None else [replace(edit, run=run), event])
            con.execute(
                """UPDATE review_slots SET status = :status, expires = :expires, review = :review, verdict = :verdict,
                       tags = :tags, seconds = :seconds, card = :card, edit = :edit, edit_run = :run, at = :now
                   WHERE item = :item AND reviewer = :reviewer""",
                asked | {
                    "status": "skipped" if verdict == "skip" else "submitted", "verdict": verdict, "card": event.card,
                    "expires": _midnight(asked["now"], 1) if verdict == "skip" else None, "review": event.id,
                    "tags": json.dumps(event.tags), "seconds": event.seconds, "edit": event.edit, "run": run,
                },
            )  # fmt: skip
            con.execute(f"{_COUNTED} WHERE item = ?", (item,))
        return Said(event.id, item, reviewer, verdict, event.edit, run)

    def undo(self, reviewer: str, item: str | None = None, client: str = f"lamplighter {__version__}") -> Said:
        """Takes back this person's last event, or the one on `item` if it is among the last UNDO_LAST: a new event.

        The card is in hand again. An explanation that an edit put in place goes with it, unless it was scored already:
        then it stays on record and stands for nothing. Raises Refused where there is nothing to take back, where the
        explanation is closed (it has all its reviews, for SECOND_THOUGHTS), and where others took up what was skipped.
        """
        with self.work.change() as con:
            asked = self._asked(reviewer)
            own = con.execute(
                """SELECT * FROM review_slots WHERE reviewer = :reviewer AND status <> 'held' AND review IS NOT NULL
                   ORDER BY at DESC, review DESC LIMIT :last""",
                asked | {"last": UNDO_LAST},
            ).fetchall()
            slot = next((row for row in own if item in (None, row["item"])), None)
            if slot is None:
                what = "" if item is None else f" on {item}, among the last {UNDO_LAST},"
                raise Refused(f"{reviewer} has said nothing{what} to take back; take the next card.")
            asked["item"] = slot["item"]
            self._check_open(con, slot, asked)
            event = Review(
                **_stamps(slot), hypothesis=slot["item"], reviewer=reviewer, verdict="undo", client=client,
                blind=not slot["revealed"], card=slot["card"], undoes=slot["review"],
            )  # fmt: skip
            self.work.post_within(con, [event])
            if slot["edit_run"] is not None:
                unqueue_edit(con, slot["edit_run"], signed(slot))
            con.execute(
                f"UPDATE review_slots SET status = 'held', {_CLEARED} WHERE item = :item AND reviewer = :reviewer",
                asked,
            )
            con.execute(f"{_COUNTED} WHERE item = ?", (slot["item"],))
        return Said(event.id, slot["item"], reviewer, "undo", undoes=event.undoes)

    def _check_open(self, con: Connection, slot: Row, asked: dict[str, Any]) -> None:
        if slot["status"] == "skipped":
            if not con.execute(f"SELECT {_ROOM.format(item=':item')}", asked).fetchone()[0]:
                raise Refused(f"{slot['item']} was taken up by others since it was skipped; take the next card.")
            return
        sql = "SELECT count(*), max(at) FROM review_slots WHERE item = :item AND status = 'submitted'"
        count, last = con.execute(sql, asked).fetchone()
        if count >= self.overlap and last <= asked["now"] - SECOND_THOUGHTS:
            raise Refused(f"{slot['item']} has its {count} reviews and is closed; what was said of it stands.")

    def reveal(self, item: str, reviewer: str) -> list[dict[str, Any]]:
        """What the others said, {reviewer, verdict, tags}; from now on this person's reviews of it are not blind.

        Raises Refused before this person has said something (to skip says nothing).
        """
        with self.work.change() as con:
            sql = """UPDATE review_slots SET revealed = 1
                     WHERE item = ? AND reviewer = ? AND status = 'submitted'"""
            if con.execute(sql, (item, reviewer)).rowcount != 1:
                raise Refused(f"scores of {item} are shown to {reviewer} after a verdict; submit one first.")
            sql = """SELECT reviewer, verdict, tags FROM review_slots
                     WHERE item = ? AND reviewer <> ? AND status = 'submitted' ORDER BY at, reviewer"""
            rows = con.execute(sql, (item, reviewer)).fetchall()
        return [dict(row) | {"tags": json.loads(row["tags"])} for row in rows]

    # Where a person stands

    def recent(self, reviewer: str) -> list[dict[str, Any]]:
        """This person's last events that stand, newest first: {item, unit, sign, verdict, tags, seconds, at}."""
        sql = """SELECT item, unit, sign, verdict, tags, seconds, at FROM review_slots
                 WHERE reviewer = ? AND status <> 'held' AND review IS NOT NULL ORDER BY at DESC, review DESC LIMIT ?"""
        with self.work.use() as con:
            rows = con.execute(sql, (reviewer, UNDO_LAST)).fetchall()
        return [dict(row) | {"tags": json.loads(row["tags"])} for row in rows]

    def progress(self, reviewer: str) -> dict[str, Any]:
        """{waiting, for_you, in_hand, reviewed, today, skipped, seconds}: how much there is to do, and how it goes.

        waiting: explanations with fewer than `overlap` reviews; for_you: those that this person could be given, the one
        in hand included; skipped: set aside until tomorrow; seconds: median over the last reviews, None without any.
        """
        asked = self._asked(reviewer)
        asked["midnight"] = _midnight(asked["now"], 0)
        with self.work.use() as con:
            counts = con.execute(
                f"""SELECT
                    (SELECT count(*) FROM review_waiting WHERE reviews < :overlap) AS waiting,
                    (SELECT count(*) FROM ({_TAKEN})) AS taken,
                    count(*) FILTER (WHERE status = 'held' AND expires > :now) AS in_hand,
                    count(*) FILTER (WHERE status = 'submitted') AS reviewed,
                    count(*) FILTER (WHERE status = 'submitted' AND at >= :midnight) AS today,
                    count(*) FILTER (WHERE status = 'skipped' AND expires > :now) AS skipped
                    FROM review_slots WHERE reviewer = :reviewer""",
                asked,
            ).fetchone()
            sql = """SELECT seconds FROM review_slots WHERE reviewer = ? AND status = 'submitted'
                     ORDER BY at DESC LIMIT ?"""
            spent = [seconds for (seconds,) in con.execute(sql, (reviewer, PACE_OF)) if seconds is not None]
        facts = dict(counts)
        facts["for_you"] = facts["waiting"] - facts.pop("taken") + facts["in_hand"]
        return facts | {"seconds": round(median(spent), 1) if spent else None}

    def _asked(self, reviewer: str) -> dict[str, Any]:
        now = self.work.now
        return {
            "reviewer": reviewer, "person": PERSON + reviewer, "now": now, "until": now + LEASE, "overlap": self.overlap
        }  # fmt: skip

    def _holds(self, con: Connection, asked: dict[str, Any]) -> bool:
        """Whether a card is in this person's hand, though its time may have run out while nobody took it up."""
        sql = f"""SELECT 1 FROM review_slots m WHERE item = :item AND reviewer = :reviewer AND status = 'held'
                  AND (expires > :now OR {_ROOM.format(item="m.item")})"""
        return con.execute(sql, asked).fetchone() is not None


# Parts


def _check(
    verdict: str, tags: Sequence[str], edit: Hypothesis | None, seconds: float | None, card: str | None, client: str
) -> None:
    if verdict not in REVIEWS:
        raise Refused(f"{verdict!r} is no verdict; choose one of {', '.join(REVIEWS)}.")
    unknown = [tag for tag in tags if tag not in TAGS]
    if unknown:
        raise Refused(f"{unknown[0]!r} is no tag; choose of {', '.join(TAGS)}.")
    if len(set(tags)) < len(tags):
        raise Refused(f"{', '.join(tags)} names a tag twice; name each once.")
    if (verdict == "edit") != (edit is not None):
        how = "an edit needs a sentence" if edit is None else f"{verdict} takes no sentence"
        raise Refused(f"{how}; give one with edit, and with nothing else.")
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= LONGEST):
        raise Refused(f"{seconds} seconds cannot have been spent; give a number from 0 to {LONGEST:.0f}.")
    if card is not None and not _DIGEST.fullmatch(card):
        raise Refused(f"{card[:80]!r} is no digest of a card; send the one that came with it.")
    if not (0 < len(client) <= 100 and client.isprintable()):
        raise Refused(f"the client {client[:100]!r} is no name; give one of 1 to 100 printable characters.")


def _not_held(item: str, reviewer: str) -> Refused:
    return Refused(
        f"{item} is not in the hands of {reviewer}, or was lent to somebody else when its time ran out; "
        "`lamplighter review next` gives a card."
    )


def _repeated(slot: Row, verdict: str, tags: Sequence[str]) -> Said:
    """What was recorded before, where the same is said again. Raises Refused where it is something else."""
    if verdict == "edit" or slot["verdict"] != verdict or json.loads(slot["tags"]) != list(tags):
        raise Refused(
            f"{slot['reviewer']} said {slot['verdict']} of {slot['item']} before; `lamplighter review undo` takes it "
            "back."
        )
    return Said(slot["review"], slot["item"], slot["reviewer"], verdict, repeated=True)


def _parts(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [rows[start : start + PART] for start in range(0, len(rows), PART)]


def _stamps(slot: Row) -> dict[str, Any]:
    stamps = {name: slot[name] for name in ("unit", "sign", "run", "investigation")}
    return stamps | {"reasons": json.loads(slot["reasons"])}


def _slot(review: Review) -> dict[str, Any]:
    """A review that stands in the findings as a row of review_slots."""
    at = datetime.fromisoformat(review.created_at).replace(tzinfo=UTC).timestamp()
    skipped = review.verdict == "skip"
    facts = asdict(review) | {"item": review.hypothesis, "review": review.id, "at": at}
    facts |= {"status": "skipped" if skipped else "submitted", "expires": _midnight(at, 1) if skipped else None}
    return facts | {"tags": json.dumps(review.tags), "reasons": json.dumps(review.reasons)}


def _midnight(now: float, days: int) -> float:
    """When the day began where this machine is; of so many days later."""
    today = datetime.fromtimestamp(now).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today + timedelta(days=days)).timestamp()


__all__ = [
    "LEASE", "OVERLAP", "SECOND_THOUGHTS", "TAGS", "UNDO_LAST", "Claim", "Claims", "Item", "Said", "reviewer_name",
]  # fmt: skip
