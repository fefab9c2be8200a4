"""Explanations that people wrote, scored: as a planner's would be, once each, whatever happens on the way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lamplighter import prompts
from lamplighter.agent import edits, life
from lamplighter.agent.config import Home
from lamplighter.agent.edits import score_edits
from lamplighter.agent.report import report_facts
from lamplighter.agent.review_cli import written
from lamplighter.agent.show import unit_card, unit_facts
from lamplighter.agent.verify import verify
from lamplighter.store.edits import Edit, edit_key
from lamplighter.store.findings import drain
from lamplighter.store.records import Evidence, Failure, Hypothesis, Investigation, Refused, Review, Run, Score, Verdict
from lamplighter.store.review import Desk
from lamplighter.store.work import worker_id
from lamplighter.testing import Say, ScriptedEndpoint

CAR = {"clauses": [{"at": {"word": "car"}}]}


def explained(home: Home, unit: str) -> Hypothesis:
    """What stands for a neuron of 0-mlp."""
    row = of(home, "current_outcomes", unit)
    return home.findings.read(Hypothesis, id=row["hypothesis"])[0]


def of(home: Home, view: str, unit: str) -> dict[str, Any]:
    rows = home.findings.sql(f"SELECT * FROM {view} WHERE unit LIKE ?", [f"%/{unit.removesuffix('-')}"])
    return next(row for row in rows if row["sign"] == (-1 if unit.endswith("-") else 1))


def edit(home: Home, unit: str, made: Edit, by: str = "ann") -> Hypothesis:
    """A person puts `made` in the place of a neuron's explanation, whatever else waits."""
    from lamplighter.store.claims import Item

    known = explained(home, unit)
    desk = Desk(home.work, home.findings)
    assert known.unit is not None
    desk.claims.take_in([Item(known.id, known.unit, known.sign, known.run, known.investigation, None, ["audit"])])
    assert desk.next(by) is not None
    said = desk.submit(known.id, by, "edit", edit=made)
    drain(home.work, home.findings)
    return home.findings.read(Hypothesis, id=said.edit)[0]


def row_of(home: Home, unit: str) -> dict[str, Any]:
    return of(home, "explanations", unit)


