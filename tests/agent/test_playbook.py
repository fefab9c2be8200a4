"""The playbook: which experiment comes next, given what is known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.agent import playbook as module
from lamplighter.agent.budget import STEPS
from lamplighter.agent.playbook import FIRST, MISSES, MOST, SILENCING, Playbook
from lamplighter.agent.state import Abstain, Call, Submit
from lamplighter.store.records import Evidence
from lamplighter.tools.induce import Induced
from lamplighter.tools.rules import Clause, Matcher, Rule
from lamplighter.tools.units import UnitId

UNIT = UnitId("tiny", "0-mlp", 0)
TOOLS = ("top_examples", "minimal_example", "substitute", "activate", "ablate", "patch", "lens")
RULE = Rule((Clause(Matcher(word="car"), value=1.0),))
Answer = Callable[[Call], Evidence]


def induced(rule: Rule | None = RULE, reason: str = "as told") -> Induced:
    return Induced(rule, "fires on cars" if rule else None, reason, 0.9, 0.9, 0.9, 0)


def drafted(**words: tuple[str, ...]) -> Induced:
    """A draft whose parts match these words; `silencers` are those of its part "not"."""
    silencers = words.pop("silencers", ())
    return replace(induced(), words={**words, "not": silencers})


def playbook(made: Induced | None = None, offered: Sequence[str] = TOOLS) -> Playbook:
    return Playbook(lambda unit, evidence: made or induced(), offered)


def evidence(tool: str, rows: Sequence[dict[str, Any]] = (), ok: bool = True, **arguments: Any) -> Evidence:
    return Evidence(
        tool=tool, unit=UNIT.bare, sign=1, summary="as told", rows=list(rows), ok=ok, arguments=arguments
    )


def looked(tokens: str) -> Evidence:
    """Best texts, one a letter: each ends in that letter's token and has ids of its own; a capital does not fire."""
    rows = [
        {"token": t, "text": f"text {i} {t}", "ids": [0, i, ord(t)], "ratio": 0.49 if t.isupper() else 0.5}
        for i, t in enumerate(tokens)
    ]
    return evidence("top_examples", rows, band="top", side="explain", n=10)


def pruned(call: Call, kept_text: str, retention: float = 0.9) -> Evidence:
    ids = call.arguments["ids"]
    row = {"ids": ids, "tokens": [""] * len(ids), "kept": [len(ids) - 1], "kept_text": kept_text, "one_minimal": True}
    row["retention"] = retention
    return evidence("minimal_example", [row], **call.arguments, mode="resample", threshold=0.5)


def decisions(book: Playbook, answer: Answer, misses: Sequence[dict[str, Any]] = (), most: int = 40) -> list[Any]:
    """Everything the playbook asks for until it concludes, each call answered."""
    known: list[Evidence] = []
    made: list[Any] = []
    while len(made) < most:
        made.append(book.decide({"unit": UNIT, "evidence": list(known), "misses": list(misses)}))
        if not isinstance(made[-1], Call):
            return made
        known.append(answer(made[-1]))
    raise AssertionError(f"no conclusion after {most} steps")


def answers(tokens: str = "aabcd", kept: Sequence[str] = "xxxxxxx", effect: str = "keeps") -> Answer:
    """Answers every call; the n-th pruned text keeps kept[n], and substitutes all have one effect."""
    left = iter(kept)

    def answer(call: Call) -> Evidence:
        if call.tool == "top_examples":
            return looked(tokens)
        if call.tool == "minimal_example":
            return pruned(call, next(left))
        rows = [{"effect": effect}] if call.tool == "substitute" else []
        return evidence(call.tool, rows, **call.arguments)

    return answer


def tools(made: Sequence[Any]) -> list[str]:
    return [action.tool for action in made if isinstance(action, Call)]


def ids(made: Sequence[Any], tool: str) -> list[list[int]]:
    return [action.arguments["ids"] for action in made if isinstance(action, Call) and action.tool == tool]


def test_the_order_of_experiments() -> None:
    made = decisions(playbook(), answers(effect="kills"))
    assert tools(made) == ["top_examples", *3 * ["minimal_example"], "substitute", "lens", "ablate", "patch"]
    assert made[-1] == Submit("fires on cars", RULE, "as told")


def test_texts_that_end_in_another_token_are_pruned_first() -> None:
    made = decisions(playbook(), answers(tokens="aabac"))
    assert ids(made, "minimal_example") == [[0, 0, ord("a")], [0, 2, ord("b")], [0, 4, ord("c")]]


