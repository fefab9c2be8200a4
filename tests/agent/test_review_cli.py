"""Reviewing from a terminal: cards, verdicts, second thoughts, agreement, and one sentence for what is wrong."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lamplighter import __main__ as entry
from lamplighter.agent.config import Home
from lamplighter.store.claims import TAGS
from lamplighter.store.records import Exemplar, Hypothesis, Investigation, Review, Score, Unit, Verdict

NASTY = "a <b>\x1b[31m\u202e\u200b car"


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Said]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Home) -> Iterator[Cli]:
    """`lamplighter review …` on the home, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("LAMPLIGHTER_HOME", str(home.path))
    for name in ("REVIEWER", "OVERLAP"):
        monkeypatch.delenv(f"LAMPLIGHTER_{name}", raising=False)

    def call(line: str, *more: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["lamplighter", "review", *shlex.split(line), *more])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            entry.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Said(int(end.value.code or 0), out, err)

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Three explanations whose verdict is unclear, and one that is beyond doubt."""
    made = Home(tmp_path / "home")
    for n in range(4):
        base: dict[str, Any] = {"unit": f"m/5-mlp/{n}", "sign": -1 if n == 1 else 1, "run": "r"}
        base["investigation"] = f"i{n}"
        rule = {"clauses": [{"at": {"word": "a"}}]}
        kept = Hypothesis(
            **base, id=f"h{n}", author="llm:x", sentence=f"fires on {n}", kept=True, rule=rule, rule_text="the word a",
        )  # fmt: skip
        made.work.post([
            Investigation(**base, planner="llm:x", status="submitted", steps=0, cost={}, seconds=1.0), kept,
            Unit(**base, model="m", site="5-mlp", index=n, peak=2.0, threshold=1.0, statistics={}),
            Exemplar(**base, side="explain", band="top", document="d", position=1, activation=2.0, text=NASTY,
                     token=" car"),
            Score(**base, hypothesis=f"h{n}", metric="f1", side="score", value=0.8, low=0.6, high=0.9,
                  floors={"x": 0.2}),
            Verdict(**base, hypothesis=f"h{n}", verdict="unclear" if n < 3 else "accepted", reason="too wide"),
        ])  # fmt: skip
    return made


def of(said: Said) -> Any:
    return said.json["card"]["item"]


def test_a_review_from_first_to_last(cli: Cli) -> None:
    listed = cli("list --json").json
    assert listed["waiting"] == 3 and listed["reasons"]["unclear"] == 3
    assert all(set(row) >= {"item", "unit", "reasons", "reviews", "held"} for row in listed["items"])
    first = cli("next --reviewer Ann --json").json
    card = first["card"]
    assert card["explanation"].startswith("fires on") and card["examples"][0]["text"] == NASTY
    assert "verdict" not in card and "reasons" not in card and "0.8" not in json.dumps(card)
    assert first["progress"] == {
        "waiting": 3, "for_you": 3, "in_hand": 1, "reviewed": 0, "today": 0, "skipped": 0, "seconds": None,
    }  # fmt: skip
    assert of(cli("next --reviewer ann --json")) == card["item"], "a second look is at the same card"
    done = cli("submit r --reviewer ann --tag 6 --tag too-broad --json").json
    assert done["said"]["verdict"] == "reject" and done["said"]["item"] == card["item"]
    assert done["behind"]["verdict"] == "unclear" and done["behind"]["scores"][0]["value"] == 0.8
    assert done["behind"]["own"]["tags"] == ["vague", "too-broad"]
    second = of(cli("next --reviewer ann --json"))
    assert second != card["item"]
    assert cli("submit ? --reviewer ann --json").json["said"]["verdict"] == "unsure"
    assert cli("undo --reviewer ann --json").json["said"]["item"] == second
    assert of(cli("next --reviewer ann --json")) == second
    assert cli("submit skip --reviewer ann --json").json["behind"] is None
    assert cli(f"undo --item {card['item']} --reviewer ann --json").json["said"]["item"] == card["item"]
    assert cli("list --reviewer bo --json").json["waiting"] == 3
    assert "reasons" not in cli("list --reviewer bo --json").json["items"][0]


def test_events_reach_the_findings(cli: Cli, home: Home) -> None:
    cli("next --reviewer ann")
    cli("submit a --reviewer ann")
    (event,) = home.findings.read(Review)
    assert (event.reviewer, event.verdict, event.blind) == ("ann", "accept", True)
    assert event.client.startswith("lamplighter ") and event.card is not None and event.seconds is not None
    assert cli("submit a --reviewer ann").code == 1
    assert len(home.findings.read(Review)) == 1


def test_an_edit_stands_and_waits_to_be_scored(cli: Cli, home: Home) -> None:
    item = of(cli("next --reviewer ann --json"))
    rule = {"clauses": [{"at": {"word": "car"}}]}
    done = cli("submit edit --reviewer ann --sentence 'fires on cars' --json --rule", json.dumps(rule))
    said = done.json["said"]
    assert said["edit"] is not None and home.work.counts(said["edit_run"])["queued"] == 1
    (made,) = home.findings.read(Hypothesis, id=said["edit"])
    assert (made.sentence, made.rule_text, made.author) == ("fires on cars", "last piece of a word /car/", "person:ann")
    assert made.provenance["edit_of"] == item
    cli("next --reviewer bo")
    kept = cli("submit e --reviewer bo --sentence other --rule same --json").json["said"]["edit"]
    (same,) = home.findings.read(Hypothesis, id=kept)
    (first,) = home.findings.read(Hypothesis, id=item)
    assert (same.rule, same.rule_text) == (first.rule, first.rule_text)
    cli("next --reviewer ann")
    alone = cli("submit e --reviewer ann --sentence other --json").json["said"]["edit"]
    assert home.findings.read(Hypothesis, id=alone)[0].rule is None


WRONG = {
    "no card": ("submit a --reviewer di", ["di has no card in hand", "lamplighter review next"]),
    "no verdict": ("submit good --reviewer ann", ["'good' is no verdict"]),
    "no tag": ("submit a --reviewer ann --tag 10", ["'10' is no tag", "too-broad"]),
    "no name": ("next --reviewer 'a b'", ["'a b' is no name"]),
    "no sentence": ("submit e --reviewer ann", ["an edit needs a sentence"]),
    "sentence": ("submit a --reviewer ann --sentence x", ["accept takes no sentence"]),
    "no JSON": ("submit e --reviewer ann --sentence x --rule {", ["--rule is no JSON", "`same`"]),
    "no rule": ("submit e --reviewer ann --sentence x --rule {}", ["clauses"]),
    "nothing": ("undo --reviewer bo", ["bo has said nothing to take back"]),
    "not held": ("submit a --reviewer bo --item h0", ["h0 is not in the hands of bo"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(cli: Cli, home: Home, case: str) -> None:
    line, words = WRONG[case]
    cli("next --reviewer ann")
    said = cli(line)
    assert said.code == 1 and said.out == "", said
    (told,) = said.err.splitlines()
    assert told.startswith("lamplighter: ") and all(word in told for word in words), told
    as_json = cli(f"{line} --json")
    assert as_json.code == 1 and as_json.json["ok"] is False
    assert home.findings.read(Review) == []


def test_without_a_name_nobody_reviews(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("next", "submit a", "undo"):
        said = cli(line)
        assert said.code == 2 and "--reviewer" in said.err
    monkeypatch.setenv("LAMPLIGHTER_REVIEWER", "ann")
    assert of(cli("next --json")) is not None


def test_the_overlap_is_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_OVERLAP", "1")
    assert of(cli("next --reviewer ann --json")) != of(cli("next --reviewer bo --json"))
    assert cli("next --reviewer ann --overlap 0").code == 2


def test_asking_where_there_is_nothing_leaves_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_HOME", str(tmp_path / "none"))
    asked = ("next", "submit a", "undo", "list")
    for line in (*(f"{one} --reviewer ann" for one in asked), "agreement", "calibration"):
        said = cli(line)
        assert said.code == 1 and "Nothing is recorded" in said.err
    assert not (tmp_path / "none").exists()


def test_hostile_text_is_shown_and_not_obeyed(cli: Cli) -> None:
    out = cli("next --reviewer ann").out
    assert "\x1b" not in out and "\u202e" not in out and "\u200b" not in out
    assert "\\x1b[31m\\u202e\\u200b« car»" in out and "<b>" in out


def test_pages_for_people_say_what_there_is_to_do(cli: Cli) -> None:
    listed = cli("list").out
    assert "unclear" in listed and "m/5-mlp/1-" in listed and "3 wait" in listed
    assert "unclear" not in cli("list --reviewer ann").out
    page = cli("next --reviewer ann").out
    assert all(tag in page for tag in TAGS) and "P 2, τ 1" in page and "unclear" not in page
    done = cli("submit reject --reviewer ann --tag vague").out
    assert "rejected by ann" in done and "verdict by rule: unclear (too wide)" in done and "0.80 [0.60, 0.90]" in done
    cli("next --reviewer bo")
    done = cli("submit edit --sentence new --reviewer bo").out
    assert "ann: reject (vague)" in done and "lamplighter review score" in done
    assert "taken back" in cli("undo --reviewer bo").out
    for _ in range(2):
        cli("next --reviewer ann")
        cli("submit s --reviewer ann")
    assert "nothing waits for you: 1 reviewed, 2 skipped" in cli("next --reviewer ann").out
    assert "nothing waits for review" in cli("list --reviewer ann").out


def test_agreement_and_calibration(cli: Cli, home: Home) -> None:
    for item in range(4):
        for name, verdict in (("ann", "accept" if item else "reject"), ("bo", "accept" if item > 1 else "reject")):
            home.work.post([Review(
                hypothesis=f"h{item}", reviewer=name, verdict=verdict, client="c", unit="u", sign=1,
                reasons=["audit"] if item > 1 else [],
            )])  # fmt: skip
    found = cli("agreement --json").json
    assert (found["shared"], found["verdicts"]["n"], found["verdicts"]["low"]) == (4, 4, None)
    assert found["pairs"][0]["value"] == pytest.approx(0.5)
    out = cli("agreement").out
    assert "8 reviews by 2 people of 4 explanations, 4 of them shared" in out and "ann and bo, kappa" in out
    out = cli("agreement --audit").out
    assert "of the random share" in out and "only 'accept' was ever said" in out and "undefined" in out
    found = cli("calibration --json").json
    assert (found["explanations"], found["ties"]) == (3, 1)
    assert found["metrics"][0]["reason"] == "all 3 have the same score"
    out = cli("calibration").out
    assert "all 3 have the same score" in out and "--audit" in out and "accepted, by F1" in out


def test_the_score_command_says_what_came_of_it(cli: Cli) -> None:
    assert "no explanation by a person waits" in cli("score").out
    cli("next --reviewer ann")
    cli("submit e --reviewer ann --sentence new")
    said = cli("score --json")
    assert said.code == 4 and len(said.json["failed"]) == 1, "m is no model that could be loaded"
    out = cli("list --json").json
    assert out["waiting"] == 3


def test_two_processes_never_hold_the_same_card_of_one_slot(cli: Cli, home: Home) -> None:
    cli("list")      # everything is delivered
    line = [sys.executable, "-P", "-m", "lamplighter", "review", "next", "--overlap", "1", "--json", "--reviewer"]
    made = [subprocess.Popen([*line, name], stdout=subprocess.PIPE, env=os.environ) for name in ("ann", "bo", "cy")]
    cards = [json.loads(process.communicate(timeout=60)[0])["card"]["item"] for process in made]
    assert sorted(cards) == ["h0", "h1", "h2"]
