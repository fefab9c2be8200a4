"""explain_output: what an ablation supports is said, and no more."""

from types import SimpleNamespace
from typing import Any

import pytest

from lamplighter.store.records import Evidence
from lamplighter.tools.explain_output import NO_EFFECT, NO_TEXT, explain_output, rule_of, rule_text


def ablated(pushed: list[Any], held_down: list[Any], effect: str = "shown", **options: Any) -> Evidence:
    checks = {"pushed": pushed, "held_down": held_down, "effect": effect}
    return Evidence(tool="ablate", arguments={"kind": "mean", **options}, summary="", checks=checks)


def words(subject: Any) -> list[int]:
    """Tokens that are words of their own."""
    pieces = ((i, subject.piece(i)) for i in range(1, subject.vocabulary))
    return [i for i, piece in pieces if piece.startswith(" ") and piece.strip().isalpha() and len(piece) > 2]


def entries(subject: Any, *changes: tuple[int, float]) -> list[Any]:
    """The so manieth of these words, with their changes."""
    ids = [(words(subject)[number], change) for number, change in changes]
    return [[subject.piece(i), change, i] for i, change in ids]


def test_tokens_that_move_at_least_a_quarter_as_far_as_the_most_are_named(llama: Any) -> None:
    up = entries(llama, (0, 2.0), (1, 0.6), (2, 0.4))
    down = entries(llama, (3, -0.5), (4, -0.49))
    found = explain_output(llama, [ablated(up, down)])
    assert found is not None and found.pushes is not None
    assert found.pushes.raises == tuple(i for _, _, i in up[:2]) and found.pushes.lowers == (down[0][2],)
    a, b, c = (piece.strip() for piece in llama.pieces(found.pushes.ids))
    assert found.sentence == f"pushes up the words “{a}” and “{b}” and down the word “{c}”"
    assert rule_of(found.pushes) == {"raises": list(found.pushes.raises), "lowers": list(found.pushes.lowers)}
    assert rule_text(llama, found.pushes) == f"raises ' {a}', ' {b}'; lowers ' {c}'"


def test_what_people_have_a_name_for_is_called_by_it() -> None:
    pieces = {5: " May", 6: " June", 7: " July"}
    tokenizer: Any = SimpleNamespace(all_special_ids=[])
    subject: Any = SimpleNamespace(piece=pieces.__getitem__, vocabulary=8, special=frozenset(), tokenizer=tokenizer)
    from lamplighter.tools import explain_output as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tokens_of_text", lambda _: [5, 6, 7])
        found = explain_output(subject, [ablated([[" May", 1.0, 5], [" June", 0.9, 6], [" July", 0.8, 7]], [])])
    assert found is not None and found.sentence == "pushes up names of months, such as “May”, “June” and “July”"


def test_no_effect_is_said_so_and_names_nothing(llama: Any) -> None:
    some = entries(llama, (0, 2.0))
    for evidence in (ablated(some, [], effect="none"), ablated(entries(llama, (0, 0.0)), [])):
        found = explain_output(llama, [evidence])
        assert found is not None and (found.sentence, found.pushes, found.evidence) == (NO_EFFECT, None, evidence.id)


def test_an_effect_that_is_only_not_shown_is_left_to_the_score(llama: Any) -> None:
    found = explain_output(llama, [ablated(entries(llama, (0, 2.0)), [], effect="not shown")])
    assert found is not None and found.pushes is not None


def test_only_a_mean_ablation_that_went_well_and_saw_a_firing_counts_and_of_these_the_newest(llama: Any) -> None:
    some = entries(llama, (0, 2.0))
    failed = Evidence(tool="ablate", arguments={"kind": "mean"}, ok=False, summary="no")
    other = Evidence(tool="lens", summary="")
    assert explain_output(llama, [failed, other, ablated(some, [], kind="zero"), ablated([], [])]) is None
    older, newer = ablated(some, []), ablated(entries(llama, (1, 1.0)), [])
    found = explain_output(llama, [older, newer])
    assert found is not None and found.evidence == newer.id


def test_an_effect_on_what_is_no_text_is_not_called_none(llama: Any) -> None:
    odd = next(i for i in range(1, llama.vocabulary) if "�" in llama.piece(i))
    found = explain_output(llama, [ablated([["�", 5.0, odd], *entries(llama, (0, 1.0))], [])])
    assert found is not None and (found.sentence, found.pushes) == (NO_TEXT, None)


def test_what_a_set_does_is_not_said_of_the_unit(llama: Any) -> None:
    own, of_set = ablated(entries(llama, (0, 2.0)), []), ablated(entries(llama, (1, 2.0)), [], also=["5-mlp/3"])
    found = explain_output(llama, [own, of_set])
    assert found is not None and found.evidence == own.id
    assert explain_output(llama, [of_set]) is None
