"""What a run would do and cost: units and sweeps exactly, costs from this home's own history or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.agent import plan as module
from lamplighter.agent import planners
from lamplighter.agent.config import Home
from lamplighter.agent.plan import plan_facts
from lamplighter.store.records import Hypothesis, Investigation, LLMCall, Refused, Run, Sweep
from lamplighter.tools.subject import Subject

COSTS = ("wall_seconds", "tool_seconds", "tokens", "usd")


def costs(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cost["what"]: cost for cost in facts["expected"]}


def history(home: Home, model: str, units: int, planner: str = "playbook", **changed: Any) -> None:
    """A finished run of the past; unit i took 10 + i seconds of tools and, of a language model, 100 i tokens."""
    asked = {"judge": None} | changed
    run = f"of {model}"
    home.findings.append([Run(key="old", asked=asked, status="running", units=[], run=run, created_at=at(0))])
    for i in range(units):
        stamps = {"run": run, "unit": f"{model}/0-mlp/{i}", "sign": 1}
        made = Investigation(
            planner=planner, status="submitted", steps=1, cost={"seconds": 10.0 + i}, seconds=1.0,
            created_at=at(20 * (i + 1)), **stamps,
        )  # fmt: skip
        call = {"purpose": "plan", "model": "m", "endpoint": "e", "outcome": "ok", "request": "d", "seconds": 1.0}
        rung = {"rung": ("induced", "label", "loop")[i % 3]} if planner != "playbook" else {}
        more = [] if planner == "playbook" else [
            LLMCall(investigation=made.id, tokens_in=90 * i, tokens_out=10 * i, usd=0.01, **stamps, **call)
        ]  # fmt: skip
        home.findings.append([made, Hypothesis(
            author="a", sentence="s", rule=None, rule_text=None, kept=True, investigation=made.id, provenance=rung,
            **stamps,
        ), *more])  # fmt: skip


def at(seconds: int) -> str:
    return f"2026-01-01T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.000000"


# Units and sweeps


def test_a_new_run_is_planned_without_leaving_a_trace(project: Any, tmp_path: Path) -> None:
    facts = plan_facts(Home(tmp_path / "none"), project.request())
    assert not (tmp_path / "none").exists()
    assert (facts["run"], facts["status"], facts["planner"], facts["todo"]) == (None, "new", "playbook", 5)
    assert [unit["unit"] for unit in facts["units"]][2] == f"{project.model}/0-mlp/2-" and facts["exact"]
    (sweep,) = facts["sweeps"]
    assert sweep["needed"] and sweep["sites"] == ["0-mlp"] and sweep["seconds"] is None and sweep["tokens"] is None
    for cost in facts["expected"]:
        assert cost["each"] is None is cost["total"] and "no unit of this planner and model" in cost["reason"]


def test_a_finished_run_is_found_and_a_fresh_one_is_new(
    project: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Subject, "load", None)          # not needed: the run knows its units
        facts = plan_facts(finished.home, project.request())
    assert (facts["run"], facts["status"], facts["ended"], facts["todo"]) == (finished.outcome.run, "done", 5, 0)
    assert not facts["sweeps"][0]["needed"] and facts["command"].startswith("lamplighter run ")
    fresh = plan_facts(finished.home, project.request(fresh=True))
    assert (fresh["run"], fresh["todo"], fresh["exact"], fresh["n"]) == (None, 5, True, 5)
    assert not fresh["sweeps"][0]["needed"]
    assert costs(fresh)["tool_seconds"]["low"] < costs(fresh)["tool_seconds"]["each"]
    assert costs(fresh)["usd"]["total"] == 0


def test_auto_is_exact_where_the_sweep_is_there(project: Any, copied: Any) -> None:
    from lamplighter.tools.auto import pick_units
    from lamplighter.tools.sweep import Sweep as Swept

    asked = project.request(units="auto:4,0-mlp/4", sites=("0-mlp",))
    facts = plan_facts(copied, asked)
    (folder,) = (copied.path / "sweeps").iterdir()
    picked = [str(one.unit) for one in pick_units(Swept(folder), 4)]
    assert [unit["unit"] for unit in facts["units"]] == [*picked, f"{project.model}/0-mlp/4"]
    assert facts["exact"] and facts["planned"] == len(picked) + 1
    shutil.rmtree(folder)
    facts = plan_facts(copied, asked)
    assert [unit["unit"] for unit in facts["units"]] == [f"{project.model}/0-mlp/4"]
    assert (facts["planned"], facts["more"], facts["exact"]) == (5, 4, False)
    (sweep,) = facts["sweeps"]
    assert sweep["needed"] and sweep["n"] == 1 and sweep["tokens"] > 1000, "by the record of the one that is gone"
    assert sweep["seconds"] == sweep["low"] == sweep["high"] > 0


def test_a_sweep_takes_as_long_as_earlier_ones_of_its_kind(project: Any, copied: Any) -> None:
    (known,) = copied.findings.read(Sweep)
    slow = replace(known, id="slow", digest="slow", tokens={"explain": 1000}, seconds=100.0)
    gpu = replace(slow, id="gpu", digest="gpu", provenance=known.provenance | {"device": "cuda"})
    copied.findings.append([slow, gpu])
    facts = plan_facts(copied, project.request(sites=("1-mlp",), tokens=2000))
    (sweep,) = facts["sweeps"]
    assert (sweep["tokens"], sweep["n"], sweep["high"]) == (2000, 2, 200.0) and sweep["low"] < sweep["seconds"] < 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"units": "0-mlp/99"}, "out of range"), ({"units": "other/0-mlp/1"}, "no unit of"),
        ({"units": "nonsense"}, "is no unit"), ({"planner": "guess"}, "is unknown"),
        ({"planner": "llm"}, "no language model is at hand"), ({"judge": "planner"}, "no language model plans here"),
        ({"corpus": "nowhere"}, "is no corpus"), ({"endpoint": "x", "planner": "llm"}, "is no address"),
    ],
)  # fmt: skip
def test_what_a_run_would_refuse_is_refused(project: Any, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        plan_facts(Home(tmp_path / "home"), project.request(**changes))


# Who plans


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking anybody, or starting anything, fails."""
    for name in ("Client", "EmbeddedServer", "probe"):
        monkeypatch.setattr(planners, name, None)


