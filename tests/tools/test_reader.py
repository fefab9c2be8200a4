"""Rows that begin alike are computed once, and read as each alone would be."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.store.records import Refused
from lamplighter.tools import reader as module
from lamplighter.tools.adapters import MISS, gap
from lamplighter.tools.reader import Reader
from lamplighter.tools.subject import Subject
from lamplighter.tools.tries import Trie
from lamplighter.tools.units import UnitId

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=20)
CLOSE = 1e-6    # RMSNorm computes in float32 even inside a float64 model


def rows_of(subject: Any) -> list[list[int]]:
    """A text, its swaps at several places, a shorter and a repeated row, and one that shares the sink alone."""
    ids = subject.encode("It was built in the late 19th century, and left.")[:14]
    swaps = [[*ids[:at], other, *ids[at + 1 :]] for at in (3, 9, 13) for other in (40, 41)]
    return [ids, *swaps, ids[:5], ids, [subject.sink, 50, 51]]


@given(ROWS)
def test_a_trie_has_a_node_for_each_prefix_and_sees_ancestors_alone(rows: list[list[int]]) -> None:
    trie = Trie(200)
    for row in rows:
        size, missing = len(trie.ids), trie.missing(row)
        node = trie.add(row)
        assert len(trie.ids) - size == missing and trie.missing(row) == 0 and trie.add(row) == node
        seen = [j for j in range(len(trie.ids)) if trie.sees[node, j]]
        assert [trie.ids[j] for j in seen] == row
        assert [trie.depth[j] for j in seen] == list(range(len(row)))
    assert len(trie.ids) == len({tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)})


def test_readings_are_those_of_each_row_alone(tiny: Any) -> None:
    rows = rows_of(tiny)
    reader = Reader(tiny, ["0-mlp", "1-mlp", "1-resid"])
    for unit in (UnitId("t", "1-mlp", 3), UnitId("t", "0-mlp", 7, -1), UnitId("t", "1-resid", 5)):
        alone = torch.stack([tiny.readings([row], unit)[0] for row in rows])
        assert gap(reader(rows, unit), alone) < CLOSE
        assert gap(Reader(tiny, [unit.site])(rows, unit), alone) < CLOSE


def test_each_row_may_have_a_unit_of_its_own(tiny: Any) -> None:
    rows = rows_of(tiny)
    units = [UnitId("t", ("0-mlp", "1-mlp")[i % 2], i, (1, -1)[i % 2]) for i in range(len(rows))]
    alone = torch.stack([tiny.readings([row], unit)[0] for row, unit in zip(rows, units, strict=True)])
    assert gap(Reader(tiny, ["0-mlp", "1-mlp"])(rows, units), alone) < CLOSE


def test_portions_cost_their_new_prefixes_alone(tiny: Any) -> None:
    ids = rows_of(tiny)[0]
    reader, unit = Reader(tiny, ["1-mlp"]), UnitId("t", "1-mlp", 3)

    def cost(*rows: list[int]) -> tuple[int, int]:
        with tiny.metered() as spent:
            reader(rows, unit)
        return int(spent["forward_rows"]), int(spent["forward_tokens"])

    assert cost(ids) == (1, 14)
    assert cost(ids, ids[:4]) == (2, 0)
    assert cost([*ids[:13], 40], [*ids[:13], 41]) == (2, 2)
    assert cost([*ids[:12], 40, 41]) == (1, 2)


def test_a_prefix_is_not_changed_by_what_came_before(tiny: Any) -> None:
    """Neither other branches nor earlier portions are attended to: the naive shared cache would leak both."""
    rows, unit = rows_of(tiny), UnitId("t", "1-mlp", 3)
    alone = tiny.readings([rows[0]], unit)
    reader = Reader(tiny, ["1-mlp"])
    for row in rows[1:]:
        reader([row], unit)
    assert gap(reader([rows[0]], unit), alone) < CLOSE
    leaky = Reader(tiny, ["1-mlp"])
    for row in rows[1:]:
        leaky._trie.add(row)
        leaky._trie.sees[: len(leaky._trie.ids), : len(leaky._trie.ids)] = True
    assert gap(leaky([rows[0]], unit), alone) > 1e-3


@pytest.mark.parametrize(("room", "size"), [(20, 1024), (40, 3), (2048, 5)])
def test_little_room_and_small_passes_change_nothing(
    tiny: Any, room: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LayerNorm computes in float64 here, and there nothing is left of a difference."""
    close = 1e-12 if tiny.config.model_type == "gpt2" else 10 * CLOSE
    monkeypatch.setattr(module, "ROOM", room)
    monkeypatch.setattr("lamplighter.tools.tries.PASS", size)
    rows, unit = rows_of(tiny), UnitId("t", "1-mlp", 3, -1)
    reader = Reader(tiny, ["1-mlp"])
    for some in (rows, rows[::-1], rows[2:5]):
        assert gap(reader(some, unit), torch.cat([tiny.readings([row], unit) for row in some])) < close


