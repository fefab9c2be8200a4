"""try_rule: its numbers are those of a count by hand, and the score side stays unseen."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamplighter.store.records import Refused
from lamplighter.tools import measures
from lamplighter.tools.rules import CLASSES, RULE_SCHEMA, Rule, Tokens, side_text
from lamplighter.tools.sweep import Sweep
from lamplighter.tools.toolbox import Toolbox
from lamplighter.tools.try_rule import LEAST, MISSES, trial, try_rule
from lamplighter.tools.units import UnitId

UNIT = UnitId("tiny-llama", "0-mlp", 7)
ALL = 10**6     # reads: no limit but measures.SAMPLE


def word(*patterns: str, **more: Any) -> dict[str, Any]:
    return {"clauses": [{"at": {"word": pattern}, **more} for pattern in patterns]}


RULES = {
    "two words": word("World", "stop|red"),
    "pieces": word("World", "(?i)[a-z]+t", piece="any"),
    "after": word("the|II|red", need=[{"match": {"word": "[a-z]+"}, "within": [1, 2], "unit": "words"}]),
    "idle clause": word("Paris", "zebra"),
    "nothing": word("zebra"),
}


@pytest.fixture(scope="module")
def sweep(llama: Any, sweep_of: Callable[..., Sweep]) -> Sweep:
    return sweep_of(llama, documents=40, shortest=12, spread=20)


@pytest.fixture(scope="module")
def truth(llama: Any, sweep: Sweep) -> dict[str, list[tuple[float, int, int, list[int], int]]]:
    """Every token of a side: its y/P, its document and offset, its window's ids and its position there."""
    peak = sweep.statistics(UNIT).peak
    found = {}
    for side in ("explain", "tune"):
        text = side_text(llama, sweep, side)
        rows = []
        for a, b in pairwise(text.text.starts.tolist()):
            ids = text.text.ids[a:b].tolist()
            values = llama.activations(ids, [UNIT])[0, :, 0].tolist()
            for t in range(1, b - a):
                rows.append((values[t] / peak, int(text.document[a + t]), int(text.offset[a + t]), ids, t))
        found[side] = rows
    return found


def predicted(llama: Any, rule: Rule, rows: Any) -> list[bool]:
    """Window by window, by the slow way."""
    known: dict[tuple[int, ...], Any] = {}
    for _, _, _, ids, _ in rows:
        if tuple(ids) not in known:
            known[tuple(ids)] = rule.predict(Tokens.of(llama, ids))
    return [bool(known[tuple(ids)][t] > 0) for _, _, _, ids, t in rows]


def kept_firings(sweep: Sweep, side: str) -> list[dict[tuple[int, int], float]]:
    """The firings that the sweep kept of y/P from .8 and of .5 to .8: their places with y/P."""
    peak = sweep.statistics(UNIT).peak
    bands = {"high": (0.8, np.inf), "mid": (0.5, 0.8)}
    found = []
    for band, (low, high) in bands.items():
        values = {(e.document, e.offset): e.activation / peak for e in sweep.exemplars(UNIT, side, band)}
        found.append({place: y for place, y in values.items() if low <= y < high})
    return found