@pytest.mark.parametrize(("named", "label"), [("q", "llm:q@http://h:1/v1"), (None, "llm:any@http://h:1/v1")])
def test_nobody_is_asked_and_the_run_is_found_by_the_server(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: None, named: str | None, label: str
) -> None:
    home = Home(tmp_path / "home")
    if named:
        monkeypatch.setenv("LAMPLIGHTER_LLM_MODEL", named)
    asked = project.request(planner="llm", endpoint="http://h:1/v1")
    begun = replace(asked, planner=label)
    run = home.work.open_run(begun.key, json.loads(json.dumps(begun.asked())), ["u"]).id
    facts = plan_facts(home, asked)
    assert facts["run"] == run and facts["planner"] == (f"llm:{named}" if named else None)
    elsewhere = plan_facts(home, replace(asked, endpoint="http://h:2/v1"))
    assert elsewhere["run"] is None


# Costs


def test_costs_are_those_of_the_past_by_planner_model_and_judge(project: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LAMPLIGHTER_LLM_MODEL", "q")
    home = Home(tmp_path / "home")
    history(home, project.model, 6, "llm:q")
    history(home, "another/model", 9, "llm:q")
    asked = project.request(planner="llm", endpoint="http://h:1/v1", llm_tokens=100_000, usd=0.05, minutes=1.0)
    facts = plan_facts(home, asked)
    found = costs(facts)
    assert facts["n"] == 6 and {what: found[what]["each"] for what in COSTS} == pytest.approx(
        {"wall_seconds": 20, "tool_seconds": 12.5, "tokens": 250, "usd": 0.01}
    )
    assert found["tokens"]["total"] == 1250 and found["tokens"]["low"] < 250 < found["tokens"]["high"]
    assert {row["rung"]: (row["units"], row["tokens"]) for row in facts["history"]} == {
        "induced": (2, 150.0), "label": (2, 250.0), "loop": (2, 350.0)
    }  # fmt: skip
    lasts = {limit["option"]: limit["lasts"] for limit in facts["limits"]}
    assert lasts == {"--minutes": "unknown", "--llm-tokens": "enough", "--usd": "enough"}, "the sweep's time is unknown"
    assert plan_facts(home, project.request())["n"] == 0, "the playbook has no history"
    judged = replace(asked, judge="http://j/v1")
    monkeypatch.setenv("LAMPLIGHTER_JUDGE_MODEL", "j")
    assert plan_facts(home, judged)["n"] == 0


def test_dollars_are_undefined_where_a_call_had_no_price(project: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LAMPLIGHTER_LLM_MODEL", "q")
    home = Home(tmp_path / "home")
    history(home, project.model, 6, "llm:q")
    one = home.findings.read(Investigation)[0]
    home.findings.append([LLMCall(
        purpose="p", model="m", endpoint="e", outcome="timeout", request="d", seconds=1.0, investigation=one.id
    )])  # fmt: skip
    found = costs(plan_facts(home, project.request(planner="llm", endpoint="http://h:1/v1")))
    assert found["usd"]["each"] is None and found["usd"]["reason"] == "1 of 6 units had calls without a price"
    assert found["tokens"]["each"] == 250


def test_few_units_give_no_interval(project: Any, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    history(home, project.model, module.FEW - 1)
    found = costs(plan_facts(home, project.request()))["tool_seconds"]
    assert found["each"] == 11.5 and found["low"] is None and "too few" in found["reason"]


def test_a_unit_that_was_done_again_counts_as_it_was_at_first(project: Any, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    history(home, project.model, 5)
    again = {"created_at": at(7200), "cost": {"seconds": 0.0}}
    home.findings.append([replace(one, id=f"x{one.id}", **again) for one in home.findings.read(Investigation)])
    facts = plan_facts(home, project.request())
    assert facts["n"] == 5 and costs(facts)["tool_seconds"]["each"] == 12


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1000), min_size=5, max_size=30), st.integers(1, 40))
def test_bounds_hold_the_mean_and_widen_for_a_total(values: list[float], todo: int) -> None:
    array = np.asarray(values)
    low, high, total_low, total_high = module._bounds(array, todo)
    slack = 1e-6 + 1e-9 * array.sum()
    assert array.min() - slack <= low <= high <= array.max() + slack
    assert total_high - total_low >= 0.9 * todo * (high - low) - slack, "what differs from unit to unit comes on top"
    assert module._bounds(array, 0)[2:] == (0.0, 0.0)


def test_totals_hold_what_comes_as_often_as_they_say() -> None:
    """Coverage: of new units from the same source, the total falls within its interval about 95 times of 100."""
    draw = np.random.default_rng(1)
    inside = []
    for _ in range(120):
        past, new = draw.exponential(100, 40), draw.exponential(100, 10)
        _, _, low, high = module._bounds(past, 10)
        inside.append(low <= new.sum() <= high)
    assert np.mean(inside) > 0.88


@pytest.mark.parametrize(
    ("limit", "bounds", "lasts"),
    [
        (10, [(1, 4), (2, 6)], "enough"), (2.9, [(1, 4), (2, 6)], "not enough"), (0, [(0, 0)], "enough"),
        (5, [(1, 4), (2, 6)], "perhaps not enough"), (5, [(1, 4), (None, None)], "unknown"),
    ],
)  # fmt: skip
def test_whether_a_limit_lasts(limit: float, bounds: Any, lasts: str) -> None:
    check: Callable[[float, Any], str] = module._lasts
    assert check(limit, bounds) == lasts
