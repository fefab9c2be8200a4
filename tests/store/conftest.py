"""Records of every kind, drawn from all values that their fields may hold; and what a run leaves, in a few lines."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import strategies as st

from lamplighter.store.findings import Findings
from lamplighter.store.records import Embedding, Hypothesis, Investigation, Record, Score, Verdict

FINITE = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
PLAIN = {str: st.text(), int: WHOLE, float: FINITE, bool: st.booleans(), Any: JSON, type(None): st.none()}


def values(hint):
    if isinstance(hint, UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if get_origin(hint) is list:
        return st.lists(values(get_args(hint)[0]), max_size=3)
    if get_origin(hint) is dict:
        return st.dictionaries(st.text(), values(get_args(hint)[1]), max_size=3)
    return PLAIN[hint]


def drawn_records(kind):
    hints = get_type_hints(kind)
    drawn = {field.name: values(hints[field.name]) for field in fields(kind)}
    drawn["id"] = st.uuids().map(str)
    drawn["created_at"] = st.datetimes().map(lambda when: when.isoformat(timespec="microseconds"))
    if kind is Embedding:
        drawn["vector"] = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False))
    return st.builds(kind, **drawn)


@pytest.fixture(scope="session")
def records():
    """records(kind): a strategy for records of that kind."""
    return drawn_records


def explained(
    unit: str, sentence: str | None, vector: list[float] | None = None, *, sign: int = 1, f1: float | None = 0.5,
    embedder: str = "tiny", at: int = 0, verdict: str = "accepted", planner: str = "playbook", rule: str | None = None,
    pushes: str | None = None,
) -> list[Record]:  # fmt: skip
    """One decided investigation; `at` in seconds orders them."""
    base: dict[str, Any] = {"unit": unit, "sign": sign, "investigation": f"{unit}{sign}{at}", "run": f"r{at}"}
    base["created_at"] = f"2026-01-01T00:{at // 60:02d}:{at % 60:02d}.000000"
    made = Hypothesis(**base, author="p", sentence=sentence or "", rule=None, rule_text=rule, kept=sentence is not None)
    bounds = {} if f1 is None else {"low": f1 - 0.1, "high": f1 + 0.1}
    rows: list[Record] = [
        made,
        Investigation(**base, planner=planner, status="done", steps=1, cost={}, seconds=1.0),
        Score(**base, hypothesis=made.id, metric="f1", side="score", value=f1, floors={"always": 0.05}, **bounds),
        Verdict(**base, hypothesis=made.id, verdict=verdict, reason="r"),
    ]
    if pushes is not None:
        rows.append(Hypothesis(
            **base, author="p", sentence=pushes, rule=None, rule_text=None, kept=True, side="output"
        ))  # fmt: skip
    if vector is not None:
        rows.append(Embedding(**base, hypothesis=made.id, model=embedder, vector=vector))
    return rows


@pytest.fixture(scope="session")
def explanation() -> Callable[..., list[Record]]:
    return explained


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(tmp_path / "home" / "findings.duckdb")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Findings]:
    """Four explanations; three sites, two models, both signs."""
    findings = Findings(tmp_path_factory.mktemp("filled") / "findings.duckdb")
    findings.append(
        explained("smol/5-mlp/1", "fires on digits", [1.0, 0.0], f1=0.9, planner="llm:qwen@embedded")
        + explained("smol/5-mlp/1", "fires on no digit", [0.6, 0.8], sign=-1, f1=0.2, verdict="rejected")
        + explained("smol/8-resid:my-sae/2", "fires on ordinals", [0.8, 0.6], f1=0.4, verdict="unclear",
                      pushes="raises endings such as th")
        + explained("org/smol/5-mlp/3", "fires on the splitting of hairs", [0.9, 0.1], f1=None, rule='word "tear"')
    )  # fmt: skip
    yield findings
