"""top_examples: what is shown are the places that the sweep kept, with the very text that led to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import measures
from lamplighter.tools.activate import activate
from lamplighter.tools.corpus import Corpus, Document
from lamplighter.tools.examples import BEFORE, top_examples
from lamplighter.tools.sweep import Sweep, make_sweep
from lamplighter.tools.units import UnitId

UNIT = UnitId("tiny-llama", "0-mlp", 7)


@pytest.fixture(scope="module")
def sweep(llama: Any, sweep_of: Callable[..., Sweep]) -> Sweep:
    return sweep_of(llama, documents=60, shortest=30, spread=40)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("side", ["explain", "tune"])
def test_the_best_documents_strongest_first(llama: Any, sweep: Sweep, side: str, sign: int) -> None:
    unit = UnitId(UNIT.model, UNIT.site, UNIT.index, sign)
    evidence = top_examples(llama, sweep, unit, side=side)
    values = [row["activation"] for row in evidence.rows]
    assert values == sorted(values, reverse=True)
    assert len({row["document"] for row in evidence.rows}) == len(evidence.rows) == 10
    known = sweep.statistics(unit)
    if side == "explain":
        assert sum(values) / 10 == pytest.approx(known.peak, rel=1e-6) == evidence.checks["peak"]
    best = {}
    for number in sweep.side(side):
        d = sweep.documents[number]
        best[d.name] = sweep.read(llama, unit, [(number, o) for o in range(d.length)]).max()
    assert values == pytest.approx(sorted(best.values(), reverse=True)[:10], rel=1e-6)
    assert values == pytest.approx([best[row["document"]] for row in evidence.rows], rel=1e-6)


@pytest.mark.parametrize("band", measures.BANDS)
def test_reading_the_ids_shown_gives_the_activation_shown(llama: Any, sweep: Sweep, band: str) -> None:
    """At the last id, which is the token named, behind the text named."""
    evidence = top_examples(llama, sweep, UNIT, band=band, n=4)
    assert 0 < len(evidence.rows) <= 4
    for row in evidence.rows:
        again = activate(llama, UNIT, ids=row["ids"])
        assert again.rows[-1]["activation"] == pytest.approx(row["activation"], rel=1e-6, abs=1e-7)
        assert again.rows[-1]["token"] == row["token"]
        assert row["ratio"] == row["activation"] / evidence.checks["peak"]
        assert row["text"].endswith(row["token"])
        assert row["text"] == llama.text(row["ids"][1:][-BEFORE:])
        assert row["band"] == band
        document = next(d for d in sweep.documents if d.name == row["document"])
        assert sweep.tokens[document.start + row["offset"]] == row["ids"][-1]


def test_the_token_before_would_read_otherwise(llama: Any, sweep: Sweep) -> None:
    """A place that is off by one shows: its reading is not the one kept."""
    rows = top_examples(llama, sweep, UNIT).rows
    off = [activate(llama, UNIT, ids=row["ids"]).rows[-2]["activation"] for row in rows if len(row["ids"]) > 2]
    assert any(abs(a - row["activation"]) > 0.1 for a, row in zip(off, rows, strict=False))


def test_ratios_stand_in_their_band(llama: Any, sweep: Sweep) -> None:
    edges = {"high": (0.8, 99), "mid": (0.5, 0.8), "boundary": (0.25, 0.5), "low": (0.1, 0.25)}
    for band, (low, high) in edges.items():
        rows = top_examples(llama, sweep, UNIT, band=band).rows
        assert rows
        assert all(low <= row["ratio"] < high for row in rows)
    assert min(row["ratio"] for row in top_examples(llama, sweep, UNIT, band="random", n=64).rows) < 0.1


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_n_rows_at_most(llama: Any, sweep: Sweep, n: int) -> None:
    rows = top_examples(llama, sweep, UNIT, n=n).rows
    assert rows == top_examples(llama, sweep, UNIT).rows[:n]


@pytest.mark.parametrize("n", [0, -5])
def test_no_rows_are_no_question(llama: Any, sweep: Sweep, n: int) -> None:
    with pytest.raises(Refused, match=f"n = {n} asks for no places"):
        top_examples(llama, sweep, UNIT, n=n)


def test_the_record_comes_back_and_costs_no_pass(llama: Any, sweep: Sweep) -> None:
    before = llama.meter.rows
    evidence = top_examples(llama, sweep, UNIT, band="mid", side="tune", n=3)
    assert llama.meter.rows == before
    assert evidence.cost["forward_rows"] == evidence.cost["forward_tokens"] == 0
    assert Evidence.from_json(evidence.to_json()) == evidence
    assert evidence.arguments == {"band": "mid", "side": "tune", "n": 3}
    assert (evidence.unit, evidence.sign) == (UNIT.bare, 1)
    known = sweep.statistics(UNIT)
    assert evidence.checks == {
        "peak": known.peak, "threshold": known.threshold, "sink": known.sink, "rate": known.rate("tune"),
        "clusters_tune": known.clusters["tune"], "tokens": known.tokens["tune"],
    }  # fmt: skip
    assert len(evidence.summary.split()) <= 60


def test_the_score_side_is_never_shown(llama: Any, sweep: Sweep) -> None:
    with pytest.raises(Refused, match="choose explain or tune"):
        top_examples(llama, sweep, UNIT, side="score")
    score = {sweep.documents[n].name for n in sweep.side("score")}
    assert score
    for side in ("explain", "tune"):
        for band in measures.BANDS:
            assert not score & {row["document"] for row in top_examples(llama, sweep, UNIT, band=band, side=side).rows}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"band": "peak"}, "band 'peak' is unknown; choose one of top, high"),
        ({"side": "test"}, "side 'test' cannot be shown"),
    ],
)
def test_unknown_options_are_refused(llama: Any, sweep: Sweep, options: dict[str, str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        top_examples(llama, sweep, UNIT, **options)


def test_an_empty_band_is_a_warning(llama: Any, tmp_path: Path) -> None:
    """Documents of one and the same word fire alike everywhere: no place lies below the peak."""
    documents = tuple(Document(f"{n:02}", str(n), "the") for n in range(12))
    sides = ("explain",) * 10 + ("tune", "score")
    sweep = make_sweep(llama, Corpus("one", "one", documents, tuple(range(12)), sides, {}), ["0-mlp"], tmp_path)
    alive = next(u for i in range(40) if sweep.statistics(u := UnitId("tiny-llama", "0-mlp", i)).peak > 0)
    evidence = top_examples(llama, sweep, alive, band="mid")
    assert evidence.rows == []
    assert evidence.warnings == [f"the sweep kept no mid places of {alive} on the explain side."]
    assert len(top_examples(llama, sweep, alive).rows) == 10


def test_a_site_that_was_not_swept_is_refused_with_the_command(llama: Any, sweep: Sweep) -> None:
    with pytest.raises(Refused, match="lamplighter sweep --model tiny-llama --sites 1-mlp"):
        top_examples(llama, sweep, UnitId("tiny-llama", "1-mlp", 0))
