"""patch: carried shares equal the analytic ones where the logits are linear, and bad pairs are refused or unscored."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import minimal_pair as pairing
from lamplighter.tools import patch as module
from lamplighter.tools.masked import MaskedLM
from lamplighter.tools.minimal_pair import differing, find_pair
from lamplighter.tools.patch import patch, patch_pair
from lamplighter.tools.patch_grid import patch_grid
from lamplighter.tools.path_patch import path_patch
from lamplighter.tools.subject import Edit, Subject
from lamplighter.tools.sweep import Exemplar, Sweep
from lamplighter.tools.units import UnitId

CLOSE = 1e-6   # RMSNorm computes in float32 even inside a float64 model
CLEAN = [0, 11, 21, 31, 41, 51]
CORRUPT = [0, 11, 21, 99, 41, 51]
KEPT = (3, 5)
FILLERS = list(range(60, 90))


class Straight(nn.Module):
    """A final norm that does nothing, so that logits are linear in the last stream."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones_like(weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def linear(tiny: Any) -> Subject:
    """Each shape with its logits linear in the last layer's neurons (gemma2 without its norms and caps)."""
    model = copy.deepcopy(tiny.model)
    *path, name = tiny.adapter.layout.norm.split(".")
    setattr(model.get_submodule(".".join(path)), name, Straight(tiny.adapter.norm.weight))
    if tiny.config.model_type == "gemma2":
        model.config.final_logit_softcapping = None
        model.model.layers[1].post_feedforward_layernorm = Straight(tiny.adapter.norm.weight)
    return Subject.wrap(model, tiny.tokenizer, "linear")


