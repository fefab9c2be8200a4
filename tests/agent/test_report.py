"""The morning report: its facts are those of the stores, its pages hold no more than text, and nothing is missing."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from lamplighter.agent import cli as commands
from lamplighter.agent.config import Home
from lamplighter.agent.report import BEST, LISTED, STRIP, SURPRISES, report_facts
from lamplighter.agent.report_page import render
from lamplighter.agent.verdict import NO_RULE
from lamplighter.store.records import (
    Evidence,
    Exemplar,
    Failure,
    Hypothesis,
    Investigation,
    LLMCall,
    Record,
    Refused,
    Run,
    Score,
    Unit,
    Verdict,
    uuid7,
)

ASKED = {"model": "m", "corpus": "c", "units": "0-mlp/0..9", "planner": "playbook", "second": None, "sites": []}
HOSTILE = "</style><script>alert(1)</script>\u202e\u200b\x1b[31m|`<b onclick=x>&amp;![i](http://x.example/i.png)"
SIZE = 2_000_000     # bytes of a page


# Findings made by hand


def found(
    run: str, index: int = 0, *, site: str = "0-mlp", sign: int = 1, verdict: str = "accepted", f1: float | None = 0.9,
    spread: float = 0.05, floor: float = 0.1, lead: float | None = None, auc: float | None = None,
    tune: float | None = 0.5, effect: float | None = None, sentence: str = "fires on the word “car”", rule: bool = True,
    reason: str = "F1 reaches below 0.5", text: str = "They sold the old car", token: str = " car",
) -> list[Record]:  # fmt: skip
    """The records of one unit that a run brought to its end."""
    investigation, unit = uuid7(), f"m/{site}/{index}"
    stamps: dict[str, Any] = {"run": run, "investigation": investigation, "unit": unit, "sign": sign}
    kept = Hypothesis(
        author="a", sentence=sentence, rule={} if rule else None, rule_text=sentence if rule else None, kept=True,
        tune_f1=tune, **stamps,
    )  # fmt: skip
    cost = {"forward_rows": 2.0, "forward_tokens": 30.0, "seconds": 1.0}
    made: list[Record] = [
        Investigation(
            id=investigation, planner="playbook", status="submitted", steps=3, cost=cost, seconds=2.0, run=run,
            unit=unit, sign=sign,
        ),
        Unit(model="m", site=site, index=index, peak=2.0, threshold=1.0, statistics={}, **stamps),
        Exemplar(
            side="explain", band="top", document="d", position=5, activation=2.5, text=text, token=token, **stamps
        ),
    ]  # fmt: skip
    if verdict == "abstained":
        made.append(Verdict(hypothesis=None, verdict=verdict, reason=reason, **stamps))
    else:
        low, high = (None, None) if f1 is None else (f1 - spread, f1 + spread)
        least = None if f1 is None else f1 - spread - floor if lead is None else lead
        made += [
            kept, Verdict(hypothesis=kept.id, verdict=verdict, reason=reason, **stamps),
            Score(
                hypothesis=kept.id, metric="f1", side="score", value=f1, low=low, high=high, n=20,
                floors={"always_on": floor, "shifted": floor / 2}, details={"margin": {"low": least}},
                reason=None if f1 is not None else "too few positives: 3", **stamps,
            ),
        ]  # fmt: skip
    if auc is not None:
        pushes = Hypothesis(
            author="ablate", sentence="pushes up “go”", rule=None, rule_text=None, kept=True, side="output", **stamps
        )
        pushed = {"value": auc, "low": auc - spread, "high": auc + spread}
        made += [pushes, Score(hypothesis=pushes.id, metric="output_auc", side="score", **pushed, **stamps)]
    if effect is not None:
        row = {"where": "firing", "delta_ce": effect, "low": effect - spread, "high": effect + spread}
        checks = {"effect": "shown" if effect > spread else "not shown"}
        made.append(Evidence(tool="ablate", summary="s", rows=[row], checks=checks, cost=cost, **stamps))
    return made


def opened(home: Home, count: int, status: str = "done", site: str = "0-mlp", **asked: Any) -> str:
    """A run in the queue and in the findings; its units are queued, those of a done one through."""
    names = [f"m/{site}/{index}" for index in range(count)]
    state = home.work.open_run(uuid7(), {**ASKED, **asked}, names, fresh=True)
    home.work.enqueue(state.id, names)
    told = {"key": "k", "asked": {**ASKED, **asked}, "units": names, "run": state.id, "provenance": {"code": "0"}}
    home.findings.append([Run(status="running", **told)])
    while status == "done" and (job := home.work.claim(state.id, "w")):
        home.work.finish(job, [])
    if status != "running":
        home.findings.append([Run(status=status, seconds=60.0, **told)])
        home.work.close_run(state.id, status)
    return state.id


@pytest.fixture
def empty(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def names(cards: list[dict[str, Any]]) -> list[str]:
    return [card["name"].removeprefix("m/0-mlp/") for card in cards]


# Pages


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.shown = ""
        self.marked: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"{tag} is closed where it stands"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.shown += data
        if "mark" in self.open:
            self.marked[-1] += data


def harmless(text: str) -> Page:
    """The page, if nothing in it runs, and nothing is fetched from anywhere."""
    page = Page(text)
    allowed = {
        "html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "article", "h1", "h2",
        "h3", "h4", "p", "ul", "li", "b", "strong", "span", "mark", "div", "table", "thead", "tbody", "tr", "th", "td",
        "figure", "figcaption", "svg", "desc", "defs", "g", "use", "text", "tspan", "rect", "line", "circle", "path",
    }  # fmt: skip
    assert {tag for tag, _ in page.tags} <= allowed
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "style", "srcset")], tag
        assert (attributes.get("href") or "#").startswith("#"), attributes
    assert "url(" not in text and "@import" not in text
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert any(a.get("name") == "viewport" for _, a in page.tags)
    return page


@pytest.mark.parametrize("bad", ["<script>x</script>", '<p onclick="x">a</p>', '<img src="http://x">', "<p><b></p>"])
def test_a_page_with_harm_in_it_is_seen(finished: Any, bad: str) -> None:
    text = render(report_facts(finished.home))
    harmless(text)
    with pytest.raises(AssertionError):
        harmless(text.replace("</main>", bad + "</main>"))


# A real run


def test_the_facts_of_a_run_are_what_the_stores_say(finished: Any) -> None:
    home, run = finished.home, finished.outcome.run
    facts = report_facts(home)
    rows = home.findings.sql("SELECT * FROM explanations")
    assert facts["run"]["id"] == run and facts["run"]["status"] == "done"
    assert facts["progress"] | {"left_units": []} == {
        "units": 5, "ended": 5, "failed": 0, "left": 0, "on_its_way": 0, "at_work": 0, "left_units": [],
        "waiting_records": 0,
    }  # fmt: skip
    assert {k: n for k, n in facts["verdicts"].items() if n} == Counter(row["verdict"] for row in rows)
    cost = [row["cost"] for row in home.findings.sql("SELECT cost FROM investigations", unpack=True)]
    assert facts["spend"]["work"]["forward_tokens"] == sum(one["forward_tokens"] for one in cost) > 0
    assert facts["spend"]["llm"] == {"calls": 0, "tokens": 0, "usd": 0.0, "unpriced": 0}
    tools = Counter(row["tool"] for row in home.findings.sql("SELECT tool FROM evidence"))
    assert {row["tool"]: row["calls"] for row in facts["spend"]["tools"]} == tools
    (site,) = facts["sites"]
    f1 = sorted(row["input_f1"] for row in rows if row["input_f1"] is not None)
    assert f1 and [point["value"] for point in site["points"]] == f1
    assert (site["site"], site["units"], site["scored"]) == ("0-mlp", 5, len(f1))
    assert [site["f1"][0], site["f1"][-1], sum(site["bins"])] == [f1[0], f1[-1], len(f1)]
    best = {card["name"]: card for card in facts["best"]}
    assert best, "the planted units are explained well"
    for row in rows:
        name = row["unit"] + ("-" if row["sign"] == -1 else "")
        if name in best:
            card = best[name]
            assert [card[k] for k in ("value", "low", "floor", "explanation", "output_score")] == [
                row[k] for k in ("input_f1", "input_f1_low", "floor_f1", "explanation", "output_score")
            ]
    assert facts["against"] is None


def test_the_page_of_a_run_shows_it_and_marks_what_fires(finished: Any) -> None:
    facts = report_facts(finished.home)
    page = harmless(render(facts))
    for card in facts["best"]:
        assert card["name"] in page.shown and card["explanation"] in page.shown
        assert f"{card['value']:.2f} [{card['low']:.2f}, {card['high']:.2f}]" in page.shown
        assert card["examples"]
    tokens = [text["token"].lstrip(" ") for c in facts["best"] for text in c["examples"]]
    assert [mark for mark in page.marked if mark in tokens] == page.marked and len(page.marked) >= len(tokens)
    assert "car" in page.marked and "No earlier run" in page.shown and "No unit failed" in page.shown


def test_a_repeated_run_is_held_against_the_first(copied: Home, project: Any, finished: Any) -> None:
    again = project.run(copied, units="0-mlp/0,0-mlp/1", fresh=True)
    facts = report_facts(copied)["against"]
    assert (facts["run"], facts["shared"], facts["only_now"], facts["only_before"]) == (finished.outcome.run, 2, 0, 3)
    assert facts["asked"] == [{"what": "units", "before": project.request().units, "now": "0-mlp/0,0-mlp/1"}]
    assert facts["compared"] == 2 and abs(facts["mean_change"]) < 1e-9
    assert report_facts(copied, finished.outcome.run)["against"] is None, "no run is earlier than the first"
    assert report_facts(copied)["run"]["id"] == again.run, "the newest run is the one that is told of"


# What fails, what is left


def test_units_that_failed_are_listed_with_their_reasons(empty: Home) -> None:
    run = opened(empty, 4, "drained")
    empty.findings.append([
        *found(run, 0), *found(run, 1),
        Failure(run=run, unit="m/0-mlp/1", sign=1, kind="LLMError", message="came back", step="planning", attempt=1),
        Failure(run=run, unit="m/0-mlp/2", sign=1, kind="OutOfMemory", message="first", step="patch", attempt=1),
        Failure(run=run, unit="m/0-mlp/2", sign=1, kind="OutOfMemory", message="no room", step="ablate", attempt=2),
    ])  # fmt: skip
    for unit in ("m/0-mlp/0", "m/0-mlp/1"):
        job = empty.work.claim(run, "w")
        assert job is not None and job.unit == unit
        empty.work.finish(job, [])
    job = empty.work.claim(run, "w")
    assert job is not None
    failure = Failure(run=run, unit="m/0-mlp/2", sign=1, kind="on its way", message="", step="", attempt=3)
    empty.work.fail(job, failure, retry=False)
    facts = report_facts(empty)
    assert facts["failures"]["kinds"] == [{"kind": "OutOfMemory", "step": "ablate", "units": 1}]
    assert [(row["name"], row["message"], row["attempts"]) for row in facts["failures"]["units"]] == [
        ("m/0-mlp/2", "no room", 2)
    ]
    assert facts["failures"]["came_through"] == 1 and facts["verdicts"]["failed"] == 1
    progress = facts["progress"]
    assert (progress["units"], progress["ended"], progress["failed"], progress["left"]) == (4, 2, 1, 1)
    assert progress["left_units"] == ["m/0-mlp/3"] and progress["waiting_records"] == 1
    for text in (harmless(render(facts)).shown, render(facts, markdown=True)):
        assert "no room" in text and "m/0-mlp/2" in text and "came back" not in text
        assert "Left: m/0-mlp/3" in text and "1 of 4 units are left" in text


def test_a_run_that_goes_on_says_what_is_left(empty: Home) -> None:
    run = opened(empty, 5, status="running")
    empty.findings.append([
        *found(run, 0, verdict="unclear", reason="F1 0.90 passes; the false-discovery rate is known at the run's end"),
        Failure(run=run, unit="m/0-mlp/2", sign=1, kind="Busy", message="once more", step="ablate", attempt=1),
    ])  # fmt: skip
    jobs = [empty.work.claim(run, "w") for _ in range(3)]
    empty.work.finish(jobs[0], [])          # its results are in the findings
    empty.work.finish(jobs[1], [])          # those of this one are not
    facts = report_facts(empty)
    progress = facts["progress"]
    assert {k: progress[k] for k in ("ended", "failed", "left", "on_its_way", "at_work")} == {
        "ended": 1, "failed": 0, "left": 3, "on_its_way": 1, "at_work": 1
    }  # fmt: skip
    assert facts["failures"]["total"] == 0, "what is queued again has not failed"
    page = harmless(render(facts))
    assert "The run is still going, and" in page.shown and "3 of 5 units are left" in page.shown
    assert [row["why"] for row in facts["review"]["reasons"]] == ["passes so far; decided when the run ends"]
    empty.work.pause(run)
    assert "still going, but paused" in harmless(render(report_facts(empty))).shown


def test_a_run_that_was_killed_is_told_as_cut_off(empty: Home) -> None:
    run = opened(empty, 2, status="running")
    empty.findings.append(found(run, 0))
    assert "The run was cut off: no process is at work on it" in harmless(render(report_facts(empty))).shown


@pytest.mark.parametrize(
    ("status", "words"), [("budget", "a budget was reached"), ("drained", "The run was stopped"), ("done", "is done")]
)
def test_how_a_run_ended_is_said(empty: Home, status: str, words: str) -> None:
    run = opened(empty, 1, status)
    empty.findings.append(found(run, 0))
    facts = report_facts(empty)
    assert words in harmless(render(facts)).shown and words in render(facts, markdown=True)


# Spend


def calls(run: str) -> list[LLMCall]:
    told: dict[str, Any] = {"run": run, "model": "gpt", "endpoint": "e", "request": "r", "seconds": 1.0}
    return [
        LLMCall(purpose="plan", outcome="ok", tokens_in=100, tokens_out=20, usd=0.5, **told),
        LLMCall(purpose="plan", outcome="timeout", **told),
        LLMCall(purpose="judge", outcome="ok", tokens_in=10, tokens_out=1, usd=0.25, **told),
        LLMCall(purpose="plan", outcome="ok", tokens_in=7, tokens_out=7, usd=9.0, **{**told, "run": "another"}),
    ]


def test_spend_is_that_of_the_ledger_and_of_this_run_alone(empty: Home) -> None:
    run = opened(empty, 1)
    empty.findings.append([*found(run, 0), *calls(run)])
    for call in calls(run):
        empty.work.charge(call)
    spend = report_facts(empty)["spend"]
    assert spend["llm"] == {"calls": 3, "tokens": 131, "usd": 0.75, "unpriced": 1}
    assert [(r["purpose"], r["calls"], r["went_wrong"], r["tokens"], r["usd"]) for r in spend["calls"]] == [
        ("plan", 2, 1, 120, 0.5), ("judge", 1, 0, 11, 0.25)
    ]  # fmt: skip
    shown = harmless(render(report_facts(empty))).shown
    assert "3 requests to language models, 131 tokens, 0.75 dollars; requests whose cost is not known: 1." in shown


def test_a_run_that_the_queue_has_forgotten_is_still_told(empty: Home) -> None:
    run = opened(empty, 2)
    empty.findings.append([*found(run, 0), *calls(run)])
    empty.work.charge(calls(run)[0])
    empty.work.close()
    for file in empty.path.glob("work.sqlite*"):
        file.unlink()
    facts = report_facts(Home(empty.path))
    assert facts["run"]["status"] == "done" and facts["spend"]["llm"]["tokens"] == 131
    assert (facts["progress"]["ended"], facts["progress"]["left"]) == (1, 1)


# The best and the most surprising


def test_the_best_are_those_surely_above_their_floors(empty: Home) -> None:
    run = opened(empty, 7)
    empty.findings.append([
        *found(run, 0, f1=0.8), *found(run, 1, f1=0.95), *found(run, 2, f1=0.97, spread=0.4),
        *found(run, 3, f1=0.9, floor=0.95, lead=0.1),                # accepted, and not above its floor
        *found(run, 4, f1=0.9, lead=-0.01),                          # above it, and not surely
        *found(run, 5, f1=0.99, verdict="rejected"), *found(run, 6, f1=None, verdict="unclear"),
    ])  # fmt: skip
    assert names(report_facts(empty)["best"]) == ["1", "0", "2"], "by the lower end"


def test_a_sentence_without_a_rule_has_a_qualified_judges_detection(empty: Home) -> None:
    run = opened(empty, 3)
    records: list[Record] = []
    for index, qualified in enumerate((True, False)):
        made = found(run, index, f1=None, rule=False)
        f1 = next(r for r in made if isinstance(r, Score))
        made[made.index(f1)] = replace(f1, reason=NO_RULE)
        told = {"details": {"qualified": qualified, "margin": {"low": 0.2}}, "judge": "gpt", "reason": None}
        records += [*made, replace(f1, id=uuid7(), metric="detection", value=0.7, low=0.6, high=0.8, **told)]
    ruled = found(run, 2, f1=0.9)
    f1 = next(r for r in ruled if isinstance(r, Score))
    judged = {"details": {"qualified": True, "margin": {"low": 0.2}}, "judge": "gpt"}
    records += [*ruled, replace(f1, id=uuid7(), metric="detection", value=0.3, low=0.2, high=0.4, **judged)]
    empty.findings.append(records)
    facts = report_facts(empty)
    assert [(c["name"], c["metric"], c["value"]) for c in facts["best"]] == [
        ("m/0-mlp/2", "f1", 0.9), ("m/0-mlp/0", "detection", 0.7)
    ]  # fmt: skip
    assert "F1 of the judge's detection 0.70" in harmless(render(facts)).shown


def test_agreement_on_a_second_corpus_is_told(empty: Home) -> None:
    run = opened(empty, 12)
    firsts = [0.5 + 0.03 * index for index in range(10)]
    for index, first in enumerate(firsts):
        made = found(run, index, f1=first)
        score = next(one for one in made if isinstance(one, Score))
        value = first - 0.2 if index else first + 0.01
        empty.findings.append([*made, replace(
            score, id=uuid7(), metric="f1_second_corpus", value=value, low=value - 0.05, high=value + 0.05,
            details={"corpus": "other"},
        )])  # fmt: skip
    empty.findings.append(found(run, 10))                # scored on one corpus alone
    told = report_facts(empty, run)["second"]
    assert (told["corpus"], told["units"], told["apart"]) == ("other", 10, 9)
    assert told["change"] == pytest.approx((0.01 - 9 * 0.2) / 10) and told["low"] < told["change"] < told["high"] < 0
    assert told["second"] == pytest.approx(told["first"] + told["change"])
    assert told["rank"] == pytest.approx(spearmanr(firsts, [0.51, *(f - 0.2 for f in firsts[1:])]).statistic)
    for markdown in (False, True):
        assert "On the second corpus, other, the F1 of 10 explanations" in render(report_facts(empty, run), markdown)
    assert report_facts(empty, opened(empty, 1, units="x"))["second"] is None


def test_surprising_is_what_each_definition_says(empty: Home) -> None:
    run = opened(empty, 9)
    empty.findings.append([
        *found(run, 0, f1=0.9, auc=0.5), *found(run, 1, f1=0.2, auc=0.97), *found(run, 2, f1=0.9, auc=0.95),
        *found(run, 3, f1=0.3, tune=0.95), *found(run, 4, f1=0.85, tune=0.88), *found(run, 5, f1=0.3, tune=0.7),
        *found(run, 6, verdict="abstained", effect=0.4), *found(run, 7, verdict="abstained", effect=0.01),
        *found(run, 8, effect=0.9),
    ])  # fmt: skip
    facts = report_facts(empty)
    assert {kind["kind"]: names(kind["units"]) for kind in facts["surprising"]} == {
        "sides": ["0", "1"], "refuted": ["3"], "matters": ["6"]
    }  # fmt: skip
    for text in (harmless(render(facts)).shown, render(facts, markdown=True)):
        for kind in facts["surprising"]:
            assert kind["meaning"].partition("%")[0] in text, "the definition stands on the page"
        assert "better known when it fires than what it pushes" in text
        assert "better known what it pushes than when it fires" in text
        assert "F1 0.95 on tune text" in text


def test_sites_of_failures_alone_and_scores_without_floors_are_told(empty: Home) -> None:
    run = opened(empty, 2)
    made = [replace(r, floors={}) if isinstance(r, Score) else r for r in found(run, 0)]
    failure = Failure(run=run, unit="m/7-mlp/1", sign=1, kind="E", message="m", step="s", attempt=1)
    empty.findings.append([*made, failure])
    facts = report_facts(empty)
    assert [(s["site"], s["units"], s["scored"], s["failed"]) for s in facts["sites"]] == [
        ("0-mlp", 1, 1, 0), ("7-mlp", 0, 0, 1)
    ]  # fmt: skip
    assert facts["best"] == [], "without a floor nothing is above one"
    assert "floor undefined" in harmless(render(facts)).shown
    assert "7-mlp" in render(facts, markdown=True)


def test_what_waits_for_review_stands_there_with_why(empty: Home) -> None:
    run = opened(empty, 4)
    empty.findings.append([
        *found(run, 0, verdict="unclear", f1=0.55), *found(run, 1, verdict="rejected"), *found(run, 2),
        *found(run, 3, verdict="unclear", reason="disagreement: detection by gpt: F1 0.10 fails; F1 0.90"),
    ])  # fmt: skip
    review = report_facts(empty)["review"]
    assert review["total"] == 2
    assert [(row["name"], row["why"]) for row in review["units"]] == [
        ("m/0-mlp/3", "scores contradict each other"),
        ("m/0-mlp/0", "the interval reaches below what is accepted"),
    ]
    assert "disagreement: detection by gpt" in harmless(render(report_facts(empty))).shown


# The difference to another run


def test_the_difference_counts_verdicts_and_f1_of_the_units_of_both(empty: Home) -> None:
    first = opened(empty, 4, planner="llm:x")
    empty.findings.append([
        *found(first, 0, f1=0.9), *found(first, 1, f1=0.3, verdict="rejected"), *found(first, 2, f1=0.6),
        *found(first, 3, f1=None, verdict="unclear"), *found(first, 5, sign=-1),
    ])  # fmt: skip
    unrelated = opened(empty, 1, site="7-mlp")
    empty.findings.append(found(unrelated, 0, site="7-mlp"))
    second = opened(empty, 6)
    empty.findings.append([
        *found(second, 0, f1=0.9), *found(second, 1, f1=0.8), *found(second, 2, f1=0.57), *found(second, 4),
        *found(second, 5), Failure(run=second, unit="m/0-mlp/3", sign=1, kind="E", message="m", step="s", attempt=1),
    ])  # fmt: skip
    facts = report_facts(empty)["against"]
    assert facts["run"] == first, "the newest earlier run shares no unit and is passed over"
    counted = {"shared": 4, "compared": 3, "up": 1, "down": 0, "verdict_changed": 2, "only_now": 2, "only_before": 1}
    assert {key: facts[key] for key in counted} == counted
    assert facts["mean_change"] == pytest.approx((0 + 0.5 - 0.03) / 3)
    assert {(row["before"], row["now"]): row["units"] for row in facts["turned"]} == {
        ("accepted", "accepted"): 2, ("rejected", "accepted"): 1, ("unclear", "failed"): 1
    }  # fmt: skip
    assert [(row["name"], row["before"], row["now"]) for row in facts["changes"]] == [
        ("m/0-mlp/1", "rejected", "accepted"), ("m/0-mlp/3", "unclear", "failed")
    ]  # fmt: skip
    assert facts["asked"] == [{"what": "planner", "before": "llm:x", "now": "playbook"}]
    page = harmless(render(report_facts(empty)))
    assert "+0.50, apart" in page.shown and "+0.157 in the mean" in page.shown
    none = report_facts(empty, second, unrelated)
    assert none["against"]["shared"] == 0 and "ended none of these units" in harmless(render(none)).shown
    backwards = report_facts(empty, first, second)["against"]
    assert (backwards["up"], backwards["down"]) == (0, 1), "asked for, a later run is held against as well"


# Untrusted text


def test_hostile_text_is_shown_and_never_markup(empty: Home) -> None:
    run = opened(empty, 2, corpus=HOSTILE, units=HOSTILE)
    empty.findings.append([
        *found(run, 0, sentence=HOSTILE, reason=HOSTILE, text=f"a {HOSTILE}", token=HOSTILE, auc=0.5, tune=0.99),
        *found(run, 1, verdict="unclear", sentence=HOSTILE, reason=HOSTILE, f1=0.4, tune=0.99),
        *found(run, 3, verdict="abstained", reason=HOSTILE, effect=1.0),
        *(replace(call, purpose=HOSTILE, model=HOSTILE) for call in calls(run)),
        Failure(run=run, unit="m/0-mlp/9", sign=1, kind=HOSTILE, message=HOSTILE, step=HOSTILE, attempt=1),
    ])  # fmt: skip
    facts = report_facts(empty)
    text = render(facts)
    page = harmless(text)
    shown = "</style><script>alert(1)</script>\\u202e\\u200b\\x1b[31m|`<b onclick=x>&amp;![i](http://x.example/i.png)"
    assert page.shown.count(shown) >= 10 and shown in page.marked, "all of it is there to read"
    markdown = render(facts, markdown=True)
    for made in (text, markdown):
        assert not [c for c in made if not c.isprintable() and c != "\n"]
    assert "![" not in markdown and "http://" not in markdown
    bare = markdown.replace("<b>", "").replace("</b>", "")
    assert bare.count("<") == bare.count("\\<") > 0 and bare.count("`") == bare.count("\\`") > 0
    heads = [line for line in markdown.splitlines() if line.startswith("| unit | explanation")]
    rows = [line for line in markdown.splitlines() if line.startswith("| m/0-mlp/1 |")]
    assert heads and rows and {line.count("|") - line.count("\\|") for line in (*heads, *rows)} == {6}


def test_a_token_that_ends_no_text_leaves_the_last_word_marked(empty: Home) -> None:
    run = opened(empty, 3)
    empty.findings.append([
        *found(run, 0, text="a café", token="\ufffd"), *found(run, 1, text="a   ", token="   "),
        *found(run, 2, text="x" * 1000 + " car"),
    ])  # fmt: skip
    texts = {card["name"]: card["examples"][0] for card in report_facts(empty)["best"]}
    assert (texts["m/0-mlp/0"]["before"], texts["m/0-mlp/0"]["token"]) == ("a", " café")
    assert (texts["m/0-mlp/1"]["before"], texts["m/0-mlp/1"]["token"]) == ("a", "   ")
    assert texts["m/0-mlp/2"]["cut"] and len(texts["m/0-mlp/2"]["before"]) < 200


# Markdown, size


def test_markdown_says_the_same(finished: Any) -> None:
    facts = report_facts(finished.home)
    page, markdown = harmless(render(facts)).shown, render(facts, markdown=True)
    plain = markdown.replace("\\", "")
    titles = [line.lstrip("# ") for line in markdown.splitlines() if line.startswith("## ")]
    assert len(titles) == 9 and all(title in page for title in titles)
    said = [facts["run"]["id"], f"{facts['spend']['work']['forward_tokens']:,.0f}", f"{facts['sites'][0]['f1'][2]:.2f}"]
    for card in facts["best"]:
        said += [card["name"], card["explanation"], f"{card['value']:.2f} [{card['low']:.2f}, {card['high']:.2f}]"]
    for text in (page, plain):
        assert [one for one in said if one.replace("\\", "") not in text] == []


def test_a_run_of_five_thousand_units_makes_a_page_of_bounded_size(empty: Home) -> None:
    verdicts = ("accepted", "rejected", "unclear", "abstained")
    for _ in range(2):
        run = opened(empty, 6000, "drained")
        records: list[Record] = []
        for index in range(5000):
            records += found(
                run, index, site=f"{index % 30}-mlp", verdict=verdicts[index % 4], f1=(index % 97) / 100 + 0.02,
                auc=0.6, tune=0.95, effect=0.5, sentence=f"fires on {index} " + "x" * 1000, text="y" * 300 + " car",
            )  # fmt: skip
        wrong: dict[str, Any] = {"run": run, "sign": -1, "message": "z" * 3000, "step": "s", "attempt": 1}
        records += [Failure(unit=f"m/1-mlp/{index}", kind=f"E{index % 60}", **wrong) for index in range(900)]
        empty.findings.append(records)
    begun = time.monotonic()
    facts = report_facts(empty)
    page, markdown = render(facts), render(facts, markdown=True)
    assert time.monotonic() - begun < 60
    assert max(len(page.encode()), len(markdown.encode()), len(json.dumps(facts))) < SIZE
    harmless(page)
    assert len(facts["best"]) == BEST and [len(k["units"]) for k in facts["surprising"]] == [SURPRISES] * 3
    assert (facts["review"]["total"], len(facts["review"]["units"])) == (1250, LISTED)
    assert (facts["failures"]["total"], len(facts["failures"]["units"])) == (900, LISTED)
    assert "1210 more are in the findings" in page and facts["against"]["shared"] == 5900
    assert len(facts["sites"]) == 30
    for site in facts["sites"]:
        assert sum(site["bins"]) == site["scored"] > STRIP and site["points"] == []


# The command


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lamplighter", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            commands.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(end.value.code or 0), out, err

    return call


def test_the_command_writes_a_page_and_prints_where(cli: Any, copied: Home, tmp_path: Path) -> None:
    run = report_facts(copied)["run"]["id"]
    code, out, err = cli("report", "--home", copied.path)
    page = copied.path / "reports" / f"{run}.html"
    assert (code, out, err) == (0, f"{page}\n", "")
    harmless(page.read_text("utf-8"))
    for more, name in ((["--markdown"], f"reports/{run}.md"), (["-o", tmp_path / "a" / "night.md"], "../a/night.md")):
        code, out, _ = cli("report", "--home", copied.path, "--run", run[:20], *more)
        written = (copied.path / name).resolve()
        assert code == 0 and Path(out.strip()).resolve() == written
        assert written.read_text("utf-8").startswith("# Morning report\n")
    code, out, _ = cli("report", "--home", copied.path, "--json")
    told = json.loads(out)
    assert code == 0 and told["path"] == str(page) and told["progress"] == report_facts(copied)["progress"]


def refused(said: tuple[int, str, str], *words: str) -> None:
    code, out, err = said
    assert code == 1 and out == "" and err.count("\n") == 1, said
    assert err.startswith("lamplighter: ") and all(word in err for word in words), err


def test_what_cannot_be_reported_is_said_in_one_sentence(cli: Any, copied: Home, tmp_path: Path) -> None:
    run = report_facts(copied)["run"]["id"]
    refused(cli("report", "--home", tmp_path / "none"), "Nothing is recorded", "lamplighter run")
    assert not (tmp_path / "none").exists(), "asking leaves no folder behind"
    there = ("report", "--home", copied.path)
    refused(cli(*there, "--run", "nowhere"), "--run 'nowhere' is no run of this home", "lamplighter status")
    refused(cli(*there, "--run", ""), "--run '' is no run of this home")
    refused(cli(*there, "--against", "nowhere"), "--against 'nowhere' is no run of this home")
    refused(cli(*there, "--against", run), f"--against names run {run} itself")
    refused(cli(*there, "-o", copied.path), "cannot be written", "-o")
    (tmp_path / "file").write_text("")
    refused(cli(*there, "-o", tmp_path / "file" / "page.html"), "cannot be written", "-o")
    refused(cli(*there, "-o", ""), "the file is an empty name")


def test_a_beginning_of_several_ids_is_refused(empty: Home) -> None:
    for run in ("aa1", "aa2", "aa"):
        empty.findings.append([Run(key="k", asked=ASKED, status="done", units=[], run=run)])
    with pytest.raises(Refused, match="--run 'a' is the beginning of 3 runs"):
        report_facts(empty, "a")
    assert report_facts(empty, "aa")["run"]["id"] == "aa" and report_facts(empty, "aa2")["run"]["id"] == "aa2"


def test_a_home_with_a_sweep_and_no_run_is_refused(empty: Home) -> None:
    empty.findings.append([Failure(kind="k", message="m", step="s", attempt=1)])
    with pytest.raises(Refused, match="no run is recorded in this home yet"):
        report_facts(empty)
