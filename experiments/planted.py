"""The answer key: small transformers whose neurons follow rules that are known, because the weights were set by hand.

A tool that explains neurons can be judged only where the truth is known. `make_key` draws rules of the grammar of
`tools/rules.py`, compiles them into the weights of a real GPT-2 or Llama (float32, three layers), and keeps each rule
beside its neuron: a unit fires where its rule matches and nowhere else, at every token of every window of 64.

`plant.py` has how a rule becomes weights, `patterns.py` how rules and texts are drawn, `language.py` their words.
`documents` writes a corpus in which each rule can be found: its pattern, and as often what is nearly its pattern.
`fresh` makes texts that break one condition at a time, from sentences that the corpus never shows; `recovered` says how
well a candidate rule does on them.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..store.records import Refused
from ..tools.measures import FIRES, WINDOW
from ..tools.rules import Clause, Rule, Text, Tokens
from ..tools.subject import Subject
from .language import language
from .patterns import Patterns, Way, draw_units
from .plant import REACH, SHAPES, PlantedUnit, plant

MOST = 40              # units a model: what its dimensions hold
RECOVERED = 0.99       # balanced accuracy from which a candidate counts as the true rule
PLAIN = "plain text"   # the way of failing of a window in which nothing was put

PATTERNS = 1.1         # firing patterns of a unit in a thousand tokens of a corpus
NEARLY = 1.3           # what is nearly its pattern, over all ways of failing
NEVER = 0.5            # its pattern with a forbidden word, which nothing else can show; the most of any way of failing
CUT = 1.6              # times as many of long patterns, which the edges of windows cut more often
DOCUMENT = 250         # tokens


@dataclass(frozen=True)
class Case:
    """A window (the sink first), a position in it, and whether the unit fires there.

    way: what was done. Cases of one way of failing differ from firing ones in one condition of the rule.
    """

    way: str
    ids: tuple[int, ...]
    position: int
    fires: bool


@dataclass(frozen=True, eq=False)
class AnswerKey:
    """A model, and for each planted unit the truth about it, which holds in windows of WINDOW tokens."""

    seed: int
    shape: str
    units: tuple[PlantedUnit, ...]
    subject: Subject

    def save(self, folder: Path) -> Path:
        """Writes model and tokenizer as a folder that `Subject.load` takes."""
        self.subject.model.save_pretrained(folder)
        self.subject.tokenizer.save_pretrained(folder)
        return folder

    # The corpus

    def documents(self, seed: int = 0, tokens: int = 150_000) -> list[str]:
        """About so many tokens of English sentences in a new order, with each rule's pattern put in between words.

        Of a unit, PATTERNS firing patterns a thousand tokens and NEARLY that fail, in as many documents as there are.
        A window can cut a pattern in two, which then is another way to fail. Rules about any token, of position or
        repeated pairs, match often in plain text and get no patterns. Of hidden sets, only what may be seen is used.
        """
        rng = random.Random(f"{self.seed} {self.shape} corpus {seed} {tokens}")
        inserts: list[list[list[int]]] = [[] for _ in range(max(1, tokens // DOCUMENT))]
        for unit in self.units:
            homes = itertools.cycle(rng.sample(inserts, len(inserts)))
            for made in self._patterns(unit, rng, tokens):
                next(homes).append(made)
        deck: list[tuple[int, ...]] = []
        return [self._document(rng, mine, deck) for mine in inserts]

    def _patterns(self, unit: PlantedUnit, rng: random.Random, tokens: int) -> Iterator[list[int]]:
        """Every pattern that a corpus of this size holds for a unit."""
        if unit.rule is None or not all(clause.at.ids for clause in unit.rule.clauses):
            return
        makes = Patterns(rng, unit.rule, language().flows[0], unit.unseen)
        more = max(map(_lost, unit.rule.clauses)) * tokens / 1000
        holds, fails = makes.holds(), makes.fails()
        rates = {way: PATTERNS / len(holds) for way in holds}
        rates |= {way: NEVER if way[1] == "forbidden" else min(NEVER, NEARLY / len(fails)) for way in fails}
        for way, rate in rates.items():
            yield from (makes.pattern(way)[0] for _ in range(round(rate * more)))

    def _document(self, rng: random.Random, inserts: list[list[int]], deck: list[tuple[int, ...]]) -> str:
        """Sentences off the deck until the document is full, with the patterns put in before words."""
        known = language()
        ids: list[int] = []
        starts: list[int] = []
        room = DOCUMENT - sum(map(len, inserts))
        while len(ids) < room or len(starts) < 2 * len(inserts):
            if not deck:
                deck += rng.sample(known.shown, len(known.shown))
            ids += deck.pop()
            starts = [i for i, token in enumerate(ids) if known.begins(token)]
        for place, made in sorted(zip(rng.sample(starts, len(inserts)), inserts, strict=True), reverse=True):
            ids[place:place] = made
        return str(known.tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()

    def write(self, folder: Path, seed: int = 0, tokens: int = 150_000) -> Path:
        """The documents as a file that `load_corpus` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "planted.jsonl"
        rows = [{"text": text, "name": f"planted/{n}"} for n, text in enumerate(self.documents(seed, tokens))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    # The truth test

    def fresh(self, unit: PlantedUnit, seed: int = 0, n: int = 20) -> list[Case]:
        """n windows of each way to fire, n of each way of failing, and n of plain text where the unit is silent.

        Sentences, and of hidden sets most members, are such as no corpus of this key shows. Each label is what the
        window was built for, and what the true rule says of it.
        """
        rng = random.Random(f"{unit.id} fresh {seed}")
        plain = [self._plain(rng, unit.rule) for _ in range(n)]
        if unit.rule is None:
            return plain
        makes = Patterns(rng, unit.rule, language().flows[1])
        wanted = [(way, True) for way in makes.holds()] + [(way, False) for way in makes.fails()]
        return [self._case(makes, way, fires) for way, fires in wanted for _ in range(n)] + plain

    def _case(self, makes: Patterns, way: Way, fires: bool) -> Case:
        for _ in range(200):
            ids, at = makes.pattern(way)
            position = _stand(makes, way, at, len(ids))
            before = makes.stretch(position - at - 1)
            after = makes.stretch(makes.rng.randint(0, WINDOW - 1 - len(before) - len(ids)))
            window = (self.subject.sink, *before, *ids, *after)
            # The text around a pattern can by chance hold a part of it.
            if bool(makes.rule.predict(Tokens.of(language(), window))[position]) == fires:
                return Case(f"{way[1]} {way[2]}, clause {way[0]}", window, position, fires)
        raise AssertionError(f"no window was found in which {way} of the rule {makes.rule} makes it {fires}")

    def _plain(self, rng: random.Random, rule: Rule | None) -> Case:
        flow = language().flows[1]
        while True:
            start, position = rng.randrange(len(flow) - WINDOW), rng.randrange(1, WINDOW)
            window = (self.subject.sink, *flow[start : start + WINDOW - 1])
            if rule is None or not rule.predict(Tokens.of(language(), window))[position]:
                return Case(PLAIN, window, position, False)

    def recovered(self, rule: Rule | None, unit: PlantedUnit, seed: int = 0, n: int = 20) -> float:
        """Balanced accuracy of a candidate rule on the fresh windows of a unit: it says "fires" where ŷ > 0.

        The mean of two shares: of firing windows that it calls firing, each way to fire counting the same, and of
        silent ones that it calls silent, each way of failing counting the same. No rule is worth .5, as is one that
        says the same everywhere. A unit that fires at the sink alone has no firing window: there the share of silent
        ones decides, so that no rule is the right one and worth 1.
        """
        cases = self.fresh(unit, seed, n)
        said = np.zeros(len(cases), dtype=np.bool_)
        if rule is not None:
            text = Text.of(self.subject, [case.ids for case in cases])
            said = rule.predict_flat(text)[text.starts[:-1] + [case.position for case in cases]] > 0
        return _balanced(cases, said.tolist())

    def obeyed(self, unit: PlantedUnit, seed: int = 0, n: int = 20) -> float:
        """How well a unit follows its rule, in the same measure: it fires from FIRES × its mean on firing windows on.

        1 where the weights were set by hand; what was trained is as good as it is.
        """
        cases = self.fresh(unit, seed, n)
        read = self.subject.activations([case.ids for case in cases], [unit.id])[..., 0] * unit.id.sign
        y = [float(row[case.position]) for row, case in zip(read, cases, strict=True)]
        usual = float(np.mean([one for one, case in zip(y, cases, strict=True) if case.fires]))
        return _balanced(cases, [one >= FIRES * usual for one in y])


def _balanced(cases: Sequence[Case], said: Sequence[bool]) -> float:
    """Balanced accuracy, each way to fire counting the same, and each way of failing."""
    right: dict[tuple[bool, str], list[bool]] = {}
    for case, fires in zip(cases, said, strict=True):
        right.setdefault((case.fires, case.way), []).append(fires == case.fires)
    sides = [[np.mean(hits) for (fires, _), hits in right.items() if fires == side] for side in (True, False)]
    return float(np.mean([np.mean(shares) for shares in sides if shares]))


def _lost(clause: Clause) -> float:
    """How many patterns of a clause it takes for one that lies in one window, and where it must."""
    if clause.position is not None:
        return WINDOW / (clause.position[1] - clause.position[0])
    return CUT if clause.repeat or any(near.high > REACH for near in clause.need) else 1.0


def _stand(makes: Patterns, way: Way, at: int, size: int) -> int:
    """A position for the token in question, at which the whole pattern is in the window and its own condition holds."""
    low, high = makes.rule.clauses[way[0]].position or (1, WINDOW - 1)
    low, high = {"too early": (1, low - 1), "too late": (high + 1, WINDOW - 1)}.get(way[1], (low, high))
    return makes.rng.randint(max(low, at + 1), min(high, WINDOW - size + at))


def make_key(seed: int, shape: str, count: int) -> AnswerKey:
    """A model of a shape, "gpt2" or "llama", with `count` units whose rules are drawn from the seed.

    Raises Refused for another shape, or for more units than a model holds.
    """
    if shape not in SHAPES:
        raise Refused(f"{shape!r} is no shape that can be planted; choose one of {', '.join(SHAPES)}.")
    if not 1 <= count <= MOST:
        raise Refused(f"{count} units do not fit in one model; ask for 1 to {MOST}.")
    name = f"planted-{shape}-{seed}"
    units = draw_units(seed, shape, count, name)
    subject = Subject.wrap(plant(shape, units, seed), language().tokenizer, name)
    return AnswerKey(seed, shape, tuple(units), subject)


__all__ = ["AnswerKey", "Case", "RECOVERED", "make_key"]
