"""Budgets: reached exactly when they say, and told in words."""

import pytest

from lamplighter.agent.budget import Budget
from lamplighter.store.work import Spent


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_minutes_are_counted_from_the_start_of_the_run() -> None:
    clock = Clock()
    budget = Budget(minutes=2, clock=clock)
    assert budget.elapsed == 0 and budget.reached is None
    clock.now += 119.9
    assert budget.elapsed == pytest.approx(119.9) and budget.spent(0) is None
    clock.now += 0.1
    assert budget.reached
    assert budget.spent(0) == "the run's 2 minutes are spent"


def test_no_minutes_are_spent_at_once_and_none_given_never() -> None:
    clock = Clock()
    nothing, no_limit = Budget(minutes=0, clock=clock), Budget(clock=clock)
    assert nothing.reached
    clock.now += 1e9
    assert no_limit.reached is None and no_limit.spent(0) is None


def test_steps_are_spent_at_their_number() -> None:
    budget = Budget(steps=3)
    assert [budget.spent(steps) for steps in (0, 2)] == [None, None]
    assert budget.spent(3) == budget.spent(4).replace("4", "3") == "3 steps are spent"  # type: ignore[union-attr]


def test_time_is_named_before_steps() -> None:
    """Both spent: the one that ends the whole run is told."""
    assert Budget(minutes=0, steps=0).spent(5) == "the run's 0 minutes are spent"


def test_minutes_are_told_as_given() -> None:
    clock = Clock()
    budget = Budget(minutes=0.25, clock=clock)
    clock.now += 15
    assert budget.spent(0) == "the run's 0.25 minutes are spent"


def test_a_unit_has_limits_of_its_own() -> None:
    budget = Budget(llm_tokens=1000, unit_llm_tokens=100, unit_usd=0.5)
    assert budget.asked_enough is None
    for spent, said in (
        (Spent(1, 99, 0.49, 0, 99, 0.49), None),
        (Spent(1, 7, 0.0, 0, 100, 0.0), "the unit's 100 tokens of language model are spent"),
        (Spent(1, 5, 0.0, 1, 5, 0.5), "the unit's 0.5 dollars are spent"),
    ):
        assert budget.unit_asked_enough(lambda spent=spent: spent) == said
    assert Budget(llm_tokens=1, usd=0.1).unit_asked_enough(lambda: Spent(9, 9, 9.0, 0, 9, 9.0)) is None