def test_a_row_is_read_along_at_every_token(tiny: Any) -> None:
    ids, unit = rows_of(tiny)[0], UnitId("t", "1-mlp", 3, -1)
    with tiny.metered() as cost:
        values = Reader(tiny, ["1-mlp"]).along(ids, unit)
    assert gap(torch.tensor(values), -tiny.activations(ids, [unit])[0, :, 0]) < CLOSE
    assert (cost["forward_rows"], cost["forward_tokens"]) == (1, 14)


def test_where_sharing_fails_rows_are_read_apart(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, unit = rows_of(llama), UnitId("t", "1-mlp", 3)
    units = [UnitId("t", "1-mlp", i % 2) for i in range(len(rows))]
    shared = Reader(llama, ["1-mlp"])
    wanted = shared(rows, units), shared.along(rows[0], unit)
    monkeypatch.setattr(llama, "checks", {**llama.checks, "share": 0.3})
    apart = Reader(llama, ["1-mlp"])
    monkeypatch.setattr(apart, "_trie", None)
    assert gap(apart(rows, units), wanted[0]) < CLOSE
    assert apart.along(rows[0], unit) == pytest.approx(wanted[1], rel=10 * CLOSE)


def again(subject: Any, **changes: Any) -> tuple[Any, Any]:
    """A random model of the same shape with another config, and the tokenizer."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(subject.model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64), subject.tokenizer


def test_a_row_beyond_a_sliding_window_is_read_apart(tiny: Any) -> None:
    subject = Subject.wrap(*again(tiny, sliding_window=12, initializer_range=0.3), "t")
    rows, unit = rows_of(subject), UnitId("t", "1-mlp", 3)
    alone = torch.cat([subject.readings([row], unit) for row in rows])
    assert subject.sees == 12 and subject.shares
    assert gap(Reader(subject, ["1-mlp"])(rows, unit), alone) < CLOSE
    subject.sees = 100
    naive = gap(Reader(subject, ["1-mlp"])(rows, unit), alone)
    assert naive > 1e-3 if tiny.config.model_type == "gemma2" else naive < CLOSE


def test_a_model_that_takes_no_such_mask_shares_nothing(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = again(llama)
    whole = model.base_model.forward

    def strict(**inputs: Any) -> Any:
        if inputs.get("attention_mask") is not None and inputs["attention_mask"].ndim == 4:
            raise ValueError("a mask has two dimensions")
        return whole(**inputs)

    monkeypatch.setattr(model.base_model, "forward", strict)
    subject = Subject.wrap(model, tokenizer, "t")
    assert subject.checks["share"] == MISS and subject.holds("read") and not subject.shares


def test_a_model_that_ignores_the_mask_is_found_out(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = again(llama)
    whole = model.base_model.forward

    def causal(**inputs: Any) -> Any:
        if inputs.get("attention_mask") is not None and inputs["attention_mask"].ndim == 4:
            inputs = {**inputs, "attention_mask": None}
        return whole(**inputs)

    monkeypatch.setattr(model.base_model, "forward", causal)
    subject = Subject.wrap(model, tokenizer, "t")
    assert not subject.shares and subject.holds("read")


def test_heads_and_unknown_units_are_refused(llama: Any) -> None:
    with pytest.raises(Refused, match="no single activation"):
        Reader(llama, ["1-mlp"])([[0, 1]], UnitId("t", "1-attn", 0))
    with pytest.raises(Refused, match="out of range"):
        Reader(llama, ["1-mlp"])([[0, 1]], UnitId("t", "1-mlp", 40))
