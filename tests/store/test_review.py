"""What waits for review and why, whose explanation stands, and what a person sees before and after a verdict."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lamplighter.store import findings as module
from lamplighter.store.edits import Edit, edit_of, queue_forgotten, replacing
from lamplighter.store.findings import Findings, drain
from lamplighter.store.records import (
    Evidence,
    Exemplar,
    Hypothesis,
    Investigation,
    Record,
    Refused,
    Review,
    Score,
    Unit,
    Verdict,
    signed,
)
from lamplighter.store.review import Card, Desk
from lamplighter.store.work import Work, ddl_after
from lamplighter.tools import measures

BAR = measures.ACCEPT
WIDE, HIGH, LOW = (0.6, BAR - 0.1, 0.9), (0.8, BAR + 0.1, 0.9), (0.2, 0.1, BAR - 0.1)


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    findings = Findings(tmp_path_factory.mktemp("blank") / "findings.duckdb")
    findings._make()
    return findings.path.read_bytes()


@pytest.fixture
def findings(tmp_path: Path, blank: bytes) -> Findings:
    (tmp_path / "findings.duckdb").write_bytes(blank)
    return Findings(tmp_path / "findings.duckdb")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "work.sqlite")


@pytest.fixture
def desk(work: Work, findings: Findings) -> Desk:
    return Desk(work, findings)


def when(at: int) -> str:
    return f"2026-01-01T00:{at // 60:02d}:{at % 60:02d}.000000"


@dataclass(frozen=True)
class Told:
    """One investigation's records, and the id of what it submitted."""

    hypothesis: str
    investigation: str
    records: list[Record]


def told(
    unit: str, verdict: str = "accepted", *, at: int = 0, sign: int = 1, f1: tuple[float, float, float] | None = HIGH,
    judged: tuple[float, float, float] | None = None, qualified: bool = True, effect: tuple[float, float] | None = None,
    reason: str = "SECRET reason", author: str = "llm:SECRET",
) -> Told:  # fmt: skip
    """Everything that a decided investigation leaves behind; `at` in seconds orders them."""
    investigation = f"i{at}-{unit}{sign}"
    base: dict[str, Any] = {"investigation": investigation, "unit": unit, "sign": sign, "run": f"r{at}"}
    base["created_at"] = when(at)
    kept = Hypothesis(
        **base, id=f"h{at}-{unit}{sign}", author=author, sentence=f"fires on {at}", rule={"at": at},
        rule_text=f"the word {at}", kept=verdict != "abstained", tune_f1=0.4321, evidence=["e"],
        provenance={"sweep": "s", "model": "d", "rung": "label"},
    )  # fmt: skip
    pushes = replace(kept, id=f"o{at}-{unit}{sign}", sentence=f"pushes {at}", side="output", author="ablate", rule=None)
    scores = [(None, "f1", f1, {}), ("SECRET judge", "detection", judged, {"qualified": qualified})]
    rows: list[Record] = [
        Investigation(**base, planner="SECRET planner", status="submitted", steps=1, cost={}, seconds=1.0),
        kept, pushes,
        Unit(**base, model="m", site="5-mlp", index=1, peak=8.0, threshold=4.0, statistics={}),
        Verdict(**base, hypothesis=kept.id, verdict=verdict, reason=reason, q=0.0123),
        Score(**base, hypothesis=pushes.id, metric="output_auc", side="score", value=0.7777),
    ]  # fmt: skip
    rows += [
        Score(**base, hypothesis=kept.id, metric=metric, side="score", judge=judge, value=found[0], low=found[1],
              high=found[2], floors={"SECRET floor": 0.1234}, details=details)
        for judge, metric, found, details in scores if found is not None
    ]  # fmt: skip
    if effect is not None:
        row = {"where": "firing", "delta_ce": sum(effect) / 2, "low": effect[0], "high": effect[1]}
        shown = {"effect": "shown" if effect[0] * effect[1] > 0 else "not shown"}
        rows.append(Evidence(**base, tool="ablate", summary="s", rows=[row], checks=shown))
    return Told(kept.id, investigation, rows)


