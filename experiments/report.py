"""What an experiment gives: tables to read, and claims, each a number beside the bar it must reach."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..agent import show as shown
from ..tools import measures, stats

Progress = Callable[[str, int, int], None]
Part = tuple[dict[str, list[dict[str, Any]]], list["Claim"]]      # tables and claims
Parts = dict[str, Callable[[Path, int, float, Progress], Part]]   # given folder, seed, share of the full size, progress

PACKAGES = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Claim:
    """One number that the project holds itself to.

    value, low, high: with its 95 % interval where it has one; n: of so many; bar: what it must reach, in words; holds:
    None where it could not be measured, which counts as not held.
    """

    name: str
    value: float | None
    n: int
    bar: str
    holds: bool | None
    low: float | None = None
    high: float | None = None


def at_least(
    name: str, value: float | None, bar: float, n: int, low: float | None = None, high: float | None = None,
    by: str = "value",
) -> Claim:  # fmt: skip
    """A claim that holds where its value, or the lower end of its interval (`by` low), is at least `bar`."""
    tested = value if by == "value" else low
    words = f"at least {bar:g}" if by == "value" else f"lower end at least {bar:g}"
    return Claim(name, value, n, words, None if tested is None else tested >= bar, low, high)


def at_most(
    name: str, value: float | None, bar: float, n: int, low: float | None = None, high: float | None = None,
    by: str = "value",
) -> Claim:  # fmt: skip
    """A claim that holds where its value, or the upper end of its interval (`by` high), is at most `bar`."""
    tested = value if by == "value" else high
    words = f"at most {bar:g}" if by == "value" else f"upper end at most {bar:g}"
    return Claim(name, value, n, words, None if tested is None else tested <= bar, low, high)


def paired(name: str, differences: Sequence[float], seed: int) -> Claim:
    """That the mean of differences, one a unit, lies above 0: by its bootstrap interval over units."""
    low, high = stats.mean_interval(differences, seed)
    mean = float(np.mean(differences)) if len(differences) else None
    return Claim(name, mean, len(differences), "lower end above 0", None if low is None else low > 0, low, high)


@dataclass
class Report:
    """Tables by name, each a list of rows, and claims."""

    experiment: str
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def add(self, tables: Mapping[str, list[dict[str, Any]]], claims: Sequence[Claim]) -> None:
        self.tables |= tables
        self.claims += claims

    @property
    def holds(self) -> bool:
        return all(claim.holds for claim in self.claims)

    def to_json(self) -> str:
        """The form that `lamplighter experiment NAME --json` prints."""
        versions = {"lamplighter": __version__, "measures": measures.VERSION, **{p: version(p) for p in PACKAGES}}
        whole = {"experiment": self.experiment, "versions": versions, "tables": self.tables}
        return json.dumps(whole | {"claims": [asdict(claim) for claim in self.claims]}, allow_nan=False)

    def show(self) -> None:
        """Prints the tables, then a line a claim."""
        for name, rows in self.tables.items():
            heads = tuple(rows[0]) if rows else ()
            shown.table(name, heads, ([_cell(value) for value in row.values()] for row in rows))
        for claim in self.claims:
            word = {True: "holds", False: "DOES NOT HOLD", None: "NOT MEASURED"}[claim.holds]
            span = "" if claim.low is None else f" [{_cell(claim.low)}, {_cell(claim.high)}]"
            shown.say(f"{claim.name}: {_cell(claim.value)}{span}, n {claim.n}, {claim.bar}: {word}")


def _cell(value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


__all__ = ["Claim", "Part", "Parts", "Progress", "Report", "at_least", "at_most", "paired"]
