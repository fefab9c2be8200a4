"""The subject: readings are the model's own, edits do what they say and nothing else, passes cost what they must."""

import copy
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lamplighter.store.records import Refused
from lamplighter.tools.adapters import gap
from lamplighter.tools.features import Point
from lamplighter.tools.subject import TOLERANCE, Edit, Subject
from lamplighter.tools.units import UnitId

TEXT = "World War II began in 1939; World War I ended in 1918."
CLOSE = 1e-6   # RMSNorm computes in float32 even inside a float64 model
LENGTHS = (5, 12, 9, 2)


def ragged(subject: Any, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[subject.sink, *torch.randint(1, 320, (n - 1,), generator=generator).tolist()] for n in lengths]


def sites(subject: Any) -> list[str]:
    return [f"{layer}-{kind}" for layer in range(subject.n_layers) for kind in ("attn", "mlp", "resid")]


# Readings


def test_readings_are_what_plain_hooks_see(tiny: Any) -> None:
    ids = torch.tensor(ragged(tiny, (9, 9)))
    seen: dict[str, Tensor] = {}
    handles = []
    for layer, block in enumerate(tiny.adapter.blocks):
        for kind, part in (("attn", "heads"), ("mlp", "neurons")):
            module = tiny.adapter.module(layer, part)

            def keep(_: Any, inputs: Any, site: str = f"{layer}-{kind}") -> None:
                seen[site] = inputs[0]

            handles.append(module.register_forward_pre_hook(keep))

        def keep_output(_: Any, __: Any, output: Any, site: str = f"{layer}-resid") -> None:
            seen[site] = output

        handles.append(block.register_forward_hook(keep_output))
    with torch.inference_mode():
        logits = tiny.model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    done = tiny.run(ids, read=sites(tiny), logits=True)
    assert done.readings.keys() == seen.keys()
    assert all(gap(done.readings[site], seen[site]) < CLOSE for site in seen)
    assert gap(done.logits, logits) < CLOSE
    assert all(done.readings[site].shape == (2, 9, tiny.width(site)) for site in seen)


def test_text_after_the_tracked_token_never_changes_a_reading(tiny: Any) -> None:
    ids = tiny.encode(TEXT)
    cut = len(ids) // 2
    other = [*ids[:cut], *(321 - i for i in ids[cut:])]
    one, two = (tiny.run([row], read=sites(tiny)).readings for row in (ids, other))
    for site in one:
        assert torch.equal(one[site][:, :cut], two[site][:, :cut]), site
        assert not torch.equal(one[site][:, cut:], two[site][:, cut:]), site
    short = tiny.run([ids[:cut]], read=sites(tiny)).readings
    assert all(gap(short[site], one[site][:, :cut]) < CLOSE for site in one)


def test_right_padding_is_exact(tiny: Any) -> None:
    rows = ragged(tiny)
    done = tiny.run(rows, read=sites(tiny), logits=True)
    assert done.mask.sum(dim=1).tolist() == list(LENGTHS)
    for i, row in enumerate(rows):
        alone = tiny.run([row], read=sites(tiny), logits=True)
        for site in sites(tiny):
            assert gap(done.readings[site][i, : len(row)], alone.readings[site][0]) < CLOSE
        assert gap(done.logits[i, : len(row)], alone.logits[0]) < CLOSE


def test_left_padding_without_positions_is_what_right_padding_saves_from(tiny: Any) -> None:
    """The naive way: shorter texts pushed to the right, and a mask, but no position ids."""
    if tiny.config.model_type != "gpt2":
        return   # rotary positions are relative: nothing goes wrong
    row = ragged(tiny, (6,))[0]
    ids, mask = torch.tensor([[0] * 4 + row]), torch.tensor([[0] * 4 + [1] * 6])
    right = tiny.run([row], logits=True).logits[0]
    with torch.inference_mode():
        naive = tiny.model(input_ids=ids, attention_mask=mask).logits[0, 4:]
    assert gap(naive, right) > 0.05


