"""What commands print for people, and the facts behind it. Corpus text is shown as text, never as markup."""

import json
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..store.excerpt import about
from ..store.plain import bounded, claimed, clean, number
from ..store.records import PERSON, Refused
from ..store.records import signed as signed
from ..tools.units import UnitId
from .config import Home

if TYPE_CHECKING:
    from .request import Outcome

WIDTH = 160      # columns of a table where the output is no terminal

NEXT = (
    "lamplighter show {unit}          everything behind one explanation",
    "lamplighter query {like}          search explanations by meaning",
    'lamplighter try {unit} "any text of yours"          read the unit on it, token by token',
)


def listed(text: str) -> list[str]:
    """`'a, b'` → `['a', 'b']`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def console() -> Console:
    """The place facts are printed: the terminal at its width, else WIDTH columns."""
    out = Console(highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(highlight=False, width=WIDTH)


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints rows under heads; every cell is text, never markup."""
    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for head in heads:
        made.add_column(head, overflow="fold")
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else Text(clean(value)) for value in row))
    console().print(made)


def say(line: str) -> None:
    """Prints one line as it is; at a terminal it is wrapped between words."""
    out = console()
    out.print(Text(line), soft_wrap=not out.is_terminal)


def interval(row: Mapping[str, Any]) -> str:
    """An F1 is never shown without its interval."""
    return bounded(row["input_f1"], row["input_f1_low"], row["input_f1_high"])


# Models, machine, sweep


def model_table(rows: list[dict[str, Any]]) -> None:
    """What can be pulled, and what is here."""
    heads = ("name", "role", "licence", "download MB", "state")
    table("", heads, [
        (r["name"], r["role"], r["licence"], f"{r['download_bytes'] / 1e6:,.0f}", "here" if r["present"] else "absent")
        for r in rows
    ])  # fmt: skip


def doctor_table(rows: list[dict[str, Any]]) -> None:
    """What is here and what each lack costs."""
    heads = ("what", "state", "found", "what the lack costs")
    table("", heads, [(r["what"], r["state"], r["found"], r["cost"]) for r in rows])


def sweep_facts(facts: dict[str, Any]) -> None:
    """One line on a finished sweep."""
    tokens, documents = facts["tokens"], facts["documents"]
    sides = "; ".join(f"{side} {tokens[side]:,} tokens in {documents[side]} documents" for side in tokens)
    say(f"sweep {facts['digest']} of {facts['model']} over {facts['corpus']}, {', '.join(facts['sites'])}: {sides}")


# Runs

# What this run found, one row a unit that it brought to an end; the view `explanations` has the newest of all runs.
_OF_RUN = """
    WITH decided AS (
        SELECT * FROM verdicts WHERE run = $run
        QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
    )
    SELECT i.unit, i.sign, h.sentence AS explanation, h.rule_text AS rule,
           f1.value AS input_f1, f1.low AS input_f1_low, f1.high AS input_f1_high,
           list_max(map_values(CAST(f1.floors AS MAP(VARCHAR, DOUBLE)))) AS floor_f1,
           decided.verdict, i.planner, i.run, i.id AS investigation, i.seconds
    FROM investigations i
    JOIN decided ON decided.investigation = i.id
    LEFT JOIN hypotheses h ON h.id = decided.hypothesis
    LEFT JOIN scores f1 ON f1.hypothesis = h.id AND f1.metric = 'f1' AND f1.side = 'score' AND f1.judge IS NULL
    WHERE i.run = $run
"""


def run_facts(home: Home, outcome: "Outcome") -> dict[str, Any]:
    """A run's rows from the findings, with what failed and what was left out."""
    rows = home.findings.sql(_OF_RUN, {"run": outcome.run})
    order = {unit: place for place, unit in enumerate(outcome.units)}
    rows.sort(key=lambda row: order.get(signed(row), len(order)))
    failures = home.findings.sql("SELECT unit, sign, kind, message, step FROM failures WHERE run = ?", [outcome.run])
    return {
        "run": outcome.run, "status": outcome.status, "repeated": outcome.repeated, "explanations": rows,
        "failures": failures, "failed": outcome.failed, "left": outcome.left,
        "llm": asdict(home.work.spent(outcome.run)),
    }  # fmt: skip