def edit(known: Told, at: int, by: str = "ann", sentence: str = "") -> tuple[Hypothesis, Review]:
    """A person's explanation in the place of a known one, with its event, as they are recorded."""
    parent = next(r for r in known.records if isinstance(r, Hypothesis) and r.id == known.hypothesis)
    made = replacing(parent, by, Edit(sentence or f"{by} says {at}"))
    made = replace(made, id=f"e{at}-{by}", created_at=when(at), run="edits", investigation=f"ei{at}-{by}")
    event = Review(
        id=f"v{at}-{by}", created_at=when(at), hypothesis=known.hypothesis, reviewer=by, verdict="edit", edit=made.id,
        client="c", unit=parent.unit, sign=parent.sign,
    )  # fmt: skip
    return made, event


def scored(made: Hypothesis, verdict: str, at: int) -> list[Record]:
    base: dict[str, Any] = {"investigation": made.investigation, "unit": made.unit, "sign": made.sign, "run": made.run}
    return [
        Investigation(**base, planner=made.author, status="submitted", steps=0, cost={}, seconds=1.0),
        Score(**base, hypothesis=made.id, metric="f1", side="score", value=0.9, low=0.8, high=1.0),
        Verdict(**base, hypothesis=made.id, verdict=verdict, reason="w", created_at=when(at)),
    ]


def undone(event: Review, at: int) -> Review:
    changes: dict[str, Any] = {"id": f"u{at}", "verdict": "undo", "edit": None, "undoes": event.id}
    return replace(event, created_at=when(at), **changes)


def said(known: str, verdict: str, by: str = "bo", unit: str = "u", **more: Any) -> Review:
    return Review(hypothesis=known, reviewer=by, verdict=verdict, client="c", unit=unit, sign=1, **more)


def reasons(findings: Findings) -> dict[str, list[str]]:
    """Why each unit waits, the random share aside."""
    rows = findings.sql("SELECT * FROM review_queue")
    return {signed(row): [r for r in row["reasons"] if r != "audit"] for row in rows}


def stands(findings: Findings, unit: str = "u") -> dict[str, Any]:
    (row,) = findings.sql("SELECT * FROM explanations WHERE unit = ?", [unit])
    return row


# Why


@pytest.mark.parametrize(
    ("verdict", "more", "wanted"),
    [
        ("accepted", {}, []),
        ("rejected", {"f1": LOW}, []),
        ("unclear", {}, ["unclear"]),
        ("unclear", {"f1": WIDE}, ["unclear", "straddles"]),
        ("rejected", {"f1": (0.5, BAR - 0.1, BAR)}, ["straddles"]),
        ("accepted", {"f1": (0.6, BAR, 0.9)}, []),
        ("rejected", {"f1": (0.4, 0.3, BAR - 1e-9)}, []),
        ("undefined", {"f1": None, "judged": WIDE}, ["straddles"]),
        ("undefined", {"f1": None, "judged": WIDE, "qualified": False}, []),
        ("accepted", {"judged": LOW}, ["disagreement"]),
        ("accepted", {"judged": LOW, "qualified": False}, []),
        ("accepted", {"judged": WIDE}, []),
        ("rejected", {"f1": LOW, "judged": HIGH}, ["disagreement"]),
        ("unclear", {"reason": "disagreement: what it is said to push is refuted"}, ["disagreement", "unclear"]),
        ("accepted", {"effect": (0.1, 0.3)}, ["impact"]),
        ("accepted", {"effect": (-0.3, -0.1)}, ["impact"]),
        ("accepted", {"effect": (0.09, 0.9)}, []),
        ("accepted", {"effect": (-0.5, 0.5)}, []),
    ],
)
def test_each_reason_by_itself(findings: Findings, verdict: str, more: dict[str, Any], wanted: list[str]) -> None:
    findings.append(told("m/5-mlp/1", verdict, **more).records)
    assert reasons(findings).get("m/5-mlp/1", []) == wanted


def test_what_was_not_explained_or_not_decided_does_not_wait(findings: Findings) -> None:
    findings.append(told("m/5-mlp/1", "abstained").records + told("m/5-mlp/2", "failed").records)
    undecided = [r for r in told("m/5-mlp/3", "unclear").records if not isinstance(r, Verdict)]
    findings.append(undecided)
    assert reasons(findings) == {}