def test_batches_of_other_shapes_agree(tiny: Any) -> None:
    model = copy.deepcopy(tiny.model).float()
    subject = Subject.wrap(model, tiny.tokenizer, "single")
    rows = ragged(subject, (20, 20, 20, 20, 7, 7))
    together = subject.activations(rows, [UnitId("single", "1-mlp", 3)])
    alone = [subject.activations(row, [UnitId("single", "1-mlp", 3)])[0] for row in rows]
    assert together.shape == (6, 20, 1) and together.dtype == torch.float32
    for line, row in zip(together, alone, strict=True):
        assert gap(line[: len(row)], row) < 1e-5
        assert line[len(row) :].isnan().all()


def test_activations_carry_no_sign_and_readings_do(llama: Any) -> None:
    rows = ragged(llama)
    up, down = UnitId("t", "1-mlp", 3), UnitId("t", "1-mlp", 3, sign=-1)
    raw = llama.activations(rows, [up, down, UnitId("t", "0-resid", 5)])
    assert raw.dtype == torch.float64
    assert torch.equal(raw[..., 0].nan_to_num(), raw[..., 1].nan_to_num())
    last = torch.stack([raw[i, len(row) - 1, 0] for i, row in enumerate(rows)])
    assert torch.allclose(llama.readings(rows, up), last, atol=CLOSE)
    assert torch.allclose(llama.readings(rows, down), -last, atol=CLOSE)


def test_a_head_has_no_reading_but_a_slice_of_columns(llama: Any) -> None:
    with pytest.raises(Refused, match="0-attn/2 is a head, which has no single activation"):
        llama.activations([[0, 5]], [UnitId("t", "0-attn", 2)])
    assert llama.columns("0-attn", [2, 0]) == [*range(12, 18), *range(6)]
    assert llama.columns("0-mlp", [2, 0]) == [2, 0]
    assert (llama.count("0-attn"), llama.width("0-attn")) == (4, 24)


def test_write_directions_sum_to_the_mlp_output(tiny: Any) -> None:
    ids = torch.tensor(ragged(tiny, (7,)))
    outputs: list[Tensor] = []
    handle = tiny.adapter.module(1, "mlp").register_forward_hook(lambda _, __, output: outputs.append(output))
    values = tiny.run(ids, read=["1-mlp", "1-resid"]).readings["1-mlp"]
    handle.remove()
    writes = torch.stack([tiny.write_direction(UnitId("t", "1-mlp", i)) for i in range(40)])
    bias = tiny.adapter.linear(1, "neurons")[1]
    assert gap(values @ writes + (0 if bias is None else bias), outputs[0]) < CLOSE
    assert torch.equal(tiny.write_direction(UnitId("t", "1-mlp", 4, sign=-1)), -writes[4])


# Edits


def test_putting_a_runs_own_values_back_is_bit_equal(tiny: Any) -> None:
    rows = ragged(tiny)
    clean = tiny.run(rows, read=sites(tiny), logits=True)
    for site in sites(tiny):
        own = tiny.run(rows, edits=[Edit(site, clean.readings[site])], logits=True)
        assert torch.equal(own.logits[own.mask], clean.logits[clean.mask]), site
        assert own.fired == [sum(LENGTHS)]
        one = tiny.run(rows, edits=[Edit(site, lambda value: value, index=(1,))], logits=True)
        assert torch.equal(one.logits[one.mask], clean.logits[clean.mask]), site


def test_no_edits_are_no_change(tiny: Any) -> None:
    rows = ragged(tiny)
    bare, none = tiny.run(rows, logits=True), tiny.run(rows, edits=[], logits=True)
    nowhere = Edit("0-mlp", torch.tensor(9.0), where=torch.zeros(4, 12, dtype=torch.bool))
    empty = tiny.run(rows, edits=[nowhere], logits=True)
    assert torch.equal(bare.logits, none.logits) and torch.equal(bare.logits[bare.mask], empty.logits[bare.mask])
    assert none.fired == [] and empty.fired == [0]


