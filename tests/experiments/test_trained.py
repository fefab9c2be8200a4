"""The trained answer key: its labels are the rule's; its unit obeys after training only, and through both layers."""

import random

import pytest
import torch

from lamplighter.experiments.language import language
from lamplighter.experiments.planted import AnswerKey
from lamplighter.experiments.trained import RULE, batch, train, trained_key
from lamplighter.store.records import Refused
from lamplighter.tools.rules import Tokens

STEPS = 400            # of the 800 that the benches give it


@pytest.fixture(scope="module")
def key() -> AnswerKey:
    return train(0, STEPS)


def test_the_labels_of_a_batch_are_what_the_rule_says() -> None:
    made = batch(random.Random(3), rows=12)
    for ids, repeats in zip(made.ids.tolist(), made.repeats.tolist(), strict=True):
        said = RULE.predict(Tokens.of(language(), ids)) > 0
        assert said.tolist() == repeats
    assert 0.1 < made.repeats.float().mean() < 0.4


def test_what_is_repeated_begins_anywhere_and_is_of_any_length() -> None:
    """With one offset a model could learn where to look instead of what for."""
    made, gaps = batch(random.Random(4), rows=200), set()
    for ids, repeats in zip(made.ids.tolist(), made.repeats.tolist(), strict=True):
        for at in (i for i, again in enumerate(repeats) if again):
            pairs = list(zip(ids, ids[1:at], strict=False))
            gaps.add(at - 1 - pairs.index((ids[at - 1], ids[at])))
    assert len(gaps) > 40


def test_a_trained_unit_obeys_its_rule_on_fresh_text(key: AnswerKey) -> None:
    assert key.obeyed(key.units[0]) > 0.9


def test_an_untrained_unit_does_not_and_is_refused() -> None:
    with pytest.raises(Refused, match="train it with more steps"):
        trained_key(0, steps=1)


@pytest.mark.parametrize("layer", [0, 1])
def test_what_was_learned_is_in_both_attention_layers(key: AnswerKey, layer: int) -> None:
    """Without the heads of block 0 no token knows what stood before it; without those of block 1 nothing is found."""
    weight = key.subject.model.model.layers[layer].self_attn.o_proj.weight
    kept = weight.clone()
    try:
        weight.zero_()
        assert key.obeyed(key.units[0]) < 0.75
    finally:
        weight.copy_(kept)
    assert key.obeyed(key.units[0]) > 0.9


def test_it_copies_what_stood_behind_the_pair(key: AnswerKey) -> None:
    made = batch(random.Random(5), rows=16)
    goes_on = made.repeats[:, 1:] & made.repeats[:, :-1]
    with torch.inference_mode():
        logits = key.subject.model(made.ids).logits
    hits = (logits[:, :-1].argmax(-1) == made.ids[:, 1:])[goes_on].float().mean()
    assert hits > 0.6
