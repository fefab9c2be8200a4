"""The planner without a language model: a fixed, adaptive order of the same tools, and the rule inducer.

Look at the best texts; prune those that differ until nothing new appears; substitute in the results, try the
vocabulary in them and move their words; project, ablate and patch. Then draft a rule and test its parts: put its words
in each other's places, and those that it says silence the unit beside what fires. Submit what the inducer makes of all
that. After a weak score on the tune side it prunes what the rule missed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ..store.records import Evidence
from ..tools.induce import Induced
from ..tools.measures import FIRES
from ..tools.trials import minimal_rows
from ..tools.units import UnitId
from .state import Abstain, Action, Call, State, Submit, by_tool

FIRST, MOST = 3, 5     # texts pruned at least, and at most while each brings another pattern
SUBSTITUTED = 2        # minimal examples whose words are substituted
MOVED = 2              # minimal examples in which the vocabulary is tried, words are moved and a draft is tested
SILENCING = 4          # words put beside one
MISSES = 2             # tune-side misses pruned in a revision

Induce = Callable[[UnitId, Sequence[Evidence]], Induced]


class Playbook:
    """A Planner that needs no key, no network and no luck: equal evidence gives equal decisions."""

    name = "playbook"

    def __init__(self, induce: Induce, offered: Sequence[str]) -> None:
        self.provenance: dict[str, Any] = {}
        self._induce = induce
        self._offered = offered
        self._made: dict[tuple[UnitId, tuple[str, ...]], Induced] = {}

    def decide(self, state: State) -> Action:
        """The first experiment in order that has not been done, else what the inducer concludes."""
        evidence, misses = state.get("evidence", []), state.get("misses", [])
        wanted = chain(experiments(evidence), self._tests(state), _on_misses(misses))
        return next(undone(wanted, evidence, self._offered), None) or self.conclude(state)

    def _tests(self, state: State) -> Iterator[Call]:
        """What tests the parts of the rule that all other evidence suggests."""
        evidence = [e for e in state.get("evidence", []) if e.ok]
        draft = self._induced(state["unit"], [e for e in evidence if not _is_test(e)])
        yield from tests(draft.words, evidence)

    def _induced(self, unit: UnitId, evidence: Sequence[Evidence]) -> Induced:
        """What the inducer makes of the evidence; made once, since a draft that needs no test is the conclusion."""
        known = unit, tuple(e.id for e in evidence)
        if known not in self._made:
            self._made = {key: made for key, made in self._made.items() if key[0] == unit}     # of one unit at a time
            self._made[known] = self._induce(unit, evidence)
        return self._made[known]

    def conclude(self, state: State) -> Submit | Abstain:
        made = self._induced(state["unit"], [e for e in state.get("evidence", []) if e.ok])
        if made.rule is None or made.sentence is None:
            return Abstain(made.reason, made.weak)
        return Submit(made.sentence, made.rule, made.reason)


def experiments(evidence: Sequence[Evidence]) -> Iterator[Call]:
    """The experiments that every unit gets, in order, given what was found so far; done ones are among them."""
    yield Call("top_examples", why="the texts on which it fires most")
    for row in _to_prune(evidence):
        yield Call("minimal_example", {"ids": row["ids"]}, f"what of “…{row['text'][-30:]}” is needed")
    for example in _distinct(evidence)[:SUBSTITUTED]:
        found = {"ids": example["ids"], "kept": example["kept"]}
        yield Call("substitute", found, f"which words can stand in “{example['kept_text']}”")
    for example in _distinct(evidence)[:MOVED]:
        found = {"ids": example["ids"], "kept": example["kept"]}
        yield Call("tokens_in_place", found, f"which tokens can end “{example['kept_text']}”")
        yield Call("shift", found, f"where the words of “{example['kept_text']}” may stand")
    yield Call("lens", why="what it writes to the logits directly")
    yield Call("ablate", why="what the model loses without it")
    killed = next((e for e in by_tool(evidence, "substitute") if _kills(e)), None)
    if killed is not None:
        yield Call("patch", {"ids": killed.arguments["ids"]}, "whether it carries the difference that a word makes")


def tests(words: Mapping[str, Sequence[str]], evidence: Sequence[Evidence]) -> Iterator[Call]:
    """Tests of a rule whose parts (at, need, not, repeat) match these words, in minimal examples of different texts."""
    own = list(dict.fromkeys(word for part in ("at", "need", "repeat") for word in words.get(part, ())))
    silencing = list(words.get("not", ()))
    examples = _distinct([e for e in evidence if not _is_test(e)])
    if "repeat" in words:
        examples = sorted(examples, key=lambda row: -_twice(row))
    for example in examples[:MOVED]:
        found = {"ids": example["ids"], "kept": example["kept"]}
        if len(own) > 1:
            options = {**found, "words": own, "proposers": []}
            yield Call("substitute", options, f"whether the rule's words can stand in “{example['kept_text']}”")
        if silencing:
            options = {**found, "words": silencing[:SILENCING]}
            yield Call("shift", options, f"where {', '.join(silencing[:SILENCING])} silence “{example['kept_text']}”")


def _is_test(evidence: Evidence) -> bool:
    return bool(evidence.arguments.get("words"))


def _on_misses(misses: Sequence[dict[str, Any]]) -> Iterator[Call]:
    missed = [m for m in misses if m["kind"] == "false negative"]
    for miss in missed[:MISSES]:
        yield Call("minimal_example", {"ids": miss["ids"]}, "what of a text that the rule missed is needed")


def undone(calls: Iterable[Call], evidence: Sequence[Evidence], offered: Sequence[str]) -> Iterator[Call]:
    """Those of the calls that can be made and were not made with these options (the ones not named are defaults)."""
    for call in calls:
        made = (call.arguments.items() <= e.arguments.items() for e in by_tool(evidence, call.tool))
        if call.tool in offered and not any(made):
            yield call


def _to_prune(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Firing texts to prune, those that end in another token first; more while the last one brought a new pattern."""
    looked = [row for e in by_tool(evidence, "top_examples")[:1] for row in e.rows if (row["ratio"] or 0) >= FIRES]
    firsts = {row["token"]: row for row in reversed(looked)}.values()
    ordered = sorted(looked, key=lambda row: not any(row is first for first in firsts))
    texts = [row["ids"] for row in looked]     # what the rule missed is pruned too: not one of these
    patterns = [row["kept_text"] for row in minimal_rows([e for e in evidence if e.arguments.get("ids") in texts])]
    more = len(patterns) >= FIRST and patterns[-1] not in patterns[:-1]
    return ordered[: max(FIRST, min(MOST, len(patterns) + more))]


def _distinct(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Minimal examples of different kept text, the best retained first."""
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(minimal_rows(evidence), key=lambda row: -row["retention"]):
        best.setdefault(row["kept_text"].strip().lower(), row)
    return list(best.values())


def _twice(row: Mapping[str, Any]) -> int:
    """Kept tokens that are words and stand in just two of its places: another word can be put into both."""
    tokens = [*row["tokens"], ""]
    counts = Counter(tokens[i].strip() for i in row["kept"] if _is_word(*tokens[i - 1 : i + 2]))
    return sum(n == 2 for n in counts.values())


def _is_word(before: str, token: str, after: str) -> bool:
    alone = not after[:1].isalnum() and (token[:1].isspace() or not before[-1:].isalnum())
    return alone and token.strip().isalnum()


def _kills(evidence: Evidence) -> bool:
    return any(row["effect"] == "kills" for row in evidence.rows)
