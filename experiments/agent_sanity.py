"""Do judged scores notice what they should? Labels with a quarter dropped or added, and another rule's explanation.

The judge is perfect: it runs the rule that a sentence stands for, so that only the metrics are tried, at no cost.
Rules are drawn from the corpus as for a judge's qualification. For each, the score of its own sentence on true labels
less that on spoilt ones, and less that of another rule's sentence; means over DRAWS draws of texts. Noticed: the mean
falls. Metrics that need a writer (generation) are not tried here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..tools.corpus import load_corpus
from ..tools.judged import EXPECTED, TOP, Written, judged_by
from ..tools.known_rules import Known, KnownText, draw_rules
from ..tools.rules import Floats, Rule, Tokens
from ..tools.snippets import Ground, Marked
from .report import Claim, Part, Progress, at_least

RULES, DRAWS, SHARE = 40, 5, 0.25
METRICS = ("detection", "fuzzing", "simulation")
WAYS = ("dropped", "added", "swapped")
NOTICED = 0.9          # share of rules, as for the rule scores


@dataclass(frozen=True)
class Perfect:
    """A judge that runs the rule of each sentence that it knows."""

    text: KnownText
    rules: dict[str, Rule]
    name: str = "perfect"
    form: str = EXPECTED

    def _says(self, explanation: str, shown: str) -> Floats:
        tokens = Tokens.of(self.text, self.text.encode(shown))
        return np.asarray(self.rules[explanation].predict(tokens)[1:] > 0, dtype=np.float64)

    def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        return [bool(self._says(explanation, text).any()) for text in texts]

    def marks(self, explanation: str, texts: Sequence[Marked]) -> list[bool | None]:
        return [bool(self._says(explanation, one.snippet.text)[list(one.marks)].all()) for one in texts]

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        return [(TOP * self._says(explanation, "".join(text))).tolist() for text in texts]

    def writes(self, explanation: str, count: int) -> Written | None:
        return None


def sanity(folder: Path, seed: int, size: float, progress: Progress) -> Part:
    """Every drawn rule, each metric, each way of spoiling."""
    text = KnownText.of(load_corpus("builtin"))
    rules = draw_rules(text, max(8, round(size * RULES)), seed)
    judge = Perfect(text, {known.sentence: known.rule for known in rules})
    falls: dict[tuple[str, str], list[float]] = {(metric, way): [] for metric in METRICS for way in WAYS}
    for number, known in enumerate(rules):
        progress("rules", number, len(rules))
        for metric in METRICS:
            for way, fall in _falls(judge, known, rules[number - 1], metric, seed).items():
                falls[metric, way].append(fall)
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    for (metric, way), values in falls.items():
        noticed = float(np.mean([value > 0 for value in values]))
        rows.append({"score": metric, "spoilt": way, "rules": len(values), "noticed": noticed,
                     "mean fall": float(np.mean(values))})  # fmt: skip
        claims.append(at_least(f"{metric} notices: {way}", noticed, NOTICED, len(values)))
    return {"what judged scores notice": rows}, claims


def _falls(judge: Perfect, known: Known, other: Known, metric: str, seed: int) -> dict[str, float]:
    ground = judge.text.ground(known.rule)
    spoilt = {
        "dropped": (spoiled(judge.text, known.rule, SHARE, 0.0, seed), known.sentence),
        "added": (spoiled(judge.text, known.rule, 0.0, SHARE, seed), known.sentence),
        "swapped": (ground, other.sentence),
    }
    own = _mean(judge, ground, known.sentence, metric, seed)
    return {way: own - _mean(judge, where, said, metric, seed) for way, (where, said) in spoilt.items()}


def _mean(judge: Perfect, ground: Ground, sentence: str, metric: str, seed: int) -> float:
    """The mean of a score over draws of texts; one that a constant prediction leaves undefined counts 0."""
    made = [judged_by(metric, ground, sentence, judge, seed=seed * DRAWS + k)["value"] for k in range(DRAWS)]
    return float(np.mean([value or 0.0 for value in made]))


def spoiled(text: KnownText, rule: Rule, dropped: float, added: float, seed: int = 1) -> Ground:
    """The truth about a rule with a share of its places taken away, or as many added where it matches nothing."""
    ground, generator = text.ground(rule), np.random.default_rng(seed)
    fires = text.matches(rule)
    rows, rest = np.flatnonzero(fires), np.flatnonzero(text.keep & ~fires)
    fires[generator.choice(rows, int(dropped * len(rows)), replace=False)] = False
    fires[generator.choice(rest, int(added * len(rows)), replace=False)] = True
    starts, level = text.side.text.starts, fires.astype(np.float64)
    alike = text.keep & np.isin(text.side.text.ids, text.side.text.ids[fires]) & ~fires
    count = int(fires.sum())
    return replace(
        ground, places={**ground.places, "firing": np.flatnonzero(fires), "same token": np.flatnonzero(alike)},
        strata=(count, 0, 0, 0, int(text.keep.sum()) - count),
        read=lambda windows: [level[starts[w] + 1 : starts[w + 1]] for w in windows],
    )  # fmt: skip


__all__ = ["Perfect", "sanity", "spoiled"]