def shares(subject: Subject, unit: UnitId, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    given_ = {"kept": KEPT, "fillers": FILLERS, **options}
    return patch_pair(subject, unit, CLEAN, CORRUPT, 5, **given_)


def scored(subject: Subject, unit: UnitId, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """The same, scorable whatever the spread of a random model's repeats."""
    monkeypatch.setattr(module, "PATCH_NOISE", 0.0)
    return shares(subject, unit, **options)


# Oracles


def test_in_a_linear_model_every_unit_carries_its_analytic_share(
    linear: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = UnitId("linear", "1-mlp", 6)
    rows, checks = scored(linear, unit, monkeypatch)
    clean, corrupt = (linear.run([row], read=["1-mlp"], logits=True) for row in (CLEAN, CORRUPT))
    rise = clean.logits[0, -1] - corrupt.logits[0, -1]
    plus, minus = int(rise.argmax()), int(rise.argmin())
    assert (checks["t_plus"], checks["t_minus"]) == (linear.piece(plus), linear.piece(minus))
    gap = float(rise[plus] - rise[minus])
    assert checks["m_clean"] - checks["m_corrupt"] == pytest.approx(gap, abs=CLOSE)
    head = linear.model.get_output_embeddings().weight
    moved = (clean.readings["1-mlp"] - corrupt.readings["1-mlp"])[0, -1]
    for row in rows:
        index = UnitId.parse(row["unit"]).index
        write = linear.write_direction(UnitId("linear", "1-mlp", index)) @ (head[plus] - head[minus])
        assert row["carried"] == pytest.approx(float(moved[index] * write) / gap, abs=CLOSE)
        assert row["clean"] - row["corrupt"] == pytest.approx(float(moved[index]), abs=CLOSE)
    assert [row["role"] for row in rows] == ["unit"] * 2 + ["control"] * 20
    assert [row["direction"] for row in rows[:3]] == ["denoise", "noise", "denoise"]
    assert rows[0]["carried"] == pytest.approx(rows[1]["carried"], abs=CLOSE)   # both ways agree where all is linear
    assert len({row["unit"] for row in rows}) == 21 and checks["fired"] == 2 * 7 + 20
    assert max(abs(row["carried"]) for row in rows) > 1000 * CLOSE   # or the comparison would show nothing


def test_the_last_streams_dimensions_carry_everything_together(
    linear: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 0.0
    for index in range(24):
        total += scored(linear, UnitId("linear", "1-resid", index), monkeypatch)[0][0]["carried"]
    assert total == pytest.approx(1, abs=CLOSE)


def test_a_unit_that_alone_reads_the_word_carries_all_of_it(llama: Any) -> None:
    subject, clean, corrupt = one_reader(llama)
    unit = UnitId("planted", "1-mlp", 4)
    rows, checks = patch_pair(subject, unit, clean, corrupt, 5, kept=[5], fillers=FILLERS)
    assert checks["reason"] is None and checks["m_clean"] - checks["m_corrupt"] > 1
    for row in rows[:2]:
        assert row["carried"] == pytest.approx(1, abs=1e-5)
        assert row["carried_repeats"] == pytest.approx(1, abs=1e-5)
    assert all(abs(row["carried"]) < 1e-5 for row in rows[2:]) and checks["controls_above"] == 0
    other, checks = patch_pair(subject, UnitId("planted", "1-mlp", 5), clean, corrupt, 5, kept=[5], fillers=FILLERS)
    assert abs(other[0]["carried"]) < 1e-5 and checks["controls_above"] >= 0


def one_reader(llama: Any) -> tuple[Subject, list[int], list[int]]:
    """Two last tokens that differ only in the sign of stream dimension 0, which neuron 4 of layer 1 alone reads, and
    which no attention and no logit reads: all that reaches the logits passes through that neuron."""
    model = copy.deepcopy(llama.model)
    embedding = model.get_input_embeddings().weight
    one, other = 51, 52
    embedding[one, 0] = 3.0
    embedding[other] = embedding[one]
    embedding[other, 0] = -3.0
    model.lm_head.weight[:, 0] = 0
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).weight[:, 0] = 0
        layer.self_attn.o_proj.weight *= 0.05   # the other words matter little
        layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        layer.mlp.gate_proj.weight[:, 0] = layer.mlp.up_proj.weight[:, 0] = 0
    reader = model.model.layers[1].mlp
    reader.gate_proj.weight[4], reader.up_proj.weight[4] = 0, 0
    reader.gate_proj.weight[4, 0] = reader.up_proj.weight[4, 0] = 4.0
    return Subject.wrap(model, llama.tokenizer, "planted"), [*CLEAN[:5], one], [*CLEAN[:5], other]


def test_one_pass_for_all_controls_equals_one_pass_each(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tiny.meter.rows
    rows, checks = scored(tiny, UnitId("t", "0-mlp", 6), monkeypatch, pairs=3)
    assert tiny.meter.rows - calls == 2 * 4 + 2 * 4 + 20
    where = torch.zeros(1, 6, dtype=torch.bool)
    where[0, 5] = True
    values = tiny.run([CLEAN], read=["0-mlp"]).readings["0-mlp"][0, 5]
    ends = [tiny.run([row], logits=True).logits[0, -1] for row in (CLEAN, CORRUPT)]
    plus, minus = int((ends[0] - ends[1]).argmax()), int((ends[0] - ends[1]).argmin())
    for row in (rows[0], *rows[2:]):
        index = UnitId.parse(row["unit"]).index
        logits = tiny.run([CORRUPT], edits=[Edit("0-mlp", values[index], (index,), where)], logits=True).logits[0, -1]
        assert row["metric"] == pytest.approx(float(logits[plus] - logits[minus]), abs=CLOSE)


def test_the_value_goes_in_at_the_tracked_position_only(linear: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive way, patching where the words differ, carries nothing in the last layer, which nothing reads later."""
    unit = UnitId("linear", "1-mlp", 6)
    rows, _ = scored(linear, unit, monkeypatch)
    where = torch.zeros(1, 6, dtype=torch.bool)
    where[0, 3] = True
    value = linear.run([CLEAN], read=["1-mlp"]).readings["1-mlp"][0, 3, 6]
    naive = linear.run([CORRUPT], edits=[Edit("1-mlp", value, (6,), where)], logits=True)
    base = linear.run([CORRUPT], logits=True)
    assert torch.equal(naive.logits[0, -1], base.logits[0, -1])
    assert rows[0]["carried"] != 0


def test_heads_are_patched_whole(linear: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, checks = scored(linear, UnitId("linear", "1-attn", 2), monkeypatch)
    assert len(rows) == 2 + 3 and rows[0]["clean"] is None   # four heads, so three controls
    if linear.config.model_type != "gpt_neox":
        return   # elsewhere the MLP reads the head's write, which is not linear
    values = [linear.run([row], read=["1-attn"]).readings["1-attn"][0, -1, 12:18] for row in (CLEAN, CORRUPT)]
    ends = [linear.run([row], logits=True).logits[0, -1] for row in (CLEAN, CORRUPT)]
    rise = ends[0] - ends[1]
    plus, minus = int(rise.argmax()), int(rise.argmin())
    head = linear.model.get_output_embeddings().weight
    write = (values[0] - values[1]) @ linear.adapter.linear(1, "heads")[0][12:18]
    wanted = float(write @ (head[plus] - head[minus])) / float(rise[plus] - rise[minus])
    assert rows[0]["carried"] == pytest.approx(wanted, abs=CLOSE)


# Repeats and what cannot be scored


def test_repeats_change_the_same_other_tokens_on_both_sides(llama: Any) -> None:
    generator = np.random.default_rng(0)
    clean, corrupt = module.repeats(llama, CLEAN, CORRUPT, 5, [0, 3, 5], 6, generator, FILLERS)
    assert clean.shape == corrupt.shape == (7, 6)
    assert clean[0].tolist() == CLEAN and corrupt[0].tolist() == CORRUPT
    assert (clean[1:, [0, 3, 5]] == np.asarray(CLEAN)[[0, 3, 5]]).all()
    assert (corrupt[1:, [0, 3, 5]] == np.asarray(CORRUPT)[[0, 3, 5]]).all()
    assert (clean[1:, [1, 2, 4]] == corrupt[1:, [1, 2, 4]]).all()
    assert set(clean[1:, [1, 2, 4]].flatten()) <= set(FILLERS)
    assert len({tuple(row) for row in clean}) == 7


def test_a_gap_within_the_noise_is_not_scored(tiny: Any) -> None:
    """In a random model the gap changes with every token around: one pair alone would still print a share."""
    for index in range(6):
        rows, checks = shares(tiny, UnitId("t", "1-mlp", index), seed=index)
        gap = checks["m_clean"] - checks["m_corrupt"]
        assert (checks["reason"] is None) == (abs(gap) >= 3 * checks["sd"])
        assert all((row["carried"] is None) == (checks["reason"] is not None) for row in rows)
    assert checks["sd"] > 0


def test_reasons() -> None:
    assert module.unscorable(1.0, 0.33) is None
    assert module.unscorable(-1.0, 0.33) is None
    assert "the gap 1 is below 3 sd" in str(module.unscorable(1.0, 0.34))
    assert module.unscorable(0.0, 0.0) == "clean and corrupt give the same logits"


def test_a_word_that_no_logit_sees_is_not_scored(llama: Any) -> None:
    subject, clean, corrupt = one_reader(llama)
    subject.model.model.layers[1].mlp.down_proj.weight[:, 4] = 0
    rows, checks = patch_pair(subject, UnitId("planted", "1-mlp", 4), clean, corrupt, 5, kept=[5], fillers=FILLERS)
    assert checks["reason"] and all(row["carried"] is None for row in rows)


def test_with_every_token_kept_the_noise_is_unknown_and_said_to_be(llama: Any) -> None:
    rows, checks = shares(llama, UnitId("t", "1-mlp", 6), kept=range(1, 6))
    assert checks["sd"] is None and checks["gap_repeats"] is None and checks["resampled"] == 0
    assert any("noise is unknown" in warning for warning in module._warnings(rows, checks, True))


def test_equal_seeds_give_equal_numbers(llama: Any) -> None:
    one, same, other = (shares(llama, UnitId("t", "1-mlp", 6), seed=seed) for seed in (0, 0, 1))
    assert one == same and one[1]["sd"] != other[1]["sd"]


def test_what_follows_the_tracked_token_does_not_matter(llama: Any) -> None:
    unit = UnitId("t", "1-mlp", 6)
    plain = patch_pair(llama, unit, CLEAN, CORRUPT, 5, kept=KEPT, fillers=FILLERS)
    longer = patch_pair(llama, unit, [*CLEAN, 7, 8], [*CORRUPT, 7, 8], 5, kept=KEPT, fillers=FILLERS)
    assert plain == longer


def test_lower_precision_finds_the_same_share(llama: Any, lowered: Any) -> None:
    subject, clean, corrupt = one_reader(llama)
    unit = UnitId("planted", "1-mlp", 4)
    rows, _ = patch_pair(lowered(subject), unit, clean, corrupt, 5, kept=[5], fillers=FILLERS)
    assert rows[0]["carried"] == pytest.approx(1, abs=1e-3 if lowered.dtype == torch.float32 else 0.05)


# Pairs


def test_bad_pairs_are_refused_in_a_sentence(llama: Any) -> None:
    unit = UnitId("tiny-llama", "1-mlp", 6)
    a, b, c = (llama.piece(i) for i in (31, 98, 99))
    for clean, corrupt, position, options, said in (
        (CLEAN, [*CORRUPT[:3], 98, *CORRUPT[3:]], 5, {}, f"have 6 and 7 tokens, differing in {[a]} and {[b, c]}"),
        (CLEAN, CLEAN, 5, {}, "are the same tokens"),
        (CLEAN, CORRUPT, 5, {"kept": [5]}, f"differ beside the kept words, in {[a]} and {[c]}"),
        (CLEAN, CORRUPT, 6, {}, r"position 6 is outside the rows (1 to 5)"),
        (CLEAN, CORRUPT, 2, {}, "differ after position 2 only"),
        (CLEAN, CORRUPT, 5, {"pairs": 1}, "pairs = 1 gives no spread"),
    ):
        with pytest.raises(Refused) as refused:
            patch_pair(llama, unit, clean, corrupt, position, **{"kept": KEPT, "fillers": FILLERS, **options})
        assert said in str(refused.value)
    with pytest.raises(Refused, match="has units 0 to 39"):
        shares(llama, UnitId("tiny-llama", "1-mlp", 40))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_differing_finds_every_difference_or_refuses(llama: Any, one: list[int], other: list[int]) -> None:
    clean, corrupt = [0, *one], [0, *other]
    try:
        found = differing(llama, clean, corrupt, range(1, 9))
    except Refused as refused:
        assert clean == corrupt or len(clean) != len(corrupt)
        assert ("same tokens" in str(refused)) == (clean == corrupt)
        return
    assert len(clean) == len(corrupt) and found
    assert [a if i not in found else b for i, (a, b) in enumerate(zip(clean, corrupt, strict=True))] == corrupt
    assert all(clean[i] != corrupt[i] for i in found)


def proposals(rows: list[tuple[list[int], str, float]], held: list[int]) -> Any:
    """`substitute` with hand-made rows (ids, effect, ratio)."""

    def substitute(subject: Subject, masked: Any, unit: UnitId, **options: Any) -> Evidence:
        made = [
            {"position": 3, "original": "o", "substitute": f"s{i}", "activation": 0.0, "ratio": ratio, "effect": effect,
             "ids": ids, "proposer": "masked"}
            for i, (ids, effect, ratio) in enumerate(rows)
        ]  # fmt: skip
        checks = {"held": held, "kept": held, "kept_text": "some words"}
        return Evidence(tool="substitute", summary="", rows=made, checks=checks)

    return substitute


@pytest.fixture
def reader(llama: Any) -> tuple[Subject, UnitId, list[int]]:
    """A unit, and a text whose last token it is positive on."""
    for index in range(40):
        unit = UnitId("tiny-llama", "1-mlp", index)
        values = llama.activations(CLEAN, [unit])[0, 1:, 0]
        if values.argmax() == 4 and values[4] > 0:
            return llama, unit, CLEAN
    pytest.fail("no unit of this model peaks on the last token of the text")


def variants(subject: Subject, unit: UnitId, position: int) -> list[tuple[float, list[int]]]:
    """Readings of the text with one token changed, lowest first."""
    rows = [[*CLEAN[:position], token, *CLEAN[position + 1 :]] for token in range(60, 200)]
    return sorted(zip(subject.readings(rows, unit).tolist(), rows, strict=True))


def test_the_quietest_killing_word_of_equal_length_is_taken(
    reader: tuple[Subject, UnitId, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, unit, clean = reader
    (_, lowest), (_, second), *_, (loud, loudest) = variants(subject, unit, 3)
    assert loud > 0.5 * float(subject.readings([clean], unit))
    _, last = variants(subject, unit, 5)[0]
    rows = [
        (last, "kills", 0.01),            # swaps the tracked token itself
        (lowest, "keeps", 0.9),           # does not kill
        (loudest, "kills", 0.0),          # kills on average, but not in this text
        ([*lowest, 7], "kills", 0.0),     # another length
        (second, "kills", 0.2),
    ]
    monkeypatch.setattr(pairing, "substitute", proposals(rows, [3, 5]))
    pair = find_pair(subject, None, unit, clean, clean, 0)  # type: ignore[arg-type]  # the masked LM is not asked
    assert pair.corrupt == second and pair.substitute == "s4" and pair.kept == [3, 5]
    peak = float(subject.readings([clean], unit))
    half = next(row for y, row in variants(subject, unit, 3) if y > 0.5 * peak)   # just not silent in this text
    monkeypatch.setattr(pairing, "substitute", proposals([(half, "kills", 0.0)], [3, 5]))
    assert find_pair(subject, None, unit, clean, clean, 0).proposer == "token"  # type: ignore[arg-type]
    monkeypatch.setattr(pairing, "substitute", proposals(rows[:1], [3, 5]))
    assert find_pair(subject, None, unit, clean, clean, 0).corrupt == last  # type: ignore[arg-type]


def test_tokens_stand_in_where_no_word_of_equal_length_kills(
    reader: tuple[Subject, UnitId, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, unit, clean = reader
    monkeypatch.setattr(pairing, "substitute", proposals([], [5]))
    monkeypatch.setattr(pairing, "filler_pool", lambda *_: np.arange(60, 200))
    pair = find_pair(subject, None, unit, clean, clean, 0)  # type: ignore[arg-type]
    assert pair.proposer == "token" and pair.corrupt[:5] == clean[:5] and pair.corrupt[5] != clean[5]
    peak, silent = subject.readings([clean, pair.corrupt], unit).tolist()
    assert silent < 0.25 * peak
    monkeypatch.setattr(pairing, "KILLS", -1e9)
    with pytest.raises(Refused, match="none of 0 words and 32 tokens put into 'some words' silences"):
        find_pair(subject, None, unit, clean, clean, 0)  # type: ignore[arg-type]


class OneExemplar:
    """A sweep that knows one exemplar, in a window of 63 tokens."""

    model = "tiny-llama"

    def __init__(self, ids: list[int], position: int) -> None:
        self.ids, self.position = ids, position

    def exemplars(self, unit: UnitId, side: str, band: str) -> list[Exemplar]:
        assert (side, band) == ("explain", "top")
        return [Exemplar(0, self.position - 1, 1.0, "top")] if self.ids else []

    def window(self, place: tuple[int, int]) -> tuple[list[int], int]:
        return self.ids, place[1] + 1


def test_the_whole_tool_returns_what_it_was_asked(
    reader: tuple[Subject, UnitId, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, unit, clean = reader
    _, quiet = variants(subject, unit, 3)[0]
    monkeypatch.setattr(pairing, "substitute", proposals([(quiet, "kills", 0.1)], [3, 5]))
    masked: Any = None
    sweep: Any = None
    calm = min(range(60, 90), key=lambda i: float(subject.readings([[*clean, i]], unit)))
    evidence = patch(subject, masked, sweep, unit, ids=[*clean, calm], pairs=4, seed=2)
    given_ = {"text": None, "ids": [*clean, calm], "corrupt": None, "answer": None, "foil": None, "pairs": 4, "seed": 2}
    assert evidence.arguments == given_
    assert evidence.checks["differing"] == [3] and evidence.checks["position"] == 5
    assert evidence.checks["substitute"] == "s0" and len(evidence.rows) == 22
    rows, _ = patch_pair(subject, unit, clean, quiet, 5, kept=[3, 5], pairs=4, seed=2)
    assert evidence.rows == rows
    assert len(evidence.summary.split()) <= 60 and Evidence.from_json(evidence.to_json()) == evidence
    assert evidence.cost["forward_rows"] > 28
    chosen = patch(subject, masked, OneExemplar([*clean, 60, 61], 5), unit)  # type: ignore[arg-type]
    assert chosen.checks["clean_text"] == subject.text(clean)
    with pytest.raises(Refused, match="never positive on the explain side; give a text"):
        patch(subject, masked, OneExemplar([], 5), unit)  # type: ignore[arg-type]


# Pairs and answers of one's own


SWAPPED = 61       # a token that its own text is cut into again


def of_one_length(subject: Subject) -> tuple[str, str]:
    """Two texts of as many tokens that differ before the last."""
    clean = CLEAN
    corrupt = [*CLEAN[:3], SWAPPED, *CLEAN[4:]]
    texts = (subject.text(clean), subject.text(corrupt))
    assert subject.encode(texts[0]) == clean and subject.encode(texts[1]) == corrupt
    return texts


def asked(subject: Subject, unit: str, **options: Any) -> Evidence:
    """`patch` on a text pair given by hand: neither the masked LM nor the sweep is looked at."""
    text, corrupt = of_one_length(subject)
    nothing: Any = None
    named = UnitId.parse(f"{subject.name}/{unit}")
    return patch(subject, nothing, nothing, named, **{"text": text, "corrupt": corrupt, **options})


def test_a_pair_of_ones_own_is_taken_as_it_stands(tiny: Any) -> None:
    made = asked(tiny, "0-mlp/6")
    corrupt = tiny.encode(of_one_length(tiny)[1])
    rows, checks = patch_pair(tiny, UnitId(tiny.name, "0-mlp", 6), CLEAN, corrupt, 5, kept=range(1, 6))
    assert made.rows == rows and made.checks["proposer"] == "given" and made.checks["differing"] == [3]
    assert (made.checks["original"], made.checks["substitute"]) == (tiny.piece(31), tiny.piece(SWAPPED))
    assert made.checks["sd"] is None and all(row["carried_repeats"] is None for row in made.rows)
    assert any("no repeats" in said for said in made.warnings) and "on this pair alone" in made.summary
    assert made.checks["fired"] == 2 + 20                 # the pair itself both ways, and the controls
    assert checks["reason"] is None


def test_a_pair_of_ones_own_of_another_length_is_refused_with_its_tokens(tiny: Any) -> None:
    with pytest.raises(Refused, match="have 6 and 7 tokens, differing in"):
        asked(tiny, "0-mlp/6", corrupt=tiny.text([*CLEAN, 62]))
    with pytest.raises(Refused, match="are the same tokens"):
        asked(tiny, "0-mlp/6", corrupt=tiny.text(CLEAN))
    with pytest.raises(Refused, match="give either text or ids"):
        asked(tiny, "0-mlp/6", text=None)


def test_what_is_of_two_models_is_refused_by_name(tiny: Any) -> None:
    with pytest.raises(Refused, match=f"the unit is of other and the model that is loaded is {tiny.name}"):
        patch(tiny, none := cast(Any, None), none, UnitId("other", "1-mlp", 3), text="a b", corrupt="a c")
    sweep = cast(Sweep, SimpleNamespace(model="other"))
    for tool in (patch, patch_grid, path_patch):
        with pytest.raises(Refused, match="the sweep is of other and the model that is loaded is"):
            tool(tiny, none, sweep, UnitId(tiny.name, "1-mlp", 3))


def test_the_difference_is_that_of_the_answers_which_are_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, foil = tiny.piece(45), tiny.piece(46)
    made = asked(tiny, "0-mlp/6", answer=answer, foil=foil)
    logits = [tiny.run([row], logits=True).logits[0, -1] for row in (CLEAN, tiny.encode(of_one_length(tiny)[1]))]
    for name, values in zip(("m_clean", "m_corrupt"), logits, strict=True):
        assert made.checks[name] == pytest.approx(float(values[45] - values[46]), abs=1e-4)
    assert (made.checks["t_plus"], made.checks["t_minus"]) == (answer, foil)
    assert not any("chosen and measured" in said for said in made.warnings)
    turned = asked(tiny, "0-mlp/6", answer=foil, foil=answer)
    assert turned.rows[0]["carried"] == pytest.approx(made.rows[0]["carried"], abs=1e-6)   # both signs turn
    rise = logits[0] - logits[1]
    most, next_most = rise.topk(2).indices.tolist()
    rows = (CLEAN, tiny.encode(of_one_length(tiny)[1]))
    _, checks = patch_pair(tiny, UnitId(tiny.name, "0-mlp", 6), *rows, 5, kept=range(1, 6), answers=(None, most))
    assert (checks["t_plus"], checks["t_minus"]) == (tiny.piece(next_most), tiny.piece(most))
    assert any("chosen and measured" in said for said in asked(tiny, "0-mlp/6", foil=foil).warnings)


def test_answers_that_begin_alike_are_refused_with_their_tokens(tiny: Any) -> None:
    one, other = tiny.text([45, 46]), tiny.text([45, 47])
    assert tiny.encode(one)[1] == tiny.encode(other)[1]
    with pytest.raises(Refused, match="begin with the same token") as refused:
        asked(tiny, "0-mlp/6", answer=one, foil=other)
    assert str(tiny.pieces(tiny.encode(one)[1:])) in str(refused.value)
    with pytest.raises(Refused, match="the foil is empty"):
        asked(tiny, "0-mlp/6", foil="")


def test_a_head_is_patched_on_a_pair_of_ones_own_and_refused_without(tiny: Any) -> None:
    made = asked(tiny, "1-attn/1", answer=tiny.piece(45), foil=tiny.piece(46))
    columns = tiny.columns("1-attn", [1])
    clean = tiny.run([CLEAN], read=["1-attn"]).readings["1-attn"]
    where = torch.zeros(1, 6, dtype=torch.bool)
    where[0, 5] = True
    edit = Edit("1-attn", clean[:, -1:, columns], (1,), where)
    by_hand = tiny.run([tiny.encode(of_one_length(tiny)[1])], edits=[edit], logits=True).logits[0, -1]
    assert made.rows[0]["metric"] == pytest.approx(float(by_hand[45] - by_hand[46]), abs=1e-4)
    assert made.rows[0]["clean"] is None and {row["unit"] for row in made.rows[2:]} <= {
        f"{tiny.name}/1-attn/{i}" for i in range(tiny.count("1-attn")) if i != 1
    }
    with pytest.raises(Refused, match="is a head, which has no reading to find a pair by; give a text and a corrupt"):
        asked(tiny, "1-attn/1", corrupt=None)


def test_an_exemplar_is_cut_to_what_keeps_half_of_it(llama: Any) -> None:
    ids = [0, *torch.randint(60, 200, (63,), generator=torch.Generator().manual_seed(3)).tolist()]
    seen = set()
    for index in range(40):
        unit = UnitId("tiny-llama", "1-mlp", index)
        whole = float(llama.readings([ids[:61]], unit))
        if whole <= 0:
            continue
        found = pairing._exemplar(llama, OneExemplar(ids, 60), unit)  # type: ignore[arg-type]
        n = len(found) - 1
        assert n in (8, 16, 32, 60) and found == [0, *ids[61 - n : 61]]
        assert float(llama.readings([found], unit)) >= 0.5 * whole
        shorter = [k for k in (8, 16, 32) if k < n]
        assert all(float(llama.readings([[0, *ids[61 - k : 61]]], unit)) < 0.5 * whole for k in shorter)
        seen.add(n)
    assert 8 in seen and len(seen) > 1


def test_the_embedded_subject_carries_its_ordinals(smollm2: Subject, bert_tiny: MaskedLM) -> None:
    unit = UnitId("smollm2-135m", "2-mlp", 36)
    sweep: Sweep = None  # type: ignore[assignment]  # a text is given, so it is not asked
    evidence = patch(smollm2, bert_tiny, sweep, unit, text="It was built in the late 19th century")
    assert evidence.checks["clean_text"].endswith("19th") and evidence.checks["reason"] is None
    assert evidence.rows[0]["clean"] > 5 and abs(evidence.rows[0]["corrupt"]) < 2.5
    assert evidence.rows[0]["carried"] > 0.2 and evidence.checks["controls_above"] == 0
    assert abs(evidence.checks["m_clean"] - evidence.checks["m_corrupt"]) >= 3 * evidence.checks["sd"]