@pytest.mark.parametrize("side", ["explain", "tune"])
@pytest.mark.parametrize("rule", RULES)
def test_precision_recall_and_f1_are_those_of_a_count(
    llama: Any, sweep: Sweep, truth: Any, rule: str, side: str
) -> None:
    """Precision over every predicted token; recall over the kept firings, each for as many as it stands for."""
    made = try_rule(llama, sweep, UNIT, rule=RULES[rule], side=side, reads=ALL)
    rows = truth[side]
    marks = predicted(llama, Rule.from_json(RULES[rule]), rows)
    hits = [value >= measures.FIRES for (value, *_), mark in zip(rows, marks, strict=True) if mark]
    checks = made.checks
    assert checks["predicted"] == len(hits) == checks["predicted_sampled"] < measures.SAMPLE
    firings = sum(value >= measures.FIRES for value, *_ in rows)
    histogram = 0.1 if side == "explain" else 0    # the explain side's firings are counted in steps
    assert checks["firings"] == pytest.approx(firings, rel=histogram) and firings > 10

    at = {(document, offset): mark for (_, document, offset, _, _), mark in zip(rows, marks, strict=True)}
    found = total = 0.0
    for mine, count in zip(kept_firings(sweep, side), sweep.statistics(UNIT).strata[side], strict=False):
        each = max(1.0, count / len(mine))
        found += each * sum(at[place] for place in mine)
        total += each * len(mine)
    precision = sum(hits) / len(hits) if hits else None
    assert checks["precision"] == (None if precision is None else pytest.approx(precision))
    assert checks["recall"] == pytest.approx(found / total)
    p, r = precision or 0.0, found / total
    assert checks["f1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)
    assert len(made.summary.split()) <= 60 and f"on the {side} side" in made.summary


@pytest.mark.parametrize("rule", RULES)
def test_a_clauses_value_is_its_mean_where_it_matches(llama: Any, sweep: Sweep, truth: Any, rule: str) -> None:
    made = try_rule(llama, sweep, UNIT, rule=RULES[rule], reads=ALL)
    fitted = Rule.from_json(made.checks["rule"])
    assert "values" not in made.checks and "misses" not in made.checks
    idle = []
    for number, (clause, given_clause) in enumerate(
        zip(fitted.clauses, Rule.from_json(RULES[rule]).clauses, strict=True), 1
    ):
        marks = predicted(llama, Rule((given_clause,)), truth["explain"])
        values = [value for (value, *_), mark in zip(truth["explain"], marks, strict=True) if mark]
        assert clause.value == pytest.approx(max(np.mean(values), LEAST) if values else given_clause.value, rel=1e-5)
        idle += [] if values else [str(number)]
    told = [f"clause {', '.join(idle)} matches nothing that was read on the explain side."] if idle else []
    assert made.warnings == told


@pytest.mark.parametrize("mean", [0.0, -0.4])
def test_a_clause_that_matches_where_the_unit_is_silent_is_worth_next_to_nothing(
    llama: Any, sweep: Sweep, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ReLU, where silence is exactly 0; that is no missing value."""
    monkeypatch.setattr("lamplighter.tools.try_rule.read_places", lambda *given: np.full(len(given[4]), mean))
    made = try_rule(llama, sweep, UNIT, rule=RULES["idle clause"])
    assert [c["value"] for c in made.checks["rule"]["clauses"]] == [LEAST, 1.0]


@pytest.mark.parametrize("side", ["explain", "tune"])
def test_the_errors_shown_are_the_worst_of_each_kind(llama: Any, sweep: Sweep, truth: Any, side: str) -> None:
    rule = RULES["two words"]
    made = try_rule(llama, sweep, UNIT, rule=rule, side=side, reads=ALL)
    marks = predicted(llama, Rule.from_json(rule), truth[side])
    false = sorted(v for (v, *_), m in zip(truth[side], marks, strict=True) if m and v < measures.FIRES)
    at = {(document, offset): m for (_, document, offset, _, _), m in zip(truth[side], marks, strict=True)}
    missed = [y for band in kept_firings(sweep, side) for place, y in band.items() if not at[place]]
    shown = {k: [r for r in made.rows if r["kind"] == k] for k in ("false positive", "false negative")}
    assert [r["ratio"] for r in shown["false positive"]] == pytest.approx(false[:MISSES], abs=1e-5)
    assert [r["ratio"] for r in shown["false negative"]] == pytest.approx(
        sorted(missed, reverse=True)[:MISSES], abs=1e-5
    )
    assert len(made.rows) == sum(map(len, shown.values())) > 2
    peak, names = sweep.statistics(UNIT).peak, [d.name for d in sweep.documents]
    places = {(names[document], offset): (ids, t, value) for value, document, offset, ids, t in truth[side]}
    for row in made.rows:
        ids, t, value = places[(row["document"], row["offset"])]
        assert row["ids"] == ids[: t + 1] and row["ratio"] == pytest.approx(value, abs=1e-5)
        assert row["activation"] == pytest.approx(value * peak, rel=1e-4, abs=1e-5)
        assert row["text"] == llama.text(row["ids"]) and row["text"].endswith(row["token"])


def test_every_token_predicted_is_recall_one_and_the_rate_of_firing(llama: Any, sweep: Sweep, truth: Any) -> None:
    """The control: a rule that says nothing is found out by its precision."""
    rule = {"clauses": [{"at": {"class": "any"}, "piece": "any"}, {"at": {"class": "blank"}}]}
    found = trial(llama, sweep, UNIT, Rule.from_json(rule), "tune", ALL)
    fires = [value >= measures.FIRES for value, *_ in truth["tune"]]
    assert found["recall"] == 1 and found["predicted"] == len(fires)
    assert found["precision"] == pytest.approx(np.mean(fires), abs=0.1) and found["precision"] < 0.7


def test_fewer_reads_judge_fewer_places_and_recall_stays(llama: Any, sweep: Sweep) -> None:
    few, all_of_them = (try_rule(llama, sweep, UNIT, rule=RULES["two words"], reads=n).checks for n in (3, ALL))
    assert few["predicted_sampled"] == 3 < all_of_them["predicted_sampled"]
    assert (few["recall"], few["predicted"]) == (all_of_them["recall"], all_of_them["predicted"])


def test_equal_questions_have_equal_answers_also_through_the_toolbox(llama: Any, sweep: Sweep) -> None:
    box = Toolbox(llama, lambda unit: sweep, lambda: pytest.fail("no masked LM is wanted"))
    options = {"rule": RULES["pieces"], "sentence": "fires on World"}
    first, again = (box.call("try_rule", UNIT, options) for _ in range(2))
    assert first.ok and first.arguments == options | {"side": "explain", "reads": 60, "against": []}
    assert (first.rows, first.checks, first.summary) == (again.rows, again.checks, again.summary)
    fitted = box.call("try_rule", UNIT, options | {"rule": first.checks["rule"]})
    assert fitted.checks == first.checks, "a value changes no score"
    assert first.cost["forward_rows"] > 0


@pytest.mark.parametrize("side", ["score", "", "Explain"])
def test_the_score_side_is_not_shown(llama: Any, sweep: Sweep, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "read", lambda *_: pytest.fail("a place was read"))
    with pytest.raises(Refused, match=f"side {side!r} cannot be shown; choose explain or tune"):
        try_rule(llama, sweep, UNIT, rule=RULES["two words"], side=side)


BAD: list[tuple[Any, str]] = [
    ({}, "list of 1 to 4 clauses"),
    ({"clauses": []}, "list of 1 to 4 clauses"),
    (word(*"abcde"), "list of 1 to 4 clauses"),
    (word("("), "no RE2 pattern"),
    (word("(?=a)"), "no RE2 pattern"),
    ({"clauses": [{"piece": "last"}]}, 'lacks "at"'),
    ({"clauses": [{"at": {"word": "a", "class": "number"}}]}, "exactly one of"),
    ({"clauses": [{"at": {"class": "animal"}}]}, "'animal' is unknown"),
    (word("a", value=0), '"value" must be'),
    (word("a", need=[{"match": {"word": "b"}, "within": [0, 1]}]), '"within"'),
]


@pytest.mark.parametrize(("rule", "words"), BAD, ids=lambda value: str(value)[:40])
def test_a_malformed_rule_is_refused_before_anything_is_read(
    llama: Any, sweep: Sweep, rule: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sweep, "read", lambda *_: pytest.fail("a place was read"))
    with pytest.raises(Refused, match=words):
        try_rule(llama, sweep, UNIT, rule=rule)


# The schema that a planner is given


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits a JSON schema, of the keywords that RULE_SCHEMA uses."""
    known = {"type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "anyOf",
             "enum", "maxLength", "description"}  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kind = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}[schema["type"]]
    if type(value) is not kind:
        return False
    if kind is dict:
        assert schema["additionalProperties"] is False
        inside = all(key in schema["properties"] and fits(v, schema["properties"][key]) for key, v in value.items())
        return inside and all(key in value for key in schema["required"])
    if kind is list:
        inside = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return inside and all(fits(v, schema["items"]) for v in value)
    return kind in (int, bool) or len(value) <= schema.get("maxLength", len(value))


def shaped(schema: dict[str, Any], odd: bool = False) -> st.SearchStrategy[Any]:
    """Values that fit a schema; with `odd`, also ones that a part of which does not."""
    if "anyOf" in schema:
        made: st.SearchStrategy[Any] = st.one_of([shaped(one, odd) for one in schema["anyOf"]])
    elif "enum" in schema:
        made = st.sampled_from(schema["enum"])
    elif schema["type"] == "object":
        fields = {key: shaped(one, odd) for key, one in schema["properties"].items()}
        required = {key: fields[key] for key in schema["required"]}
        made = st.fixed_dictionaries(required, optional={k: v for k, v in fields.items() if k not in required})
        if odd:
            made |= st.fixed_dictionaries({}, optional=fields) | made.map(lambda value: value | {"more": 1})
    elif schema["type"] == "array" and schema["items"].get("type") == "integer":
        made = st.tuples(st.integers(1, 3), st.integers(0, 3)).map(lambda pair: [pair[0], sum(pair)])
    elif schema["type"] == "array":
        most = schema["maxItems"] + odd
        made = st.lists(shaped(schema["items"], odd), min_size=schema.get("minItems", 0) * (not odd), max_size=most)
    elif schema["type"] == "boolean":
        made = st.booleans()
    else:
        made = st.sampled_from(["War", "(?i)stop|red", r"\d+", "[a-z]{1,3}"])
    return made | st.sampled_from([None, "x", 3, [], {}]) if odd else made


# What the schema leaves out, and what it asks for that the reader can do without.
LEFT_OUT = ("ids", "value")


def accepted(value: Any) -> str | None:
    """None, or why the reader refuses a rule."""
    try:
        Rule.from_json(value)
    except Refused as refusal:
        return str(refusal)
    return None


@settings(deadline=None)
@given(shaped(RULE_SCHEMA))
def test_every_rule_that_fits_the_schema_is_read(rule: Any) -> None:
    """But for its size: a schema cannot count the parts of a rule."""
    assert fits(rule, RULE_SCHEMA)
    why = accepted(rule)
    assert why is None or "leave conditions out" in why


@settings(deadline=None, max_examples=200)
@given(shaped(RULE_SCHEMA, odd=True))
def test_what_is_read_fits_the_schema_and_what_does_not_fit_is_refused(rule: Any) -> None:
    """The reader is more lenient in two things: `within` and `unit` have a usual value, and lists may be longer."""
    why = accepted(rule)
    if fits(rule, RULE_SCHEMA):
        assert why is None or "leave conditions out" in why
    elif why is None:
        near = [n for c in rule["clauses"] for key in ("need", "not") for n in c.get(key, [])]
        long = any(len(c.get(key, [])) > 3 for c in rule["clauses"] for key in ("need", "not"))
        assert long or any(n.keys() != {"match", "within", "unit"} for n in near) or any(
            c.get("position", 0) is None for c in rule["clauses"]
        )


def test_the_schema_shows_no_way_to_name_tokens_or_to_match_everything() -> None:
    said = str(RULE_SCHEMA)
    assert not [name for name in LEFT_OUT if f"'{name}'" in said]
    at = RULE_SCHEMA["properties"]["clauses"]["items"]["properties"]["at"]["anyOf"]
    classes = next(one["properties"]["class"]["enum"] for one in at if "class" in one["properties"])
    assert set(CLASSES) - set(classes) == {"any", "blank"}
