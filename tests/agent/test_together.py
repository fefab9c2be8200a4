"""Explained units rebuilt together: each by its last rule, all in one pass, recorded under a name of the set."""

import json
from typing import Any

import pytest

from lamplighter.agent.config import Home
from lamplighter.agent.together import _shared_sweep, rebuild_together
from lamplighter.store.records import Hypothesis, Refused, Score
from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.rebuild import fit_scales, rebuild
from lamplighter.tools.rules import Rule
from lamplighter.tools.sweep import make_sweep
from lamplighter.tools.units import UnitId


def quiet(what: str, done: int, total: int) -> None:
    pass


def together(home: Home, spec: str, second: str | None = None) -> list[Score]:
    return rebuild_together(home, spec, second, None, None, quiet)


@pytest.fixture
def pair(finished: Any) -> list[UnitId]:
    """Two units of the finished run whose explanations have rules."""
    found = {
        UnitId.parse((h.unit or "") + ("-" if h.sign < 0 else ""))
        for h in finished.home.findings.read(Hypothesis, kept=True, side="input")
        if h.rule is not None
    }
    return sorted(found)[:2]


def test_a_set_is_rebuilt_as_by_hand_with_all_its_rules_at_a_time(copied: Home, pair: list[UnitId]) -> None:
    found = together(copied, ",".join(map(str, pair)))
    toolbox = copied.toolbox(pair[0].model)
    sweep = toolbox.sweep(pair[0])
    rules = {}
    for unit in pair:
        kept = copied.findings.read(Hypothesis, unit=unit.bare, sign=unit.sign, kept=True, side="input")[-1]
        rules[unit] = Rule.from_json(kept.rule)
    scales = fit_scales(toolbox.subject, sweep, rules)
    by_hand = rebuild(toolbox.subject, sweep, rules, scales, hypothesis="x", claim=lambda _: True)
    assert [s.metric for s in found] == ["ce_recovered", "kl_recovered"]
    for one, other in zip(found, by_hand, strict=True):
        assert (one.value, one.low, one.high) == (other.value, other.low, other.high)
        assert one.details["units"] == [str(unit) for unit in pair] and one.hypothesis.startswith("set-")
    alone = together(copied, str(pair[0]))[0]
    assert alone.details["ce_mean"] != found[0].details["ce_mean"]       # one unit at its mean is not two


def test_what_is_recorded_of_a_set_is_given_again_in_whatever_order_it_is_named(
    copied: Home, pair: list[UnitId], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = map(str, pair)
    first = together(copied, f"{one},{other}")
    copied.findings.append(first)
    monkeypatch.setattr("lamplighter.agent.together.rebuild", None)     # it is not asked again
    assert together(copied, f"{other},{one}") == first


def test_a_second_corpus_is_swept_and_scored_beside(copied: Home, pair: list[UnitId], other_texts: str) -> None:
    found = together(copied, str(pair[0]), other_texts)
    assert [s.metric for s in found] == ["ce_recovered", "kl_recovered"] + [
        "ce_recovered_second_corpus", "kl_recovered_second_corpus"
    ]  # fmt: skip
    assert found[0].details["corpus"] != found[2].details["corpus"]


def test_units_that_were_swept_apart_are_rebuilt_where_a_sweep_has_them_all(
    copied: Home, project: Any, pair: list[UnitId]
) -> None:
    """Though each site's largest sweep has it alone."""
    toolbox, other = copied.toolbox(pair[0].model), UnitId(pair[0].model, "0-resid", 0)
    corpus = load_corpus(project.corpus)
    make_sweep(toolbox.subject, corpus, ["0-resid"], copied.path)
    with pytest.raises(Refused, match="swept apart; run `lamplighter sweep --model .* --sites 0-mlp,0-resid`"):
        _shared_sweep(copied, toolbox, [pair[0], other])
    make_sweep(toolbox.subject, corpus, ["0-mlp", "0-resid"], copied.path, 2000)
    assert _shared_sweep(copied, toolbox, [pair[0], other]).sites == ["0-mlp", "0-resid"]
    assert toolbox.sweep(other).sites == ["0-resid"] and toolbox.sweep(pair[0]).sites == ["0-mlp"]


def test_what_cannot_be_rebuilt_is_refused_in_a_sentence(finished: Any, pair: list[UnitId]) -> None:
    model = pair[0].model
    for spec, said in (
        (f"{model}/0-mlp/4", "has no explanation with a rule"),
        (f"{pair[0]},other/0-mlp/1", "several models"),
        ("auto:3", "name the explained ones"),
    ):
        with pytest.raises(Refused, match=said):
            together(finished.home, spec)


def test_the_command_prints_and_records_it(copied: Home, pair: list[UnitId], capsys: Any) -> None:
    from lamplighter.agent.cli import app

    spec = ",".join(map(str, pair))
    for flags in (["--json"], []):
        with pytest.raises(SystemExit) as ended:
            app(["rebuild", spec, "--home", str(copied.path), *flags])
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    facts, end = json.JSONDecoder().raw_decode(printed)
    assert [row["metric"] for row in facts] == ["ce_recovered", "kl_recovered"]
    assert "CE rebuilt" in printed[end:] and str(pair[1]) in printed[end:]
    stored = copied.findings.read(Score, hypothesis=facts[0]["hypothesis"])
    assert {s.id for s in stored} >= {row["id"] for row in facts}
