"""Who has which card: any number of people and processes, leases that run out, second thoughts."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lamplighter.store import claims as module
from lamplighter.store.claims import (
    LEASE,
    SECOND_THOUGHTS,
    TAGS,
    UNDO_LAST,
    Claims,
    Item,
    reviewer_name,
)
from lamplighter.store.records import Hypothesis, Refused, Review
from lamplighter.store.work import Work

PEOPLE = ("ann", "bo", "cy", "di")
NOON = datetime(2026, 11, 21, 12).timestamp()     # where this machine is


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def items(count: int, author: str | None = None, first: int = 0) -> list[Item]:
    return [
        Item(f"h{n}", f"m/5-mlp/{n}", -1 if n % 2 else 1, "r", f"i{n}", author, ["unclear", "audit"][: 1 + n % 2])
        for n in range(first, first + count)
    ]


def edited(item: str = "h0", unit: str = "m/5-mlp/0", author: str = "person:ann") -> Hypothesis:
    return Hypothesis(
        author=author, sentence=f"not {item}", rule=None, rule_text=None, kept=True, unit=unit, sign=1,
        investigation=f"new-{item}-{author}",
    )  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def work(tmp_path: Path, clock: Clock) -> Work:
    return Work(tmp_path / "work.sqlite", clock)


@pytest.fixture
def claims(work: Work) -> Claims:
    made = Claims(work)
    made.take_in(items(4))
    return made


def taken(claims: Claims, reviewer: str) -> str | None:
    claim = claims.claim(reviewer)
    return None if claim is None else claim.item


def events(claims: Claims) -> list[Review]:
    return [record for _, record in claims.work.outbox(1000) if isinstance(record, Review)]


# Lending


def test_cards_go_in_order_and_a_reload_gives_the_same_one(claims: Claims, clock: Clock) -> None:
    first = claims.claim("ann")
    assert first is not None
    assert (first.item, first.unit, first.sign) == ("h0", "m/5-mlp/0", 1)
    assert (first.since, first.expires) == (NOON, NOON + LEASE)
    clock.now += 100
    again = claims.claim("ann")
    assert again is not None and (again.item, again.since, again.expires) == ("h0", NOON, NOON + 100 + LEASE)
    claims.submit("h0", "ann", "accept")
    assert taken(claims, "ann") == "h1"
    assert taken(claims, "bo") == "h0", "the same order for everybody, so that reviews overlap"


def test_no_more_people_than_the_overlap_have_a_card(claims: Claims, clock: Clock) -> None:
    assert [taken(claims, name) for name in PEOPLE] == ["h0", "h0", "h1", "h1"]
    claims.submit("h0", "ann", "accept")
    assert taken(claims, "ann") == "h2", "h1 is in two hands"
    clock.now += LEASE + 1
    assert taken(claims, "ann") == "h2", "it ran out and nobody took it up"
    assert taken(claims, "eve") == "h0", "bo's time ran out"
    with pytest.raises(Refused, match="not in the hands of bo"):
        claims.submit("h0", "bo", "accept")
    assert taken(claims, "bo") == "h1"


def test_one_reviewer_an_item(work: Work) -> None:
    claims = Claims(work, overlap=1)
    claims.take_in(items(2))
    assert [taken(claims, name) for name in ("ann", "bo", "cy")] == ["h0", "h1", None]
    with pytest.raises(Refused, match="0 reviews"):
        Claims(work, overlap=0)


def test_a_heartbeat_holds_a_card_and_a_late_one_only_what_nobody_took_up(claims: Claims, clock: Clock) -> None:
    claims = Claims(claims.work, overlap=1)
    claims.claim("ann")
    for _ in range(3):
        clock.now += LEASE - 1
        assert claims.heartbeat("h0", "ann") == clock.now + LEASE
    assert taken(claims, "bo") == "h1"
    clock.now += LEASE + 1
    assert claims.heartbeat("h0", "ann") == clock.now + LEASE, "late, and nobody had taken it up"
    clock.now += LEASE + 1
    assert taken(claims, "cy") == "h0"
    for call in (lambda: claims.heartbeat("h0", "ann"), lambda: claims.submit("h0", "ann", "accept")):
        with pytest.raises(Refused, match="lent to somebody else"):
            call()
    assert events(claims) == []


def test_nobody_gets_what_they_wrote_themselves(claims: Claims) -> None:
    claims.take_in([*items(1, author="person:ann"), *items(1, author="llm:x", first=1)])
    assert [taken(claims, "ann"), taken(claims, "bo")] == ["h1", "h0"]


def test_what_waits_no_more_is_not_lent_again_and_may_still_be_submitted(claims: Claims, clock: Clock) -> None:
    claims.claim("ann")
    claims.take_in(items(3, first=1))
    assert taken(claims, "ann") == "h0", "still in hand"
    clock.now += LEASE + 1
    assert taken(claims, "ann") == "h1"
    claims.submit("h0", "ann", "reject")
    assert [e.hypothesis for e in events(claims)] == ["h0"]


# Saying something


def test_an_event_says_all_that_is_known(claims: Claims, clock: Clock) -> None:
    claims.claim("ann")
    claims.shown("h0", "ann", "a" * 64)
    clock.now += 12.5
    said = claims.submit("h0", "ann", "reject", tags=("vague", "too-broad"), client="page 1")
    (event,) = events(claims)
    assert (said.review, said.repeated) == (event.id, False)
    told = {
        "hypothesis": "h0", "reviewer": "ann", "verdict": "reject", "tags": ["vague", "too-broad"], "seconds": 12.5,
        "card": "a" * 64, "client": "page 1", "blind": True, "reasons": ["unclear"], "edit": None, "undoes": None,
        "unit": "m/5-mlp/0", "sign": 1, "run": "r", "investigation": "i0",
    }  # fmt: skip
    assert {name: getattr(event, name) for name in told} == told


def test_the_same_said_again_is_recorded_once_and_another_verdict_is_refused(claims: Claims) -> None:
    claims.claim("ann")
    first = claims.submit("h0", "ann", "accept", tags=["vague"])
    again = claims.submit("h0", "ann", "accept", tags=["vague"])
    assert (again.review, again.repeated) == (first.review, True)
    for verdict, tags in (("reject", ["vague"]), ("accept", [])):
        with pytest.raises(Refused, match="ann said accept of h0 before"):
            claims.submit("h0", "ann", verdict, tags=tags)
    assert len(events(claims)) == 1


@pytest.mark.parametrize(
    ("verdict", "more", "said"),
    [
        ("great", {}, "'great' is no verdict; choose one of accept, reject, edit, unsure, skip"),
        ("undo", {}, "'undo' is no verdict"),
        ("accept", {"tags": ["ugly"]}, "'ugly' is no tag"),
        ("accept", {"tags": ["vague", "vague"]}, "twice"),
        ("edit", {}, "an edit needs a sentence"),
        ("accept", {"edit": edited()}, "accept takes no sentence"),
        ("accept", {"seconds": -1.0}, "-1.0 seconds"),
        ("accept", {"seconds": float("nan")}, "nan seconds"),
        ("accept", {"seconds": 1e9}, "cannot have been spent"),
        ("accept", {"card": "../../etc"}, "no digest"),
        ("accept", {"client": ""}, "is no name"),
        ("accept", {"client": "a\x1b[31m"}, "is no name"),
    ],
)
def test_what_is_no_review_is_refused_and_leaves_the_card_in_hand(claims, verdict, more, said) -> None:
    claims.claim("ann")
    with pytest.raises(Refused, match=said):
        claims.submit("h0", "ann", verdict, **more)
    assert events(claims) == [] and taken(claims, "ann") == "h0"


def test_a_card_of_somebody_else_cannot_be_reviewed(claims: Claims) -> None:
    claims.claim("ann")
    for item in ("h0", "h3", "nothing"):
        with pytest.raises(Refused, match="not in the hands of bo"):
            claims.submit(item, "bo", "accept")


@pytest.mark.parametrize("text", ["", "  ", "a b", "ann/../x", "<script>", "a" * 65, "-ann", "ann\n", "\u202eann", "_"])
def test_no_name(text: str) -> None:
    if text == "ann\n":
        assert reviewer_name(text) == "ann"       # a line's end comes with what is typed
        return
    with pytest.raises(Refused, match="is no name"):
        reviewer_name(text)


@pytest.mark.parametrize(("text", "name"), [(" Ann ", "ann"), ("B.Lee@x-y_z.org", "b.lee@x-y_z.org"), ("Ａnn", "ann")])
def test_one_person_has_one_name(text: str, name: str) -> None:
    assert reviewer_name(text) == name


# Skipping


def test_what_is_skipped_goes_back_to_others_and_comes_again_the_next_day(claims: Claims, clock: Clock) -> None:
    claims = Claims(claims.work, overlap=1)
    claims.claim("ann")
    claims.submit("h0", "ann", "skip")
    assert [taken(claims, "ann"), taken(claims, "bo")] == ["h1", "h0"]
    claims.submit("h0", "bo", "skip")
    clock.now = NOON + 11.9 * 3600
    assert taken(claims, "bo") == "h1" and taken(claims, "ann") == "h2", "their times ran out, h0 is not for today"
    clock.now = NOON + 12.1 * 3600 + LEASE
    claims.submit("h1", "bo", "accept")
    assert taken(claims, "bo") == "h0"


# Second thoughts


def test_undo_is_an_event_and_gives_the_card_back(claims: Claims, clock: Clock) -> None:
    claims.claim("ann")
    first = claims.submit("h0", "ann", "reject")
    assert taken(claims, "ann") == "h1"
    clock.now += 1
    undone = claims.undo("ann")
    assert (undone.item, undone.undoes) == ("h0", first.review)
    assert [(e.verdict, e.undoes) for e in events(claims)] == [("reject", None), ("undo", first.review)]
    assert taken(claims, "ann") == "h0", "before the one that came after it"
    claims.submit("h0", "ann", "accept")
    assert taken(claims, "ann") == "h1"
    with pytest.raises(Refused, match="bo has said nothing to take back"):
        claims.undo("bo")


def test_what_was_judged_with_scores_in_sight_is_not_blind(claims: Claims) -> None:
    claims.claim("ann")
    with pytest.raises(Refused, match="after a verdict"):
        claims.reveal("h0", "ann")
    claims.submit("h0", "ann", "reject", tags=["vague"])
    claims.undo("ann")
    with pytest.raises(Refused, match="after a verdict"):
        claims.reveal("h0", "ann")
    claims.submit("h0", "ann", "accept")
    assert claims.reveal("h0", "ann") == []
    claims.undo("ann")
    claims.submit("h0", "ann", "reject", tags=["vague"])
    assert [e.blind for e in events(claims)] == [True, True, True, False, False]
    claims.claim("bo")
    claims.submit("h0", "bo", "skip")
    with pytest.raises(Refused, match="after a verdict"):
        claims.reveal("h0", "bo")
    claims.undo("bo")
    claims.submit("h0", "bo", "accept")
    assert claims.reveal("h0", "bo") == [{"reviewer": "ann", "verdict": "reject", "tags": ["vague"]}]


def test_what_has_all_its_reviews_closes_after_a_while(claims: Claims, clock: Clock) -> None:
    for name in ("ann", "bo"):
        claims.claim(name)
    claims.submit("h0", "ann", "accept")
    clock.now += 10 * SECOND_THOUGHTS
    claims.heartbeat("h0", "bo")
    claims.undo("ann")
    claims.submit("h0", "ann", "reject")
    claims.submit("h0", "bo", "accept")
    clock.now += SECOND_THOUGHTS - 1
    claims.undo("bo")
    claims.submit("h0", "bo", "unsure")
    clock.now += SECOND_THOUGHTS
    for name in ("ann", "bo"):
        with pytest.raises(Refused, match="has its 2 reviews and is closed"):
            claims.undo(name)
    assert [e.verdict for e in events(claims)] == ["accept", "undo", "reject", "accept", "undo", "unsure"]


def test_any_of_the_last_events_can_be_taken_back_by_name_and_older_ones_cannot(work: Work, clock: Clock) -> None:
    claims = Claims(work)
    claims.take_in(items(UNDO_LAST + 1))
    for n in range(UNDO_LAST + 1):
        clock.now += 1
        claims.claim("ann")
        claims.submit(f"h{n}", "ann", "accept")
    with pytest.raises(Refused, match="nothing on h0, among the last 20"):
        claims.undo("ann", "h0")
    assert claims.undo("ann", "h1").item == "h1"
    assert claims.undo("ann", "h0").item == "h0", "it is among the last now"
    assert [row["item"] for row in claims.recent("ann")] == [f"h{n}" for n in range(UNDO_LAST, 1, -1)]


def test_a_skip_can_be_taken_back_until_others_took_the_card_up(claims: Claims) -> None:
    claims = Claims(claims.work, overlap=1)
    claims.claim("ann")
    claims.submit("h0", "ann", "skip")
    claims.undo("ann")
    assert taken(claims, "ann") == "h0"
    claims.submit("h0", "ann", "skip")
    claims.claim("bo")
    with pytest.raises(Refused, match="taken up by others"):
        claims.undo("ann")


# Edits


def queue(work: Work) -> dict[str, list[str]]:
    return {run.id: [job.unit for job in work.jobs(run.id)] for run in work.runs()}


def test_an_edit_is_queued_in_a_run_of_its_kind_and_is_on_its_way_with_its_event(claims: Claims) -> None:
    claims.claim("ann")
    made = edited()
    said = claims.submit("h0", "ann", "edit", edit=made, tags=["too-narrow"])
    work = claims.work
    (run,) = work.runs()
    assert (run.status, run.key, run.asked["model"], run.units) == ("drained", "edits:m", "m", ["m/5-mlp/0"])
    assert said.edit_run == run.id and work.counts(run.id)["queued"] == 1
    written, event = (record for _, record in work.outbox(9))
    assert isinstance(written, Hypothesis) and (written.id, written.run) == (made.id, run.id)
    assert isinstance(event, Review) and event.edit == made.id
    with pytest.raises(Refused, match="said edit of h0 before"):
        claims.submit("h0", "ann", "edit", edit=edited())


def test_a_run_of_edits_takes_each_unit_once_and_of_one_model(claims: Claims) -> None:
    work = claims.work
    for name, unit in (("ann", "m/5-mlp/0"), ("bo", "m/5-mlp/0"), ("cy", "m/5-mlp/1"), ("di", "other/5-mlp/0")):
        item = taken(claims, name)
        assert item is not None
        claims.submit(item, name, "edit", edit=edited(item, unit, f"person:{name}"))
    assert list(queue(work).values()) == [["m/5-mlp/0", "m/5-mlp/1"], ["m/5-mlp/0"], ["other/5-mlp/0"]]
    first = work.runs()[0]
    for _ in first.units:
        job = work.claim(first.id, "w")
        assert job is not None
        work.finish(job, [])
    assert work.close_run(first.id, "done") == "done"
    claims.claim("eve")
    claims.submit("h2", "eve", "edit", edit=edited("h2", "m/5-mlp/2"))
    assert [units for units in queue(work).values()][1] == ["m/5-mlp/0", "m/5-mlp/2"], "a run that is done takes none"


def test_an_edit_that_is_taken_back_is_not_scored_unless_somebody_began(claims: Claims) -> None:
    work = claims.work
    claims.claim("ann")
    claims.submit("h0", "ann", "edit", edit=edited())
    claims.undo("ann")
    (run,) = work.runs()
    assert (run.units, work.jobs(run.id)) == ([], [])
    claims.submit("h0", "ann", "edit", edit=edited())
    assert queue(work) == {run.id: ["m/5-mlp/0"]}
    job = work.claim(run.id, "w")
    assert job is not None
    claims.undo("ann")
    assert queue(work) == {run.id: ["m/5-mlp/0"]}, "who scores it sees for themselves that it was taken back"
    work.release(job)


# The rest of the house


def test_reviews_that_the_file_forgot_are_taken_in_from_the_findings(claims: Claims, clock: Clock) -> None:
    said = Review(
        hypothesis="h0", reviewer="ann", verdict="accept", tags=["vague"], client="c", seconds=3.0, unit="m/5-mlp/0",
        sign=1, created_at="2026-01-01T00:00:00.000000",
    )  # fmt: skip
    skipped = Review(hypothesis="h0", reviewer="bo", verdict="skip", client="c", unit="m/5-mlp/0", sign=1)
    claims.claim("cy")
    claims.take_in(items(4), [said, skipped, Review(hypothesis="h0", reviewer="cy", verdict="reject", client="c")][:2])
    assert taken(claims, "ann") == "h1" and taken(claims, "cy") == "h0"
    assert claims.recent("ann") == [
        {"item": "h0", "unit": "m/5-mlp/0", "sign": 1, "verdict": "accept", "tags": ["vague"], "seconds": 3.0,
         "at": datetime.fromisoformat("2026-01-01T00:00:00+00:00").timestamp()},
    ]  # fmt: skip
    claims.undo("ann", "h0")
    claims.submit("h0", "ann", "reject")
    assert not events(claims)[-1].blind, "nobody knows what was in sight then"


def test_a_look_that_was_killed_halfway_counts_for_nothing(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 2)
    real, calls = claims.work.change, []

    def failing() -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(claims.work, "change", failing)
    with pytest.raises(KeyboardInterrupt):
        claims.take_in(items(8, first=10), findings="new")
    assert [r["item"] for r in claims.waiting()] == ["h0", "h1", "h2", "h3"] and claims.looked() == ("", NOON)
    assert claims.take_in(items(3, first=20), findings="newer")
    assert [r["item"] for r in claims.waiting()] == ["h20", "h21", "h22"] and claims.looked() == ("newer", NOON)
    with claims.work.use() as con:
        assert con.execute("SELECT count(*) FROM review_items").fetchone()[0] == 3, "nothing is left behind"


def test_one_process_looks_at_a_time(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT", 0.1)
    assert claims.work.lock("review-look", "another/1/2/3")
    assert not claims.take_in(items(1, first=9))
    assert len(claims.waiting()) == 4
    claims.work.unlock("review-look", "another/1/2/3")
    assert claims.take_in(items(1, first=9)) and [r["item"] for r in claims.waiting()] == ["h9"]


def test_a_review_during_a_look_is_counted(claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    claims.claim("ann")
    real = claims.work.lock

    def meanwhile(name: str, holder: str) -> bool:
        if claims.work.pending() == 0 and real(name, holder):
            with claims.work.use() as con:
                if con.execute("SELECT 1 FROM review_items WHERE look = 2").fetchone():
                    claims.submit("h0", "ann", "accept")
        return real(name, holder)

    monkeypatch.setattr(claims.work, "lock", meanwhile)
    claims.take_in(items(4))
    assert len(events(claims)) == 1 and claims.waiting()[0]["reviews"] == 1


def test_what_waits_is_listed_with_reasons_and_to_a_reviewer_without(claims: Claims) -> None:
    claims.claim("ann")
    claims.submit("h0", "ann", "accept")
    claims.claim("bo")
    claims.claim("ann")
    rows = claims.waiting()
    assert [(r["item"], r["reviews"], r["held"], r["reasons"]) for r in rows[:2]] == [
        ("h0", 1, 1, ["unclear"]), ("h1", 0, 1, ["unclear", "audit"]),
    ]  # fmt: skip
    assert [r["item"] for r in claims.waiting(limit=2)] == ["h0", "h1"]
    mine = claims.waiting("ann")
    assert [(r["item"], r["yours"]) for r in mine] == [("h0", False), ("h1", False), ("h2", True), ("h3", True)]
    assert all("reasons" not in row for row in mine), "they tell of scores"
    claims.submit("h0", "bo", "accept")
    assert [r["item"] for r in claims.waiting()] == ["h1", "h2", "h3"]


def test_progress_counts_what_is_left_and_how_fast_it_goes(claims: Claims, clock: Clock) -> None:
    assert claims.progress("ann") == {
        "waiting": 4, "for_you": 4, "in_hand": 0, "reviewed": 0, "today": 0, "skipped": 0, "seconds": None,
    }  # fmt: skip
    for verdict, seconds in (("accept", 10.0), ("skip", 1.0), ("unsure", 30.0)):
        item = taken(claims, "ann")
        assert item is not None
        claims.submit(item, "ann", verdict, seconds=seconds)
    claims.claim("ann")
    assert claims.progress("ann") == {
        "waiting": 4, "for_you": 1, "in_hand": 1, "reviewed": 2, "today": 2, "skipped": 1, "seconds": 20.0,
    }  # fmt: skip
    clock.now += 86_400
    assert claims.progress("ann") | {"for_you": 2, "in_hand": 0, "today": 0, "skipped": 0} == claims.progress("ann")


# Whatever happens


class Desks(RuleBasedStateMachine):
    """People at several desks over one file, a clock that jumps, and a queue that changes, beside a plain model."""

    overlap = 2

    @initialize()
    def open(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        path = Path(self.folder.name) / "work.sqlite"
        self.desks = [Claims(Work(path, self.clock), self.overlap) for _ in range(2)]
        self.desks[0].take_in(items(5))
        self.said: dict[tuple[str, str], str] = {}          # (item, reviewer) → the event that stands
        self.events: list[str] = []
        self.skipped: dict[tuple[str, str], int] = {}       # → the day

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for desk in self.desks:
                desk.work.close()
            self.folder.cleanup()

    def day(self) -> int:
        return datetime.fromtimestamp(self.clock.now).toordinal()

    def reviewers(self, item: str) -> list[str]:
        return [who for what, who in self.said if what == item]

    @rule(desk=st.sampled_from([0, 1]), who=st.sampled_from(PEOPLE))
    def take(self, desk: int, who: str) -> None:
        claim = self.desks[desk].claim(who)
        if claim is None:
            held = {(r["item"], r["reviewer"]) for r in self.slots() if r["status"] == "held"
                    and r["expires"] > self.clock.now}  # fmt: skip
            for item in self.waits():
                live = [w for w in PEOPLE if (item, w) in self.said or (item, w) in held]
                free = (item, who) not in self.said and self.skipped.get((item, who)) != self.day()
                assert not (free and len(live) < self.overlap), "a card that could be lent was not"
            return
        assert (claim.item, who) not in self.said, "nobody gets an explanation twice"
        assert self.skipped.get((claim.item, who)) != self.day(), "not again today"
        others = {r["reviewer"] for r in self.slots() if r["item"] == claim.item and r["reviewer"] != who and (
            r["status"] == "submitted" or (r["status"] == "held" and r["expires"] > self.clock.now))}  # fmt: skip
        assert len(others) < self.overlap, "a slot was given away twice"
        again = self.desks[1 - desk].claim(who)
        assert again is not None and again.item == claim.item, "a reload at another desk gives the same card"

    @rule(
        desk=st.sampled_from([0, 1]), who=st.sampled_from(PEOPLE), verdict=st.sampled_from(["accept", "edit", "skip"])
    )
    def say(self, desk: int, who: str, verdict: str) -> None:
        held = [r["item"] for r in self.slots() if r["reviewer"] == who and r["status"] == "held"]
        for item in held[:1]:
            try:
                edit = None
                if verdict == "edit":
                    sign = -1 if int(item[1:]) % 2 else 1
                    edit = replace(edited(item, f"m/5-mlp/{item[1:]}", f"person:{who}"), sign=sign)
                said = self.desks[desk].submit(item, who, verdict, edit=edit)
            except Refused:
                assert len(self.live_others(item, who)) >= self.overlap
                continue
            self.events.append(said.review)
            if verdict == "skip":
                self.skipped[item, who] = self.day()
            else:
                self.said[item, who] = said.review

    def live_others(self, item: str, who: str) -> list[str]:
        return [r["reviewer"] for r in self.slots() if r["item"] == item and r["reviewer"] != who and (
            r["status"] == "submitted" or (r["status"] == "held" and r["expires"] > self.clock.now))]  # fmt: skip

    @rule(desk=st.sampled_from([0, 1]), who=st.sampled_from(PEOPLE))
    def undo(self, desk: int, who: str) -> None:
        try:
            undone = self.desks[desk].undo(who)
        except Refused:
            return
        self.events.append(undone.review)
        if self.said.get((undone.item, who)) == undone.undoes:
            del self.said[undone.item, who]
        else:
            assert self.skipped.pop((undone.item, who)) is not None

    @rule(desk=st.sampled_from([0, 1]), who=st.sampled_from(PEOPLE))
    def beat(self, desk: int, who: str) -> None:
        for row in self.slots():
            if row["reviewer"] == who and row["status"] == "held" and row["expires"] > self.clock.now:
                self.desks[desk].heartbeat(row["item"], who)

    @rule(seconds=st.sampled_from([1.0, LEASE - 1, LEASE + 1, 86_400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(first=st.integers(0, 3), count=st.integers(1, 5))
    def look(self, first: int, count: int) -> None:
        self.desks[0].take_in(items(count, first=first))

    @precondition(lambda self: hasattr(self, "desks"))
    @invariant()
    def holds(self) -> None:
        rows = self.slots()
        live = Counter(r["item"] for r in rows if r["status"] == "submitted" or (
            r["status"] == "held" and r["expires"] > self.clock.now))  # fmt: skip
        assert max(live.values(), default=0) <= self.overlap, live
        standing = {(r["item"], r["reviewer"]): r["review"] for r in rows if r["status"] == "submitted"}
        assert standing == self.said, "what was said stands, and nothing else does"
        with self.desks[0].work.use() as con:
            counted = dict(con.execute("SELECT item, reviews FROM review_waiting").fetchall())
        assert counted == {item: len(self.reviewers(item)) for item in counted}
        recorded = [record for _, record in self.desks[0].work.outbox(10_000)]
        told = [record.id for record in recorded if isinstance(record, Review)]
        assert told == self.events, "each event is on its way once, in order"
        edits = {record.edit for record in recorded if isinstance(record, Review) and record.edit}
        assert edits == {record.id for record in recorded if isinstance(record, Hypothesis)}
        standing = {row["edit"] for row in rows if row["edit"]}
        waits = sum(len(units) for units in queue(self.desks[0].work).values())
        assert waits == len(standing) <= len(edits), "what was taken back is not scored"

    def slots(self) -> list[dict[str, object]]:
        with self.desks[0].work.use() as con:
            return [dict(row) for row in con.execute("SELECT * FROM review_slots")]

    def waits(self) -> list[str]:
        with self.desks[0].work.use() as con:
            return [row[0] for row in con.execute("SELECT item FROM review_waiting ORDER BY place")]


class LonelyDesks(Desks):
    """The same with one review an explanation."""

    overlap = 1


TestDesks = Desks.TestCase
TestDesks.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, database=None)
TestLonelyDesks = LonelyDesks.TestCase
TestLonelyDesks.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, database=None)


REVIEW = """
import json, sys
from pathlib import Path
from lamplighter.store.claims import Claims
from lamplighter.store.work import Work
claims, name = Claims(Work(Path(sys.argv[1])), overlap=int(sys.argv[3])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
while (claim := claims.claim(name)) is not None:
    claims.submit(claim.item, name, "accept")
    print(claim.item, flush=True)
"""


def reviewing(work: Work, name: str, overlap: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", REVIEW, str(work.path), name, str(overlap)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("overlap", [1, 2])
def test_processes_that_claim_at_once_never_get_the_same_slot(tmp_path: Path, overlap: int) -> None:
    work = Work(tmp_path / "work.sqlite")
    Claims(work).take_in(items(60))
    at_work = [reviewing(work, name, overlap) for name in ("ann", "bo", "cy")]
    for process in at_work:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    got = [process.communicate(timeout=60)[0].split() for process in at_work]
    assert all(len(set(one)) == len(one) for one in got), "nobody gets one twice"
    each = Counter(item for one in got for item in one)
    assert set(each.values()) == {overlap} and len(each) == 60
    assert len(events(Claims(work))) == 60 * overlap


def test_killed_at_any_moment_a_reviewer_has_said_all_or_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path / "work.sqlite")
    claims = Claims(work, overlap=1)
    claims.take_in(items(80))
    rng = random.Random(2)
    for _ in range(3):
        process = reviewing(work, "ann", 1)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(rng.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    while (claim := claims.claim("ann")) is not None:
        claims.submit(claim.item, "ann", "accept")
    assert Counter(e.hypothesis for e in events(claims)) == Counter(f"h{n}" for n in range(80))
    with work.use() as con:
        slots = con.execute("SELECT item, review FROM review_slots WHERE status = 'submitted'").fetchall()
    assert {e.hypothesis: e.id for e in events(claims)} == {row["item"]: row["review"] for row in slots}


def test_tags_have_a_digit_each() -> None:
    assert len(TAGS) == len(set(TAGS)) == 9
    assert json.loads(json.dumps(TAGS)) == list(TAGS)
