"""Where substitutes come from: each proposer beside a way of its own to the same words, and the control."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from lamplighter.tools import proposers as module
from lamplighter.tools.masked import same_kind
from lamplighter.tools.proposers import NAMES, Proposers, common_words
from lamplighter.tools.rules import split_words
from lamplighter.tools.spelled import Spelled, Word

TEXT = "She said: Paris and the blue car"


class NoMasked:
    def choose_mode(self, subject: Any) -> dict[str, Any]:
        return {"mode": "masked"}

    def propose(self, text: str, span: tuple[int, int], n: int, mode: str) -> list[str]:
        return ["bus", "car", "bus", "train"][:n]


def proposing(subject: Any, words: tuple[str, ...] = (), seed: int = 0) -> Proposers:
    return Proposers(subject, NoMasked(), words, seed)  # type: ignore[arg-type]


def word_of(spelled: Spelled, text: str) -> Word:
    return next(w for w in spelled.words() if w.text == text)


def readable(subject: Any, tokens: list[int], like: str) -> list[str]:
    pieces = [subject.piece(t) for t in tokens]
    words = [p[1:] for p in pieces if p[:1] == " " and split_words(p[1:]) == [p[1:]] and same_kind(p[1:], like)]
    return [w for w in words if w != like]


@pytest.fixture
def all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny vocabularies have few words: each token is looked at."""
    monkeypatch.setattr(module, "LOOKED", 1000)


def test_next_is_what_the_subject_expects_there(tiny: Any, all_tokens: None) -> None:
    spelled = Spelled(tiny, tiny.encode(TEXT))
    word = word_of(spelled, "car")
    logits = tiny.run([spelled.ids[: word.first]], logits=True).logits[0, -1]
    wanted = readable(tiny, logits.argsort(descending=True).tolist(), "car")
    found = proposing(tiny).propose("next", spelled, word, 3)
    assert found == wanted[:3] and len(found) == 3


def test_next_does_not_see_the_word_or_what_follows(llama: Any, all_tokens: None) -> None:
    one, other = (Spelled(llama, llama.encode(t)) for t in (TEXT, "She said: Paris and the blue stop at 9th street"))
    found = [proposing(llama).propose("next", s, word_of(s, w), 9) for s, w in ((one, "car"), (other, "stop"))]
    assert [w for w in found[0] if w != "stop"][:7] == [w for w in found[1] if w != "car"][:7] and len(found[0]) == 9


def test_neighbours_are_nearest_by_the_centred_cosine(tiny: Any, all_tokens: None) -> None:
    spelled = Spelled(tiny, tiny.encode(TEXT))
    word = word_of(spelled, "car")
    table = tiny.model.get_input_embeddings().weight.double()
    centred = table - table.mean(0)
    own = centred[spelled.ids[word.first : word.end]].mean(0)
    cosine = torch.nn.functional.cosine_similarity(centred, own[None], dim=1)
    wanted = readable(tiny, cosine.argsort(descending=True).tolist(), "car")
    assert proposing(tiny).propose("neighbours", spelled, word, 3) == wanted[:3]


def test_random_words_are_about_as_common_and_drawn_by_the_seed(llama: Any) -> None:
    spelled = Spelled(llama, llama.encode(TEXT))
    word, counts = word_of(spelled, "the"), common_words()
    found = proposing(llama).propose("random", spelled, word, 5)
    assert len(found) == 5 == len(set(found)) and "the" not in [w.casefold() for w in found]
    assert found == proposing(llama).propose("random", spelled, word, 5)
    assert found != proposing(llama, seed=1).propose("random", spelled, word, 5)
    rare = proposing(llama).propose("random", spelled, word_of(spelled, "car"), 5)
    assert np.mean([counts[w] for w in found]) > 10 * np.mean([counts[w] for w in rare])


@pytest.mark.parametrize("name", NAMES)
def test_every_proposer_gives_each_word_once_and_never_the_word_itself(llama: Any, name: str) -> None:
    spelled = Spelled(llama, llama.encode(TEXT))
    found = proposing(llama, ("Car", "bus", "bus", "train")).propose(name, spelled, word_of(spelled, "car"), 3)
    assert len(found) == len(set(found)) and len(found) <= 3 and (found or name == "form")
    if name == "given":
        assert found == ["Car", "bus", "train"]      # whoever names a word means its case as well
    else:
        assert "car" not in [w.casefold() for w in found]


def test_given_words_are_not_cut_to_n(llama: Any) -> None:
    spelled = Spelled(llama, llama.encode(TEXT))
    assert proposing(llama, ("a", "b", "c")).propose("given", spelled, word_of(spelled, "car"), 1) == ["a", "b", "c"]


def test_pieces_of_words_are_no_words(llama: Any) -> None:
    spelled = Spelled(llama, llama.encode(TEXT))
    every = proposing(llama)._words(range(llama.vocabulary), word_of(spelled, "car"))
    assert all(f" {w}" in {llama.piece(t) for t in range(llama.vocabulary)} for w in every)


def test_collocates_go_with_the_words_beside(llama: Any) -> None:
    """Beside a count by hand: Dunning's statistic of each pair of neighbouring words of the corpus."""
    spelled = Spelled(llama, llama.encode("the United car of America"))
    found = proposing(llama).propose("collocates", spelled, word_of(spelled, "car"), 4)
    words = split_words(module.corpus.filler_text())
    pairs = Counter(zip(words[:-1], words[1:], strict=True))
    counts, total = Counter(words), len(words)

    def told(one: str, other: str) -> float:
        k = pairs[one, other]
        seen = np.array([[k, counts[one] - k], [counts[other] - k, total - counts[one] - counts[other] + k]])
        wanted = seen.sum(1, keepdims=True) * seen.sum(0, keepdims=True) / seen.sum()
        return 2 * float((seen * np.log(np.where(seen > 0, seen, 1) / wanted)).sum())

    behind = {b: told(a, b) for a, b in pairs if a == "United" and b.isalpha()}
    assert found[0] == max(behind, key=lambda w: behind[w]) == "States"
    before = {a: told(a, b) for a, b in pairs if b == "of" and a.isalpha()}
    assert found[1] == max(before, key=lambda w: before[w])
    alone = Spelled(llama, llama.encode("car"))
    assert proposing(llama).propose("collocates", alone, word_of(alone, "car"), 4) == []
