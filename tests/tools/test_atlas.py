"""The token atlas against brute force: every token of the tiny vocabulary read behind the sink, one by one."""

import copy
import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from transformers import PreTrainedTokenizerFast

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools import atlas as module
from lamplighter.tools.atlas import KEPT, atlas_file, make_atlas, tokens_of_text, unit_atlas
from lamplighter.tools.corpus import Corpus, Document
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import Sweep, make_sweep
from lamplighter.tools.token_atlas import token_atlas
from lamplighter.tools.tries import PASS
from lamplighter.tools.units import UnitId

SAID = "World War II began in 1939; the capital of France is Paris. She said: don't stop the red cars at 9th"
WORDS = SAID.split()
SITES = ["0-mlp", "1-mlp", "1-resid"]


def corpus(count: int = 48, words: Sequence[str] = WORDS) -> Corpus:
    """Texts of random words on all three sides."""
    texts = [" ".join(np.random.default_rng(n).choice(words, 12 + n % 40)) for n in range(count)]
    documents = tuple(Document(hashlib.sha256(f"{n}{t}".encode()).hexdigest(), f"d{n}", t) for n, t in enumerate(texts))
    sides = tuple(("explain", "explain", "tune", "score")[n % 4] for n in range(count))
    return Corpus("made", "made", documents, tuple(range(count)), sides, {})


@dataclass
class Case:
    """A swept subject, and the raw readings [tokens, width] of its vocabulary behind the sink, by site."""

    subject: Any
    sweep: Sweep
    ids: np.ndarray
    values: dict[str, np.ndarray]

    @classmethod
    def of(cls, subject: Any, sweep: Sweep) -> "Case":
        ids = [i for i in range(min(len(subject.tokenizer), subject.vocabulary)) if i not in subject.special]
        rows = [[subject.sink, i] for i in ids]
        values = {}
        for site in sweep.sites:
            units = [UnitId(subject.name, site, u) for u in range(subject.width(site))]
            values[site] = subject.activations(rows, units)[:, 1].numpy()
        return cls(subject, sweep, np.asarray(ids), values)

    @property
    def units(self) -> list[UnitId]:
        return [
            UnitId(self.subject.name, site, index, sign)
            for site in self.sweep.sites for index in range(self.subject.width(site)) for sign in (1, -1)
        ]  # fmt: skip

    def y(self, unit: UnitId) -> np.ndarray:
        return np.asarray(unit.sign * self.values[unit.site][:, unit.index])

    def ranked(self, unit: UnitId) -> list[tuple[int, float]]:
        """(id, y) of all tokens, largest y first as stored, then by id."""
        entries = zip(self.ids.tolist(), np.float32(self.y(unit)).tolist(), strict=True)
        return sorted(entries, key=lambda entry: (-entry[1], entry[0]))