def run_table(facts: dict[str, Any]) -> None:
    """The table that ends a run, what failed or was left out, and what to try next."""
    rows = facts["explanations"]
    heads = ("unit", "explanation", "rule", "F1 [95 %]", "floor", "verdict", "planner", "s")
    table("", heads, [
        (signed(r), r["explanation"] or "—", r["rule"] or "—", interval(r), number(r["floor_f1"]), r["verdict"],
         r["planner"], f"{r['seconds']:.0f}")
        for r in rows
    ])  # fmt: skip
    for failure in facts["failures"]:
        say(f"failed: {signed(failure)} {_failure(failure)}")
    if facts["left"]:
        say(f"left out, the budget was reached: {', '.join(facts['left'])}")
    say(_total(facts))
    if facts["repeated"]:
        say("this run was finished before; --fresh (FRESH=1 with make) starts it anew.")
    if rows:
        found = next((clean(r["explanation"]) for r in rows if r["explanation"]), "numbers")
        like = shlex.quote(found.removeprefix("fires on ")[:60])     # for the shell: a model may have written it
        for line in NEXT:
            say(line.format(unit=signed(rows[0]), like=like))


def _total(facts: Mapping[str, Any]) -> str:
    """How the units ended, and what the language model was asked in this run."""
    ended = Counter(row["verdict"] for row in facts["explanations"])
    ended["failed"] += len(facts["failed"])
    told = ", ".join(f"{count} {how}" for how, count in ended.most_common() if count)
    llm = facts["llm"]
    cost = "" if llm["unpriced"] else f", {llm['usd']:.2f} dollars"
    asked = f"; {llm['calls']} requests to the language model, {llm['tokens']:,} tokens{cost}" if llm["calls"] else ""
    return f"{sum(ended.values())} units: {told or 'none ended'}{asked}."


def _failure(row: Mapping[str, Any]) -> str:
    return f"at “{clean(row['step'])}”: {clean(row['kind'])}: {clean(row['message'])}"


# One unit


def unit_facts(home: Home, unit: str) -> dict[str, Any]:
    """The unit's card, the scores, hypotheses and experiments of its newest explanation, the failures of all runs, and
    under `by_hand` the experiments of `tool` and `try`, under `imported` what other tools say of the unit."""
    named = UnitId.parse(unit)
    with about(home.findings, named.bare) as sql:

        def rows(table: str, where: str, given: Any, order: str = "id") -> list[dict[str, Any]]:
            return sql(f"SELECT * FROM {table} WHERE {where} ORDER BY created_at, {order}", (given,), unpack=True)

        cards = sql("SELECT * FROM unit_cards WHERE sign = ?", (named.sign,), unpack=True)
        failures = rows("failures", "sign = ?", named.sign)
        by_hand = rows("evidence", "sign = ? AND run IS NULL AND tool <> 'import'", named.sign)
        others = rows("imported", "sign = ?", named.sign, order="hypothesis")
        if not cards and not failures and not by_hand and not others:
            raise Refused(f"nothing is recorded about {unit!r}; {_would_be(named)}")
        investigation = cards[0]["investigation"] if cards else None
        names = ("hypotheses", "scores", "evidence", "verdicts", "turns")
        parts = {name: rows(name, "investigation = ?", investigation) for name in names}
        told = {"reviews": rows("standing_reviews", "sign = ?", named.sign), "by_hand": by_hand, "failures": failures}
    return {"card": cards[0] if cards else None, **parts, **told, "imported": others}


def _would_be(unit: UnitId | str) -> str:
    model = UnitId.parse(str(unit)).model
    return f"`lamplighter run --model {model} --units {unit}` would investigate it."


def unit_card(facts: dict[str, Any]) -> None:
    """Everything about one unit, the newest outcome first: its explanation, unless a later run failed on it."""
    card, by_hand = facts["card"], facts["by_hand"]
    newer, older = _failures(facts)
    for failure in newer:
        say(f"failed {_when(failure)} {_failure(failure)}")
    if card is not None:
        _explained(facts)
    elif not newer:
        named = signed([*by_hand, *facts["imported"]][0])
        say(f"{named} was not investigated; {_would_be(named)}")
    _by_others(facts["imported"])
    if by_hand:
        _experiments("experiments by hand, with tool or try", by_hand)
    for failure in older:
        where = "beside this" if failure["investigation"] == card["investigation"] else "before"
        say(f"failed {where}: {_when(failure)} {_failure(failure)}")


