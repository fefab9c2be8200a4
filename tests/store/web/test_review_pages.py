"""Reviewing without a browser: blind first, leases, undo, edits, and what people's verdicts say."""

import re
import threading
import time

import pytest
from starlette.testclient import TestClient

from lamplighter.store.claims import Claims
from lamplighter.store.findings import Findings, drain
from lamplighter.store.records import Hypothesis, Review
from lamplighter.store.work import Work

HOME = "http://127.0.0.1:8600"


@pytest.fixture
def seats(make_app, own):
    """Clients of ann and bob, at desks of one server, and the home."""
    app, doors = make_app(home=own, reviewers=["ann", "bob"], overlap=1)
    made = []
    for name in ("ann", "bob"):
        client = TestClient(app, base_url=HOME, headers={"origin": HOME})
        client.get(f"/?token={doors.tokens[name]}")
        made.append(client)
    return (*made, own)


def card(client) -> dict[str, str]:
    """What the form of the card in hand sends."""
    page = client.get("/review").text
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]+)">', page))


def say(client, verdict, **more):
    return client.post("/review", data=card(client) | {"verdict": verdict} | more, headers={"hx-request": "true"})


def events(home) -> list[Review]:
    findings, work = Findings(home / "findings.duckdb"), Work(home / "work.sqlite")
    drain(work, findings)
    return findings.read(Review)


def test_a_card_is_blind_and_the_same_until_it_is_judged(seats) -> None:
    ann, bob, _ = seats
    page = ann.get("/review").text
    assert "0.80" not in page
    assert "accepted" not in page
    assert "playbook" not in page
    assert "they turned" in page
    assert card(ann) == card(ann)
    assert card(ann)["item"] != card(bob)["item"]


def test_whoever_comes_while_the_first_look_takes_long_gets_a_card(make_app, own, monkeypatch) -> None:
    """And is not told that nothing waits: `take_in` leaves to another process what it is just doing."""
    begun, real = threading.Event(), Claims._take_in

    def slow(*args) -> None:
        begun.set()
        time.sleep(3)
        real(*args)

    monkeypatch.setattr(Claims, "_take_in", slow)
    app, doors = make_app(home=own, reviewers=["ann"], overlap=1)
    with TestClient(app, base_url=HOME, headers={"origin": HOME}) as ann:
        ann.get(f"/?token={doors.tokens['ann']}")
        assert begun.wait(30)
        assert card(ann)["item"]


def test_what_is_said_is_an_event_and_undo_another(seats) -> None:
    ann, _, home = seats
    first = card(ann)
    answer = say(ann, "reject", tag=["too-broad", "vague"])
    assert "<html" not in answer.text
    assert "reject (too-broad, vague)" in answer.text
    assert card(ann) != first
    undone = ann.post("/review/undo", headers={"hx-request": "true"})
    assert first["item"] in undone.text
    assert card(ann)["item"] == first["item"]
    told = events(home)
    assert [(event.verdict, event.reviewer) for event in told] == [("reject", "ann"), ("undo", "ann")]
    assert told[0].card == first["digest"]
    assert told[0].blind
    assert told[1].undoes == told[0].id


def test_scores_are_seen_afterwards(seats) -> None:
    ann, _, home = seats
    item = card(ann)["item"]
    assert ann.get(f"/review/behind/{item}").status_code == 400
    say(ann, "accept")
    behind = ann.get(f"/review/behind/{item}")
    assert behind.status_code == 200
    assert "0.80 [0.70, 0.90]" in behind.text
    ann.post("/review/undo")
    assert card(ann)["item"] == item
    say(ann, "unsure")
    assert [event.blind for event in events(home) if event.verdict != "undo"] == [True, False]


def test_an_edit_is_an_explanation_with_an_author(seats) -> None:
    ann, _, home = seats
    assert say(ann, "edit", sentence=" ").status_code == 400
    assert say(ann, "edit", sentence="fires on my words", rule="same").status_code == 200
    (event,) = events(home)
    (made,) = Findings(home / "findings.duckdb").read(Hypothesis, id=event.edit)
    assert (made.author, made.sentence, made.kept) == ("person:ann", "fires on my words", True)
    assert made.rule == {"clauses": []}


def test_a_skipped_card_goes_to_others(seats) -> None:
    ann, bob, _ = seats
    mine = card(ann)["item"]
    say(ann, "skip")
    assert card(ann).get("item") != mine
    given = [card(bob)["item"]]
    while say(bob, "accept") and (item := card(bob).get("item")):
        given.append(item)
    assert mine in given
    assert len(given) == len(set(given))


def test_a_card_of_another_is_not_judged(seats) -> None:
    ann, bob, home = seats
    taken = card(bob)
    answer = ann.post("/review", data=taken | {"verdict": "accept"})
    assert answer.status_code == 400
    assert "not in the hands of ann" in answer.text
    assert ann.post("/review/beat", data={"item": taken["item"]}).status_code == 400
    assert bob.post("/review/beat", data={"item": taken["item"]}).status_code == 204
    assert ann.post("/review", data=card(ann) | {"verdict": "perfect"}).status_code == 400
    assert events(home) == []


def test_without_scripts_a_verdict_leads_to_the_next_card(seats) -> None:
    ann, _, _ = seats
    answer = ann.post("/review", data=card(ann) | {"verdict": "accept"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/review")
    assert ann.post("/review/undo", follow_redirects=False).status_code == 303


def test_agreement_is_undefined_until_it_is_not(seats) -> None:
    page = seats[0].get("/agreement").text
    assert "undefined" in page
    assert "0 blind reviews" in page
