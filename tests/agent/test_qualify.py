"""Which judges are believed: those that tell true sentences of planted rules from false ones."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamplighter.agent import qualify as module
from lamplighter.agent.qualify import qualify, tried
from lamplighter.store.work import Work
from lamplighter.tools import measures
from lamplighter.tools.corpus import Corpus, Document, filler_text
from lamplighter.tools.judged import EXPECTED, Unanswered, Written
from lamplighter.tools.known_rules import Known, KnownText, draw_rules
from lamplighter.tools.rules import Tokens
from lamplighter.tools.snippets import Marked

KINDS = ("detection", "fuzzing", "simulation")
RULES = 12


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    parts = [part for part in filler_text().split("\n\n") if len(part) > 150][:800]
    documents = tuple(Document(hashlib.sha256(p.encode()).hexdigest(), f"part {n}", p) for n, p in enumerate(parts))
    sides = tuple("explain" if n % 5 else "score" for n in range(len(parts)))
    return Corpus("made", "digest", documents, tuple(range(len(parts))), sides, {})


@pytest.fixture(scope="module")
def text(corpus: Corpus) -> KnownText:
    return KnownText.of(corpus)


@pytest.fixture(scope="module")
def rules(text: KnownText) -> list[Known]:
    return draw_rules(text, RULES)


class Trying:
    """Runs the rule of each sentence that it knows on what it is shown; tosses a coin for every other."""

    form = EXPECTED

    def __init__(self, text: KnownText, rules: Sequence[Known], name: str = "trying") -> None:
        self.name, self.text, self.asked = name, text, 0
        self.known = {one.sentence: one.rule for one in rules}
        self.truth = ""
        self.shown: list[str] = []

    def _hits(self, explanation: str, shown: str, tokens: int) -> np.ndarray:
        self.asked += 1
        self.shown.append(shown)
        if explanation not in self.known:
            seed = int.from_bytes(hashlib.sha256(f"{explanation} {shown}".encode()).digest()[:4])
            return np.random.default_rng(seed).random(tokens) < 0.7 / tokens
        ids = self.text.encode(shown)
        return np.asarray(self.known[explanation].predict(Tokens.of(self.text, ids))[1:] > 0)

    def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        return [bool(self._hits(explanation, one, 32).any()) for one in texts]

    def marks(self, explanation: str, texts: Sequence[Marked]) -> list[bool | None]:
        if explanation not in self.known:
            return [bool(self._hits(explanation, one.snippet.text + str(one.marks), 32).any()) for one in texts]
        return [bool(self._hits(explanation, one.snippet.text, 0)[list(one.marks)].all()) for one in texts]

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        return [[9.0 * hit for hit in self._hits(explanation, "".join(one), len(one))] for one in texts]

    def writes(self, explanation: str, count: int) -> Written | None:
        self.asked += 1
        return None


class Once(Trying):
    """Knows a sentence only where it is true: it is the first that is asked about the same texts."""

    texts: object = None

    def _known(self, explanation: str, texts: object) -> str:
        if texts != self.texts:
            self.texts, self.truth = texts, explanation
        return explanation if explanation == self.truth else f"not {explanation}"

    def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        return super().fires(self._known(explanation, list(texts)), texts)

    def marks(self, explanation: str, texts: Sequence[Marked]) -> list[bool | None]:
        return super().marks(self._known(explanation, list(texts)), texts)

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        return super().values(self._known(explanation, list(texts)), texts)


@pytest.mark.parametrize("metric", KINDS)
def test_who_reads_true_sentences_and_guesses_at_false_ones_qualifies(
    text: KnownText, rules: list[Known], metric: str
) -> None:
    found = tried(Once(text, rules), text, rules, metric)
    assert found.qualified and found.auc > 0.9 and found.low <= found.auc <= found.high
    assert (found.metric, found.rules, found.pairs, found.lost) == (metric, RULES, 2 * RULES, 0)


@pytest.mark.parametrize("metric", KINDS)
def test_who_guesses_does_not_qualify(text: KnownText, rules: list[Known], metric: str) -> None:
    found = tried(Trying(text, []), text, rules, metric)
    assert not found.qualified and found.low < 0.5 < found.high


def test_who_agrees_with_everything_ties_always(text: KnownText, rules: list[Known]) -> None:
    class Yes(Trying):
        def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
            return [True] * len(texts)

        def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
            return [[9.0] * len(one) for one in texts]

    for metric in ("detection", "simulation"):
        found = tried(Yes(text, []), text, rules, metric)
        assert (found.auc, found.low, found.high, found.qualified) == (0.5, 0.5, 0.5, False)


def test_pairs_without_an_answer_are_lost(text: KnownText, rules: list[Known]) -> None:
    found = tried(Trying(text, rules), text, rules, "generation")
    assert (found.auc, found.lost, found.qualified) == (0.0, 2 * RULES, False)


def test_false_sentences_are_of_other_rules_and_of_other_families_where_it_can_be(rules: list[Known]) -> None:
    families = {one.sentence: one.family for one in rules}
    for known, false in zip(rules, module._false(rules, 0), strict=True):
        assert len(set(false)) == measures.QUALIFY_FALSE and known.sentence not in false
        assert all(families[one] != known.family for one in false)


def test_texts_are_of_the_explain_side_alone(corpus: Corpus, text: KnownText, rules: list[Known]) -> None:
    judge = Trying(text, rules)
    tried(judge, text, rules[:9], "detection")
    kept = "\n".join(corpus.documents[i].text for i in corpus.side("explain"))
    assert judge.shown and all(one in kept for one in judge.shown)


def test_a_judge_is_tried_once_and_remembered(corpus: Corpus, text: KnownText, tmp_path: Path) -> None:
    told: list[str] = []
    work, judge = Work(tmp_path / "work.sqlite"), Trying(text, draw_rules(text, 9))
    first = qualify(judge, corpus, work, metrics=("detection",), rules=9, tell=told.append)
    asked = judge.asked
    assert asked > 0 and told[0] == "detection: planted rule 1 of 9" and len(told) == 9
    assert qualify(judge, corpus, work, metrics=("detection",), rules=9) == first and judge.asked == asked
    other = Trying(text, [], name="another")
    assert qualify(other, corpus, work, metrics=("detection",), rules=9) != first and other.asked > 0


def test_a_judge_that_cannot_be_asked_is_not_remembered(corpus: Corpus, text: KnownText, tmp_path: Path) -> None:
    work, judge = Work(tmp_path / "work.sqlite"), Trying(text, draw_rules(text, 9))
    plain = judge.fires

    def gone(explanation: str, texts: Sequence[str]) -> Any:
        raise Unanswered("the server is down.")

    judge.fires = gone  # type: ignore[method-assign]
    with pytest.raises(Unanswered):
        qualify(judge, corpus, work, metrics=("detection",), rules=9)
    judge.fires = plain  # type: ignore[method-assign]
    assert qualify(judge, corpus, work, metrics=("detection",), rules=9)["detection"].qualified
