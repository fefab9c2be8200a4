"""The morning report's facts: what a run was asked, did, failed at, spent and found, and what changed since another.

The findings do the counting, so that a run of thousands of units costs little more than one of tens; lists are cut to
what a person reads in the morning, and say how many more there are. `report_page.py` makes a page of them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from .. import __version__
from ..store.records import VERDICTS, Refused, signed, utc_now
from ..tools import measures
from .config import Home
from .verdict import NO_RULE

BEST = 10               # explanations shown at most
SURPRISES = 4           # of each kind
LISTED = 40             # units listed where a section names units
STRIP = 60              # scored units of a site that are drawn one by one; of more, how many fall into each bin
BINS = 20
NEAR_CERTAIN = 0.8      # F1 on tune text from which a claim counts as near-certain
MOVED = 0.1             # a change of F1 that is worth a row
CONTEXT = 180           # characters of an example before the token that fires

# One row a unit that was brought to an end in a run: its verdict, its explanation, and its headline score, which is F1
# by rule, or of a sentence without a rule a qualified judge's detection (as in verdict.py).
_KNOWN = r"""
    WITH decided AS (
        SELECT * FROM verdicts WHERE run = $run
        QUALIFY row_number() OVER (PARTITION BY unit, sign ORDER BY created_at DESC, id DESC) = 1
    ), headline AS (
        SELECT *, list_max(map_values(CAST(floors AS MAP(VARCHAR, DOUBLE)))) AS floor,
               CAST(details->>'$.margin.low' AS DOUBLE) AS lead_low
        FROM scores
        WHERE run = $run AND side = 'score' AND (
            (metric = 'f1' AND judge IS NULL) OR (metric = 'detection' AND judge IS NOT NULL AND low IS NOT NULL
                                                  AND coalesce(details->>'$.qualified', 'false') = 'true'))
        QUALIFY row_number() OVER (PARTITION BY hypothesis ORDER BY
            judge IS NULL AND reason IS NOT DISTINCT FROM $no_rule, judge IS NOT NULL, created_at DESC, id DESC) = 1
    ), pushes AS (
        SELECT * FROM hypotheses WHERE run = $run AND kept AND side = 'output'
        QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
    ), pushed AS (
        SELECT * FROM scores WHERE run = $run AND side = 'score' AND metric = 'output_auc'
        QUALIFY row_number() OVER (PARTITION BY hypothesis ORDER BY created_at DESC, id DESC) = 1
    )
    SELECT d.unit, d.sign, d.investigation, d.verdict, d.reason, d.q,
           regexp_extract(d.unit, '^.*/([^/]+)/[^/]+$', 1) AS site,
           TRY_CAST(regexp_extract(d.unit, '^.*/(\d+)-[^/]+/[^/]+$', 1) AS BIGINT) AS layer,
           h.sentence AS explanation, h.rule_text AS rule, h.tune_f1, s.metric, s.value, s.low, s.high, s.floor,
           s.lead_low, p.sentence AS output_explanation, a.value AS output_score, a.low AS output_low,
           a.high AS output_high
    FROM decided d
    LEFT JOIN hypotheses h ON h.id = d.hypothesis
    LEFT JOIN headline s ON s.hypothesis = d.hypothesis
    LEFT JOIN pushes p ON p.investigation = d.investigation
    LEFT JOIN pushed a ON a.hypothesis = p.id
"""

_RUNS = """
    SELECT run, min(created_at) AS started, max(created_at) AS ended, arg_max(status, created_at) AS status,
           sum(seconds) FILTER (status <> 'running') AS seconds, any_value(provenance->>'$.code') AS code,
           any_value(CAST(asked AS VARCHAR)) AS asked
    FROM runs WHERE run IS NOT NULL GROUP BY run ORDER BY started, run
