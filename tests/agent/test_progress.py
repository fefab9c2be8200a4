"""What people see of a sweep: the pace of each part is its own."""

from collections.abc import Callable
from typing import Any

import pytest

from lamplighter.agent import progress as module
from lamplighter.agent.progress import Lines, Live


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def sweep(live: Any, wait: Callable[[float], None]) -> None:
    """5,000 tokens of text in 100 seconds, then a vocabulary of 400 in 4."""
    live.sweeping("tokenise", 3, 3)
    wait(100)
    live.sweeping("score", 5000, 5000)
    live.sweeping("atlas", 0, 400)
    wait(4)
    live.sweeping("atlas", 400, 400)


def test_lines_tell_the_pace_of_text_and_of_the_vocabulary(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Lines() as live:
        sweep(live, clock)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "sweep, score: 5,000 of 5,000 tokens, 50 a second", "sweep, atlas: 400 of 400 tokens, 100 a second",
    ]  # fmt: skip


def test_bars_show_text_and_vocabulary_apart(clock: Callable[[float], None]) -> None:
    with Live() as live:
        sweep(live, clock)
        shown = {task.description: (task.completed, task.total, task.fields["note"]) for task in live._bars.tasks}
    assert shown == {
        "reading the corpus": (3, 3, "3 of 3 documents"),
        "sweep": (5000, 5000, "score: 5,000 of 5,000 tokens, 50 a second"),
        "atlas": (400, 400, "atlas: 400 of 400 tokens, 100 a second"),
    }


def test_what_is_no_text_is_counted_without_a_pace(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Lines() as live:
        for done in range(3):
            live.counting("units", done, 3)
            clock(6)
    assert capsys.readouterr().err.splitlines() == ["units: 0 of 3", "units: 2 of 3"]
