"""A stored experiment run again: the same function, unit and options, and where the result differs."""

import math
from typing import Any

from ..store.records import Evidence, Refused
from ..tools.sweep import Sweep
from ..tools.units import UnitId
from .config import Home

TOLERANCE = 1e-5    # relative; other batch shapes sum in another order


def replay_evidence(home: Home, evidence: str, device: str | None = None) -> dict[str, Any]:
    """{evidence, tool, unit, equal, differences, changed}: the paths at which rows or checks differ, at most 20.

    `changed` names what the experiment rests on (model, sweep, code, …) that is not as it was the first time. Ids,
    words and counts must be the same, numbers within 1e-5; a refusal must be refused again for the same reason.
    Raises Refused if there is no such evidence, its sweep is gone, or its experiment is refused only now.
    """
    stored = _find(home, evidence)
    if stored.unit is None:
        raise Refused(f"evidence {stored.id} is of no unit, so it cannot be run again.")
    unit = UnitId.parse(stored.unit + ("-" if stored.sign == -1 else ""))
    box = home.toolbox(unit.model, device, stored.provenance.get("dtype"))
    box.recall, box.remember = (lambda key: None), (lambda key, text: None)
    usual = box.sweep
    box.sweep = lambda unit: _sweep_of(home, stored) or usual(unit)
    again = box.call(stored.tool, unit, stored.arguments)
    if stored.ok and not again.ok:
        raise Refused(again.summary)
    found = _differences(stored.rows, again.rows, "rows") + _differences(stored.checks, again.checks, "checks")
    if not stored.ok:
        found += _differences(stored.summary, again.summary, "summary")
    changed = sorted(k for k, now in again.provenance.items() if stored.provenance.get(k) != now)
    return {
        "evidence": stored.id, "tool": stored.tool, "unit": str(unit), "equal": not found,
        "differences": found[:20], "changed": changed,
    }  # fmt: skip


def _find(home: Home, evidence: str) -> Evidence:
    found = home.findings.read(Evidence, id=evidence)
    if not found:
        raise Refused(f"there is no evidence {evidence!r}; `lamplighter show UNIT` lists a unit's experiments.")
    return found[0]


def _sweep_of(home: Home, stored: Evidence) -> Sweep | None:
    """The sweep that the evidence was made on, or None if it names none. Raises Refused if that one is gone."""
    digest = stored.provenance.get("sweep")
    if digest is None:
        return None
    folder = home.path / "sweeps" / digest
    if not folder.is_dir():
        raise Refused(f"the sweep {digest} of evidence {stored.id} is gone from {folder.parent}; put it back there.")
    return Sweep(folder)


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [d for key in old for d in _differences(old[key], new[key], f"{path}.{key}")]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in _differences(a, b, f"{path}[{i}]")]
    if isinstance(old, float) and isinstance(new, int | float):
        return [] if math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE) else [f"{path}: {old} → {new}"]
    return [] if old == new else [f"{path}: {old!r} → {new!r}"[:200]]