"""

# The F1 of a rule on the second corpus of its run beside that on the first.
_SECOND = """
    SELECT s.unit, s.sign, s.details->>'$.corpus' AS corpus, f.value AS first, s.value AS second,
           f.low > s.high OR f.high < s.low AS apart
    FROM scores s JOIN scores f ON f.hypothesis = s.hypothesis AND f.metric = 'f1' AND f.side = 'score'
    WHERE s.run = $run AND s.metric = 'f1_second_corpus' AND s.value IS NOT NULL AND f.value IS NOT NULL
          AND f.judge IS NULL
    QUALIFY row_number() OVER (PARTITION BY s.hypothesis ORDER BY s.created_at DESC, s.id DESC, f.id DESC) = 1
    ORDER BY s.unit, s.sign
"""

# Lower ends decide, so that a high score on little text is no best one.
_BEST = f"""
    SELECT * FROM ({_KNOWN})
    WHERE value > floor AND lead_low > 0 AND verdict NOT IN ('rejected', 'failed')
    ORDER BY low DESC, value DESC, unit, sign LIMIT $most
"""

# How far the interval of F1 and that of 2 AUC − 1 (0 is chance on both scales) lie apart.
_SIDES = f"""
    SELECT *, greatest(low - (2 * output_high - 1), 2 * output_low - 1 - high) AS gap FROM ({_KNOWN})
    WHERE gap > 0 ORDER BY gap DESC, unit, sign LIMIT $most
"""

_REFUTED = f"""
    SELECT *, tune_f1 - high AS gap FROM ({_KNOWN}) WHERE metric = 'f1' AND tune_f1 >= $near_certain AND gap > 0
    ORDER BY gap DESC, unit, sign LIMIT $most
"""

_MATTERS = f"""
    WITH taken_out AS (
        SELECT investigation, CAST("rows"->>'$[0].delta_ce' AS DOUBLE) AS effect,
               CAST("rows"->>'$[0].low' AS DOUBLE) AS effect_low, CAST("rows"->>'$[0].high' AS DOUBLE) AS effect_high
        FROM evidence
        WHERE run = $run AND tool = 'ablate' AND ok AND (checks->>'$.effect') = 'shown'
              AND ("rows"->>'$[0].where') = 'firing'
        QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
    )
    SELECT k.*, effect, effect_low, effect_high, least(abs(effect_low), abs(effect_high)) AS gap
    FROM ({_KNOWN}) k JOIN taken_out USING (investigation)
    WHERE verdict = 'abstained' ORDER BY gap DESC, unit, sign LIMIT $most
"""

SURPRISING = (
    ("sides", "the two sides disagree", _SIDES,
     "what a unit fires on and what it pushes are known unequally well: the 95 % intervals of F1 and of 2 AUC − 1, "
     "both of which are 0 for a claim that says nothing, lie apart; the farthest apart first"),
    ("refuted", "near-certain, and refuted", _REFUTED,
     f"F1 was at least {NEAR_CERTAIN} on tune text, and the whole interval on score text lies below that; the farthest "
     "below first"),
    ("matters", "it matters, and nobody knows why", _MATTERS,
     "no explanation was put forward, yet without the unit the model predicts otherwise where it fires: the interval "
     "of the change in CE leaves 0 out; the farthest from 0 first"),
)  # fmt: skip

# Why an unclear verdict waits for a person, by what verdict.py says of it; what comes first is looked at first.
_WAITS = (
    ("disagreement:%", "scores contradict each other"),
    ("%but q =%", "good by itself, not beside the false discoveries of the run"),
    ("%known at the run's end", "passes so far; decided when the run ends"),
    ("%does not lie above 0", "its lead over the highest floor may be none"),
    ("%reaches below%", "the interval reaches below what is accepted"),
    ("too few positives%", "fires too seldom on score text"),
    ("%", "another reason"),
)
_WHY = "CASE " + " ".join(f"WHEN reason LIKE $why_{n} THEN {n}" for n in range(len(_WAITS))) + " END"
_REVIEW = f"SELECT *, {_WHY} AS why FROM ({_KNOWN}) WHERE verdict = 'unclear'"

_FAILURES = """
    SELECT f.unit, f.sign, f.kind, left(f.message, 500) AS message, f.step, f.created_at,
           count(*) OVER (PARTITION BY f.unit, f.sign) AS attempts
    FROM failures f WHERE f.run = $run AND f.unit IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY f.unit, f.sign ORDER BY f.created_at DESC, f.id DESC) = 1
    ORDER BY f.created_at, f.unit, f.sign
