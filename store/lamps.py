"""What the start page and the lists of units say: which models, how far each layer is explained, and how well."""

from collections.abc import Mapping
from typing import Any

from .filters import Filters, page_of
from .mirror import Copy
from .records import VERDICTS, signed

BINS = 10                # lamps of a layer, each a tenth of F1

_LAMP = f"least({BINS - 1}, CAST(floor(input_f1 * {BINS}) AS BIGINT))"
_COUNTED = ", ".join(f"count(*) FILTER (verdict = '{verdict}') AS {verdict}" for verdict in VERDICTS)
_SITES = f"""
    SELECT model, site, layer, count(*) AS units, count(input_f1) AS scored, {_COUNTED},
           quantile_cont(input_f1, [0.25, 0.5, 0.75]) AS f1, median(floor_f1) AS floor,
           median(output_score) AS output
    FROM pages.units GROUP BY model, site, layer ORDER BY model, layer NULLS LAST, site
"""
_BINNED = f"""
    SELECT model, site, {_LAMP} AS bin, count(*) AS units
    FROM pages.units WHERE input_f1 IS NOT NULL GROUP BY ALL
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
    SELECT unit, sign, explanation, input_f1, input_f1_low, input_f1_high, floor_f1, verdict, created_at
    FROM pages.units WHERE created_at IS NOT NULL ORDER BY created_at DESC, place LIMIT 5
"""

_IMPORTED = """
    SELECT source, count(*) AS explanations, count(DISTINCT (unit, sign)) AS units, count(judge) AS scored,
           count(*) FILTER (verdict = 'accepted') AS accepted
    FROM imported GROUP BY source ORDER BY source
"""


def start_facts(copy: Copy) -> dict[str, Any]:
    """What the start page says of a copy, computed once: see `_started`."""
    return copy.once("start", _started)


def _started(copy: Copy) -> dict[str, Any]:
    """{models: [{name, architecture, layers, units, sites: [{site, …, bins}]}], newest, runs, units, verdicts, …}.

    imported: {source, explanations, units, scored, accepted} of what other tools made; the rest is of this one.
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
        "imported": copy.ask(_IMPORTED),
    }  # fmt: skip


def unit_list(
    copy: Copy, filters: Filters, order: str = "unit", top: int = 50, skip: int = 0, lamp: int | None = None
) -> tuple[list[dict[str, Any]], int]:
    """A page of all units that anything is known of, as cards, and how many there are in all.

    lamp: only those of this lamp of their layer, 0 to BINS - 1: an F1 in this tenth.
    """
    lit = "true" if lamp is None else f"{_LAMP} = $lamp"
    cards = f"SELECT * FROM pages.units WHERE {lit}"
    rows, total = page_of(copy.ask, cards, filters, order, top, skip, {} if lamp is None else {"lamp": lamp})
    return [card(row) for row in rows], total


def card(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of pages.units with the unit's signed name."""
    return {"name": signed(row), **{key: value for key, value in row.items() if key != "place"}}


__all__ = ["BINS", "card", "start_facts", "unit_list"]