def test_restoring_the_stream_restores_the_logits(tiny: Any) -> None:
    ids, other = torch.tensor(ragged(tiny, (9, 9))), torch.tensor(ragged(tiny, (9, 9), seed=1))
    clean = tiny.run(ids, read=["0-mlp", "0-resid", "1-resid"], logits=True)
    assert gap(tiny.run(other, logits=True).logits, clean.logits) > 0.05
    for site in ("0-resid", "1-resid"):
        restored = tiny.run(other, edits=[Edit(site, clean.readings[site])], logits=True)
        assert gap(restored.logits, clean.logits) < CLOSE, site
    half = tiny.run(other, edits=[Edit("0-mlp", clean.readings["0-mlp"])], logits=True)
    assert gap(half.logits, clean.logits) > 0.05   # a narrower site does not carry the text


def test_an_edit_changes_the_named_unit_at_the_named_positions_only(tiny: Any) -> None:
    rows = ragged(tiny)
    where = torch.zeros(4, 12, dtype=torch.bool)
    where[0, 2] = where[1, 3:5] = where[3, 7] = True   # row 3 has 2 tokens, so its place is padding
    for site, index in (("0-mlp", (3, 5)), ("0-resid", (3,)), ("0-attn", (2,))):
        columns = tiny.columns(site, index)
        clean = tiny.run(rows, read=[site]).readings[site]
        done = tiny.run(rows, read=[site], edits=[Edit(site, torch.tensor(7.0), index, where)])
        assert done.fired == [3]
        wanted = clean.clone()
        for b, t in ((0, 2), (1, 3), (1, 4)):
            wanted[b, t, columns] = 7.0
        assert torch.equal(done.readings[site][done.mask], wanted[done.mask])


def test_edits_by_row_give_each_row_its_own_unit(tiny: Any) -> None:
    rows = torch.tensor(ragged(tiny, (6, 6, 6)))
    clean = tiny.run(rows, read=["1-mlp"], logits=True)
    where = torch.zeros(3, 6, dtype=torch.bool)
    where[:2, 4] = True
    columns, values = torch.tensor([[7], [9], [11]]), torch.tensor([[[1.0]], [[-2.0]], [[3.0]]])
    done = tiny.run(rows, read=["1-mlp"], edits=[Edit.by_row("1-mlp", columns, values, where)], logits=True)
    wanted = clean.readings["1-mlp"].clone()
    wanted[0, 4, 7], wanted[1, 4, 9] = 1.0, -2.0
    assert torch.equal(done.readings["1-mlp"], wanted) and done.fired == [2]
    assert torch.equal(done.logits[2], clean.logits[2]) and torch.equal(done.logits[:, :4], clean.logits[:, :4])
    for b in range(2):   # each row as if it had been edited alone
        edit = Edit("1-mlp", values[b], (int(columns[b]),), where[b : b + 1])
        alone = tiny.run(rows[b : b + 1], edits=[edit], logits=True)
        assert gap(done.logits[b], alone.logits[0]) < CLOSE
    spread = torch.arange(6.0).view(1, 6, 1).expand(3, 6, 1)   # values that change along the row
    edit = Edit.by_row("1-mlp", columns, spread, torch.ones(3, 6, dtype=torch.bool))
    done = tiny.run(rows, read=["1-mlp"], edits=[edit])
    assert done.readings["1-mlp"][2, :, 11].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_edit_behind_the_deepest_reading_is_refused_by_name(tiny: Any) -> None:
    rows, zero = ragged(tiny), torch.tensor(0.0)
    with pytest.raises(Refused, match="never came to 1-mlp"):
        tiny.run(rows, read=["0-mlp"], edits=[Edit("1-mlp", zero), Edit("0-attn", zero)])
    with pytest.raises(Refused, match="never came to mlp_out of block 1"):
        tiny.run(rows, read=["0-mlp"], edits=[Edit(Point(1, "mlp_out"), zero)])
    nowhere = torch.zeros(len(rows), max(LENGTHS), dtype=torch.bool)
    assert tiny.run(rows, read=["0-mlp"], edits=[Edit("1-mlp", zero, where=nowhere)]).fired == [0]
    assert tiny.run(rows, edits=[Edit("1-mlp", zero)]).fired == [sum(LENGTHS)]