@pytest.fixture(scope="module")
def scored(finished: Any, empty_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home in which four explanations by people were scored at a time, and one was taken back before that.

    Of neuron 0: ann gives the planner's rule, and after her bo another; of neuron 1 ann gives a sentence alone.
    """
    place = tmp_path_factory.mktemp("scored") / "home"
    shutil.copytree(finished.home.path, place)
    home, told = Home(place), SimpleNamespace(ends=[], steps=[])
    told.begins, told.step = lambda *_: None, lambda *told_: told.steps.append(told_)
    told.ended = lambda *told_: told.ends.append(told_)
    known = explained(home, "0")
    before = row_of(home, "0")
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMPLIGHTER_CACHE", str(empty_cache))
        same = edit(home, "0", Edit("fires on cars", known.rule, known.rule_text))
        worse = edit(home, "0", written("fires on stops", {"clauses": [{"at": {"word": "stop"}}]}), by="bo")
        alone = edit(home, "1", Edit("fires on stops or worlds"))
        back = edit(home, "2-", Edit("else", CAR), by="cy")
        Desk(home.work, home.findings).undo("cy")
        waiting = verify(home.path), unit_facts(home, str(worse.unit)), row_of(home, "0")
        real = edits.Investigator.score
        patch.setattr(
            edits.Investigator, "score", lambda self, state: seen.append(state["evidence"]) or real(self, state)
        )
        found = score_edits(home, told)
    return SimpleNamespace(
        home=home, told=told, known=known, before=before, same=same, worse=worse, alone=alone, back=back,
        waiting=waiting, seen=seen, found=found,
    )  # fmt: skip


def test_a_rule_by_a_person_is_scored_as_the_same_rule_by_a_planner(scored: Any) -> None:
    first, *_ = scored.found["scored"]
    assert (first["explanation"], first["planner"]) == ("fires on cars", "person:ann")
    for name in ("input_f1", "input_f1_low", "input_f1_high", "floor_f1", "verdict"):
        assert first[name] == scored.before[name] is not None, name
    assert first["verdict"] == "accepted"
    other = {s.metric: s.value for s in scored.home.findings.read(Score, hypothesis=scored.same.id)}
    mine = {s.metric: s.value for s in scored.home.findings.read(Score, hypothesis=scored.known.id)}
    for name in ("auprc", "pearson", "coverage"):
        assert other[name] == mine[name] is not None, name
    assert scored.same.provenance["sweep"] in {s.provenance["sweep"] for s in scored.home.findings.read(Score)}


def test_the_last_edit_stands_accepted_or_not(scored: Any) -> None:
    row = row_of(scored.home, "0")
    assert scored.waiting[2]["verdict"] is None and scored.waiting[2]["explanation"] == "fires on stops"
    assert (row["explanation"], row["planner"], row["verdict"]) == ("fires on stops", "person:bo", "rejected")
    assert row["input_f1"] < 0.2 and row["output_explanation"] == scored.before["output_explanation"]
    assert scored.worse.provenance["edit_of"] == scored.same.id
    assert scored.worse.provenance["origin"] == scored.known.investigation
    assert row_of(scored.home, "2-")["planner"] == "playbook", "taken back"


def test_a_sentence_alone_is_undefined_without_a_judge(scored: Any) -> None:
    row = next(r for r in scored.found["scored"] if r["explanation"] == "fires on stops or worlds")
    assert (row["verdict"], row["input_f1"]) == ("undefined", None) and "takes a judge" in row["reason"]


def test_one_run_takes_each_unit_once_and_says_how_it_ended(scored: Any) -> None:
    found, home = scored.found, scored.home
    assert (found["failed"], found["left"], found["told"]) == ([], 0, "explanations by people: 3 scored.")
    runs = [state for state in home.work.runs() if state.key.startswith(edit_key(""))]
    assert [(run.status, len(run.units)) for run in runs] == [("done", 2), ("done", 1)]
    assert [run.id for run in runs] == found["runs"] == [scored.same.run, scored.worse.run]
    assert [r.status for r in home.findings.read(Run, run=runs[0].id)] == ["running", "done"]
    assert [end[2:] for end in scored.told.ends] == [(1, 2), (2, 2), (1, 1)]
    assert report_facts(home, scored.same.run)["progress"]["ended"] == 2


def test_a_home_with_edits_that_wait_are_scored_or_taken_back_holds_together(scored: Any) -> None:
    for checks in (scored.waiting[0], verify(scored.home.path)):
        assert [check for check in checks["checks"] if check["wrong"]] == []
    review = next(c for c in checks["checks"] if c["check"] == "reviews have their explanation")
    assert review["looked_at"] == 5


def test_a_review_of_nothing_is_seen(copied: Home) -> None:
    copied.findings.append([Review(hypothesis="gone", reviewer="ann", verdict="accept", client="c")])
    wrong = [check for check in verify(copied.path)["checks"] if check["wrong"]]
    assert [check["check"] for check in wrong] == ["reviews have their explanation"]


def test_what_stands_behind_an_edit_is_shown_like_any_other(scored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    home, waiting = scored.home, scored.waiting[1]
    assert [h["id"] for h in waiting["hypotheses"]] == [scored.worse.id] and waiting["scores"] == []
    unit_card(waiting)
    assert "none yet; `lamplighter review score`" in capsys.readouterr().out
    facts = unit_facts(home, str(scored.worse.unit))
    before = home.findings.read(Evidence, investigation=scored.known.investigation)
    assert [e["tool"] for e in facts["evidence"]] == [e.tool for e in before] != []
    assert {e["provenance"]["recalled"] for e in facts["evidence"]} == {e.id for e in before}
    assert all(not any(e["cost"].values()) for e in facts["evidence"]), "it was paid for once"
    assert {s["hypothesis"] for s in facts["scores"]} == {scored.worse.id}
    assert [(r["reviewer"], r["verdict"]) for r in facts["reviews"]] == [("ann", "edit"), ("bo", "edit")]
    (investigation,) = home.findings.read(Investigation, id=str(scored.worse.investigation))
    assert investigation.planner == "person:bo" and investigation.steps == len(before)
    unit_card(facts)
    shown = capsys.readouterr().out
    assert "fires on stops" in shown and "person:bo" in shown and "verdict:     rejected" in shown


def test_text_of_the_experiments_behind_it_is_not_scored_on(scored: Any) -> None:
    behind = [e.id for e in scored.home.findings.read(Evidence, investigation=scored.known.investigation)]
    assert [[e.id for e in one] for one in scored.seen[::2]] == [behind, behind]


def test_a_sentence_without_a_rule_takes_a_judge(copied: Home, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "KEY", "MODEL"):
        monkeypatch.delenv(f"LAMPLIGHTER_JUDGE_{name}", raising=False)

    def reads(body: dict[str, Any]) -> Say:
        task = str(body["messages"][0]["content"])
        asked = str(body["messages"][-1]["content"])
        texts = [line for line in asked.splitlines() if line.split(":")[0].isdigit()]
        if task == prompts.render("generate"):
            return Say(json.dumps({"fires": ["a car"], "silent": ["a cat"]}))
        if task == prompts.render("simulate"):
            return Say(json.dumps({str(n): 9 * ("car" in text) for n, text in enumerate(texts, 1)}))
        return Say(json.dumps({str(n): " car" in text for n, text in enumerate(texts, 1)}))

    edit(copied, "1", Edit("fires on cars"), by="bo")
    with ScriptedEndpoint(reads, logprobs=False) as server:
        score_edits(copied, told, judge=server.url)
    made = explained(copied, "1")
    assert made.author == "person:bo"
    judged = [s for s in copied.findings.read(Score, hypothesis=made.id) if s.judge]
    detection = next(s for s in judged if s.metric == "detection")
    assert detection.details["judge_is_author"] is False and detection.run == made.run
    assert any(unit == "the judge" for unit, _ in told.steps), "it was to be tried first"


def test_nothing_to_score_is_said(copied: Home, told: Any) -> None:
    found = score_edits(copied, told)
    assert found["runs"] == [] and "no explanation by a person waits" in found["told"]


def test_a_failure_is_recorded_and_can_be_tried_again(copied: Home, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = edit(copied, "0", Edit("fires on cars", CAR))
    with monkeypatch.context() as patch:
        patch.setattr(edits.Investigator, "decide", lambda *_: 1 / 0)
        found = score_edits(copied, told)
    assert found["failed"] == [made.unit] and row_of(copied, "0")["verdict"] is None
    (failure,) = copied.findings.read(Failure, run=made.run)
    assert failure.kind == "ZeroDivisionError" and "test_edits.py" in failure.message
    assert "`lamplighter review score" in life.retry(copied, made.run)["told"]
    assert score_edits(copied, told)["failed"] == [], "the score side may be read: the first try recorded nothing"
    assert row_of(copied, "0")["verdict"] == "accepted"


def test_minutes_end_it_and_the_same_command_goes_on(copied: Home, told: Any) -> None:
    made = edit(copied, "0", Edit("fires on cars", CAR))
    found = score_edits(copied, told, minutes=0)
    assert (found["left"], found["scored"]) == (1, [])
    assert next(r.status for r in copied.work.runs() if r.id == made.run) == "budget"
    edit(copied, "1", Edit("else"), by="bo")
    assert score_edits(copied, told)["left"] == 0
    assert [r["verdict"] for r in (row_of(copied, "0"), row_of(copied, "1"))] == ["accepted", "undefined"]
    assert len([r for r in copied.work.runs() if r.key.startswith(edit_key(""))]) == 1, "the second joined the first"


def test_an_edit_taken_back_while_it_is_being_scored_ends_without_a_record(
    copied: Home, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = edit(copied, "0", Edit("fires on cars", CAR))
    run = str(made.run)
    job = copied.work.claim(run, worker_id())
    assert job is not None
    Desk(copied.work, copied.findings).undo("ann")
    copied.work.release(job)
    assert score_edits(copied, told)["told"].startswith("no explanation by a person waits")
    state = next(one for one in copied.work.runs() if one.id == run)
    assert (state.status, state.units, copied.work.jobs(run)) == ("done", [], [])
    assert verify(copied.path)["ok"]


def test_other_weights_of_the_same_name_are_not_scored(copied: Home, told: Any, tmp_path: Path, llama: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    made = edit(copied, "0", Edit("fires on cars", CAR))
    model = str(made.unit).rsplit("/", 2)[0]
    kept = tmp_path / "kept"
    shutil.copytree(model, kept)
    try:
        other = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with torch.no_grad():
            other.model.layers[0].mlp.up_proj.weight.add_(0.1)
        other.save_pretrained(model)
        assert score_edits(copied, told)["failed"] == [made.unit]
        (failure,) = copied.findings.read(Failure, run=made.run)
        assert failure.kind == "Refused" and "not swept" in failure.message
    finally:
        shutil.rmtree(model)
        shutil.copytree(kept, model)


KILLED = """
import os, signal, sys
from pathlib import Path
from lamplighter.agent import edits
from lamplighter.agent.config import Home
class Quiet:
    def begins(self, *_): pass
    def ended(self, *_): pass
    def step(self, unit, what):
        if what.startswith("rebuilding"):
            os.kill(os.getpid(), signal.SIGKILL)
edits.score_edits(Home(Path(sys.argv[1])), Quiet())
"""


def test_killed_in_the_middle_an_edit_is_scored_once_by_the_next(copied: Home, told: Any) -> None:
    made = edit(copied, "0", Edit("fires on cars", CAR))
    process = subprocess.run([sys.executable, "-P", "-c", KILLED, str(copied.path)], timeout=120, check=False)
    assert process.returncode == -9
    assert len(score_edits(copied, told)["scored"]) == 1
    assert len(copied.findings.read(Verdict, investigation=made.investigation)) == 2, "its own, and the run's"
    assert verify(copied.path)["ok"]


def test_the_command_that_continues_a_run_of_edits(copied: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    made = edit(copied, "0", Edit("fires on cars", CAR))
    run = next(one for one in copied.work.runs() if one.id == made.run)
    assert life.command(copied, run) == f"lamplighter review score --home {copied.path}"
    monkeypatch.setenv("LAMPLIGHTER_HOME", str(copied.path))
    assert life.command(copied, run) == "lamplighter review score"
    facts = next(row for row in life.status_facts(copied) if row["run"] == made.run)
    assert (facts["status"], facts["queued"]) == ("drained", 1)


@pytest.mark.parametrize("rule", [{"clauses": []}, [], {"clauses": [{"at": {"word": "("}}]}, "car"])
def test_what_is_no_rule_is_refused_before_anything_is_recorded(rule: Any) -> None:
    with pytest.raises(Refused):
        written("s", rule)
