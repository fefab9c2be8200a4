"""Measures unit after unit and keeps each as it is made: a study that was stopped goes on where it was."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from ..tools.sweep import Sweep
from ..tools.toolbox import code_digest
from ..tools.units import UnitId
from .report import Progress

T = TypeVar("T")


def by_unit(
    measure: Callable[[UnitId], T], gives: Any, sweep: Sweep, units: Sequence[UnitId], file: Path, progress: Progress
) -> list[T]:
    """`measure` of each unit, in order; one in `file` that the same code made from the same sweep is taken from there.

    measure: may depend on the unit, the sweep and the code alone. gives: its type, made of dataclasses.
    """
    code = code_digest("agent", "experiments", "store", "tools")
    path, form = file.with_name(f"{file.name}-{sweep.digest}-{code}.jsonl"), TypeAdapter[T](gives)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read(path)
    found = []
    with path.open("a", encoding="utf-8") as out:
        for number, unit in enumerate(units):
            progress("units", number, len(units))
            if str(unit) not in known:
                known[str(unit)] = form.dump_json(measure(unit)).decode()
                out.write(f"{unit}\t{known[str(unit)]}\n")
                out.flush()
            found.append(form.validate_json(known[str(unit)]))
    return found


def _read(path: Path) -> dict[str, str]:
    """What is kept, by unit. A last line that was cut short is taken off the file."""
    whole, end, _ = path.read_text("utf-8").rpartition("\n") if path.exists() else ("", "", "")
    path.write_text(whole + end, "utf-8")
    return dict(line.split("\t", 1) for line in whole.split("\n") if line)


__all__ = ["by_unit"]