def test_only_the_newest_of_a_unit_and_sign_waits_and_by_its_newest_scores(findings: Findings) -> None:
    findings.append(told("m/5-mlp/1", "unclear", at=1).records + told("m/5-mlp/1", "accepted", at=2).records)
    findings.append(told("m/5-mlp/1", "unclear", at=1, sign=-1).records)
    old = told("m/5-mlp/2", "accepted", at=1, f1=WIDE)
    later = Score(hypothesis=old.hypothesis, metric="f1", side="score", value=0.8, low=0.7, high=0.9)
    findings.append([*old.records, later])
    assert reasons(findings) == {"m/5-mlp/1-": ["unclear"]}


def test_a_random_share_waits_whatever_its_verdict_and_is_always_the_same(findings: Findings, tmp_path: Path) -> None:
    many = [told(f"m/5-mlp/{n}", ("accepted", "rejected")[n % 2], f1=(HIGH, LOW)[n % 2]) for n in range(1500)]
    findings.append([r for one in many for r in one.records if isinstance(r, Hypothesis | Verdict | Score)])
    rows = findings.sql("SELECT unit, reasons, lane FROM review_queue ORDER BY turn")
    assert {tuple(row["reasons"]) for row in rows} == {("audit",)} and {row["lane"] for row in rows} == {4}
    assert 0.03 < len(rows) / 1500 < 0.07
    even = sum(int(row["unit"].rsplit("/")[-1]) % 2 for row in rows) / len(rows)
    assert 0.3 < even < 0.7, "both verdicts"
    other = Findings(tmp_path / "other.duckdb")
    again = [told(f"m/5-mlp/{n}", "accepted", at=5) for n in random.Random(0).sample(range(1500), 1500)]
    other.append([r for one in again for r in one.records if isinstance(r, Hypothesis | Verdict)])
    same = other.sql("SELECT unit FROM review_queue ORDER BY turn")
    assert [row["unit"] for row in same] == [row["unit"] for row in rows]


def test_lanes_take_turns_and_the_order_is_the_same_for_the_same_findings(desk: Desk, findings: Findings) -> None:
    kinds = {
        "disagreement": {"verdict": "accepted", "judged": LOW}, "unclear": {"verdict": "unclear"},
        "impact": {"verdict": "accepted", "effect": (0.2, 0.3)},
    }  # fmt: skip
    for number, (kind, how) in enumerate(kinds.items()):
        for n in range(2 + 3 * number):
            findings.append(told(f"m/{kind}/{n}", **how).records)
    desk.refresh()
    order = [row for row in desk.waiting() if "audit" not in row["reasons"]]
    lanes = [row["reasons"][0] for row in order]
    assert sorted(lanes[:6]) == sorted([*kinds, *kinds]), lanes
    assert lanes[-3:] == ["impact"] * 3
    before = [row["item"] for row in order]
    new = told("m/impact/new", "accepted", effect=(0.2, 0.3))
    findings.append(new.records)
    desk.refresh()
    after = [row["item"] for row in desk.waiting() if row["item"] in before]
    assert len(after) == len(before)
    for kind in kinds:      # in each lane the order stays
        assert [i for i in after if kind in i] == [i for i in before if kind in i]


# Whose explanation stands


def test_a_persons_explanation_stands_at_once_and_has_a_verdict_once_it_is_scored(findings: Findings) -> None:
    known = told("u", "rejected", at=1)
    made, event = edit(known, 2)
    findings.append([*known.records, made, event])
    row = stands(findings)
    assert (row["explanation"], row["rule"], row["planner"]) == ("ann says 2", None, "person:ann")
    assert (row["verdict"], row["input_f1"], row["run"]) == (None, None, "edits")
    assert (row["output_explanation"], row["output_score"]) == ("pushes 1", 0.7777), "what it pushes is as it was"
    findings.append(scored(made, "accepted", 3))
    row = stands(findings)
    assert (row["explanation"], row["verdict"], row["input_f1"]) == ("ann says 2", "accepted", 0.9)
    assert (row["investigation"], row["output_explanation"]) == (made.investigation, "pushes 1")
    findings.append(told("u", "accepted", at=9).records)
    assert stands(findings)["explanation"] == "ann says 2", "whatever a planner finds later"


