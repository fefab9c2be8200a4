"""near_misses: one word changed in texts on which a planted neuron fires, read again one by one."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lamplighter.tools.corpus import load_corpus
from lamplighter.tools.measures import NEAR_TEXTS, NEAR_WORDS
from lamplighter.tools.near_misses import near_misses
from lamplighter.tools.subject import Subject
from lamplighter.tools.sweep import Sweep, make_sweep
from lamplighter.tools.units import UnitId

UNIT = UnitId("planted", "0-mlp", 0)
WORDS = (
    "the", "in", "an", "as", "at", "it", "is", "of", "he", "al", "or", "en", "do", "re", "ar",
    "il", "ap", "ef", "lu", "gi", "ai", "et", "op", "ld", "ce", "ry", "de", "18", "42",
)  # fmt: skip


class Fake:
    """Stands for a masked LM: "stop" and "World" for a car, "said" for any other word."""

    def choose_mode(self, subject: Any) -> dict[str, Any]:
        return {"mode": "masked"}

    def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
        return ["stop", "World"] if text[slice(*span)] == "car" else ["said"]


@pytest.fixture(scope="module")
def planted(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Sweep]:
    """0-mlp/0 fires on " car" and " stop"; a car is in each of 300 texts."""
    model = copy.deepcopy(llama.model)
    body, block = model.model, model.model.layers[0]
    block.self_attn.o_proj.weight.zero_()
    yes, no = torch.zeros(24), torch.zeros(24)
    yes[0] = no[1] = 5
    body.embed_tokens.weight[:] = no
    body.embed_tokens.weight[llama.tokenizer.convert_tokens_to_ids(["\u0120car", "\u0120stop"])] = yes.double()
    block.mlp.gate_proj.weight[0] = block.mlp.up_proj.weight[0] = yes
    subject, draw = Subject.wrap(model, llama.tokenizer, "planted"), random.Random(0)
    folder = tmp_path_factory.mktemp("texts")
    lines = []
    for number in range(300):
        words = draw.choices(WORDS, k=20)
        words.insert(draw.randint(1, 20), "car")
        lines.append(json.dumps({"text": " ".join(words), "name": str(number)}))
    (folder / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    return subject, make_sweep(subject, load_corpus(str(folder)), ["0-mlp"], Path(tmp_path_factory.mktemp("home")))


def found(planted: tuple[Subject, Sweep], masked: Any) -> Any:
    return near_misses(*planted, masked, UNIT)


def test_a_near_miss_is_a_score_side_text_with_the_one_word_that_matters_changed(planted: Any) -> None:
    subject, sweep = planted
    made, peak = found(planted, Fake()), sweep.statistics(UNIT).peak
    assert len(made) == NEAR_TEXTS == len({sweep.documents[m.document].cluster for m in made})
    for miss in made:
        assert sweep.documents[miss.document].side == "score"
        assert subject.text(miss.ids).endswith(" World")
        before = sweep.tokens[sweep.documents[miss.document].start :][: len(miss.ids)]
        shared = sum(1 for a, b in zip(miss.ids[1:], before, strict=False) if a == b)
        assert shared >= len(subject.encode(subject.text(miss.ids))) - 1 - len(subject.encode(" World")[1:])
        assert miss.activation == pytest.approx(subject.readings([miss.ids], UNIT).item(), abs=1e-6)
        assert miss.activation < 0.25 * peak


def test_words_that_do_not_matter_make_no_near_miss(planted: Any) -> None:
    class Elsewhere(Fake):
        def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
            return ["stop"] if text[slice(*span)] == "car" else ["said"]

    assert found(planted, Elsewhere()) == []


def test_no_more_than_the_last_words_are_changed(planted: Any) -> None:
    asked: list[str] = []

    class Noting(Fake):
        def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
            asked.append(text[slice(*span)])
            return ["said"]

    found(planted, Noting())
    assert asked.count("car") == NEAR_TEXTS and len(asked) <= NEAR_TEXTS * NEAR_WORDS


def test_equal_questions_get_equal_answers(planted: Any) -> None:
    assert found(planted, Fake()) == found(planted, Fake())