@pytest.fixture(scope="module")
def case(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.of(tiny, make_sweep(tiny, corpus(), SITES, tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def swept(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.of(llama, make_sweep(llama, corpus(), SITES, tmp_path_factory.mktemp("home")))


def ids_of(entries: Sequence[tuple[int, float]]) -> list[int]:
    return [i for i, _ in entries]


def values_of(entries: Sequence[tuple[int, float]]) -> list[float]:
    return [y for _, y in entries]


# Against brute force


def test_both_ends_are_those_of_the_whole_vocabulary_in_order(case: Case) -> None:
    assert len(case.ids) == 319
    for unit in case.units:
        found, ranked = case.sweep.atlas(unit), case.ranked(unit)
        assert len(found.top) == len(found.bottom) == KEPT
        assert ids_of(found.top) == ids_of(ranked[:KEPT])
        assert values_of(found.top) == pytest.approx(values_of(ranked[:KEPT]), rel=1e-5, abs=1e-6)
        y = dict(zip(case.ids.tolist(), case.y(unit).tolist(), strict=True))
        assert values_of(found.top) == pytest.approx([y[i] for i, _ in found.top], rel=1e-5, abs=1e-6)
        lowest = sorted(ranked, key=lambda entry: (entry[1], entry[0]))[:KEPT]
        assert ids_of(found.bottom) == ids_of(lowest)
        assert values_of(found.bottom) == pytest.approx(values_of(lowest), rel=1e-5, abs=1e-6)


def test_the_bottom_of_a_side_is_the_top_of_the_other(case: Case) -> None:
    for unit in case.units:
        found, other = case.sweep.atlas(unit), case.sweep.atlas(replace(unit, sign=-unit.sign))
        assert found.bottom == [(i, -y) for i, y in other.top]
        assert found.top == [(i, -y) for i, y in other.bottom]


def test_the_moments_are_those_of_all_tokens(case: Case) -> None:
    for unit in case.units:
        found, y = case.sweep.atlas(unit), case.y(unit)
        away = y - y.mean()
        assert found.n == len(y)
        assert found.mean == pytest.approx(y.mean(), rel=1e-4, abs=1e-5)
        assert found.std == pytest.approx(y.std(), rel=1e-5)
        assert found.skewness == pytest.approx((away**3).mean() / y.std() ** 3, rel=1e-4, abs=1e-4)
        assert found.kurtosis == pytest.approx((away**4).mean() / y.std() ** 4, rel=1e-4)


def test_firings_are_counted_over_all_tokens_and_not_over_those_kept(case: Case) -> None:
    counts = []
    for unit in case.units:
        found, threshold = case.sweep.atlas(unit), case.sweep.statistics(unit).threshold
        if threshold > 0:
            assert found.fires == int((np.float32(case.y(unit)) >= np.float32(threshold)).sum())
            counts.append(found.fires)
        else:
            assert found.fires is None
    assert max(counts) > KEPT > min(counts)


def test_a_token_at_the_start_of_a_window_reads_what_the_atlas_says(swept: Case) -> None:
    """The corpus holds bare tokens too: the first of each window has only the sink before it."""
    sweep, unit = swept.sweep, UnitId("tiny-llama", "1-mlp", 7)
    places = [(number, 0) for number in range(len(sweep.documents))]
    y = dict(zip(swept.ids.tolist(), swept.y(unit).tolist(), strict=True))
    read = sweep.read(swept.subject, unit, places)
    known = sweep.atlas(unit)
    kept = dict(known.top + known.bottom)
    firsts = [sweep.window(place)[0][1] for place in places]
    assert read == pytest.approx([y[i] for i in firsts], rel=1e-6)
    assert any(i in kept for i in firsts)
    assert [kept[i] for i in firsts if i in kept] == pytest.approx([y[i] for i in firsts if i in kept], rel=1e-5)


def test_without_the_sink_or_over_both_positions_the_numbers_are_others(swept: Case) -> None:
    """Naive ways to read a token: alone in its row, where it is the sink itself; or as the row's maximum."""
    subject, units = swept.subject, [UnitId("tiny-llama", "1-mlp", u) for u in range(40)]
    alone = subject.activations([[i] for i in swept.ids.tolist()], units)[:, 0].numpy()
    pairs = subject.activations([[subject.sink, i] for i in swept.ids.tolist()], units).numpy()

    def misled(values: np.ndarray) -> list[UnitId]:
        naive = Case(subject, swept.sweep, swept.ids, {"1-mlp": values})
        return [u for u in units if ids_of(naive.ranked(u)[:KEPT]) != ids_of(swept.sweep.atlas(u).top)]

    assert misled(pairs[:, 1]) == []
    assert misled(alone) == units
    assert np.abs(alone.max(axis=0) - pairs[:, 1].max(axis=0)).max() > 1
    fired_by_sink = [u for u in units if pairs[0, 0, u.index] > swept.sweep.atlas(u).top[-1][1]]
    assert misled(pairs.max(axis=1)) == fired_by_sink != []


# Which tokens


def tokens(made: dict[str, dict[str, torch.Tensor]], site: str = "0-mlp") -> set[int]:
    return {int(i) for end in ("top_id", "bottom_id") for i in made[site][end].flatten()}


def peaks(subject: Any, *sites: str) -> dict[str, torch.Tensor]:
    return {site: torch.ones(2, subject.width(site)) for site in sites or ("0-mlp",)}


def test_special_tokens_and_ids_that_no_text_gives_are_left_out(llama: Any) -> None:
    """Thirty embeddings beyond the tokenizer's last id, and two tokens marked special, one not the BOS; all large."""
    model = copy.deepcopy(llama.model)
    model.resize_token_embeddings(350)
    model.model.embed_tokens.weight.data[320:] *= 50
    model.model.embed_tokens.weight.data[0] *= 50
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.add_tokens([special_token("<sep>")])
    subject = Subject.wrap(model, tokenizer, "tiny-llama")
    assert subject.special == {0} and len(tokenizer) == 321 and subject.vocabulary == 350
    assert tokens_of_text(subject) == list(range(1, 320))
    made = make_atlas(subject, peaks(subject))
    assert int(made["0-mlp"]["n"]) == 319
    assert tokens(made) <= set(range(1, 320))
    units = [UnitId("tiny-llama", "0-mlp", u) for u in range(40)]
    naive = subject.activations([[0, i] for i in range(350)], units)[:, 1].topk(KEPT, dim=0).indices
    assert {0, 320, 349} & set(naive.flatten().tolist())     # with all ids they would be listed


def special_token(text: str) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, special=True)


def test_an_id_that_the_model_does_not_know_is_left_out(llama: Any) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.add_tokens(["zebra"])
    assert tokens_of_text(Subject.wrap(llama.model, tokenizer, "tiny-llama")) == list(range(1, 320))


def test_a_plain_token_that_stands_for_the_sink_is_left_out(llama: Any) -> None:
    subject = Subject.wrap(llama.model, llama.tokenizer, "tiny-llama", sink=70)
    assert tokens_of_text(subject) == [i for i in range(1, 320) if i != 70]


def test_the_marked_tokens_of_the_embedded_subject_are_left_out(smollm2: Any) -> None:
    left_out = set(range(smollm2.vocabulary)) - set(tokens_of_text(smollm2))
    assert left_out == set(range(17))
    assert smollm2.piece(5) == "<file_sep>" and 5 not in smollm2.special


def word_tokenizer(words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"<s>": 0} | {word: i for i, word in enumerate(words, 1)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def test_a_vocabulary_smaller_than_what_is_kept_is_listed_whole(llama: Any) -> None:
    subject = Subject.wrap(llama.model, word_tokenizer("abcde"), "tiny-llama")
    found = unit_atlas(make_atlas(subject, peaks(subject), batch=2)["0-mlp"], UnitId("tiny-llama", "0-mlp", 7))
    assert found.n == 5
    assert sorted(ids_of(found.top)) == sorted(ids_of(found.bottom)) == [1, 2, 3, 4, 5]
    assert values_of(found.top) == values_of(found.bottom)[::-1]


def test_a_tokenizer_of_special_tokens_alone_is_refused(llama: Any) -> None:
    subject = Subject.wrap(llama.model, word_tokenizer(""), "tiny-llama")
    with pytest.raises(Refused, match="no token but special ones"):
        make_atlas(subject, peaks(subject))


def test_tokens_that_read_the_same_go_by_id(llama: Any) -> None:
    """Equal embeddings give equal readings: of sixty equals only the first ids are kept, whatever the batches."""
    model = copy.deepcopy(llama.model)
    model.model.embed_tokens.weight.data[100:160] = model.model.embed_tokens.weight.data[100].clone()
    subject = Subject.wrap(model, llama.tokenizer, "tiny-llama")
    for batch in (1, 33, 1024):
        made = make_atlas(subject, peaks(subject), batch=batch)["0-mlp"]
        seen = 0
        for u in range(40):
            for sign in (1, -1):
                equals = [i for i, _ in unit_atlas(made, UnitId("tiny-llama", "0-mlp", u, sign)).top if 100 <= i < 160]
                assert equals == list(range(100, 100 + len(equals)))
                seen = max(seen, len(equals))
        assert 10 < seen <= KEPT


# Folding


@pytest.mark.parametrize("batch", [1, 7, 64, 318, 319, 5000])
def test_the_size_of_a_batch_changes_nothing(case: Case, batch: int) -> None:
    subject = case.subject
    frozen = {site: case.sweep.site(site)["peak"] for site in SITES}
    rows, cells = subject.meter.rows, subject.meter.tokens
    made = make_atlas(subject, frozen, batch=batch)
    passes = -(-319 // min(batch, PASS))
    assert subject.meter.rows - rows == 319
    assert subject.meter.tokens - cells <= 319 + passes    # the sink once a pass
    same_as_stored(case, made)


def same_as_stored(case: Case, made: dict[str, dict[str, torch.Tensor]]) -> None:
    for site in SITES:
        stored = load_file(atlas_file(case.sweep.folder, site))
        assert made[site].keys() == stored.keys()
        for name, tensor in made[site].items():
            assert tensor.dtype == stored[name].dtype
            if tensor.is_floating_point():
                assert torch.allclose(tensor, stored[name], rtol=1e-4, atol=1e-5), name
            else:
                assert torch.equal(tensor, stored[name]), name


def test_a_batch_that_takes_several_passes_is_one_batch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamplighter.tools.tries.PASS", 100)
    cells = case.subject.meter.tokens
    same_as_stored(case, make_atlas(case.subject, {site: case.sweep.site(site)["peak"] for site in SITES}))
    assert case.subject.meter.tokens - cells == 320      # the sink once, though there were four passes


@pytest.mark.parametrize("error", [None, 1.0])
def test_where_rows_cannot_share_a_sink_each_has_its_own(case: Case, error: float | None) -> None:
    subject = Subject.wrap(case.subject.model, case.subject.tokenizer, case.subject.name)
    subject.checks["share"] = error
    rows, cells = subject.meter.rows, subject.meter.tokens
    made = make_atlas(subject, {site: case.sweep.site(site)["peak"] for site in SITES}, batch=100)
    assert (subject.meter.rows - rows, subject.meter.tokens - cells) == (319, 2 * 319)
    same_as_stored(case, made)


def test_no_pass_is_larger_than_a_batch_and_what_is_kept_does_not_grow(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    plain = module._Site.add

    def watched(self: Any, x: torch.Tensor, ids: torch.Tensor) -> None:
        plain(self, x, ids)
        sizes.append((len(x), len(self.top), len(self.bottom)))

    monkeypatch.setattr(module._Site, "add", watched)
    made = make_atlas(llama, peaks(llama, "0-mlp", "1-resid"), batch=50)
    assert sizes[:4] == [(50, KEPT, KEPT)] * 4
    assert all(read <= 50 and top == bottom == KEPT for read, top, bottom in sizes)
    for site, width in (("0-mlp", 40), ("1-resid", 24)):
        shapes = {name: tuple(tensor.shape) for name, tensor in made[site].items()}
        ends = {f"{end}_{part}": (KEPT, width) for end in ("top", "bottom") for part in ("id", "value")}
        moments = dict.fromkeys(("mean", "std", "skewness", "kurtosis"), (width,))
        assert shapes == ends | moments | {"fires": (2, width), "n": (1,)}
        assert {t.dtype for t in made[site].values()} == {torch.float32, torch.int32}


def test_progress_goes_through_every_token(llama: Any) -> None:
    told: list[tuple[str, int, int]] = []
    make_atlas(llama, peaks(llama), lambda *step: told.append(step), batch=100)
    assert told == [("atlas", done, 319) for done in (0, 100, 200, 300, 319)]


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3.4e38]), st.floats(-1e4, 1e4, width=32, allow_nan=False)
)


@settings(deadline=None, max_examples=150)
@given(st.lists(NUMBERS, min_size=1, max_size=120), st.lists(st.integers(1, 119), max_size=6))
@example([0.0, -0.0] * 40, [1, 35])
@example([-1.0] * 70, [33])
def test_folding_is_sorting(values: list[float], cuts: list[int]) -> None:
    """Whatever comes in whatever batches: by value, then by id, with −0 equal to 0; a second unit has the opposites."""
    column = torch.tensor(values, dtype=torch.float32)
    x, ids = torch.stack([column, -column], dim=1), torch.arange(len(values)) * 3 + 2**30
    site = module._Site(torch.tensor([[2.0, 2.0], [2.0, -1.0]]))
    edges = sorted({0, *(c for c in cuts if c < len(values)), len(values)})
    for start, end in zip(edges, edges[1:], strict=False):
        site.add(x[start:end], ids[start:end])
    made = site.tensors()
    entries = [(int(i), float(v)) for i, v in zip(ids, column, strict=True)]
    largest, smallest = (sorted(entries, key=lambda e: (s * e[1], e[0]))[:KEPT] for s in (-1, 1))
    for unit, top, bottom in (
        (UnitId("made", "0-mlp", 0), largest, smallest),
        (UnitId("made", "0-mlp", 0, -1), negated(smallest), negated(largest)),
        (UnitId("made", "0-mlp", 1), negated(smallest), negated(largest)),
    ):
        found = unit_atlas(made, unit)
        assert (found.top, found.bottom) == (top, bottom)
        assert found.fires == sum(y >= 1 for y in (unit.sign * (1 - 2 * unit.index) * column).tolist())
        assert all(math.copysign(1, y) == 1 for y in values_of(found.top + found.bottom) if y == 0)
    assert unit_atlas(made, UnitId("made", "0-mlp", 1, -1)).fires is None


def negated(entries: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(i, -y) for i, y in entries]


@pytest.mark.parametrize(("middle", "spread"), [(0.0, 1.0), (1e4, 1e-1), (-3e5, 2.0), (0.0, 1e-12)])
def test_moments_keep_their_digits_far_from_zero(middle: float, spread: float) -> None:
    """Sums of x⁴ would not: at a mean of a million spreads float64 has no digits left for a kurtosis."""
    x = torch.tensor(middle + spread * np.random.default_rng(0).exponential(size=4000), dtype=torch.float32)[:, None]
    site = module._Site(torch.ones(2, 1))
    for start in range(0, 4000, 999):
        site.add(x[start : start + 999], torch.arange(start, min(start + 999, 4000)))
    found = unit_atlas(site.tensors(), UnitId("made", "0-mlp", 0))
    exact = x[:, 0].double().numpy()
    away = exact - exact.mean()
    assert found.std == pytest.approx(exact.std(), rel=1e-5)
    assert found.skewness == pytest.approx((away**3).mean() / exact.std() ** 3, rel=1e-5)
    assert found.kurtosis == pytest.approx((away**4).mean() / exact.std() ** 4, rel=1e-5)


# Planted and dead units


def planted(llama: Any, fires: dict[int, tuple[str, ...]]) -> Subject:
    """A llama in which neuron k of 0-mlp reads only dimension k of the stream, which only its tokens' embeddings have.

    A neuron without tokens writes and reads nothing at all.
    """
    model = copy.deepcopy(llama.model).float()
    body, block = model.model, model.model.layers[0]
    own = list(fires)
    block.self_attn.o_proj.weight.data[own] = 0
    body.embed_tokens.weight.data[:, own] = 0
    for k, words in fires.items():
        reads = torch.zeros(24)
        reads[k] = 1.5
        block.mlp.gate_proj.weight.data[k] = reads
        block.mlp.up_proj.weight.data[k] = reads if words else 0
        for strength, text in enumerate(words):
            (token,) = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
            body.embed_tokens.weight.data[token, k] = 8 - 2 * strength
    return Subject.wrap(model, llama.tokenizer, "planted")


PLANTED = {0: (" the", " in", " re"), 1: (" st",), 2: ()}


@pytest.fixture(scope="module")
def plant(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    subject = planted(llama, PLANTED)
    return Case.of(subject, make_sweep(subject, corpus(), ["0-mlp"], tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("index", [0, 1])
def test_a_planted_neuron_lists_its_tokens_first(plant: Case, index: int) -> None:
    evidence = token_atlas(plant.subject, plant.sweep, UnitId("planted", "0-mlp", index), n=5)
    rows, words = [row for row in evidence.rows if row["side"] == "top"], PLANTED[index]
    assert [row["token"] for row in rows[: len(words)]] == list(words)
    assert all(row["activation"] > 1 for row in rows[: len(words)])
    assert [row["activation"] for row in rows[len(words) :]] == [0] * (5 - len(words))
    assert evidence.summary.startswith(f"Beside the sink, planted/0-mlp/{index} reads most on {words[0]!r}")
    other = token_atlas(plant.subject, plant.sweep, UnitId("planted", "0-mlp", index, -1))
    assert not {row["token"] for row in other.rows if row["side"] == "top"} & set(words)
    lowest = [row["token"] for row in other.rows if row["side"] == "bottom"]
    assert lowest[: len(words)] == list(words)
    assert other.summary == f"Beside the sink, planted/0-mlp/{index}- is above 0 on none of 319 tokens."


@pytest.mark.parametrize("sign", [1, -1])
def test_a_dead_neuron_reads_nothing_and_the_summary_says_so(plant: Case, sign: int) -> None:
    unit = UnitId("planted", "0-mlp", 2, sign)
    known = plant.sweep.atlas(unit)
    assert known.top == known.bottom == [(i, 0.0) for i in range(1, KEPT + 1)]
    assert (known.mean, known.std, known.skewness, known.kurtosis, known.fires) == (0, 0, None, None, None)
    evidence = token_atlas(plant.subject, plant.sweep, unit)
    assert evidence.summary == f"Beside the sink, {unit} reads 0 on each of 319 tokens."
    assert evidence.warnings == [f"{unit} is nowhere above 0 on the explain side: ratios are undefined."]
    assert {row["activation"] for row in evidence.rows} == {0}
    assert {row["ratio"] for row in evidence.rows} == {None}
    assert evidence.checks["fires_share"] is evidence.checks["corpus_max"] is None
    assert evidence.checks["exceeds_corpus"] is False
    assert "-0.0" not in evidence.to_json()


def test_a_unit_whose_write_is_edited_reads_otherwise(plant: Case, llama: Any, tmp_path: Path) -> None:
    """The same neuron with its gate closed: what the atlas listed is gone."""
    model = copy.deepcopy(plant.subject.model)
    model.model.layers[0].mlp.gate_proj.weight.data[0] = 0
    subject = Subject.wrap(model, llama.tokenizer, "planted")
    made = make_atlas(subject, peaks(subject))["0-mlp"]
    assert values_of(unit_atlas(made, UnitId("planted", "0-mlp", 0)).top) == [0] * KEPT
    before = plant.sweep.atlas(UnitId("planted", "0-mlp", 1))
    assert unit_atlas(made, UnitId("planted", "0-mlp", 1)).top == before.top


# The tool


UNIT = UnitId("tiny-llama", "1-mlp", 7)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n", [1, 10, 32])
def test_rows_are_both_ends_strongest_first(swept: Case, sign: int, n: int) -> None:
    unit = replace(UNIT, sign=sign)
    evidence, known = token_atlas(swept.subject, swept.sweep, unit, n=n), swept.sweep.atlas(unit)
    peak = swept.sweep.statistics(unit).peak
    assert peak > 0
    for side, entries in (("top", known.top), ("bottom", known.bottom)):
        rows = [row for row in evidence.rows if row["side"] == side]
        assert [(row["id"], row["activation"]) for row in rows] == entries[:n]
        assert [row["rank"] for row in rows] == list(range(1, n + 1))
        assert [row["token"] for row in rows] == [swept.subject.piece(i) for i, _ in entries[:n]]
        assert [row["ratio"] for row in rows] == [y / peak for _, y in entries[:n]]
        assert all(row["beside_sink"] is True for row in rows)
    assert len(evidence.rows) == 2 * n


@pytest.fixture(scope="module")
def best(swept: Case) -> Callable[..., float]:
    """The largest y of a unit in the documents of some sides."""
    raw: dict[tuple[str, str], torch.Tensor] = {}
    for side in ("explain", "tune", "score"):
        for site in SITES:
            units = [UnitId("tiny-llama", site, u) for u in range(swept.subject.width(site))]
            rows = [ids for _, _, ids in swept.sweep.windows(side)]
            read = swept.subject.activations(rows, units)[:, 1:].flatten(0, 1)
            raw[side, site] = read[~read[:, 0].isnan()]

    def largest(unit: UnitId, *sides: str) -> float:
        return max(float((unit.sign * raw[side, unit.site][:, unit.index]).max()) for side in sides)

    return largest


def test_what_is_checked_stands_beside_the_corpus(swept: Case, best: Callable[..., float]) -> None:
    exceeds = set()
    for unit in swept.units:
        evidence, known = token_atlas(swept.subject, swept.sweep, unit, n=1), swept.sweep.statistics(unit)
        y, checks = swept.y(unit), evidence.checks
        largest = best(unit, "explain", "tune")
        wanted = largest if largest > 0 else None
        assert checks["corpus_max"] == (wanted if wanted is None else pytest.approx(wanted, rel=1e-5))
        assert checks["atlas_max"] == pytest.approx(y.max(), rel=1e-5)
        assert checks["exceeds_corpus"] == (y.max() > max(largest, 0) * (1 + 1e-5))
        assert (checks["peak"], checks["tokens"], checks["fired"]) == (known.peak, 319, None)
        if known.peak > 0:
            assert checks["fires_share"] == (y >= known.threshold).mean() == checks["fires"] / 319
        assert "Beside the sink" in evidence.summary and len(evidence.summary.split()) <= 60
        exceeds.add(checks["exceeds_corpus"])
        over = "no more than in text" not in evidence.summary
        assert over == checks["exceeds_corpus"] or y.max() <= 0
    assert exceeds == {True, False}


def test_a_token_that_is_also_in_the_text_exceeds_nothing(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents of one token each, and every token has one: the corpus is the atlas, but for the last digits."""
    words = [f"w{i}" for i in range(1, 300)]
    subject = Subject.wrap(copy.deepcopy(llama.model).float(), word_tokenizer(words), "tiny-llama")
    documents = tuple(Document(f"{i:04}", str(i), word) for i, word in enumerate([*words, "w1", "w1"]))
    sides = ("explain",) * len(words) + ("tune", "score")
    made = Corpus("each", "each", documents, tuple(range(len(documents))), sides, {})
    sweep = make_sweep(subject, made, ["1-mlp"], tmp_path)
    for u in range(40):
        checks = token_atlas(subject, sweep, UnitId("tiny-llama", "1-mlp", u)).checks
        assert checks["atlas_max"] == pytest.approx(checks["corpus_max"], rel=1e-5)
        assert not checks["exceeds_corpus"]
    known, largest = sweep.atlas(UNIT), token_atlas(subject, sweep, UNIT).checks["corpus_max"]
    for more, exceeds in ((-1e-3, False), (5e-6, False), (1e-3, True)):
        changed = replace(known, top=[(1, largest * (1 + more)), *known.top])
        monkeypatch.setattr(sweep, "atlas", lambda unit, changed=changed: changed)
        assert token_atlas(subject, sweep, UNIT).checks["exceeds_corpus"] == exceeds


def test_the_score_side_is_never_told_of(swept: Case, best: Callable[..., float]) -> None:
    """With it the corpus maximum of some unit would be another."""
    higher = [u for u in swept.units if best(u, "score") > best(u, "explain", "tune") > 0]
    assert higher
    for unit in higher:
        checks = token_atlas(swept.subject, swept.sweep, unit).checks
        assert checks["corpus_max"] == pytest.approx(best(unit, "explain", "tune"), rel=1e-5)
        assert checks["corpus_max"] < best(unit, "score")


def test_the_record_comes_back_and_costs_no_pass(swept: Case) -> None:
    before = swept.subject.meter.rows
    evidence = token_atlas(swept.subject, swept.sweep, UNIT, n=3)
    assert swept.subject.meter.rows == before
    assert evidence.cost["forward_rows"] == evidence.cost["forward_tokens"] == 0
    assert Evidence.from_json(evidence.to_json()) == evidence
    assert (evidence.tool, evidence.unit, evidence.sign) == ("token_atlas", UNIT.bare, 1)
    assert evidence.arguments == {"n": 3} and evidence.warnings == []


@pytest.mark.parametrize("n", [0, -1, 33, 1000])
def test_a_count_out_of_range_is_refused(swept: Case, n: int) -> None:
    with pytest.raises(Refused, match=rf"^n = {n} is out of range; .* so give 1 to 32\.$"):
        token_atlas(swept.subject, swept.sweep, UNIT, n=n)


def test_a_site_that_was_not_swept_is_refused_with_the_command(swept: Case) -> None:
    with pytest.raises(Refused, match="lamplighter sweep --model tiny-llama --sites 0-resid"):
        token_atlas(swept.subject, swept.sweep, UnitId("tiny-llama", "0-resid", 0))


# On disk


@pytest.fixture
def copied(swept: Case, tmp_path: Path) -> Sweep:
    shutil.copytree(swept.sweep.folder, tmp_path / swept.sweep.digest)
    return Sweep(tmp_path / swept.sweep.digest)


def test_an_atlas_comes_back_as_it_was_made(swept: Case, copied: Sweep) -> None:
    assert copied.atlas(UNIT) == swept.sweep.atlas(UNIT)
    made = make_atlas(swept.subject, {"1-mlp": swept.sweep.site("1-mlp")["peak"]})["1-mlp"]
    stored = load_file(atlas_file(copied.folder, "1-mlp"))
    assert all(torch.equal(made[name], stored[name]) for name in made)


def rewritten(path: Path, sweep: str, width: int = 40) -> None:
    """The atlas of 1-mlp again, as that of another sweep or of fewer units."""
    tensors = {name: tensor[..., :width].contiguous() for name, tensor in load_file(path).items()}
    path.write_bytes(save(tensors, {"atlas": f"{sweep}/1-mlp"}))


DAMAGE = {
    "missing": (lambda path, digest: path.unlink(), "missing"),
    "empty": (lambda path, digest: path.write_bytes(b""), "unreadable"),
    "cut": (lambda path, digest: os.truncate(path, path.stat().st_size // 2), "unreadable"),
    "no safetensors": (lambda path, digest: path.write_bytes(b"x" * 4000), "unreadable"),
    "a folder": (lambda path, digest: (path.unlink(), path.mkdir()), "unreadable"),
    "another sweep's": (lambda path, digest: rewritten(path, "other"), "not that of this sweep"),
    "another site's": (lambda path, digest: shutil.copy(atlas_file(path.parent, "0-mlp"), path), "not that of this"),
    "the site's own file": (lambda path, digest: shutil.copy(path.parent / "1-mlp.safetensors", path), "not that of"),
    "fewer units": (lambda path, digest: rewritten(path, digest, 8), "not that of this sweep"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_an_atlas_that_is_no_good_is_one_sentence(swept: Case, copied: Sweep, how: str) -> None:
    harm, words = DAMAGE[how]
    harm(atlas_file(copied.folder, "1-mlp"), copied.digest)
    with pytest.raises(Refused) as caught:
        token_atlas(swept.subject, copied, UNIT)
    said = str(caught.value)
    assert re.fullmatch(r"the token atlas of 1-mlp in sweep \w+ is [^\n]*; delete the folder [^\n]+ again\.", said)
    assert words in said
    assert copied.atlas(UnitId("tiny-llama", "0-mlp", 7)).n == 319     # the other sites are as they were


def test_the_same_bytes_for_the_same_sweep(swept: Case, tmp_path: Path) -> None:
    again = make_sweep(swept.subject, corpus(), SITES, tmp_path)
    for site in SITES:
        assert atlas_file(again.folder, site).read_bytes() == atlas_file(swept.sweep.folder, site).read_bytes()
    assert (tmp_path / "sweeps" / again.digest).is_dir() and not list((tmp_path / "sweeps").glob(".*"))


def test_a_sweep_with_half_precision_has_an_atlas(llama: Any) -> None:
    half = Subject.wrap(copy.deepcopy(llama.model).to(torch.bfloat16), llama.tokenizer, llama.name)
    rough, fine = (make_atlas(subject, peaks(subject))["0-mlp"] for subject in (half, llama))
    assert torch.allclose(rough["top_value"][0], fine["top_value"][0], rtol=0.1, atol=0.05)
    assert torch.isfinite(rough["kurtosis"]).all()
