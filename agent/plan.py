"""What a run would do and cost, before it is begun: no work is done, and nobody is asked.

Costs come from this home's own history: units that were investigated before, by the same planner on the same model.
Where there is none, they are undefined. A mean has the 95 % interval of a bootstrap over those units; a total that of
as many units drawn from each bootstrap sample, so that it holds what is not known of the mean and what differs from
unit to unit. What the judge and the server are tried with, once a run, is not in it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.records import Refused
from ..store.work import RunState
from ..tools import measures
from .config import Home
from .life import command, runs, taken
from .planners import foresee, foresee_judge, label_of

if TYPE_CHECKING:
    from ..tools.corpus import Corpus
    from ..tools.subject import Subject
    from ..tools.units import UnitId
    from .request import Request

FEW = 5              # units of history below which no interval is given
_SEED = 0
_AUTO = re.compile(r"auto:([1-9]\d*)")

# What a unit cost when it was first investigated; one that is done again recalls much and costs little.
_HISTORY = """
    WITH asked AS (SELECT run, any_value(asked->>'$.judge') AS judge FROM runs GROUP BY run),
    first AS (
        SELECT coalesce(i.investigation, i.id) AS id, i.run, CAST(i.cost->>'$.seconds' AS DOUBLE) AS tool_seconds
        FROM investigations i JOIN asked USING (run)
        WHERE i.planner = $planner AND regexp_extract(i.unit, '^(.*)/([^/]+)/([^/]+)$', 1) = $model
              AND asked.judge IS NOT DISTINCT FROM $judge
        QUALIFY row_number() OVER (PARTITION BY i.unit, i.sign ORDER BY i.created_at, i.id) = 1
    ),
    spent AS (
        SELECT investigation, sum(coalesce(tokens_in, 0) + coalesce(tokens_out, 0)) AS tokens, sum(usd) AS usd,
               count(*) - count(usd) AS unpriced
        FROM llm_calls GROUP BY investigation
    ),
    climbed AS (
        SELECT investigation, max(provenance->>'$.rung') AS rung FROM hypotheses WHERE kept GROUP BY investigation
    )
    SELECT first.*, coalesce(spent.tokens, 0)::DOUBLE AS tokens,
           CASE WHEN coalesce(spent.unpriced, 0) = 0 THEN coalesce(spent.usd, 0) END AS usd, climbed.rung
    FROM first LEFT JOIN spent ON spent.investigation = first.id LEFT JOIN climbed ON climbed.investigation = first.id
"""
_SWEEPS = """
    SELECT digest, corpus, provenance->>'$.corpus' AS text, provenance->>'$.device' AS device,
           provenance->>'$.dtype' AS dtype, tokens, seconds FROM sweeps
    WHERE model = ? QUALIFY row_number() OVER (PARTITION BY digest ORDER BY created_at, id) = 1