def test_what_its_author_took_back_stands_no_more_scored_or_not(findings: Findings) -> None:
    known = told("u", "rejected", at=1)
    (one, first), (two, second) = edit(known, 2), edit(known, 3, "bo")
    findings.append([*known.records, one, first, two, second, *scored(two, "accepted", 4)])
    assert stands(findings)["explanation"] == "bo says 3"
    findings.append([undone(second, 5)])
    assert stands(findings)["explanation"] == "ann says 2"
    findings.append([undone(first, 6)])
    row = stands(findings)
    assert (row["explanation"], row["verdict"], row["planner"]) == ("fires on 1", "rejected", "SECRET planner")


def test_a_failed_scoring_leaves_the_edit_unscored(findings: Findings) -> None:
    known = told("u", at=1)
    made, event = edit(known, 2)
    failed = [replace(r, verdict="failed") if isinstance(r, Verdict) else r for r in scored(made, "x", 3)]
    findings.append([*known.records, made, event, *failed])
    assert (stands(findings)["explanation"], stands(findings)["verdict"]) == ("ann says 2", None)


def test_the_views_against_brute_force(findings: Findings) -> None:
    """Random histories of planners, people, scorings and second thoughts; the oracle walks them in Python."""
    rng = random.Random(3)
    history: list[Record] = []
    planned: dict[str, tuple[int, str, str]] = {}
    people: dict[str, list[tuple[int, str, str | None, str]]] = {}
    live: list[tuple[str, Hypothesis, Review]] = []
    known: dict[str, Told] = {}
    for at in range(1, 200):
        unit, act = rng.choice("abcdef"), rng.random()
        if act < 0.4 or unit not in known:
            known[unit] = told(unit, rng.choice(["accepted", "unclear", "rejected"]), at=at)
            history += known[unit].records
            verdict = next(r.verdict for r in known[unit].records if isinstance(r, Verdict))
            planned[unit] = at, known[unit].hypothesis, verdict
        elif act < 0.6:
            made, event = edit(known[unit], at, rng.choice(["ann", "bo"]))
            history += [made, event]
            live.append((unit, made, event))
            people.setdefault(unit, []).append((at, made.id, None, event.id))
        elif act < 0.8 and live:
            unit, made, event = rng.choice(live)
            verdict = rng.choice(["accepted", "unclear"])
            history += scored(made, verdict, at)
            people[unit] = [(a, h, verdict if h == made.id else v, e) for a, h, v, e in people[unit]]
        elif live:
            unit, made, event = live.pop(rng.randrange(len(live)))
            history.append(undone(event, at))
            people[unit] = [one for one in people[unit] if one[1] != made.id]
    rng.shuffle(history)
    findings.append(history)
    current = {r["unit"]: (r["hypothesis"], r["verdict"]) for r in findings.sql("SELECT * FROM current_outcomes")}
    wanted = {unit: max(people[unit])[1:3] if people.get(unit) else planned[unit][1:] for unit in known}
    assert current == wanted and len(known) == 6
    queue = {row["hypothesis"] for row in findings.sql("SELECT * FROM review_queue")}
    waits = {one[1] for one in planned.values() if one[2] == "unclear"}
    for some in people.values():
        decided = [one for one in some if one[2] is not None]
        waits |= {max(decided)[1]} if decided and max(decided)[2] == "unclear" else set()
    audit = {r["hypothesis"] for r in findings.sql("SELECT * FROM review_queue WHERE list_contains(reasons, 'audit')")}
    assert queue - audit == waits - audit and waits <= queue


