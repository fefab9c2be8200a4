"""A study of many units that was stopped goes on where it was, and takes up nothing that another one measured."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lamplighter.experiments import by_unit as module
from lamplighter.experiments.by_unit import by_unit
from lamplighter.tools.units import UnitId

UNITS = [UnitId("m", "0-mlp", index, sign) for index in range(2) for sign in (1, -1)]


@dataclass
class Measured:
    unit: UnitId
    value: float | None
    words: dict[str, list[int]] = field(default_factory=dict)


class Study:
    """Measures a unit; raises at the unit of that number."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails, self.asked = fails, 0

    def __call__(self, unit: UnitId) -> Measured:
        if self.asked == self.fails:
            raise RuntimeError
        self.asked += 1
        return Measured(unit, None if unit.index else 1 / 3, {"a\n\t\u2028b": [unit.sign]})


def go(folder: Path, study: Study, sweep: str = "s") -> list[Measured]:
    kept: Any = SimpleNamespace(digest=sweep)
    return by_unit(study, Measured, kept, UNITS, folder / "units" / "part", lambda *_: None)


def test_what_was_measured_before_the_stop_is_not_measured_again(tmp_path: Path) -> None:
    whole = [Study()(unit) for unit in UNITS]
    with pytest.raises(RuntimeError):
        go(tmp_path, Study(fails=3))
    rest = Study()
    assert go(tmp_path, rest) == whole and rest.asked == 1
    again = Study(fails=0)
    assert go(tmp_path, again) == whole and again.asked == 0


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    whole = go(tmp_path, Study())
    (path,) = (tmp_path / "units").iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    rest = Study()
    assert go(tmp_path, rest) == whole and rest.asked == 1
    assert go(tmp_path, Study(fails=0)) == whole


def test_another_sweep_or_other_code_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path, Study())
    other = Study()
    go(tmp_path, other, sweep="t")
    assert other.asked == len(UNITS)
    monkeypatch.setattr(module, "code_digest", lambda *_: "changed")
    changed = Study()
    go(tmp_path, changed)
    assert changed.asked == len(UNITS)