def test_numbers_that_are_not_finite_are_refused_by_their_place_and_never_kept(tiny: Any) -> None:
    model = copy.deepcopy(tiny.model)
    hurt = Subject.wrap(model, tiny.tokenizer, "hurt")
    hurt.adapter.linear(1, "neurons")[0][3, 0] = float("nan")
    rows, kept = ragged(tiny), dict[Any, Any]()
    assert hurt.run(rows, read=["0-mlp", "1-mlp"]).readings["1-mlp"].isfinite().all()   # the damage is behind it
    with pytest.raises(Refused, match="hurt gives numbers that are not finite in float64 at 1-resid; its weights"):
        hurt.run(rows, read=["0-mlp", "1-resid"])
    with pytest.raises(Refused, match="at what the final norm gives"):
        hurt.run(rows, normed=True)
    with pytest.raises(Refused, match="at the logits"):
        hurt.run(rows, logits=True)
    with pytest.raises(Refused, match="at 1-resid"):
        hurt.run(rows, read=["1-resid"], take=kept.__setitem__)


def test_an_overflow_of_half_precision_is_refused_with_the_way_out(tiny: Any) -> None:
    model = copy.deepcopy(tiny.model).half()
    half = Subject.wrap(model, tiny.tokenizer, "half")
    assert half.run(ragged(tiny), read=["0-resid"]).readings["0-resid"].dtype == torch.float16
    weight, _ = half.adapter.linear(0, "neurons")
    weight.copy_(6e4 * half.run(ragged(tiny), read=["0-mlp"]).readings["0-mlp"][0, 1].sign()[:, None])
    assert weight.isfinite().all()
    with pytest.raises(Refused, match="not finite in float16 at 0-resid; load it in float32"):
        half.run(ragged(tiny), read=["0-resid"])


def test_an_overflow_in_the_logits_of_one_text_alone_is_refused(llama: Any) -> None:
    """The identities of loading, on other ids, do not see it; a mean over such logits would be no number."""
    model = copy.deepcopy(llama.model).half()
    rows, places = [llama.encode("World War II")], [(0, len(llama.encode("World War II")) - 1)]
    normed = Subject.wrap(model, llama.tokenizer, "half").run(rows, normed=True).normed[0, -1]
    model.get_output_embeddings().weight[7] = 8e4 / normed.float().abs().sum() * normed.sign()
    half = Subject.wrap(model, llama.tokenizer, "half")
    assert half.holds("project") and half.next_token_logits([half.encode("stop the")], [(0, 2)])[0].isfinite().all()
    with pytest.raises(Refused, match="not finite in float16 at the logits; load it in float32"):
        half.next_token_logits(rows, places)


def test_what_padding_holds_is_not_asked_about(tiny: Any) -> None:
    mask = torch.tensor([[True, False]])
    tiny._require_finite({"0-mlp": torch.tensor([[1.0, float("nan")]])}, mask)
    with pytest.raises(Refused, match="0-mlp"):
        tiny._require_finite({"0-mlp": torch.tensor([[float("inf"), 0.0]])}, mask)


def test_edits_leave_nothing_behind(tiny: Any) -> None:
    rows = ragged(tiny)
    before = tiny.run(rows, logits=True).logits
    with pytest.raises(RuntimeError):
        tiny.run(rows, edits=[Edit("0-mlp", torch.zeros(3, 3, 3))], logits=True)
    tiny.run(rows, edits=[Edit("0-resid", torch.tensor(0.0))])
    assert torch.equal(tiny.run(rows, logits=True).logits, before)


# Cost


def test_a_pass_stops_after_the_deepest_site_read(tiny: Any) -> None:
    calls: list[str] = []
    handles = [
        tiny.adapter.module(0, "neurons").register_forward_hook(lambda *_: calls.append("down 0")),
        tiny.adapter.blocks[1].register_forward_pre_hook(lambda *_: calls.append("block 1")),
        tiny.adapter.norm.register_forward_hook(lambda *_: calls.append("norm")),
        tiny.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append("head")),
    ]
    rows = ragged(tiny)
    try:
        for options, wanted in (
            ({"read": ["0-mlp"]}, []),
            ({"read": ["0-attn", "0-resid"]}, ["down 0"]),
            ({}, ["down 0", "block 1", "norm"]),
            ({"read": ["0-mlp"], "normed": True}, ["down 0", "block 1", "norm"]),
            ({"read": ["0-mlp"], "logits": True}, ["down 0", "block 1", "norm", "head"]),
        ):
            calls.clear()
            tiny.run(rows, **options)
            assert calls == wanted, options
    finally:
        for handle in handles:
            handle.remove()


