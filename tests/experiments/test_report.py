"""Claims, tables, and what `lamplighter experiment` prints and ends with."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lamplighter.__main__ import app
from lamplighter.experiments import bench_input
from lamplighter.experiments.report import Claim, Report, at_least, at_most
from lamplighter.store.records import Refused


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (at_least("a", 0.95, 0.95, 10), True),
        (at_least("a", 0.94, 0.95, 10), False),
        (at_least("a", None, 0.95, 0), None),
        (at_least("a", 0.9, 0.0, 10, low=-0.1, high=1.0, by="low"), False),
        (at_least("a", 0.9, 0.0, 10, low=0.0, high=1.0, by="low"), True),
        (at_least("a", 0.9, 0.0, 10, by="low"), None),
        (at_most("a", 0.2, 0.2, 10), True),
        (at_most("a", 0.1, 0.2, 10, low=0.0, high=0.3, by="high"), False),
        (at_most("a", 0.1, 0.2, 10, by="high"), None),
    ],
)
def test_a_claim_holds_by_its_number_or_the_end_of_its_interval(claim: Claim, holds: bool | None) -> None:
    assert claim.holds is holds


def test_a_report_holds_only_if_every_claim_was_measured_and_holds() -> None:
    report = Report("x")
    report.add({"t": [{"a": 1}]}, [at_least("one", 1.0, 0.5, 3)])
    assert report.holds
    report.add({}, [at_least("two", None, 0.5, 0)])
    assert not report.holds
    told = json.loads(report.to_json())
    assert set(told) == {"experiment", "versions", "tables", "claims"} and told["versions"]["torch"]
    assert set(told["claims"][0]) == {"name", "value", "low", "high", "n", "bar", "holds"}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """bench_input with two parts, one of which misses its bar; what they were given."""
    given: list[Any] = []

    def made(value: float) -> Any:
        def part(folder: Path, seed: int, size: float, progress: Any) -> Any:
            given.append((folder, seed, size))
            return {"rows": [{"unit": "a[b]c", "share": None, "n": 3}]}, [at_least(f"v{value}", value, 0.5, 3)]

        return part

    monkeypatch.setattr(bench_input, "PARTS", {"good": made(0.9), "bad": made(0.1)})
    return given


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["experiment", *arguments])


def test_the_command_prints_tables_and_claims(parts: list[Any], tmp_path: Path) -> None:
    done = run("bench_input", "--only", "good", "--seed", "7", "--size", "0.5", "--home", str(tmp_path))
    assert done.exit_code == 0 and parts == [(tmp_path / "experiments", 7, 0.5)]
    assert "a[b]c" in done.stdout and "undefined" in done.stdout
    assert "v0.9: 0.9, n 3, at least 0.5: holds" in done.stdout


def test_a_claim_that_does_not_hold_ends_with_exit_code_5(parts: list[Any], tmp_path: Path) -> None:
    done = run("bench_input", "--json", "--home", str(tmp_path))
    assert done.exit_code == 5 and len(parts) == 2
    assert [claim["holds"] for claim in json.loads(done.stdout)["claims"]] == [True, False]
    assert "DOES NOT HOLD" in run("bench_input", "--home", str(tmp_path)).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench_nothing"], "'bench_nothing' is no experiment; there are bench_agent"),
        (["bench_input", "--only", "good,ugly"], "'ugly' is no part of bench_input; its parts are good, bad"),
    ],
)
def test_what_there_is_not_is_refused(parts: list[Any], arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, Refused) and words in str(done.exception) and parts == []
