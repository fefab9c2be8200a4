"""Which units are looked at, in what order, and a page of them, wherever units are listed or searched."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .records import VERDICTS, Refused

KINDS = ("mlp", "attn", "resid", "feature")
REVIEWED = ("unreviewed", "accepted", "rejected", "disputed", "unsure", "edited")
_IN_ORDER = 'model, layer, site, "index", sign DESC'
ORDERS = {
    "unit": _IN_ORDER, "best": f"input_f1 DESC NULLS LAST, {_IN_ORDER}", "worst": f"input_f1 NULLS LAST, {_IN_ORDER}",
    "newest": f"created_at DESC NULLS LAST, {_IN_ORDER}",
}  # fmt: skip

Rows = list[dict[str, Any]]
Ask = Callable[[str, Mapping[str, Any]], Rows]


@dataclass(frozen=True)
class Filters:
    """Which units are looked at; None: whichever. Scores are input F1; an undefined one is in no range.

    kind: one of KINDS (neurons, heads, dimensions of the stream, features). planner: its label, or how that begins up
    to a colon: `llm` is any language model, `delphi` whatever was imported from delphi. review: one of REVIEWED, what
    people made of the explanation.
    """

    model: str | None = None
    site: str | None = None
    sign: int | None = None
    kind: str | None = None
    min_score: float | None = None
    max_score: float | None = None
    verdict: str | None = None
    planner: str | None = None
    review: str | None = None

    def __post_init__(self) -> None:
        known = {"kind": KINDS, "verdict": VERDICTS, "review": REVIEWED, "sign": (1, -1)}
        for name, values in known.items():
            given = getattr(self, name)
            if given is not None and given not in values:
                raise Refused(f"{name} {given!r} is none that there is; write one of {', '.join(map(str, values))}.")

    @property
    def given(self) -> dict[str, Any]:
        """Those that apply."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @property
    def where(self) -> str:
        """The condition on cards, with `given` as its parameters."""
        how = {
            "min_score": "input_f1 >= $min_score", "max_score": "input_f1 <= $max_score",
            "planner": "(planner = $planner OR starts_with(planner, $planner || ':'))",
        }  # fmt: skip
        return " AND ".join(how.get(name, f"{name} = ${name}") for name in self.given) or "true"


def check_page(top: int, skip: int) -> None:
    """Raises Refused for a page that is none."""
    if top < 1 or skip < 0:
        raise Refused(f"{top} results after the first {skip} cannot be listed; ask for at least 1, after at least 0.")


def page_of(
    ask: Ask, cards: str, filters: Filters, order: str, top: int, skip: int, also: Mapping[str, Any] | None = None
) -> tuple[Rows, int]:
    """A page of the rows that `cards` (a SELECT up to its WHERE) gives, by `ask`; and how many there are in all.

    also: parameters of conditions in `cards`. Raises Refused for an order or a page that is none.
    """
    if order not in ORDERS:
        raise Refused(f"{order!r} is no order of units; write one of {', '.join(ORDERS)}.")
    check_page(top, skip)
    given = filters.given | dict(also or {})
    chosen = f"{cards} AND {filters.where}"
    total = ask(f"SELECT count(*) AS n FROM ({chosen})", given)[0]["n"]
    page = {"top": top, "skip": skip}
    return ask(f"{chosen} ORDER BY {ORDERS[order]} LIMIT $top OFFSET $skip", given | page), int(total)


__all__ = ["KINDS", "ORDERS", "REVIEWED", "Filters", "check_page", "page_of"]
