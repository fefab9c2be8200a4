"""What the commands on runs print for people: plans, where runs stand, backups, checks."""

from collections.abc import Mapping
from typing import Any

from ..store.plain import clean
from .life import ALIKE
from .show import say, table

LISTED = 20      # units of a plan that are named


def told(facts: Mapping[str, Any]) -> None:
    """The sentence of a command that changed a run."""
    say(clean(facts["told"]))


def _amount(value: float | None, what: str) -> str:
    """A cost with its unit; undefined where it is not known."""
    if value is None:
        return "undefined"
    if what.endswith("seconds"):
        return _time(value)
    if what == "tokens":
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value >= 1 or not value else f"{value:.4f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


# Where runs stand


def status_table(rows: list[dict[str, Any]]) -> None:
    """Each run on a line, then what else there is to know, a line each."""
    if not rows:
        say("no runs yet; lamplighter run starts one.")
        return
    states = ("queued", "running", "done", "failed")
    heads = ("run", "status", "units", *states, "units an hour", "requests", "tokens", "dollars", "waiting")
    table("", heads, [
        (r["run"], f"{r['status']}{', paused' * r['paused']}", r["units"], *(r[state] for state in states),
         "undefined" if r["units_an_hour"] is None else f"{r['units_an_hour']:,.1f}",
         f"{r['llm']['calls']:,}", f"{r['llm']['tokens']:,}", _dollars(r["llm"]), r["waiting"])
        for r in rows
    ])  # fmt: skip
    for row in rows:
        _beside(row)
    say(f"{_size(rows[0]['free_bytes'])} free on the disk of the home.")
    if rows[0]["note"]:
        say(f"pace and failures are unknown: {clean(rows[0]['note'])}")


def _dollars(llm: Mapping[str, Any]) -> str:
    known = f"{llm['usd']:.2f}"
    return f"{known} and {llm['unpriced']} without a price" if llm["unpriced"] else known


def _beside(row: Mapping[str, Any]) -> None:
    """Who works on a run, how long it may yet take, and what failed in it."""
    for worker in row["workers"]:
        holds = f"on {', '.join(worker['units'])}" if worker["units"] else "holds no unit just now"
        say(f"run {row['run']}: process {worker['pid']} {clean(holds)}")
    if row["workers"] and row["hours_left"] is not None:
        say(f"run {row['run']}: about {_time(3600 * row['hours_left'])} left at its pace so far.")
    if row["failures"]:
        kinds = ", ".join(f"{n} {clean(kind)}" for kind, n in row["failures"].items())
        apart = f"; {row['apart']} failed so {ALIKE} times in a row and are left out of it" if row["apart"] else ""
        say(f"run {row['run']}: failed as {kinds}; `lamplighter retry {row['run']}` queues them again{apart}.")
    if row["waiting"]:
        say(f"run {row['run']}: {row['waiting']} records wait in the outbox; the next run, try or retry delivers them.")


# A plan


def plan_page(facts: dict[str, Any]) -> None:
    """Units, sweeps, and what is expected of time, tokens and money."""
    say(_units(facts))
    states: dict[str, list[str]] = {}
    for unit in facts["units"]:
        states.setdefault(unit["status"], []).append(unit["unit"])
    for state, units in states.items():
        more = f", and {len(units) - LISTED} more" if len(units) > LISTED else ""
        say(f"{state}: {', '.join(units[:LISTED])}{more}")
    for sweep in facts["sweeps"]:
        say(_sweep(sweep))
    if facts["todo"]:
        _costs(facts)
    for limit in facts["limits"]:
        say(f"{limit['option']} {limit['limit']:g}: {limit['lasts']}.")
    if facts["command"]:
        does = "shows it; with --fresh it begins anew" if facts["status"] == "done" else "continues it"
        say(f"`{facts['command']}` {does}.")


