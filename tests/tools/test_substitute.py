"""substitute: swaps on ids, planted synonyms, numbers by form, and a masked LM's two ways of proposing."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.store.records import Evidence, Refused
from lamplighter.tools.forms import by_form
from lamplighter.tools.frames import filler_pool, make_frame, track
from lamplighter.tools.held import effect
from lamplighter.tools.masked import PROBES, MaskedLM
from lamplighter.tools.measures import KEEP
from lamplighter.tools.prune import minimal_example
from lamplighter.tools.reader import Reader
from lamplighter.tools.spelled import Spelled
from lamplighter.tools.substitute import REPLACED, substitute, swap_word
from lamplighter.tools.units import UnitId

UNIT = UnitId("planted", "0-mlp", 0)
CAR, STREET = "She said: Paris and the blue car", "World War II street"


class Fake:
    """Stands for a masked LM: proposes what it was told to for each word, and notes what it was asked."""

    def __init__(self, proposals: dict[str, Sequence[str]]) -> None:
        self.proposals = proposals
        self.asked: list[tuple[str, str, int, str]] = []

    def choose_mode(self, subject: Any) -> dict[str, Any]:
        return {"mode": "masked"}

    def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
        self.asked.append((text, text[slice(*span)], n, mode))
        return list(self.proposals.get(text[slice(*span)], []))[:n]


def swap(subject: Any, proposals: dict[str, Sequence[str]], unit: UnitId = UNIT, **options: Any) -> Evidence:
    fake: Any = Fake(proposals)
    return substitute(subject, fake, unit, **options)


def planted(llama: Any, *fires: str) -> Any:
    """A Llama without attention whose neuron 0-mlp/0 fires on the tokens `fires`, the same on each, and on no other."""
    from lamplighter.tools.subject import Subject

    model = copy.deepcopy(llama.model)
    body, block = model.model, model.model.layers[0]
    block.self_attn.o_proj.weight.zero_()
    block.post_attention_layernorm.weight.fill_(1)
    yes, no = torch.zeros(24), torch.zeros(24)
    yes[0] = no[1] = 5
    body.embed_tokens.weight[:] = no
    body.embed_tokens.weight[llama.tokenizer.convert_tokens_to_ids(list(fires))] = yes.double()
    for map_ in (block.mlp.gate_proj, block.mlp.up_proj):
        map_.weight[0] = yes
    return Subject.wrap(model, llama.tokenizer, "planted")


@pytest.fixture(scope="module")
def synonyms(llama: Any) -> Any:
    """Fires on "car", "stop" and the end of "street"."""
    return planted(llama, "Ġcar", "Ġstop", "et")


def test_planted_synonyms_keep_and_other_words_kill(synonyms: Any) -> None:
    proposals = ["car", "stop", "World", "Stop", "Car", "street", "the", "stop"]
    evidence = swap(synonyms, {"car": proposals}, text=CAR)
    assert [row["substitute"] for row in evidence.rows] == ["stop", "World", "street", "the"]
    assert [row["effect"] for row in evidence.rows] == ["keeps", "kills", "keeps", "kills"]
    assert [row["ratio"] for row in evidence.rows] == pytest.approx([1, 0, 1, 0], abs=1e-9)
    assert all(row["original"] == "car" and row["proposer"] == "masked" for row in evidence.rows)
    assert set(evidence.rows[0]) == {
        "position", "original", "substitute", "places", "activation", "ratio", "effect", "in_text", "ids", "proposer",
        "ring",
    }  # fmt: skip
    assert len(evidence.summary.split()) <= 60
    assert Evidence.from_json(evidence.to_json()) == evidence


def test_the_tracked_word_moves_with_a_longer_substitute(synonyms: Any) -> None:
    ids = synonyms.encode(CAR)
    word = synonyms.pieces(ids).index(" b")  # " blue" is " b", "lu", "e"; " regiment" has three, " II" two tokens
    kept = [word, len(ids) - 1]
    evidence = swap(synonyms, {"blue": ["green", "the", "II"]}, text=CAR, kept=kept)
    lengths = {row["substitute"]: len(row["ids"]) - len(ids) for row in evidence.rows}
    assert lengths == {"green": 1, "the": -2, "II": -1}
    for row in evidence.rows:
        assert row["ratio"] == pytest.approx(1)  # blue is not needed, so the reading must still be the car's
        assert row["ids"][-1] == ids[-1]
        assert row["position"] == word + (row["substitute"] == "green")  # " green" begins with a blank token
        naive = synonyms.readings([row["ids"][: min(len(ids), len(row["ids"])) - 1]], UNIT).item()
        assert abs(naive) < 0.01 * row["activation"]  # the old place holds another token


def test_nothing_outside_the_word_is_tokenised_again(synonyms: Any) -> None:
    letters = [synonyms.tokenizer.convert_tokens_to_ids(c) for c in ("W", "o", "r", "l", "d")]
    ids = [synonyms.sink, *letters, *synonyms.encode(" blue car")[1:]]
    assert synonyms.encode(synonyms.text(ids)) != ids  # joining and tokenising again would merge the letters
    evidence = swap(synonyms, {"car": ["stop", "street"]}, ids=ids)
    for row in evidence.rows:
        assert row["ids"][: len(ids) - 1] == ids[:-1]
        assert synonyms.text(row["ids"]) == "World blue " + row["substitute"]


WORDS = st.lists(
    st.sampled_from(
        ["It", "was", "built", "in", "the", "late", "19th", "century", ",", "said", "World", "War", "II", "don't"]
    ),
    min_size=1,
    max_size=8,
)


@given(WORDS, st.integers(0, 7), st.sampled_from(["Paris", "1939", "x", "stopped-by"]))
def test_a_swap_is_the_old_text_with_one_word_changed(llama: Any, words: list[str], at: int, other: str) -> None:
    ids = llama.encode(" ".join(words))
    spelled = Spelled(llama, ids)
    assert [w.text for w in spelled.words()] == words
    word = spelled.words()[at % len(words)]
    new = spelled.respell(word, other)
    words[at % len(words)] = other
    assert llama.text([*ids[: word.first], *new, *ids[word.end :]]) == " ".join(words)
    assert spelled.respell(word, word.text) == ids[word.first : word.end]


def test_a_mark_that_shares_a_token_takes_it_along(llama: Any) -> None:
    ids = llama.encode("stop the cars.")
    spelled = Spelled(llama, ids)
    assert spelled.text == "stop the cars."
    assert all(llama.text(spelled.respell(w, "x")).strip().startswith("x") for w in spelled.words())


@pytest.mark.parametrize(
    ("fires", "tracked", "substitutes"),
    [
        ("Ġst", 1, {"stop": 1, "regiment": 1, "the": 1}),
        ("re", 2, {"stop": 1, "regiment": 2, "green": 2}),
        ("et", 3, {"stop": 1, "regiment": 3, "green": 4}),
    ],
)
def test_an_inner_piece_is_followed_by_its_rank(
    llama: Any, fires: str, tracked: int, substitutes: dict[str, int]
) -> None:
    subject = planted(llama, fires)
    whole = subject.encode(STREET)
    before = len(whole) - 3  # " street" is " st", "re", "et"
    evidence = swap(subject, {"street": list(substitutes)}, text=STREET)
    assert evidence.checks["kept"] == [before + tracked - 1]
    assert evidence.checks["held"] == list(range(before, before + tracked))
    for row in evidence.rows:
        new = subject.encode(" " + row["substitute"])[1:]
        assert row["ids"] == [*whole[:before], *new[: substitutes[row["substitute"]]]]


def test_ratios_are_read_in_the_frame_of_the_minimal_example(tiny: Any) -> None:
    unit = next(
        u for u in (UnitId(tiny.name, "1-mlp", i) for i in range(40))
        if tiny.readings([tiny.encode(CAR)], u).item() > 0.3
    )  # fmt: skip
    minimal = minimal_example(tiny, unit, text=CAR, seed=4).rows[0]
    proposals = dict.fromkeys(["She", "said", "Paris", "and", "the", "blue", "car"], ["stop", "green"])
    evidence = swap(tiny, proposals, unit, text=CAR, seed=4, kept=minimal["kept"])
    assert evidence.checks["minimal"] == pytest.approx(minimal["retained"])
    frame = make_frame(minimal["ids"], "resample", filler_pool(tiny), 4)
    spelled = Spelled(tiny, tiny.encode(CAR))
    words = spelled.words_of(minimal["kept"])
    held = {i for w in words for i in range(w.first, w.end) if i < len(frame.ids)} | set(minimal["kept"])
    whole = tiny.readings(frame.rows(held), unit).mean().item()
    assert evidence.checks["whole"] == pytest.approx(whole)
    assert evidence.rows
    for row in evidence.rows:
        word = next(w for w in words if w.text == row["original"])
        new = spelled.respell(word, row["substitute"])
        if word.end > len(frame.ids):
            new = new[: len(frame.ids) - word.first]
        rows = [[*r[: word.first], *new, *r[word.end :]] for r in frame.rows(held)]
        # Norms that compute in float32 leave 1e-7 of the peak, which is much of a reading near 0.
        assert row["activation"] == pytest.approx(tiny.readings(rows, unit).mean().item(), abs=1e-6 * whole)
        assert row["ratio"] == pytest.approx(row["activation"] / whole)
        assert row["effect"] == effect(row["ratio"])
        assert row["in_text"] == pytest.approx(tiny.readings([row["ids"]], unit).item() / minimal["peak"], abs=1e-6)


def test_the_text_is_pruned_by_one_search(tiny: Any) -> None:
    """Its result is 1-minimal, and held is all that has an effect: with it given, nothing changes."""
    units = (UnitId(tiny.name, "1-mlp", i) for i in range(40))
    unit = next(u for u in units if tiny.readings([tiny.encode(CAR)], u).item() > 0.3)
    own = swap(tiny, {"car": ["stop"]}, unit, text=CAR, seed=4)
    kept, whole = own.checks["kept"], minimal_example(tiny, unit, text=CAR, seed=4).rows[0]
    frame = make_frame(whole["ids"], "resample", filler_pool(tiny), 4)
    values = [tiny.readings(frame.rows(set(kept) - {i}), unit).mean().item() for i in [None, *kept[:-1]]]
    assert values[0] >= KEEP * whole["peak"] > max([0.0, *values[1:]])
    given = swap(tiny, {"car": ["stop"]}, unit, text=CAR, seed=4, kept=kept)
    assert given.checks["held"] == own.checks["held"]
    assert [r["ratio"] for r in given.rows] == pytest.approx([r["ratio"] for r in own.rows], rel=1e-5)


def loud(subject: Any, unit: UnitId, ids: Sequence[int]) -> list[float]:
    return Reader(subject, [unit.site]).along(ids, unit)[1:]


def test_of_many_words_the_last_and_the_weightiest_are_replaced(tiny: Any) -> None:
    ids = tiny.encode(" stop the red cars at the 9th street , and World War II")
    units = (UnitId(tiny.name, "1-mlp", i) for i in range(24))
    cut = ((unit, track(Reader(tiny, ["1-mlp"]), unit, ids)[0]) for unit in units if max(loud(tiny, unit, ids)) > 0)
    unit, row = next((unit, row) for unit, row in cut if len(Spelled(tiny, row).words()) > REPLACED + 2)
    masked: Any = Fake({})
    options: dict[str, Any] = {"kept": range(1, len(row)), "proposers": [], "words": ["blue"]}
    found = substitute(tiny, masked, unit, ids=row, **options)
    words = Spelled(tiny, row).words_of(range(1, len(row)))
    replaced = {r["position"] for r in found.rows if r["places"] == 1}
    without = {}
    for word in words[:-1]:     # everything is held, so that only the word's own tokens are drawn
        frame = make_frame(row, "resample", filler_pool(tiny), 0)
        kept = set(range(1, len(row))) - set(range(word.first, word.end))
        without[word.first] = float(tiny.readings(frame.rows(kept), unit).mean())
    least = sorted(without, key=without.__getitem__)[: REPLACED - 1]
    assert len(words) > REPLACED and len(replaced) == REPLACED
    places = [*sorted(least), words[-1].first]
    assert all(first <= at <= first + 1 for first, at in zip(places, sorted(replaced), strict=True))


def test_the_masked_lm_sees_the_whole_text_and_n(synonyms: Any) -> None:
    fake: Any = Fake({})
    evidence = substitute(synonyms, fake, UNIT, text=CAR + " and more.", n=3)
    assert fake.asked == [(CAR + " and more.", "car", 3, "masked")]
    assert evidence.rows == []
    assert evidence.warnings


def test_what_does_not_fit_the_context_is_left_out(synonyms: Any) -> None:
    the, car = synonyms.tokenizer.convert_tokens_to_ids(["Ġthe", "Ġcar"])
    evidence = swap(synonyms, {"car": ["stop", "street"]}, ids=[synonyms.sink, *[the] * 126, car])
    assert [row["substitute"] for row in evidence.rows] == ["stop"]
    assert evidence.checks["left_out"] == 1


def test_given_words_are_tried_in_the_case_they_are_given_in(synonyms: Any) -> None:
    """The case of a word is the first thing that one wonders about; what is proposed differs by more than that."""
    made = swap(synonyms, {"car": ["CAR", "stop"]}, text=CAR, words=["Car", "CAR", "car", "STOP"], n=2)
    assert [(r["substitute"], r["proposer"]) for r in made.rows] == [
        ("Car", "given"), ("CAR", "given"), ("STOP", "given")
    ]  # fmt: skip
    alone = swap(synonyms, {"car": ["CAR", "stop"]}, text=CAR, n=2)
    assert [r["substitute"] for r in alone.rows] == ["stop"]


def test_given_words_that_cannot_be_spelled_are_named(synonyms: Any) -> None:
    made = swap(synonyms, {"car": ["stop"]}, ids=[synonyms.sink, *synonyms.encode(CAR)[1:]], words=["stop"] * 2)
    assert made.warnings == [] or "in_text" in made.warnings[0]
    long = swap(synonyms, {"car": []}, text=CAR, words=["street " * 200])
    assert long.rows == [] and any("not tried" in said and "street" in said for said in long.warnings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": CAR, "n": 0}, "at least 1"),
        ({"text": CAR, "kept": [1, 2]}, "strongest"),
        ({"text": CAR, "kept": [0]}, "strongest"),
        ({"text": "Paris"}, "silent"),
        ({"text": " "}, "empty"),
        ({"text": CAR, "n": 1001}, "at most 1,000"),
        ({"text": CAR, "proposers": []}, "no proposer is asked and no words are given"),
        ({"text": CAR, "words": [" "]}, "one of the words is blank"),
    ],
)
def test_refusals(synonyms: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        swap(synonyms, {"car": ["stop"]}, **options)


@pytest.mark.parametrize(
    ("ratio", "name"),
    [(-1, "kills"), (0.249, "kills"), (0.25, "unsure"), (0.499, "unsure"), (0.5, "keeps"), (1.249, "keeps"),
     (1.25, "raises")],
)  # fmt: skip
def test_effects_by_ratio(ratio: float, name: str) -> None:
    assert effect(ratio) == name


# Numbers by form


@pytest.mark.parametrize(
    ("word", "same", "other"),
    [
        ("19th", ["15th", "3rd", "21st"], ["fifth", "ninth", "7"]),
        ("1942", ["1850", "1923"], ["seven"]),
        ("3.50", ["4.61", "6.83"], ["seven"]),
        ("B52", ["B63"], ["Seven"]),
        ("19TH", ["15TH"], ["FIFTH"]),
        ("Fifth", ["Ninth", "Third"], ["15th", "Five"]),
        ("seven", ["five", "three"], ["7", "fifth"]),
        ("II", ["I", "III", "IV"], ["2", "two"]),
    ],
)
def test_numbers_are_proposed_in_their_form_and_in_others(word: str, same: list[str], other: list[str]) -> None:
    found = by_form(word)
    assert set(same) | set(other) <= set(found)
    assert found[0] in same
    assert set(found[:4]) & set(other)


@pytest.mark.parametrize("word", ["century", "I", "V", "MIX", "…", "", "second-hand"])
def test_what_is_no_number_has_no_forms(word: str) -> None:
    assert by_form(word) == []


@given(st.from_regex(r"[0-9]{1,6}([.,][0-9]{2})?(th|st)?", fullmatch=True))
def test_forms_never_repeat_the_word_and_keep_its_shape(word: str) -> None:
    found = by_form(word)
    assert word not in found
    assert len(set(found)) == len(found) >= 8
    if not re.fullmatch(r"\d+(th|st)|1\d{3}|20\d{2}", word):
        assert [re.sub(r"\d", "0", p) for p in found[::2][:4]] == [re.sub(r"\d", "0", word)] * 4


# The masked LM

VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "the", "red", "blue", "green", "play", "##able", "##s",
    "19th", "7", ".", ",", "iii", "ii", "war",
]  # fmt: skip


class Scripted:
    """A masked LM's model whose logits at a place depend on the token there."""

    config = SimpleNamespace(max_position_embeddings=16)

    def __init__(self, likes: dict[str, dict[str, float]]) -> None:
        self.likes = likes
        self.seen: list[list[str]] = []

    def eval(self) -> "Scripted":
        return self

    def requires_grad_(self, _: bool) -> "Scripted":
        return self

    def __call__(self, input_ids: torch.Tensor) -> Any:
        self.seen.append([VOCABULARY[i] for i in input_ids[0].tolist()])
        logits = torch.full((1, input_ids.shape[1], len(VOCABULARY)), -10.0)
        for place, token in enumerate(self.seen[-1]):
            for word, logit in self.likes.get(token, {}).items():
                logits[0, place, VOCABULARY.index(word)] = logit
        return SimpleNamespace(logits=logits)