def test_the_explanation_that_was_edited_waits_on_beside_the_edit(desk: Desk, findings: Findings) -> None:
    """Else what one person edits could never be found wrong, or right, by a second: agreement would miss it."""
    known = told("u", "unclear", at=1)
    made, event = edit(known, 2)
    findings.append([*known.records, made, event])
    assert set(reasons(findings)) == {"u"}
    assert [r["item"] for r in (desk.refresh(), desk.waiting())[1]] == [known.hypothesis]
    findings.append(scored(made, "unclear", 3))
    desk.refresh()
    assert {r["item"] for r in desk.waiting()} == {known.hypothesis, made.id}
    cards = [desk.next(name) for name in ("ann", "bo")]
    assert [card.item for card in cards if card] == [made.id, made.id] or cards[0] is None, "ann said edit of the other"


def test_what_people_made_of_an_explanation_by_unit(findings: Findings) -> None:
    def state(unit: str) -> str:
        (row,) = findings.sql("SELECT state FROM review_states WHERE unit = ?", [unit])
        return str(row["state"])

    units = {n: told(n, at=1) for n in "abcdefgh"}
    findings.append([r for one in units.values() for r in one.records])
    findings.append(told("gone", "abstained").records)
    plan = {
        "a": ([], "unreviewed"), "b": (["accept"], "accepted"), "c": (["reject", "edit"], "rejected"),
        "d": (["accept", "reject"], "disputed"), "e": (["unsure"], "unsure"), "f": (["accept", "unsure"], "accepted"),
        "g": (["skip"], "unreviewed"),
    }  # fmt: skip
    for unit, (verdicts, _) in plan.items():
        findings.append([said(units[unit].hypothesis, v, f"p{n}", unit) for n, v in enumerate(verdicts)])
    assert {unit: state(unit) for unit in plan} == {unit: wanted for unit, (_, wanted) in plan.items()}
    made, event = edit(units["h"], 2)
    findings.append([made, event])
    assert state("h") == "edited"
    findings.append([said(made.id, "accept", "bo", "h")])
    assert state("h") == "accepted"
    last = said(units["a"].hypothesis, "reject", "bo", "a")
    findings.append([last])
    assert state("a") == "rejected"
    findings.append([replace(last, id="u", verdict="undo", undoes=last.id)])
    assert state("a") == "unreviewed"
    assert findings.sql("SELECT * FROM review_states WHERE unit = 'gone'") == []


# Cards


def exemplars(known: Told) -> list[Record]:
    base: dict[str, Any] = {"investigation": known.investigation, "unit": "u", "sign": 1}
    places = [(side, band, n) for side in ("explain", "tune") for band in ("top", "mid", "random") for n in range(5)]
    return [
        Exemplar(**base, side=side, band=band, document="d", position=n, activation=10.0 - n, token=" <b>",
                 text=f"{side} {band} {min(n, 3)} <b>")
        for side, band, n in places
    ]  # fmt: skip


def evidence(known: Told) -> list[Record]:
    base: dict[str, Any] = {"investigation": known.investigation, "unit": "u", "sign": 1, "summary": "s"}
    minimal = {"text": "a b c", "kept_text": "b …", "peak": 7.0, "retention": 0.9, "mode": "resample", "ids": [1, 2]}
    word = {"original": "b", "substitute": "d", "ratio": 0.1, "effect": "kills", "activation": 0.7, "ids": [1]}
    return [
        Evidence(**base, tool="minimal_example", rows=[minimal, minimal | {"mode": "delete"}]),
        Evidence(**base, tool="substitute", rows=[word | {"original": o} for o in "bcdef" for _ in range(8)]),
        Evidence(**base, tool="substitute", rows=[word], ok=False),
        Evidence(**base, tool="try_rule", rows=[], checks={"f1": 0.5555}),
    ]


@pytest.fixture
def known(findings: Findings) -> Told:
    made = told("u", "unclear", at=1, sign=1)
    findings.append([*made.records, *exemplars(made), *evidence(made)])
    return made