"""

_OUTCOMES = f"""
    SELECT unit, sign, verdict, metric, value, low, high FROM ({_KNOWN})
    UNION ALL
    SELECT DISTINCT unit, sign, 'failed', NULL, NULL::DOUBLE, NULL::DOUBLE, NULL::DOUBLE FROM failures
    WHERE run = $run AND unit IS NOT NULL
          AND (unit, sign) NOT IN (SELECT (unit, sign) FROM verdicts WHERE run = $run)
"""
_BOTH = f"""
    SELECT unit, sign, now.verdict AS now, before.verdict AS before, now.value, now.low, now.high,
           before.value AS before_value, before.low AS before_low, before.high AS before_high,
           CASE WHEN now.metric = before.metric THEN now.value - before.value END AS change,
           coalesce(now.metric = before.metric AND (now.low > before.high OR now.high < before.low), false) AS apart
    FROM ({_OUTCOMES}) now JOIN ({_OUTCOMES.replace("$run", "$before")}) before USING (unit, sign)
"""


def report_facts(home: Home, run: str | None = None, against: str | None = None) -> dict[str, Any]:
    """All that the report says of a run (the newest one by default), as plain data.

    run, against: a run's id or the beginning of one; `against` is by default the newest earlier run that ended some of
    the same units. Raises Refused where nothing is recorded, and for a run that is not there.
    """
    told = _Told(home, run)
    return {
        "run": told.about(), "version": __version__, "made": utc_now(), "progress": told.progress(),
        "verdicts": told.verdicts(), "not_explained": told.not_explained(), "failures": told.failures(),
        "spend": told.spend(), "sites": told.sites(), "second": told.second(), "best": told.best(),
        "surprising": told.surprising(), "review": told.review(), "against": told.against(against),
    }  # fmt: skip


class _Told:
    """One run of a home, and what the report asks the stores about it."""

    def __init__(self, home: Home, run: str | None) -> None:
        self.home = home
        self.runs = home.findings.sql(_RUNS)
        self.row = _chosen(self.runs, run, "--run")
        self.run: str = self.row["run"]
        newest = "SELECT units FROM runs WHERE run = $run ORDER BY created_at DESC, id DESC LIMIT 1"
        self.units: list[str] = self._ask(newest, True)[0]["units"]
        self.state = next((state for state in home.work.runs() if state.id == self.run), None)
        self.jobs = {job.unit: job.status for job in home.work.jobs(self.run)}
        ended = self._ask("SELECT DISTINCT unit, sign FROM verdicts WHERE run = $run")
        self.ended = {signed(row) for row in ended}
        self.wrong = self._ask(_FAILURES)
        self.failed = [row for row in self.wrong if self._is_failed(signed(row))]

    def _is_failed(self, unit: str) -> bool:
        """Whether a unit with a failure has come to nothing: it was not explained, and is not queued again."""
        return unit not in self.ended and self.jobs.get(unit, "failed") in ("failed", "done")

    def _ask(self, sql: str, unpack: bool = False, /, **more: Any) -> list[dict[str, Any]]:
        """The rows of a SELECT that may name $run, $no_rule and what is given."""
        values = {"run": self.run, "no_rule": NO_RULE, **more}
        return self.home.findings.sql(sql, {k: v for k, v in values.items() if f"${k}" in sql}, unpack)

    def about(self) -> dict[str, Any]:
        """What was asked, of which model, on which text, and how the run stands."""
        row = self.row
        status = row["status"] if self.state is None else self.state.status
        last = self._ask("SELECT max(created_at) AS last FROM verdicts WHERE run = $run")[0]["last"]
        model = "SELECT name, architecture, layers FROM models WHERE run = $run ORDER BY created_at DESC LIMIT 1"
        swept = """SELECT digest, corpus, tokens, documents FROM sweeps WHERE run = $run
                   QUALIFY row_number() OVER (PARTITION BY digest ORDER BY id) = 1"""
        return {
            "id": self.run, "status": status, "paused": self.state is not None and self.state.paused,
            "processes": len(self.home.work.workers(self.run)), "started": row["started"],
            "ended": row["ended"] if status != "running" else None, "last": last, "seconds": row["seconds"],
            "code": row["code"], "asked": _asked(row), "model": next(iter(self._ask(model)), None),
            "sweeps": self._ask(swept, True),
        }  # fmt: skip

    def progress(self) -> dict[str, Any]:
        """Every unit of the run in one of four places: explained or given up, failed, left, or on its way here."""
        failed = {signed(row) for row in self.failed}
        rest = [unit for unit in self.units if unit not in self.ended and unit not in failed]
        on_its_way = [unit for unit in rest if self.jobs.get(unit) in ("done", "failed")]
        left = [unit for unit in rest if self.jobs.get(unit) not in ("done", "failed")]
        return {
            "units": len(self.units), "ended": len(self.ended), "failed": len(failed), "left": len(left),
            "on_its_way": len(on_its_way), "at_work": sum(self.jobs.get(unit) == "running" for unit in left),
            "left_units": left[:LISTED], "waiting_records": self.home.work.pending(),
        }  # fmt: skip

    def verdicts(self) -> dict[str, int]:
        """How many units ended with each verdict."""
        found = self._ask(f"SELECT verdict, count(*) AS units FROM ({_KNOWN}) GROUP BY verdict")
        counts = {row["verdict"]: row["units"] for row in found}
        return {verdict: counts.get(verdict, 0) for verdict in VERDICTS} | {"failed": len(self.failed)}

    def not_explained(self) -> list[dict[str, Any]]:
        """Why units were abstained from or have nothing to score, the commonest reason first."""
        return self._ask(
            f"""SELECT verdict, split_part(reason, ' Held back:', 1) AS why, count(*) AS units FROM ({_KNOWN})
                WHERE verdict IN ('abstained', 'undefined') GROUP BY ALL
                ORDER BY units DESC, verdict, why LIMIT $most""",
            most=BEST,
        )

    def failures(self) -> dict[str, Any]:
        """Units that failed: by kind, and one by one; and those that were explained in spite of a failure."""
        kinds = Counter((row["kind"], row["step"]) for row in self.failed)
        return {
            "kinds": [{"kind": kind, "step": step, "units": n} for (kind, step), n in kinds.most_common(LISTED)],
            "units": [{"name": signed(row), **row} for row in self.failed[:LISTED]], "total": len(self.failed),
            "came_through": sum(signed(row) in self.ended for row in self.wrong),
        }  # fmt: skip

    def spend(self) -> dict[str, Any]:
        """Requests, tokens and dollars by the ledger; what the subject read, and the seconds it took."""
        calls = self._ask(
            """SELECT purpose, model, count(*) AS calls, count(*) FILTER (outcome <> 'ok') AS went_wrong,
                      CAST(sum(coalesce(tokens_in, 0) + coalesce(tokens_out, 0)) AS BIGINT) AS tokens,
                      coalesce(sum(usd), 0) AS usd, count(*) - count(usd) AS unpriced
               FROM llm_calls WHERE run = $run GROUP BY ALL ORDER BY tokens DESC, purpose, model"""
        )
        work = self._ask(
            """SELECT count(*) AS investigations, coalesce(sum(seconds), 0) AS seconds,
                      coalesce(sum(CAST(cost->>'$.forward_rows' AS DOUBLE)), 0) AS forward_rows,
                      coalesce(sum(CAST(cost->>'$.forward_tokens' AS DOUBLE)), 0) AS forward_tokens
               FROM investigations WHERE run = $run"""
        )[0]
        tools = self._ask(
            """SELECT tool, count(*) AS calls, count(*) FILTER (json_exists(provenance, '$.recalled')) AS recalled,
                      count(*) FILTER (NOT ok) AS refused,
                      coalesce(sum(CAST(cost->>'$.seconds' AS DOUBLE))
                               FILTER (NOT json_exists(provenance, '$.recalled')), 0) AS seconds
               FROM evidence WHERE run = $run GROUP BY tool ORDER BY seconds DESC, tool"""
        )
        return {"llm": self._ledger(calls), "calls": calls, "work": work, "tools": tools}

    def _ledger(self, calls: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """The ledger's sums; of a run that this home's queue has forgotten, those of its copy in the findings."""
        keys = ("calls", "tokens", "usd", "unpriced")
        if self.state is None:
            return {key: sum(row[key] for row in calls) for key in keys}
        spent = asdict(self.home.work.spent(self.run))
        return {key: spent[key] for key in keys}

    def sites(self) -> list[dict[str, Any]]:
        """By site: how its units ended, the quartiles of the headline scores and of their highest floors."""
        counted = ", ".join(f"count(*) FILTER (verdict = '{verdict}') AS {verdict}" for verdict in VERDICTS)
        rows = self._ask(
            f"""SELECT site, layer, count(*) AS units, count(value) AS scored, {counted},
                       quantile_cont(value, [0, 0.25, 0.5, 0.75, 1]) AS f1,
                       quantile_cont(floor, [0, 0.25, 0.5, 0.75, 1]) FILTER (value IS NOT NULL) AS floors
                FROM ({_KNOWN}) GROUP BY site, layer ORDER BY layer NULLS LAST, site"""
        )
        points = self._ask(
            f"""SELECT site, unit, sign, verdict, value, floor FROM ({_KNOWN}) WHERE value IS NOT NULL
                QUALIFY count(*) OVER (PARTITION BY site) <= $most ORDER BY value, unit, sign""",
            most=STRIP,
        )
        bins = self._ask(
            f"""SELECT site, least($bins - 1, CAST(floor(value * $bins) AS BIGINT)) AS bin, count(*) AS units
                FROM ({_KNOWN}) WHERE value IS NOT NULL GROUP BY ALL ORDER BY ALL""",
            bins=BINS,
        )
        failed = Counter(row["unit"].rpartition("/")[0].rpartition("/")[2] for row in self.failed)
        nothing = {"layer": None, "units": 0, "scored": 0, **dict.fromkeys(VERDICTS, 0), "f1": None, "floors": None}
        rows += [{"site": site, **nothing} for site in sorted(failed.keys() - {row["site"] for row in rows})]
        for row in rows:
            row["failed"] = failed[row["site"]]
            row["floors"] = row["floors"] or ([None] * 5 if row["scored"] else None)
            row["points"] = [_point(p) for p in points if p["site"] == row["site"]]
            row["bins"] = [0] * BINS
            for one in (b for b in bins if b["site"] == row["site"]):
                row["bins"][one["bin"]] = one["units"]
        return rows

    def second(self) -> dict[str, Any] | None:
        """How far F1 on the second corpus agrees with that on the first, over the units that have both; None: no unit.

        {corpus, units, first, second: mean F1, change: the mean difference, low, high, rank: Spearman's ρ, apart: units
        whose intervals do not meet}. What is undefined is None.
        """
        rows = self._ask(_SECOND)
        if not rows:
            return None
        from ..tools.stats import mean_interval, rank_correlation  # statistics take a second to load

        first, second = ([row[name] for row in rows] for name in ("first", "second"))
        change = [after - before for before, after in zip(first, second, strict=True)]
        low, high = mean_interval(change, seed=0)
        return {
            "corpus": rows[0]["corpus"], "units": len(rows), "first": fmean(first), "second": fmean(second),
            "change": fmean(change), "low": low, "high": high, "rank": rank_correlation(first, second),
            "apart": sum(bool(row["apart"]) for row in rows),
        }  # fmt: skip

    def best(self) -> list[dict[str, Any]]:
        """The explanations whose F1 is surely above every floor, the highest lower end first."""
        return self._cards(self._ask(_BEST, most=BEST))

    def surprising(self) -> list[dict[str, Any]]:
        """Of each kind of surprise its meaning, and the units that show it most."""
        kinds = []
        for kind, title, sql, meaning in SURPRISING:
            found = self._ask(sql, most=SURPRISES, near_certain=NEAR_CERTAIN)
            kinds.append({"kind": kind, "title": title, "meaning": meaning, "units": self._cards(found)})
        return kinds

    def review(self) -> dict[str, Any]:
        """What a person is to look at, and why: every unit whose verdict is unclear."""
        asked = {f"why_{n}": pattern for n, (pattern, _) in enumerate(_WAITS)}
        by_why = self._ask(f"SELECT why, count(*) AS units FROM ({_REVIEW}) GROUP BY why ORDER BY why", **asked)
        rows = self._ask(
            f"SELECT * FROM ({_REVIEW}) ORDER BY why, value DESC NULLS LAST, unit, sign LIMIT $most",
            most=LISTED, **asked,
        )  # fmt: skip
        return {
            "total": sum(row["units"] for row in by_why),
            "reasons": [{"why": _WAITS[row["why"]][1], "units": row["units"]} for row in by_why],
            "units": [{"name": signed(row), **row, "why": _WAITS[row["why"]][1]} for row in rows],
        }

    def against(self, other: str | None) -> dict[str, Any] | None:
        """What changed on the units that another run ended too; None where no earlier run has any of them."""
        row = self._earlier() if other is None else _chosen(self.runs, other, "--against")
        if row is None:
            return None
        if row["run"] == self.run:
            raise Refused(f"--against names run {self.run} itself; name another, `lamplighter status` lists them.")
        before = row["run"]
        counts = self._ask(
            f"""SELECT count(*) AS shared, count(change) AS compared, avg(change) AS mean_change,
                       count(*) FILTER (apart AND change > 0) AS up, count(*) FILTER (apart AND change < 0) AS down,
                       count(*) FILTER (now <> before) AS verdict_changed FROM ({_BOTH})""",
            before=before,
        )[0]
        turned = self._ask(
            f"""SELECT before, now, count(*) AS units FROM ({_BOTH}) GROUP BY ALL
                ORDER BY bool_and(before = now), units DESC, before, now""",
            before=before,
        )
        changes = self._ask(
            f"""SELECT *, count(*) OVER () AS total FROM ({_BOTH})
                WHERE now <> before OR apart OR abs(change) >= $moved
                ORDER BY now = before, abs(change) DESC NULLS LAST, unit, sign LIMIT $most""",
            before=before, moved=MOVED, most=LISTED,
        )  # fmt: skip
        sizes = self._ask(
            f"""SELECT (SELECT count(*) FROM ({_OUTCOMES})) AS now,
                       (SELECT count(*) FROM ({_OUTCOMES.replace("$run", "$before")})) AS before""",
            before=before,
        )[0]
        return {
            "run": before, "started": row["started"], **counts, "only_now": sizes["now"] - counts["shared"],
            "only_before": sizes["before"] - counts["shared"], "turned": turned,
            "asked": _differences(_asked(row), _asked(self.row)),
            "changes": [{"name": signed(one), **one} for one in changes],
            "changes_total": changes[0]["total"] if changes else 0,
        }  # fmt: skip

    def _earlier(self) -> dict[str, Any] | None:
        """The newest earlier run that ended one of this run's units."""
        shared = self._ask(
            """SELECT DISTINCT run FROM verdicts WHERE run <> $run
               AND (unit, sign) IN (SELECT (unit, sign) FROM verdicts WHERE run = $run)"""
        )
        known, place = {row["run"] for row in shared}, self.runs.index(self.row)
        return next((row for row in reversed(self.runs[:place]) if row["run"] in known), None)

    def _cards(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with texts on which their units fire: two of the strongest, one of the next bands each."""
        if not rows:
            return []
        found = self._ask(
            """WITH distinct_texts AS (
                   SELECT * FROM exemplars
                   WHERE run = $run AND list_contains($these, investigation) AND side = 'explain'
                         AND band IN ('top', 'high', 'mid')
                   QUALIFY row_number() OVER (
                       PARTITION BY investigation, text ORDER BY band <> 'top', activation DESC, id) = 1
               )
               SELECT e.investigation, e.band, e.activation, u.peak, e.token, right(e.text, $long) AS text,
                      length(e.text) > $long AS cut
               FROM distinct_texts e
               LEFT JOIN units u ON u.investigation = e.investigation AND u.unit = e.unit AND u.sign = e.sign
               QUALIFY row_number() OVER (PARTITION BY e.investigation, e.band ORDER BY e.activation DESC, e.id)
                       <= CASE e.band WHEN 'top' THEN 2 ELSE 1 END
               ORDER BY e.activation DESC, e.id""",
            these=[row["investigation"] for row in rows], long=2 * CONTEXT,
        )  # fmt: skip
        texts: dict[str, list[dict[str, Any]]] = {}
        for one in found:
            texts.setdefault(one["investigation"], []).append(_example(one))
        return [{"name": signed(row), **row, "examples": texts.get(row["investigation"], [])} for row in rows]


def _chosen(runs: Sequence[dict[str, Any]], wanted: str | None, option: str) -> dict[str, Any]:
    """The run that an option names by its id or the beginning of one; the newest where it names none."""
    if not runs:
        raise Refused("no run is recorded in this home yet; `lamplighter run` starts one.")
    if wanted is None:
        return runs[-1]
    found = [row for row in runs if wanted and row["run"].startswith(wanted)]
    exact = [row for row in found if row["run"] == wanted]
    if len(exact or found) != 1:
        how = f"is the beginning of {len(found)} runs" if found else "is no run of this home"
        raise Refused(f"{option} {wanted!r} {how}; `lamplighter status` lists them.")
    return (exact or found)[0]


def _asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of a run, without what was left open."""
    return {key: value for key, value in json.loads(row["asked"]).items() if value not in (None, [], "")}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In which settings two runs differ."""
    keys = dict.fromkeys((*before, *now))
    return [{"what": k, "before": before.get(k), "now": now.get(k)} for k in keys if before.get(k) != now.get(k)]


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": signed(row), **{key: row[key] for key in ("verdict", "value", "floor")}}


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    """A text up to the token that fires, and that token, which ends the text.

    A token that holds part of a character reads otherwise by itself than in its text; then the last word is marked.
    """
    text, token = row["text"], row["token"]
    if not token or not text.endswith(token):
        token = text[len(text.rstrip().rpartition(" ")[0]) :]
    before = text[: len(text) - len(token)]
    cut = row["cut"] or len(before) > CONTEXT
    facts = {key: row[key] for key in ("band", "activation", "peak")}
    return facts | {"before": before[-CONTEXT:], "token": token, "cut": cut}


LIMITS = {"best": BEST, "strip": STRIP, "accept": measures.ACCEPT, "moved": MOVED}     # what the page says of itself

__all__ = ["LIMITS", "report_facts"]
