"""What the start page and the lists of units say: which models, how far each layer is explained, and how well."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .mirror import Copy
from .records import VERDICTS, Refused, signed

BINS = 10                # lamps of a layer, each a tenth of F1
EACH = 50                # units on a page of a list
ORDERS = {
    "unit": 'model, layer, site, "index", sign DESC',
    "best": 'input_f1 DESC NULLS LAST, model, layer, site, "index", sign DESC',
    "worst": 'input_f1 NULLS LAST, model, layer, site, "index", sign DESC',
    "newest": 'created_at DESC NULLS LAST, model, layer, site, "index", sign DESC',
}

_COUNTED = ", ".join(f"count(*) FILTER (state = '{verdict}') AS {verdict}" for verdict in VERDICTS)
_SITES = f"""
    SELECT model, site, layer, count(*) AS units, count(input_f1) AS scored, {_COUNTED},
           quantile_cont(input_f1, [0.25, 0.5, 0.75]) AS f1, median(floor_f1) AS floor,
           median(output_score) AS output
    FROM page_units GROUP BY model, site, layer ORDER BY model, layer NULLS LAST, site
"""
_BINNED = f"""
    SELECT model, site, least({BINS - 1}, CAST(floor(input_f1 * {BINS}) AS BIGINT)) AS bin, count(*) AS units
    FROM page_units WHERE input_f1 IS NOT NULL GROUP BY ALL
"""
_MODELS = """
    SELECT name, architecture, layers, vocabulary FROM models
    QUALIFY row_number() OVER (PARTITION BY name ORDER BY created_at DESC, id DESC) = 1 ORDER BY name
"""
_RUNS = """
    SELECT run, min(created_at) AS started, arg_max(status, created_at) AS status,
           arg_max(len(CAST("units" AS VARCHAR[])), created_at) AS units
    FROM runs WHERE run IS NOT NULL GROUP BY run ORDER BY started DESC LIMIT 5
"""
_NEWEST = """
    SELECT unit, sign, explanation, input_f1, input_f1_low, input_f1_high, floor_f1, state, created_at FROM page_units
    WHERE created_at IS NOT NULL ORDER BY created_at DESC, place LIMIT 5
"""


@dataclass(frozen=True)
class Wanted:
    """Which units a list is of; what is None is not asked. low, high: F1 from, and below (up to, where it is 1)."""

    model: str | None = None
    site: str | None = None
    verdict: str | None = None
    low: float | None = None
    high: float | None = None
    order: str = "unit"

    def __post_init__(self) -> None:
        if self.verdict is not None and self.verdict not in VERDICTS:
            raise Refused(f"{self.verdict!r} is no verdict; choose one of {', '.join(VERDICTS)}.")
        if self.order not in ORDERS:
            raise Refused(f"{self.order!r} is no order; choose one of {', '.join(ORDERS)}.")

    def query(self) -> dict[str, Any]:
        """What is asked, for an address."""
        return {k: v for k, v in vars(self).items() if v is not None and (k, v) != ("order", "unit")}

    def where(self) -> tuple[str, dict[str, Any]]:
        """A condition and its parameters."""
        told = {
            "model": "model = $model", "site": "site = $site", "verdict": "state = $verdict", "low": "input_f1 >= $low",
            "high": "input_f1 <= $high" if self.high is not None and self.high >= 1 else "input_f1 < $high",
        }  # fmt: skip
        given = {name: getattr(self, name) for name in told if getattr(self, name) is not None}
        return " AND ".join(told[name] for name in given) or "true", given


def start_facts(copy: Copy) -> dict[str, Any]:
    """{models: [{name, architecture, layers, units, sites: [{site, …, bins}]}], newest, runs, units, verdicts}.

    bins: how many units of a site have an F1 in each tenth. f1: quartiles; floor, output: medians.
    """
    sites = copy.ask(_SITES)
    bins: dict[tuple[str, str], list[int]] = {}
    for row in copy.ask(_BINNED):
        bins.setdefault((row["model"], row["site"]), [0] * BINS)[row["bin"]] = row["units"]
    known = {row["name"]: row for row in copy.ask(_MODELS)}
    nothing = {"architecture": None, "layers": None, "vocabulary": None}
    models = []
    for name in dict.fromkeys([*known, *(row["model"] for row in sites)]):
        own = [row | {"bins": bins.get((name, row["site"]), [0] * BINS)} for row in sites if row["model"] == name]
        facts = known.get(name, {"name": name} | nothing)
        models.append(facts | {"sites": own, "units": sum(row["units"] for row in own)})
    return {
        "models": models, "newest": [row | {"name": signed(row)} for row in copy.ask(_NEWEST)], "runs": copy.ask(_RUNS),
        "units": sum(row["units"] for row in sites),
        "verdicts": {verdict: sum(row[verdict] for row in sites) for verdict in VERDICTS},
    }  # fmt: skip


def unit_list(copy: Copy, wanted: Wanted, page: int = 1, each: int = EACH) -> dict[str, Any]:
    """{units: cards in order, total, page, pages}. Raises Refused for a page below 1."""
    if page < 1 or not 1 <= each <= 500:
        raise Refused(f"page {page} of {each} units each is none; ask for page 1 or later, and 1 to 500 a page.")
    where, given = wanted.where()
    total = copy.ask(f"SELECT count(*) AS n FROM page_units WHERE {where}", given)[0]["n"]
    rows = copy.ask(
        f"SELECT * FROM page_units WHERE {where} ORDER BY {ORDERS[wanted.order]} LIMIT $each OFFSET $from",
        given | {"each": each, "from": (page - 1) * each},
    )
    return {"units": [card(row) for row in rows], "total": total, "page": page, "pages": max(1, -(-total // each))}


def card(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of page_units with the unit's signed name."""
    return {"name": signed(row), **{key: value for key, value in row.items() if key != "place"}}


__all__ = ["BINS", "EACH", "ORDERS", "Wanted", "card", "start_facts", "unit_list"]