@pytest.mark.parametrize(
    ("kept", "count"),
    [("xxxxx", FIRST), ("xyyyy", FIRST), ("xxyzz", MOST), ("xyzzz", 4), ("xyzvw", MOST)],
)
def test_more_texts_only_while_each_brings_a_new_pattern(kept: str, count: int) -> None:
    made = decisions(playbook(), answers(tokens="abcdefg", kept=kept))
    assert tools(made).count("minimal_example") == count


def test_a_text_that_needs_too_much_of_itself_is_no_pattern_to_work_in() -> None:
    """No more texts are pruned for its sake, and nothing is substituted in it."""

    def answer(call: Call) -> Evidence:
        if call.tool != "minimal_example":
            return answers(tokens="abcdefg")(call)
        found = pruned(call, str(call.arguments["ids"]))
        return replace(found, rows=[{**found.rows[0], "one_minimal": False}])

    made = decisions(playbook(), answer)
    assert tools(made).count("minimal_example") == FIRST
    assert "substitute" not in tools(made)


def test_the_two_best_retained_patterns_are_substituted_in() -> None:
    """Equal patterns but for case and blanks count once."""
    retained = {"weak": 0.6, " Car": 0.7, "car": 0.95}
    texts = iter(retained.items())

    def answer(call: Call) -> Evidence:
        if call.tool == "minimal_example":
            return pruned(call, *next(texts))
        return looked("abc") if call.tool == "top_examples" else evidence(call.tool, **call.arguments)

    made = decisions(playbook(), answer)
    assert ids(made, "substitute") == [[0, 2, ord("c")], [0, 0, ord("a")]]


@pytest.mark.parametrize(("effect", "patched"), [("kills", 1), ("keeps", 0), ("unsure", 0), ("raises", 0)])
def test_a_patch_needs_a_substitute_that_kills(effect: str, patched: int) -> None:
    made = decisions(playbook(), answers(effect=effect))
    assert tools(made).count("patch") == patched
    if patched:
        assert ids(made, "patch") == ids(made, "substitute")[:1]


def test_texts_on_which_it_does_not_fire_are_not_pruned() -> None:
    made = decisions(playbook(), answers(tokens="abAcB", kept="xyzvw"))
    assert ids(made, "minimal_example") == [[0, 0, ord("a")], [0, 1, ord("b")], [0, 3, ord("c")]]
    assert ids(decisions(playbook(), answers(tokens="AB")), "minimal_example") == []


def test_what_is_not_offered_is_passed_over() -> None:
    made = decisions(playbook(offered=["top_examples", "minimal_example", "lens"]), answers(effect="kills"))
    assert set(tools(made)) == {"top_examples", "minimal_example", "lens"}


def test_a_refused_experiment_is_not_asked_for_again() -> None:
    def answer(call: Call) -> Evidence:
        return looked("abc") if call.tool == "top_examples" else evidence(call.tool, ok=False, **call.arguments)

    made = decisions(playbook(), answer)
    asked = [(action.tool, str(action.arguments)) for action in made[:-1]]
    assert len(asked) == len(set(asked))
    assert tools(made) == ["top_examples", *3 * ["minimal_example"], "lens", "ablate"]


def test_no_text_at_all_still_ends() -> None:
    made = decisions(playbook(induced(None, "it never fires")), lambda call: evidence(call.tool, **call.arguments))
    assert tools(made) == ["top_examples", "lens", "ablate"]
    assert made[-1] == Abstain("it never fires")


def test_missed_firings_are_pruned_and_false_alarms_are_not() -> None:
    misses = [{"kind": "false negative", "ids": [0, i]} for i in range(5)]
    misses.insert(0, {"kind": "false positive", "ids": [0, 90]})
    made = decisions(playbook(), answers(), misses)
    assert ids(made, "minimal_example")[FIRST:] == [[0, i] for i in range(MISSES)]
    assert tools(made)[-MISSES:] == MISSES * ["minimal_example"]


def test_the_inducer_gets_the_unit_and_no_refusal() -> None:
    given: list[Any] = []

    def induce(unit: UnitId, known: Sequence[Evidence]) -> Induced:
        given.append((unit, [e.tool for e in known]))
        return induced()

    known = [looked("a"), evidence("substitute", ok=False, ids=[0]), evidence("lens")]
    Playbook(induce, TOOLS).conclude({"unit": UNIT, "evidence": known})
    assert given == [(UNIT, ["top_examples", "lens"])]