def test_a_card_holds_what_a_person_judges_by(desk: Desk, known: Told) -> None:
    desk.refresh()
    card = desk.next(" Ann ")
    assert card is not None
    assert (card.item, card.unit, card.explanation, card.rule) == (known.hypothesis, "u", "fires on 1", "the word 1")
    assert (card.output, card.peak, card.threshold) == ("pushes 1", 8.0, 4.0)
    told_texts = [(one["band"], one["text"], one["activation"], one["token"]) for one in card.examples]
    assert told_texts == [
        (band, f"explain {band} {n} <b>", 10.0 - n, " <b>") for n in range(3) for band in ("mid", "top")
    ], "of each band the strongest texts, each once, and none of the other sides"
    assert card.minimal == [{"text": "a b c", "kept_text": "b …", "peak": 7.0, "retention": 0.9}]
    assert card.substitutes == [
        {"original": o, "substitute": "d", "ratio": 0.1, "effect": "kills"} for o in "bcde" for _ in range(6)
    ]
    again = desk.card(known.hypothesis, "ann")
    assert again == card and again.digest == card.digest == desk.claims.slot(known.hypothesis, "ann")["card"]  # type: ignore[index]
    assert card.expires is not None and replace(card, expires=0.0).digest == card.digest
    assert replace(card, explanation="other").digest != card.digest


def test_before_a_verdict_nothing_tells_of_scores_and_afterwards_all_does(desk: Desk, known: Told) -> None:
    desk.refresh()
    card = desk.next("ann")
    assert card is not None
    shown = json.dumps([card.facts(), desk.waiting("ann"), desk.progress("ann"), desk.recent("ann")])
    for secret in ("SECRET", "0.4321", "0.7777", "0.1234", "0.5555", "unclear", "0.0123", "straddles", "reason"):
        assert secret not in shown, secret
    for name in ("ann", "bo"):
        with pytest.raises(Refused, match="after a verdict; submit one first"):
            desk.reveal(card.item, name)
    with pytest.raises(Refused, match="was not given to bo"):
        desk.card(card.item, "bo")
    desk.next("bo")
    desk.submit(card.item, "bo", "reject", tags=["vague"])
    desk.submit(card.item, "ann", "accept")
    behind = desk.reveal(card.item, "ann")
    assert (behind["verdict"], behind["reason"], behind["author"]) == ("unclear", "SECRET reason", "llm:SECRET")
    assert (behind["own"], behind["reasons"]) == ({"verdict": "accept", "tags": []}, ["unclear"])
    assert behind["others"] == [{"reviewer": "bo", "verdict": "reject", "tags": ["vague"]}]
    (score,) = behind["scores"]
    assert (score["metric"], score["value"], score["floors"]) == ("f1", 0.8, {"SECRET floor": 0.1234})


def test_an_edit_goes_all_the_way(desk: Desk, known: Told, work: Work, findings: Findings) -> None:
    desk.refresh()
    card = desk.next("ann")
    assert card is not None
    for bad in ("  ", "x" * 1001):
        with pytest.raises(Refused, match="characters; write one"):
            desk.submit(card.item, "ann", "edit", edit=Edit(bad))
    with pytest.raises(Refused, match="what is there already"):
        desk.submit(card.item, "ann", "edit", edit=Edit("fires  on 1", {"at": 1}))
    rule = {"clauses": [{"at": {"word": "car"}}]}
    new = Edit(" fires on\ncars ", rule, "the word car")
    done = desk.submit(card.item, "ann", "edit", edit=new, tags=["too-broad"])
    drain(work, findings)
    row = stands(findings)
    assert (row["explanation"], row["rule"], row["planner"]) == ("fires on cars", "the word car", "person:ann")
    (made,) = findings.read(Hypothesis, author="person:ann")
    assert (made.id, made.run, made.rule, made.kept) == (done.edit, done.edit_run, rule, True)
    assert made.provenance == {
        "sweep": "s", "model": "d", "edit_of": known.hypothesis, "origin": known.investigation
    }, "no words of the planner's"
    assert made.evidence == ["e"]
    (event,) = findings.read(Review)
    assert (event.card, event.edit, event.verdict, event.reasons) == (card.digest, made.id, "edit", ["unclear"])
    job = work.claim(str(done.edit_run), "w")
    assert job is not None and edit_of(findings, job) == made
    findings.append(scored(made, "unclear", 5))
    assert edit_of(findings, job) is None, "it is scored"
    desk.refresh()
    again = desk.next("bo")
    assert again is not None
    desk.submit(again.item, "bo", "skip")
    other = desk.next("bo")
    assert other is not None and {again.item, other.item} == {known.hypothesis, made.id}
    mine = desk.card(made.id, "bo")
    assert mine.examples == card.examples and mine.output == card.output, "the experiments behind it are the same"


