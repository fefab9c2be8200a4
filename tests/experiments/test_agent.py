"""bench_agent: what it counts is what happened."""

from typing import Any

import pytest

from lamplighter.experiments import agent_faults
from lamplighter.experiments.agent_asked import Asked
from lamplighter.experiments.agent_faults import _questions
from lamplighter.experiments.agent_planted import Tried, _tables


def test_questions_to_a_server_with_every_fault_are_answered_as_it_said_or_not_at_all() -> None:
    rows, claims = _questions(120, 3, lambda *_: None)
    assert len(rows) > 12 and all(claim.holds for claim in claims), claims
    assert sum(row["times"] for row in rows) == claims[2].n > 120


def test_a_ledger_that_forgets_a_request_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims can fail: a client that keeps no row of refused requests."""
    real = agent_faults.Client._charge

    def forgetful(self: Any, purpose: str, request: Any, answer: Any, *rest: Any) -> None:
        if not answer.outcome.startswith("http"):
            real(self, purpose, request, answer, *rest)

    monkeypatch.setattr(agent_faults.Client, "_charge", forgetful)
    _, claims = _questions(60, 3, lambda *_: None)
    assert [claim.holds for claim in claims] == [True, True, False, True]


def asked(tokens: int, failed: str | None = None) -> Asked:
    return Asked(None, None, "loop", tokens, 10.0, ["lens {}"] * 5, 0, failed)


def test_what_planners_recover_is_counted_by_family_and_compared_unit_by_unit() -> None:
    def unit(family: str, playbook: float, llm: float, alone: float) -> Tried:
        return Tried(family, {"playbook": playbook, "llm": llm, "llm alone": alone}, 20, 8.0,
                     {"llm": asked(100), "llm alone": asked(300, "no action: x")})  # fmt: skip

    tried = [unit("hidden", 0.8, 0.995, 0.5), *[unit("pair", 1.0, 1.0, 0.98)] * 9]
    tables, claims = _tables(tried, 0)
    assert tables["recovered by family"] == [
        {"family": "hidden", "units": 1, "playbook": 0, "llm": 1, "llm alone": 0},
        {"family": "pair", "units": 9, "playbook": 9, "llm": 9, "llm alone": 0},
    ]  # fmt: skip
    playbook, llm, alone = tables["cost of a unit"]
    assert (playbook["recovered"], playbook["tool calls"], playbook["tokens"]) == (0.9, 20.0, 0.0)
    assert (llm["recovered"], llm["tokens"], llm["failed"], alone["failed"]) == (1.0, 100.0, 0, 10)
    assert [claim.value for claim in claims] == pytest.approx([0.1, -0.9, 1.0])
    assert claims[1].holds is False and claims[2].holds is None and claims[2].n == 1