def _failures(facts: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Failures that are news, and those of the time before the explanation or of its own investigation; newest first.

    A language model that fails after its first submission leaves a failure beside an explanation that stands.
    """
    card, rows = facts["card"], facts["failures"][::-1]
    since = "" if card is None else card["created_at"] or ""

    def news(row: Mapping[str, Any]) -> bool:
        beside = card is not None and card["investigation"] == row["investigation"]
        return bool(row["created_at"] > since) and not beside

    return [row for row in rows if news(row)], [row for row in rows if not news(row)]


def _when(row: Mapping[str, Any]) -> str:
    """When and in which run something was recorded."""
    return f"{row['created_at'][:16].replace('T', ' ')} UTC in run {row['run']}"


def _explained(facts: Mapping[str, Any]) -> None:
    card = facts["card"]
    peak = "" if card["peak"] is None else f"   P {card['peak']:.3g}, τ {card['threshold']:.3g}"
    say(f"{signed(card)}{peak}")
    say(f"explanation: {clean(card['explanation'] or 'none')}")
    say(f"rule:        {clean(card['rule'] or 'none')}")
    if card["output_explanation"] is not None:
        bounds = bounded(card["output_score"], card["output_low"], card["output_high"])
        scored = "" if card["output_score"] is None else f" (AUC {bounds})"
        say(f"output:      {clean(card['output_explanation'])}{scored}")
    for verdict in facts["verdicts"][-1:]:
        say(f"verdict:     {verdict['verdict']} ({clean(verdict['reason'])})")
    if card["verdict"] is None and str(card["planner"]).startswith(PERSON):
        say("verdict:     none yet; `lamplighter review score` scores what people wrote")
    if card["created_at"] is not None:
        say(f"recorded:    {_when(card)}")
    _scores(facts["scores"])
    _experiments("experiments", facts["evidence"])
    _turns(facts["turns"], {h["id"]: h["sentence"] for h in facts["hypotheses"]})
    if facts["reviews"]:
        table("reviews", ("when", "by", "verdict", "tags", "blind"), [
            (r["created_at"][:16].replace("T", " "), r["reviewer"], r["verdict"], ", ".join(r["tags"]),
             "yes" if r["blind"] else "no") for r in facts["reviews"]
        ])  # fmt: skip
    table("hypotheses", ("author", "", "sentence", "rule", "F1 on tune"), [
        (h["author"], "kept" if h["kept"] else "", h["sentence"], h["rule_text"], number(h["tune_f1"]))
        for h in facts["hypotheses"]
    ])  # fmt: skip


def _by_others(rows: list[dict[str, Any]]) -> None:
    """Explanations by other tools: what their source claims, by source, and beside it what was measured here."""
    if rows:
        heads = ("source", "explanation", "claimed by source", "detection F1 [95 %]", "floor", "verdict")
        table("explanations by other tools; which text they were made from is unknown", heads, [
            (r["author"], r["explanation"], claimed(r["claimed"]),
             bounded(r["detection"], r["detection_low"], r["detection_high"]) if r["judge"] else "",
             number(r["floor"]) if r["judge"] else "", r["verdict"] or "not scored here")
            for r in rows
        ])  # fmt: skip


def _experiments(title: str, evidence: list[dict[str, Any]]) -> None:
    rows = [(e["id"], e["tool"], "yes" if e["ok"] else "no", e["summary"]) for e in evidence]
    table(title, ("id", "tool", "ok", "summary"), rows)


def _metric(score: dict[str, Any]) -> str:
    """A metric's name, and of a judged one whether the judge is to be believed."""
    if score["judge"] is None:
        return str(score["metric"])
    return f"{score['metric']} (judged{'' if score['details'].get('qualified') else ', not qualified'})"


def _turns(turns: list[dict[str, Any]], sentences: dict[str, str]) -> None:
    """What was asked of several hypotheses at a time, how many texts each was right about, and which were put out."""
    told = []
    for turn in turns:
        right = [
            f"{sentences.get(one, one)}: right on {sum(s == f for s, f in zip(said, turn['outcome'], strict=True))} of "
            f"{len(said)}" for one, said in turn["predictions"].items() if said
        ]  # fmt: skip
        out = [f"out: {sentences.get(k['hypothesis'], '')} ({k['difference']:.2f} below)" for k in turn["killed"]]
        if right or out:
            told.append((turn["tool"], turn["question"], "; ".join([*right, *out])))
    if told:
        table("hypotheses put to the test", ("tool", "question", "what came of it"), told)


def _scores(scores: list[dict[str, Any]]) -> None:
    """The scores as a table, and below it why some are undefined: each reason once, as many often share one."""
    rows, lacks = [], defaultdict[str, list[str]](list)
    for s in scores:
        best = max(((v, k) for k, v in s["floors"].items() if v is not None), default=None)
        bounds = f"[{number(s['low'])}, {number(s['high'])}]" if s["value"] is not None else ""
        rows.append((_metric(s), number(s["value"]), bounds, s["n"], f"{best[1]} {best[0]:.2f}" if best else ""))
        if s["value"] is None:
            lacks[s["reason"]].append(s["metric"])
    table("scores on text that was never shown", ("metric", "value", "95 %", "n", "highest floor"), rows)
    for reason, metrics in lacks.items():
        say(f"undefined ({', '.join(metrics)}): {clean(reason)}")
    _clauses(next((s["details"].get("clauses", []) for s in scores if s["metric"] == "f1"), []))


def _clauses(clauses: list[dict[str, Any]]) -> None:
    """Of a rule of several clauses, how well each does by itself."""
    if len(clauses) > 1:
        table("each clause by itself", ("clause", "precision [95 %]", "recall [95 %]", "F1 [95 %]", "n"), [
            (c["clause"], *(bounded(**c[name]) for name in ("precision", "recall", "f1")), c["judged"]) for c in clauses
        ])  # fmt: skip


def addresses(facts: dict[str, Any]) -> None:
    """Where the pages are, for each who may come in."""
    for name, address in facts["addresses"].items():
        sys.stdout.write(f"{address}\n" if len(facts["addresses"]) == 1 else f"{name}: {address}\n")
    say(f"serving {facts['home']}; Ctrl-C ends it.")


# Experiments, queries


def evidence_table(report: dict[str, Any]) -> None:
    """One tool's result: the summary, its rows (long lists of ids left out), its checks and warnings."""
    say(clean(report["summary"]))
    if "scale" in report:
        say(_strength(report))
    plain_table([{k: v for k, v in row.items() if k not in ("ids", "tokens")} for row in report["rows"]])
    for key, value in report["checks"].items():
        say(f"{key}: {clean(_short(value))}")
    for warning in report["warnings"]:
        say(f"note: {clean(warning)}")
    if report.get("picture"):
        say(f"picture: {report['picture']}")
    cost = report["cost"]
    spent = f"{cost['forward_rows']:,} rows, {cost['forward_tokens']:,} forward tokens, {cost['seconds']:.1f} s"
    say("recalled: the same was asked before." if report["recalled"] else f"cost: {spent}")
    say(f"evidence {report['id']}; `lamplighter replay {report['id']}` runs it again.")


def rebuilt_table(scores: list[dict[str, Any]]) -> None:
    """What the model gets back with rules in the places of units, and what it loses without them."""
    facts = scores[0]["details"]
    say(f"{', '.join(facts['units'])}, over {facts['windows']} windows of {facts['corpus']}:")
    rows = [
        (s["metric"], bounded(s["value"], s["low"], s["high"]),
         *(number(s["details"][name], 4) for name in ("ce_true", "ce_mean", "ce_rebuilt")), s["n"])
        for s in scores
    ]  # fmt: skip
    table("", ("metric", "value [95 %]", "CE as it is", "CE at their means", "CE rebuilt", "n"), rows)
    for reason in dict.fromkeys(s["reason"] for s in scores if s["reason"]):
        say(f"undefined: {clean(reason)}")


def sae_table(facts: dict[str, Any]) -> None:
    """What an SAE is worth, with intervals."""
    say(
        f"{facts['site']} ({facts['architecture']}, {facts['features']:,} features) on {facts['tokens']:,} tokens of "
        f"{facts['documents']} documents of {facts['corpus']}, the sink left out:"
    )
    table("", ("metric", "value", "low", "high"), [
        (r["metric"], *(number(r[key], 4) for key in ("value", "low", "high"))) for r in facts["rows"]
    ])  # fmt: skip
    say(f"dead: {facts['dead']:.1%} of the features, never on here; dense: {facts['dense']:.1%}, on at over 10 %.")
    for warning in facts["warnings"]:
        say(f"note: {clean(warning)}")


def tool_table(tools: list[dict[str, Any]]) -> None:
    """Every tool in a sentence."""
    table("", ("tool", "what it does"), [(t["tool"], t["description"]) for t in tools])
    say("`lamplighter tool NAME` explains one and its options.")


def tool_page(facts: dict[str, Any]) -> None:
    """All that is said of one tool, and its options."""
    say(f"lamplighter tool {facts['tool']} UNIT --args '{{\"option\": value, …}}'\n")
    say(facts["told"] + "\n")
    table("options", ("option", "takes", "default", "what for"), [
        (o["option"], o["takes"], "(needed)" if o["needed"] else json.dumps(o["default"]), o["told"])
        for o in facts["options"]
    ])  # fmt: skip


def heat_line(report: dict[str, Any]) -> None:
    """Every token with its activation; strength is shown by number and bar, not by colour alone.

    A full bar is P, the unit's largest reading in a sweep. Bars that went by the text's own largest reading would make
    noise look like firing, so that without a sweep there are none.
    """
    scale = report["scale"]
    top = scale["peak"] if scale else 0.0
    bars = [
        (row["position"], repr(row["token"])[1:-1], f"{row['activation']:.3f}", "█" * _bar(row["activation"], top))
        for row in report["rows"]
    ]
    say(clean(report["summary"]))
    say(_strength(report))
    table("", ("position", "token", "activation", "of P" if scale else ""), bars)


def _strength(report: Mapping[str, Any]) -> str:
    """Whether the highest reading is a firing, by the home's sweep."""
    scale, unit = report["scale"], UnitId.parse(report["unit"])
    if scale is None:
        command = f"lamplighter sweep --model {unit.model} --sites {unit.site}"
        return f"no sweep in this home says how strong that reading is; `{command}` makes one."
    if report["fires"] is None:
        return f"the sweep of {scale['corpus']} never saw the unit active, so that it does not say how strong that is."
    how = "the unit fires on this text" if report["fires"] else "the unit does not fire on this text"
    return f"{how} (τ {scale['threshold']:.3g}; P {scale['peak']:.3g} in the sweep of {scale['corpus']})."


def _bar(value: float, top: float) -> int:
    """Of 20; a reading above P is no longer than P."""
    return min(20, max(0, round(20 * value / top))) if top > 0 else 0


def query_table(rows: list[dict[str, Any]]) -> None:
    """Found explanations, the best first, and why each was found; why there are none is said on stderr."""
    if not rows:
        return
    table("", ("unit", "explanation", "F1 [95 %]", "verdict", "found"), [
        (signed(r), r["explanation"] or r["output_explanation"], interval(r), r["verdict"], r["why"])
        if r["source"] is None else
        (signed(r), f"{r['explanation']} (by {r['planner']})", "", r["verdict"] or "not scored here", r["why"])
        for r in rows
    ])  # fmt: skip


def plain_table(rows: list[dict[str, Any]]) -> None:
    """Any rows of equal keys."""
    if not rows:
        say("no rows.")
        return
    table("", tuple(rows[0]), [tuple(_short(v) for v in row.values()) for row in rows])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and value and isinstance(value[0], float):
        return " ".join(f"{x:.2f}" if isinstance(x, float) else "–" for x in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def replay_facts(found: dict[str, Any]) -> None:
    """Whether a repeated experiment is equal, and where it differs."""
    say(f"{found['tool']} on {found['unit']}: {'equal' if found['equal'] else 'different'}")
    for difference in found["differences"]:
        say(clean(difference))
    if found["changed"]:
        say(f"changed since: {', '.join(found['changed'])}")