def test_edits_of_edits_rest_on_the_first_experiments(known: Told) -> None:
    made, _ = edit(known, 2)
    second = replacing(made, "bo", Edit("again"))
    assert second.provenance["origin"] == known.investigation and second.provenance["edit_of"] == made.id


def test_edits_whose_queue_was_lost_are_queued_again_once(
    desk: Desk, known: Told, findings: Findings, tmp_path: Path
) -> None:
    desk.refresh()
    assert desk.next("ann") is not None
    done = desk.submit(known.hypothesis, "ann", "edit", edit=Edit("new"))
    drain(desk.claims.work, findings)
    assert queue_forgotten(desk.claims.work, findings) == 0, "it is known"
    fresh = Work(tmp_path / "other.sqlite")
    assert [queue_forgotten(fresh, findings) for _ in range(2)] == [1, 0]
    (run,) = fresh.runs()
    assert run.units == ["u"] and run.id != done.edit_run
    job = fresh.claim(run.id, "w")
    assert job is not None
    found = edit_of(findings, job)
    assert found is not None and (found.id, found.run) == (done.edit, run.id)


# The two stores


def test_the_findings_are_looked_through_where_they_changed_and_not_too_often(
    desk: Desk, findings: Findings, work: Work
) -> None:
    findings.append(told("m/5-mlp/1", "unclear").records)
    assert desk.refresh() and not desk.refresh()
    findings.append(told("m/5-mlp/2", "unclear").records)
    assert not desk.refresh(after=60) and len(desk.waiting()) == 1
    assert desk.refresh() and len(desk.waiting()) == 2
    other = Desk(Work(work.path), findings)
    assert not other.refresh(), "another process has looked"


def test_nothing_recorded_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Nothing is recorded"):
        Desk(Work(tmp_path / "w.sqlite"), Findings(tmp_path / "none.duckdb")).refresh()


def test_a_queue_that_was_moved_away_knows_again_who_said_what(desk: Desk, known: Told, tmp_path: Path) -> None:
    desk.refresh()
    desk.next("ann")
    desk.submit(known.hypothesis, "ann", "accept")
    drain(desk.claims.work, desk.findings)
    fresh = Desk(Work(tmp_path / "other.sqlite"), desk.findings)
    fresh.refresh()
    assert fresh.next("ann") is None and isinstance(fresh.next("bo"), Card)


def test_an_explanation_that_is_gone_is_told(desk: Desk, known: Told, blank: bytes) -> None:
    desk.refresh()
    desk.next("ann")
    desk.findings.path.write_bytes(blank)
    for ask in (
        lambda: desk.card(known.hypothesis, "ann"),
        lambda: desk.submit(known.hypothesis, "ann", "edit", edit=Edit("x")),
    ):
        with pytest.raises(Refused, match="is not in .* any more"):
            ask()


def test_a_file_from_before_there_were_reviews_is_brought_up_to_date(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings, old = Findings(tmp_path / "old.duckdb"), 6
    with monkeypatch.context() as patch:
        upto = ddl_after(module._DDL, 0).removesuffix(ddl_after(module._DDL, old))
        patch.setattr(module, "ddl_after", lambda *_: upto)
        patch.setattr(module, "VERSION", old)
        findings.append(told("m/5-mlp/1", "unclear").records)
    desk = Desk(work, findings)
    assert desk.refresh() and [row["unit"] for row in desk.waiting()] == ["m/5-mlp/1"]
    assert stands(findings, "m/5-mlp/1")["explanation"] == "fires on 0"
    assert not desk.refresh()


def test_versions_of_a_schema_may_leave_numbers_out(tmp_path: Path) -> None:
    path = tmp_path / "x.sql"
    path.write_text("-- version 1\na;\n-- version 3\nb;\n", "utf-8")
    assert [ddl_after(path, version).split() for version in range(4)] == [["a;", "b;"], ["b;"], ["b;"], []]