EDITED = [
    ("1-mlp", (3,)), ("1-attn", (2,)), (Point(1, "attn_out"), None), (Point(1, "mlp_in"), None), ("0-resid", (4,)),
    ("1-resid", None),
]  # fmt: skip


@pytest.mark.parametrize(("site", "index"), EDITED)
def test_a_pass_that_begins_where_it_parts_from_another_is_bit_equal_and_computes_no_block_before(
    tiny: Any, site: str | Point, index: tuple[int, ...] | None
) -> None:
    rows = [[0, 5, 9, 13, 20], [0, 7, 31]]
    (point,) = tiny.before([site])
    clean = tiny.run(rows, read=[point], normed=True)
    edit = Edit(site, torch.tensor(0.7), index)
    ran: list[int] = []
    handles = [
        tiny.adapter.module(layer, "mlp").register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer in range(2)
    ]
    try:
        whole = tiny.run(rows, read=["1-resid"], edits=[edit], normed=True)
        assert ran == [0, 1]
        begun = tiny.run(rows, read=["1-resid"], edits=[edit], normed=True, start=clean.readings)
        assert ran[2:] == list(range(point.layer + 1, 2))
    finally:
        for handle in handles:
            handle.remove()
    for some, other in ((whole.normed, begun.normed), (whole.readings["1-resid"], begun.readings["1-resid"])):
        assert torch.equal(some[whole.mask], other[whole.mask])
    assert begun.fired == whole.fired
    assert not torch.equal(begun.normed, clean.normed)
    strange = tiny.run(rows, edits=[edit], normed=True, start={point: clean.readings[point].flip(-1)})
    assert (index is None and site == "1-resid") == torch.equal(strange.normed[whole.mask], whole.normed[whole.mask])
    assert torch.equal(tiny.run(rows, normed=True).normed, clean.normed)      # nothing stays behind


def test_a_pass_begins_at_its_beginning_where_something_before_is_read(tiny: Any) -> None:
    rows, edit = [[0, 5, 9, 13]], Edit("1-mlp", torch.tensor(0.7), (3,))
    wrong = {tiny.before(["1-mlp"])[0]: torch.zeros(1, 4, 24, dtype=tiny.dtype)}
    whole = tiny.run(rows, read=["0-mlp"], edits=[edit], normed=True)
    asked = tiny.run(rows, read=["0-mlp"], edits=[edit], normed=True, start=wrong)
    assert torch.equal(whole.normed, asked.normed) and torch.equal(whole.readings["0-mlp"], asked.readings["0-mlp"])