def masked_lm(likes: dict[str, dict[str, float]]) -> tuple[MaskedLM, Scripted]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordPiece({p: i for i, p in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                     sep_token="[SEP]", mask_token="[MASK]")  # fmt: skip
    model = Scripted(likes)
    return MaskedLM(model, tokenizer, "scripted"), model


LIKES = {
    "[MASK]": {
        "[SEP]": 9,
        "[unused0]": 8,
        "##s": 7,
        ".": 6.5,
        "19th": 6.2,
        "play": 6,
        "green": 5,
        "red": 3,
    },
    "play": {"play": 9, "red": 6, "blue": 2},
    "##able": {"blue": 5, "green": 4, "red": 0, "the": 4.5},
    "19th": {"19th": 9, "7": 8, ".": 7, "red": 6},
    ".": {".": 9, "red": 8, ",": 7},
    "ii": {"ii": 9, "iii": 8, "war": 7},
}


def ask(text: str, word: str, mode: str, n: int = 3) -> tuple[list[str], list[str]]:
    masked, model = masked_lm(LIKES)
    at = text.index(word)
    return masked.propose(text, (at, at + len(word)), n, mode), model.seen[0]


def test_a_masked_word_is_one_mask_however_many_pieces_it_has() -> None:
    found, seen = ask("the playable red", "playable", "masked")
    assert seen == ["[CLS]", "the", "[MASK]", "red", "[SEP]"]
    assert found[:2] == ["green", "red"]  # no special, unused or inner piece, no mark, no number, not its own "play"


def test_an_unmasked_word_is_averaged_over_its_pieces() -> None:
    found, seen = ask("the playable red", "playable", "unmasked")
    assert seen == ["[CLS]", "the", "play", "##able", "red", "[SEP]"]
    # Sums over the two places, their normalisers apart: blue 2 + 5, red 6 + 0, green −10 + 4, the −10 + 4.5.
    assert found == ["blue", "red", "the"]


@pytest.mark.parametrize(
    ("text", "word", "wanted"),
    [
        ("the 19th war", "19th", ["7", "red"]),
        ("the war.", ".", [","]),
        ("War II", "II", ["III", "war"]),
        ("Playable", "Playable", ["Blue", "Red"]),
        ("PLAYABLE", "PLAYABLE", ["BLUE", "RED"]),
    ],
)
def test_proposals_are_of_the_words_kind_and_in_its_case(text: str, word: str, wanted: list[str]) -> None:
    assert ask(text, word, "unmasked", n=5)[0][: len(wanted)] == wanted


@pytest.mark.parametrize("at", [0, 20, 39])
def test_a_long_text_is_cropped_around_the_word(at: int) -> None:
    words = ["the"] * 40
    words[at] = "playable"
    found, seen = ask(" ".join(words), "playable", "unmasked", n=2)
    assert found == ["blue", "red"]
    assert len(seen) <= 16
    assert seen.count("##able") == 1


def test_the_mode_is_the_one_whose_proposals_the_subject_finds_likelier(llama: Any) -> None:
    class Two(MaskedLM):
        words = {"masked": ["stop", "said"], "unmasked": ["blue"]}

        def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
            return self.words[mode]

    base, model = masked_lm({})
    masked = Two(model, base.tokenizer, "two")
    chosen = masked.choose_mode(llama)
    for mode, words in Two.words.items():
        total = []
        for left, _, right in PROBES:
            for other in words:
                ids = torch.tensor([llama.encode(left + other + right)])
                start = len(llama.encode(left.rstrip()))
                logs = llama.model(input_ids=ids).logits.log_softmax(-1)[0]
                total.append(sum(logs[k - 1, ids[0, k]].item() for k in range(start, ids.shape[1])))
        assert chosen[mode] == pytest.approx(np.mean(total))
    assert chosen["mode"] == max(("masked", "unmasked"), key=lambda mode: float(chosen[mode]))
    rows = llama.meter.rows
    assert masked.choose_mode(llama) == chosen
    assert llama.meter.rows == rows
    assert MaskedLM(model, base.tokenizer, "two", mode="masked").choose_mode(llama)["mode"] == "masked"


def test_models_that_are_no_bert_are_refused(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="word pieces"):
        MaskedLM(llama.model, llama.tokenizer, "tiny-llama")
    with pytest.raises(Refused, match="cannot be loaded"):
        MaskedLM.load(tmp_path)
    base, model = masked_lm({})
    with pytest.raises(Refused, match="masked or unmasked"):
        MaskedLM(model, base.tokenizer, "scripted", mode="both")


# The embedded subject and masked LM


def test_the_digest_names_the_weights(bert_tiny: Any) -> None:
    same = MaskedLM(bert_tiny.model, bert_tiny.tokenizer, "other name", mode="masked")
    changed = copy.deepcopy(bert_tiny.model)
    next(changed.parameters()).view(-1)[0] += 1
    assert same.digest == bert_tiny.digest
    assert MaskedLM(changed, bert_tiny.tokenizer, "changed").digest != bert_tiny.digest


def test_the_embedded_masked_lm_proposes_better_unmasked(smollm2: Any, bert_tiny: Any) -> None:
    chosen = bert_tiny.choose_mode(smollm2)
    assert chosen["mode"] == "unmasked"
    assert chosen["unmasked"] > chosen["masked"]
    found = bert_tiny.propose("We took the train to London.", (21, 27), 10, "unmasked")
    assert "England" in found
    assert "London" not in found


def test_ordinals_in_digits_keep_what_spelled_ones_lose(smollm2: Any, bert_tiny: Any) -> None:
    unit = UnitId.parse("smollm2-135m/2-mlp/36")
    evidence = substitute(smollm2, bert_tiny, unit, text="It was built in the late 19th century")
    effects = {row["substitute"]: row["effect"] for row in evidence.rows}
    digits = {word for word in effects if re.fullmatch(r"\d+(st|nd|rd|th)", word)}
    assert {"15th", "17th", "3rd", "21st"} <= digits
    assert all(effects[word] in ("keeps", "raises") for word in digits)
    assert effects["fifth"] == "kills"
    assert not {effects[word] for word in ("ninth", "third", "nineteenth", "7", "seven")} & {"keeps", "raises"}
    assert {row["proposer"] for row in evidence.rows} == {"masked", "form"}


# Several proposers and a second ring


def test_a_second_ring_tries_the_substitutes_of_the_strongest(synonyms: Any) -> None:
    proposals = {"car": ["World", "stop"], "stop": ["street", "car", "the"], "World": ["in"]}
    evidence = swap(synonyms, proposals, text=CAR, rings=2)
    assert [(r["substitute"], r["ring"]) for r in evidence.rows] == [
        ("World", 1), ("stop", 1), ("street", 2), ("the", 2),
    ]  # fmt: skip
    assert [r["effect"] for r in evidence.rows] == ["kills", "keeps", "keeps", "kills"]
    assert evidence.checks["proposers"]["masked"] == {"n": 4, "keeps": 2}
    assert all(r["ring"] == 1 for r in swap(synonyms, proposals, text=CAR).rows)


def test_words_of_ones_own_come_first_and_are_all_tried(synonyms: Any) -> None:
    words = ["stop", "the", "street", "in", "World"]
    evidence = swap(synonyms, {"car": ["stop", "an"]}, text=CAR, words=words, n=1)
    assert [(r["substitute"], r["proposer"]) for r in evidence.rows] == [*((w, "given") for w in words)]
    assert evidence.checks["proposers"] == {
        "given": {"n": 5, "keeps": 2}, "masked": {"n": 0, "keeps": 0}, "form": {"n": 0, "keeps": 0},
    }  # fmt: skip
    assert swap(synonyms, {}, text=CAR, words=words, proposers=[]).rows == evidence.rows


def test_the_control_is_no_stronghold_of_the_second_ring(synonyms: Any) -> None:
    fake: Any = Fake({})
    evidence = substitute(synonyms, fake, UNIT, text=CAR, proposers=["random"], rings=2)
    assert evidence.rows and all(r["ring"] == 1 and r["proposer"] == "random" for r in evidence.rows)
    assert [asked[1] for asked in fake.asked] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proposers": ["bert"]}, "'bert' is no proposer; there are masked, form, next, neighbours, collocates"),
        ({"proposers": ["given"]}, "'given' is no proposer"),
        ({"rings": 3}, "rings = 3 is neither 1 nor 2"),
    ],
)
def test_unknown_proposers_and_rings_are_refused(synonyms: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        swap(synonyms, {}, text=CAR, **options)


def test_a_substitute_of_which_only_its_blank_is_left_is_not_read(llama: Any) -> None:
    """The tracked token is the first piece of its word, and the substitute's first piece is the blank before it."""
    spelled = Spelled(llama, llama.encode("the regiment left"))
    word = next(w for w in spelled.words() if w.text == "regiment")
    assert word.end - word.first > 1
    blank = next(w for w in ("7", "Zq", "@", "Q") if llama.pieces(spelled.respell(word, w))[0].isspace())
    cut = swap_word(spelled, word, blank, "given", word.first + 1)
    assert cut.new and cut.position == len(cut.put_in(spelled.ids[: word.first + 1]))     # behind its own text
    assert not cut.fits(spelled.ids[: word.first + 1], 128)
    assert swap_word(spelled, word, blank, "given", word.end).fits(spelled.ids[: word.end], 128)