def _units(facts: Mapping[str, Any]) -> str:
    planner = facts["planner"] or "a language model whose name only its server knows"
    judge = f", judged by {facts['judge']}" if facts["judge"] else ""
    at_most = "" if facts["exact"] else "at most "
    if facts["run"] is None:
        return f"a new run: {at_most}{facts['planned']} units, planned by {planner}{judge}."
    paused = ", paused" if facts["paused"] else ""
    return (
        f"run {facts['run']} ({facts['status']}{paused}): {facts['ended']} of {facts['planned']} units ended, "
        f"{facts['todo']} to do, planned by {planner}{judge}."
    )


def _sweep(sweep: Mapping[str, Any]) -> str:
    what = f"the sweep of {sweep['corpus']} over {', '.join(sweep['sites'])}"
    if not sweep["needed"]:
        return f"{what} is there."
    tokens = "an unknown number of tokens" if sweep["tokens"] is None else f"about {sweep['tokens']:,} tokens"
    if sweep["seconds"] is None:
        why = "no earlier sweep of this model says how fast" if not sweep["n"] else "unknown"
        return f"{what} is to be made first: {tokens}; its time is undefined ({why})."
    by = "one earlier sweep"
    if sweep["n"] > 1:
        bounds = f"{_time(sweep['low'])} to {_time(sweep['high'])}"
        by = f"{sweep['n']} earlier sweeps, {bounds} by the fastest and the slowest"
    return f"{what} is to be made first: {tokens}, {_time(sweep['seconds'])} by {by}."


def _costs(facts: Mapping[str, Any]) -> None:
    if not facts["n"]:
        say(f"time, tokens and dollars are undefined: {facts['expected'][0]['reason']}.")
        return
    most = "" if facts["exact"] else "at most "
    title = f"of {most}{facts['todo']} units, by {facts['n']} done here before"
    table(title, ("expected", "a unit [95 %]", "in all [95 %]"), [
        (cost["called"], _spread(cost, "each", ("low", "high")), _spread(cost, "total", ("total_low", "total_high")))
        for cost in facts["expected"]
    ])  # fmt: skip
    for reason in dict.fromkeys(cost["reason"] for cost in facts["expected"] if cost["reason"]):
        which = ", ".join(cost["called"] for cost in facts["expected"] if cost["reason"] == reason)
        say(f"{which}: {reason}.")
    if len(facts["history"]) > 1 or any(row["rung"] for row in facts["history"]):
        table("by rung of the ladder", ("rung", "units", "wall clock", "tools", "tokens", "dollars"), [
            (row["rung"] or "none", row["units"], *(_amount(row[what], what) for what in
             ("wall_seconds", "tool_seconds", "tokens", "usd")))
            for row in facts["history"]
        ])  # fmt: skip


def _spread(cost: Mapping[str, Any], name: str, bounds: tuple[str, str]) -> str:
    value = _amount(cost[name], cost["what"])
    low, high = (cost[bound] for bound in bounds)
    return value if low is None else f"{value} [{_amount(low, cost['what'])}, {_amount(high, cost['what'])}]"


# Backups and checks


def backup_page(facts: dict[str, Any]) -> None:
    """What a backup holds, and what it does not."""
    table(facts["folder"], ("file", "size", "sha256"), [
        (name, _size(file["bytes"]), file["sha256"]) for name, file in facts["files"].items()
    ])  # fmt: skip
    for name, why in facts["left_out"].items():
        say(f"left out: {name} ({why}).")
    say(f"`lamplighter verify {facts['folder']}` checks it.")


def checks_table(facts: dict[str, Any]) -> None:
    """Every check, and what is wrong."""
    table(f"{facts['of']} {facts['folder']}", ("check", "looked at", "wrong", "what"), [
        (row["check"], row["looked_at"], row["wrong"] or "", row["told"]) for row in facts["checks"]
    ])  # fmt: skip
    failed = sum(bool(row["wrong"]) for row in facts["checks"])
    say("all is as it should be." if facts["ok"] else f"{failed} of {len(facts['checks'])} checks fail.")