def test_nothing_stands_before_an_edit_of_the_first_block_nor_where_the_identity_fails(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.before([]) == tiny.before(["0-mlp"]) == tiny.before(["1-mlp", "0-attn"]) == []
    assert tiny.before(["1-mlp", "1-resid"]) == [Point(0, "resid")]
    monkeypatch.setattr(tiny, "checks", {**tiny.checks, "resume": 1e6})
    assert tiny.before(["1-mlp"]) == []


def test_readings_that_are_taken_as_they_are_made_are_the_same_and_are_not_held(tiny: Any) -> None:
    rows, sites = ragged(tiny), ["1-mlp", "0-resid", "0-mlp"]
    taken: list[tuple[str, torch.Tensor]] = []
    done = tiny.run(rows, read=sites, take=lambda site, reading: taken.append((site, reading)))
    held = tiny.run(rows, read=sites).readings
    assert done.readings == {}
    assert [site for site, _ in taken] == ["0-mlp", "0-resid", "1-mlp"]      # in the order of the pass, each once
    assert all(torch.equal(reading, held[site]) for site, reading in taken)


def test_logits_at_places_are_those_of_the_whole_pass(tiny: Any) -> None:
    rows = ragged(tiny)
    whole = tiny.run(rows, logits=True)
    places = [(1, 11), (0, 4), (1, 0), (3, 1)]
    logits, fired = tiny.next_token_logits(rows, places)
    assert fired == [] and gap(logits, torch.stack([whole.logits[b, t] for b, t in places])) < CLOSE
    edit = Edit("1-mlp", torch.tensor(0.0), (3,))
    edited, fired = tiny.next_token_logits(rows, places, [edit])
    whole = tiny.run(rows, edits=[edit], logits=True)
    assert fired == whole.fired and gap(edited, torch.stack([whole.logits[b, t] for b, t in places])) < CLOSE
    assert gap(edited, logits) > 1e-4


def test_logits_at_places_are_refused_where_the_identity_fails(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "checks", {**tiny.checks, "unembed": 0.5})
    with pytest.raises(Refused, match="do not give its logits"):
        tiny.next_token_logits([[0, 5]], [(0, 1)])


def test_cost_counts_rows_and_padded_tokens(llama: Any) -> None:
    with llama.metered() as cost:
        llama.run(ragged(llama))
        llama.readings([[0, 5, 6]], UnitId("t", "0-mlp", 1))
    assert (cost["forward_rows"], cost["forward_tokens"], cost["backward"]) == (5, 4 * 12 + 3, 0)
    assert cost["seconds"] >= 0


@given(st.lists(st.integers(1, 80), max_size=40), st.integers(1, 300))
def test_batches_hold_every_row_once_and_stay_within_their_tokens(lengths: list[int], tokens: int) -> None:
    rows = [[0] * n for n in lengths]
    window: Any = SimpleNamespace(sees=60)
    batches = list(Subject.batches(window, rows, tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths)
    for batch in batches:
        sizes = {lengths[i] for i in batch}
        assert len(batch) == 1 or len(batch) * max(sizes) <= tokens
        assert max(sizes) <= 60 or len(sizes) == 1


# Precision and devices


def test_lower_precision_agrees_within_its_tolerance(tiny: Any, lowered: Any) -> None:
    subject = lowered(tiny)
    assert subject.dtype == lowered.dtype and subject.device.type == lowered.device
    assert all(subject.holds(need) for need in ("read", "edit", "project"))
    rows = ragged(tiny)
    exact, lower = (s.run(rows, read=["0-mlp"], logits=True) for s in (tiny, subject))
    found, wanted = (done.readings["0-mlp"][done.mask].double().cpu() for done in (lower, exact))
    assert gap(found, wanted) < TOLERANCE[lowered.dtype]
    error = gap(lower.logits[lower.mask].double().cpu(), exact.logits[exact.mask])
    assert 0 < error < 3 * TOLERANCE[lowered.dtype]
    clean = subject.run(rows, read=["0-resid"], logits=True)
    own = subject.run(rows, edits=[Edit("0-resid", clean.readings["0-resid"])], logits=True)
    assert torch.equal(own.logits[own.mask], clean.logits[clean.mask])
    logits, _ = subject.next_token_logits(rows, [(0, 4)])
    assert logits.dtype == torch.float32 and subject.activations(rows, [UnitId("t", "0-mlp", 1)]).dtype == torch.float32


# Text


def test_encode_puts_the_sink_first_once(llama: Any) -> None:
    ids = llama.encode(TEXT)
    assert ids[0] == llama.sink == 0 and ids.count(0) == 1
    assert llama.encode("<s>" + TEXT).count(0) == 1   # a special token's name in a text is text
    assert llama.encode("") == [0]


@given(st.text(max_size=30))
def test_pieces_join_to_the_text(llama: Any, text: str) -> None:
    ids = llama.encode(text)
    pieces = llama.pieces(ids)
    assert pieces[0] == "<s>" and len(pieces) == len(ids)
    if "�" not in "".join(pieces):   # a character split among tokens cannot be shown piece by piece
        assert "".join(pieces[1:]) == text == llama.text(ids)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"text": ""}, "the text is empty"),
        ({"text": " \n"}, "the text is empty"),
        ({"ids": [0]}, "the text is empty"),
        ({}, "either text or ids"),
        ({"text": "a", "ids": [0, 1]}, "either text or ids"),
        ({"ids": [0, 5, 320]}, r"token id 320 is outside the vocabulary of tiny-llama \(0 to 319\)"),
        ({"ids": [0, -1]}, "token id -1 is outside"),
        ({"text": "word " * 100}, "tokens and tiny-llama sees 128; shorten it"),
    ],
)
def test_input_that_is_none_is_refused_in_a_sentence(llama: Any, given_: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        llama.take(given_.get("text"), given_.get("ids"))


@pytest.mark.parametrize(
    ("site", "index", "said"),
    [("2-mlp", 0, "'2-mlp' is out of range: tiny-llama has layers 0 to 1"), ("1-mlp", 40, "has units 0 to 39"),
     ("1-resid", 24, "has units 0 to 23"), ("1-attn", 4, "has units 0 to 3")],
)  # fmt: skip
def test_units_that_are_not_there_are_refused(llama: Any, site: str, index: int, said: str) -> None:
    with pytest.raises(Refused, match=said):
        llama.check(UnitId("tiny-llama", site, index))


# Loading


def test_digest_changes_with_a_single_weight(llama: Any) -> None:
    model = copy.deepcopy(llama.model)
    assert Subject.wrap(model, llama.tokenizer, "copy").digest == llama.digest
    model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-9
    assert Subject.wrap(model, llama.tokenizer, "copy").digest != llama.digest


def test_a_folder_loads_and_reads_as_what_was_saved(llama: Any, tmp_path: Any) -> None:
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    subject = Subject.load(tmp_path, device="cpu", dtype="float64")
    assert subject.digest == llama.digest and subject.sink == llama.sink
    rows = ragged(llama)
    assert gap(subject.run(rows, logits=True).logits, llama.run(rows, logits=True).logits) < CLOSE
    assert Subject.load(tmp_path, device="cpu").dtype == torch.float32


@pytest.mark.parametrize(
    ("ref", "options", "said"),
    [
        ("no such model", {}, "'no such model' is no model: neither embedded"),
        ("/no/such/folder", {}, "is no model"),
        ("someone/unheard-of", {}, "cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(ref: str, options: dict[str, Any], said: str) -> None:
    assert os.environ.get("HF_HUB_OFFLINE") == "1"
    with pytest.raises(Refused, match=said):
        Subject.load(ref, **options)


def test_an_unknown_dtype_and_an_empty_folder_are_refused(tmp_path: Any) -> None:
    with pytest.raises(Refused, match="dtype 'int8' is unknown; choose one of float32"):
        Subject.load(tmp_path, dtype="int8")
    with pytest.raises(Refused, match="cannot be loaded"):
        Subject.load(tmp_path)


def test_a_model_with_dropout_or_gradients_is_put_to_rest(llama: Any) -> None:
    model = copy.deepcopy(llama.model).train().requires_grad_(True)
    subject = Subject.wrap(model, llama.tokenizer, "noisy")
    assert not subject.model.training
    assert not any(p.requires_grad for p in subject.model.parameters())


def test_the_embedded_subject_holds_its_identities(smollm2: Any) -> None:
    assert all(smollm2.holds(need) for need in ("read", "edit", "project"))
    ids = smollm2.encode("World War II")
    assert ids[0] == smollm2.sink and "".join(smollm2.pieces(ids[1:])) == "World War II"
    logits, _ = smollm2.next_token_logits([ids], [(0, len(ids) - 1)])
    assert gap(logits[0], smollm2.run([ids], logits=True).logits[0, -1]) < 1e-4


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:x"])
def test_a_device_that_nobody_can_read_from_is_refused(tmp_path: Any, device: str) -> None:
    with pytest.raises(Refused, match=f"device '{device}' is unknown; choose cpu or cuda"):
        Subject.load(tmp_path, device=device)


def test_half_a_character_is_refused_before_the_tokenizer_sees_it(llama: Any) -> None:
    with pytest.raises(Refused, match="half a character"):
        llama.take("a \ud800 b", None)
    assert llama.take("a \U0001f600 b", None)