"""


def plan_facts(home: Home, request: "Request") -> dict[str, Any]:
    """What a request comes to: its run if there is one, units, sweeps, and what they cost. See the module.

    Loads the subject where no run of the request is there that knows its units. Raises Refused as the run would.
    """
    planner = foresee(request.planner, request.endpoint, home)
    judge = foresee_judge(request.judge, planner, home)
    state = None if request.fresh else _begun(home, request, planner, judge)
    units = _known(home, state) if state is not None else _foreseen(home, request)
    planned = len(units["units"]) + units["more"]
    ended = sum(unit["status"] in ("done", "failed") for unit in units["units"])
    todo = planned - ended
    history = _history(home, request.model, _named(planner), label_of(*judge) if judge[1] else None)
    expected = _expected(history, todo, units["exact"])
    facts = {
        "run": state.id if state else None, "status": state.status if state else "new",
        "paused": state.paused if state else False, "planner": _named(planner) or None, "judge": judge[0] or None,
        **units, "planned": planned, "ended": ended, "todo": todo,
        "history": _by_rung(history), "n": len(history), "expected": expected,
    }  # fmt: skip
    return facts | {"limits": _limits(request, facts), "command": command(home, state) if state else None}


def _named(planner: tuple[str, str]) -> str:
    """What an investigation of this planner says planned it; "" where only the server knows its model."""
    model, address = planner
    return (f"llm:{model}" if model else "") if address else "playbook"


# The run and its units


def _begun(home: Home, request: "Request", planner: tuple[str, str], judge: tuple[str, str]) -> RunState | None:
    """The newest run of this request. A model that only the server knows may be any of that server."""
    wanted = json.loads(json.dumps(replace(request, planner="", judge=None).asked()))

    def fits(label: Any, who: tuple[str, str], nobody: str | None) -> bool:
        model, address = who
        if not address:
            return bool(label == nobody)
        return bool(label == label_of(model, address)) if model else str(label).endswith(f"@{address}")

    for run in reversed(runs(home)):
        rest = run.asked | {"planner": "", "judge": None}
        if rest == wanted and fits(run.asked["planner"], planner, "playbook") and fits(run.asked["judge"], judge, None):
            return run
    return None


def _known(home: Home, state: RunState) -> dict[str, Any]:
    """Units of a run that was begun, and its sweeps, which were made then."""
    jobs = {job.unit: job.status for job in home.work.jobs(state.id)}
    sql = "SELECT DISTINCT digest, corpus, sites FROM sweeps WHERE run = ?"
    rows = home.findings.sql(sql, [state.id]) if home.findings.path.exists() else []
    sweeps = [
        {"corpus": row["corpus"], "sites": json.loads(row["sites"])}
        | (_made() if (home.path / "sweeps" / row["digest"] / "sweep.json").exists() else _unknown())
        for row in rows
    ]
    units = [{"unit": unit, "status": jobs.get(unit, "queued")} for unit in state.units]
    return {"units": units, "more": 0, "exact": True, "sweeps": sweeps}


def _foreseen(home: Home, request: "Request") -> dict[str, Any]:
    """Units and sweeps of a request that nobody has begun: `more` are those that a sweep has yet to pick, at most."""
    from ..tools.auto import early_sites, pick_units
    from ..tools.corpus import load_corpus
    from ..tools.features import find_coder
    from ..tools.subject import Subject
    from ..tools.sweep import made_before
    from ..tools.units import parse_spec

    subject = Subject.load(request.model, device=request.device, dtype=request.dtype)
    subject.find_coder = partial(find_coder, places=(home.saes,))
    named = parse_spec(request.units, request.model, lambda n: [])
    _check(subject, request.model, named)
    sites = [*request.sites, *(unit.site for unit in named)] or early_sites(subject.n_layers)
    texts = [load_corpus(one) for one in (request.corpus, request.second) if one is not None]
    swept = [made_before(subject, text, sites, home.path, request.tokens) for text in texts]
    sweeps = [
        {"corpus": text.name, "sites": sorted(set(sites))}
        | (_made() if one else _to_sweep(home, subject, text, request))
        for text, one in zip(texts, swept, strict=True)
    ]
    first, more = swept[0], _picked(request.units)
    if more and first is not None:
        named, more = parse_spec(request.units, request.model, lambda n: [one.unit for one in pick_units(first, n)]), 0
    units = [{"unit": str(unit), "status": "new"} for unit in named]
    return {"units": units, "more": more, "exact": not more, "sweeps": sweeps}


def _check(subject: "Subject", model: str, named: Sequence["UnitId"]) -> None:
    for unit in named:
        if unit.model != model:
            raise Refused(f"{unit} is no unit of {model}; name its model with --model.")
        subject.check(unit)


def _picked(spec: str) -> int:
    """How many units `auto:N` picks at most."""
    return sum(int(found[1]) for part in spec.split(",") if (found := _AUTO.fullmatch(part.strip())))


# The sweep


def _made() -> dict[str, Any]:
    return {"needed": False, "tokens": None, "seconds": None, "low": None, "high": None, "n": 0}


def _unknown() -> dict[str, Any]:
    return _made() | {"needed": True}


def _to_sweep(home: Home, subject: "Subject", text: "Corpus", request: "Request") -> dict[str, Any]:
    """Tokens of a sweep that is not there, and its seconds by the pace of earlier ones: slowest and fastest as bounds.

    Tokens are as many as were asked for, else those of an earlier sweep of this text; None where that is not known.
    """
    past = home.findings.sql(_SWEEPS, [request.model], unpack=True) if home.findings.path.exists() else []
    kind = (subject.device.type, str(subject.dtype).removeprefix("torch."))
    alike = [p for p in past if (p["device"], p["dtype"]) == kind and p["seconds"]]
    paces = [sum(p["tokens"].values()) / p["seconds"] for p in alike]
    whole = [sum(p["tokens"].values()) for p in past if p["text"] == text.digest]
    tokens = request.tokens or max(whole, default=None)
    if tokens is None or not paces:
        return _unknown() | {"tokens": tokens, "n": len(paces)}
    seconds = {"seconds": tokens / float(np.mean(paces)), "low": tokens / max(paces), "high": tokens / min(paces)}
    return {"needed": True, "tokens": tokens, **{k: round(v, 3) for k, v in seconds.items()}, "n": len(paces)}


# Costs


def _history(home: Home, model: str, planner: str, judge: str | None) -> list[dict[str, Any]]:
    """What each unit of the past cost: {rung, wall_seconds, tool_seconds, tokens, usd}; usd None where a call had no
    price, wall_seconds where that was not recorded."""
    if not planner or not home.findings.path.exists():
        return []
    rows = home.findings.sql(_HISTORY, {"planner": planner, "model": model, "judge": judge})
    took = {one.investigation: one.seconds for each in taken(home).values() for one in each}
    return [row | {"wall_seconds": took.get(row["id"])} for row in sorted(rows, key=lambda row: row["id"])]


def _by_rung(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the units that ended on each rung of the ladder; None: nothing was put forward, or no model asked."""
    rungs = sorted({row["rung"] or "" for row in history})
    return [
        {"rung": rung or None, "units": len(of)} | {what: _mean([row[what] for row in of]) for what in _WHAT}
        for rung in rungs
        for of in [[row for row in history if (row["rung"] or "") == rung]]
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


_WHAT = {
    "wall_seconds": "time on the clock", "tool_seconds": "time in tools",
    "tokens": "tokens of language model", "usd": "dollars",
}  # fmt: skip


def _expected(history: Sequence[dict[str, Any]], todo: int, exact: bool) -> list[dict[str, Any]]:
    """Of each kind of cost: a unit's mean and the total of `todo` units, with intervals, or why they are undefined."""
    return [_cost(what, [row[what] for row in history], todo) | {"at_most": not exact} for what in _WHAT]


def _cost(what: str, values: Sequence[float | None], todo: int) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    told = {"what": what, "called": _WHAT[what], "n": len(known)}
    empty = dict.fromkeys(("each", "low", "high", "total", "total_low", "total_high"))
    if not values:
        return told | empty | {"reason": "this home has no unit of this planner and model yet"}
    if what == "usd" and len(known) < len(values):
        return told | empty | {"reason": f"{len(values) - len(known)} of {len(values)} units had calls without a price"}
    if not known:
        return told | empty | {"reason": "it was not recorded"}
    mean = float(np.mean(known))
    told |= {"each": mean, "total": mean * todo}
    if len(known) < FEW:
        return empty | told | {"reason": f"{len(known)} units are too few for an interval"}
    low, high, total_low, total_high = _bounds(np.asarray(known, dtype=np.float64), todo)
    return told | {"low": low, "high": high, "total_low": total_low, "total_high": total_high, "reason": None}


def _bounds(values: "np.ndarray[Any, np.dtype[np.float64]]", todo: int) -> tuple[float, float, float, float]:
    """95 % intervals of the mean of values [N], and of the sum of `todo` new ones: see the module."""
    draw = np.random.default_rng(_SEED)
    samples = draw.choice(values, (measures.BOOTSTRAP, len(values)))
    totals = [float(draw.choice(sample, todo).sum()) if todo else 0.0 for sample in samples]
    edges = ((1 - measures.CONFIDENCE) / 2, (1 + measures.CONFIDENCE) / 2)
    low, high = np.quantile(samples.mean(axis=1), edges)
    total_low, total_high = np.quantile(totals, edges)
    return float(low), float(high), float(total_low), float(total_high)


def _limits(request: "Request", facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each limit that was given, whether it lasts: `enough`, `not enough`, `perhaps not enough` or `unknown`."""
    costs = {cost["what"]: cost for cost in facts["expected"]}
    sweeps = [one for one in facts["sweeps"] if one["needed"]]
    asked = (("--minutes", request.minutes, "wall_seconds", 60.0), ("--llm-tokens", request.llm_tokens, "tokens", 1.0),
             ("--usd", request.usd, "usd", 1.0))  # fmt: skip
    told = []
    for option, limit, what, scale in asked:
        if limit is None:
            continue
        before = sweeps if what == "wall_seconds" else []
        bounds = [(one["low"], one["high"]) for one in before] + [(costs[what]["total_low"], costs[what]["total_high"])]
        told.append({"option": option, "limit": limit, "lasts": _lasts(limit * scale, bounds)})
    return told


def _lasts(limit: float, bounds: Sequence[tuple[float | None, float | None]]) -> str:
    if any(None in bound for bound in bounds):
        return "unknown"
    low, high = (sum(float(bound[i] or 0) for bound in bounds) for i in (0, 1))
    return "enough" if high <= limit else "not enough" if low > limit else "perhaps not enough"


__all__ = ["plan_facts"]