def test_a_rule_without_a_sentence_is_no_explanation() -> None:
    half = Induced(RULE, None, "no words for it", 0.5, 0.5, 0.5, 0)
    assert playbook(half).conclude({"unit": UNIT}) == Abstain("no words for it")


@given(st.data())
def test_it_ends_within_its_steps_whatever_comes_back(data: st.DataObject) -> None:
    """Also where every tool refuses, finds nothing, or finds something new each time; and it decides alike twice."""
    words = st.sampled_from("abc")

    def answer(call: Call) -> Evidence:
        if not data.draw(st.booleans()):
            return evidence(call.tool, ok=False, **call.arguments)
        if call.tool == "top_examples":
            return looked(data.draw(st.text("abcd", max_size=10)))
        if call.tool == "minimal_example":
            return pruned(call, data.draw(words), data.draw(st.floats(0.5, 2)))
        return evidence(call.tool, [{"effect": data.draw(st.sampled_from(["kills", "keeps"]))}], **call.arguments)

    misses = [{"kind": "false negative", "ids": [0, 1000 + i]} for i in range(data.draw(st.integers(0, 5)))]
    offered = data.draw(st.lists(st.sampled_from(TOOLS), unique=True))
    made = decisions(playbook(offered=offered), answer, misses, most=STEPS)
    assert len(made) <= 1 + 1 + MOST + MISSES + 2 + 2 + 1
    assert set(tools(made)) <= set(offered)
    start: Any = {"unit": UNIT, "evidence": [looked("ab")], "misses": misses}
    assert playbook(offered=offered).decide(start) == playbook(offered=offered).decide(start)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ({}, []),
        ({"at": ("car",)}, []),  # it is the very word that fires
        ({"at": ("car", "bus"), "need": ("red",)}, [("substitute", ["car", "bus", "red"])]),
        ({"repeat": ("the", "of"), "at": ("of",)}, [("substitute", ["of", "the"])]),
        ({"silencers": ("not", "no")}, [("shift", ["not", "no"])]),
        ({"silencers": tuple("abcdefg")}, [("shift", list("abcdefg")[:SILENCING])]),
        ({"at": ("car", "bus"), "silencers": ("no",)}, [("substitute", ["car", "bus"]), ("shift", ["no"])]),
    ],
)
def test_the_parts_of_a_draft_are_tested_in_two_patterns(words: Any, asked: list[tuple[str, list[str]]]) -> None:
    book = Playbook(lambda *_: drafted(**words), (*TOOLS, "shift"))
    made = decisions(book, answers(kept="xyzzz"))
    tests = [(a.tool, a.arguments["words"]) for a in made if isinstance(a, Call) and a.arguments.get("words")]
    assert tests == 2 * asked
    assert all(a.arguments["proposers"] == [] for a in made if isinstance(a, Call) and a.tool == "substitute" and
               a.arguments.get("words"))  # fmt: skip


def test_a_repeat_is_tested_where_other_words_can_be_put_into_both_places() -> None:
    """Not in a row of one mark, nor in pieces of words; where there are none of these, what is retained decides."""
    texts = [["_", "_", "_", "_"], [" bi", "s", " bi", "s"], ["1", "0", "2", "0"], [" a", ".", " a", "."]]
    found = {"kept": [1, 2, 3, 4], "retention": 0.9, "one_minimal": True}
    rows = [{**found, "ids": [0, n], "tokens": ["", *text], "kept_text": str(n)} for n, text in enumerate(texts)]
    known = [evidence("minimal_example", [row]) for row in rows]
    asked = [call.arguments["ids"][1] for call in module.tests({"repeat": ["the", "of"]}, known)]
    assert asked == [3, 0]
    assert [call.arguments["ids"][1] for call in module.tests({"at": ["the", "of"]}, known)] == [0, 1]


def test_a_draft_is_made_without_its_own_tests_and_the_conclusion_with_them() -> None:
    seen: list[int] = []

    def induce(_: UnitId, known: Sequence[Evidence]) -> Induced:
        seen.append(sum(bool(e.arguments.get("words")) for e in known))
        return drafted(at=("car", "bus"))

    decisions(Playbook(induce, TOOLS), answers(kept="xyzzz"))
    assert seen[0] == 0 and seen[-1] == 2 and sorted(set(seen)) == [0, 2]
