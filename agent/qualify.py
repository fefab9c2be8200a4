"""Whether a judge is to be believed: it is tried on rules whose sentences are known to be true.

Twenty rules are drawn from the corpus's explain side (`tools/known_rules.py`). Each stands in the place of a unit: the
judge's scores are computed on it as on any unit, for the rule's own sentence and for the sentences of two other rules,
on the same texts. A judge that can read gives the true one the higher score.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from ..store.work import Work
from ..tools import measures, stats
from ..tools.answers import Fields
from ..tools.corpus import Corpus
from ..tools.judged import METRICS, Judge, Qualification, Sizes, judged_by
from ..tools.known_rules import Known, KnownText, draw_rules

SIZES = Sizes(measures.QUALIFY_TEXTS, measures.QUALIFY_TEXTS, measures.QUALIFY_TEXTS)

Tell = Callable[[str], None]


def qualify(
    judge: Judge, corpus: Corpus, work: Work, *, metrics: Sequence[str] = METRICS,
    rules: int = measures.QUALIFY_RULES, seed: int = 0, tell: Tell = lambda what: None,
) -> dict[str, Qualification]:  # fmt: skip
    """How the judge does by each metric, as remembered in `work`, or tried now and then remembered.

    Known by judge, version of the constants, corpus, number of rules and seed. Raises Unanswered, or what else the
    judge raises, where it cannot be asked: nothing is remembered then but its replies, so that a later call goes on.
    Raises Refused where the corpus does not hold so many rules.
    """
    known: dict[str, Qualification] = {}
    text: KnownText | None = None
    for metric in metrics:
        key = f"qualified:{judge.name}:{judge.form}:{measures.JUDGED_VERSION}:{corpus.digest}:{rules}:{seed}:{metric}"
        said = work.recall(key)
        if said is None:
            text = text or KnownText.of(corpus)
            found = tried(judge, text, draw_rules(text, rules, seed), metric, seed=seed, tell=tell)
            said = json.dumps(asdict(found))
            work.remember(key, said)
        known[metric] = Qualification(**json.loads(said))
    return known


def tried(
    judge: Judge, text: KnownText, rules: Sequence[Known], metric: str, *, seed: int = 0,
    tell: Tell = lambda what: None,
) -> Qualification:  # fmt: skip
    """The share of pairs of a true and a false sentence in which the judge's score of the true one is higher.

    Ties count half. A pair is lost where the judge's answers to one of both bear no score; only where it gives all
    tokens the same value, which correlates with nothing, is that compared as a correlation of 0. The 95 % interval is a
    bootstrap over rules.
    """
    false = _false(rules, seed)
    rows = []
    for number, (known, others) in enumerate(zip(rules, false, strict=True), 1):
        tell(f"{metric}: planted rule {number} of {len(rules)}")
        ground = text.ground(known.rule)
        made = [judged_by(metric, ground, one, judge, sizes=SIZES, seed=seed) for one in (known.sentence, *others)]
        true, *rest = map(_rank, made)
        lost = [true is None or other is None for other in rest]
        won = sum(_won(true, other) for other in rest)
        rows.append((won, len(rest), sum(lost)))
    totals = np.array(rows, dtype=np.float64)
    wins, pairs, lost_pairs = totals.sum(axis=0)
    drawn = stats.resampled(totals[:, :2], seed)
    low, high = stats.interval(drawn[:, 0] / drawn[:, 1], len(rows))
    assert low is not None and high is not None, f"a judge is tried on {measures.MIN_CLUSTERS} rules at least"
    return Qualification(metric, wins / pairs, low, high, len(rows), int(pairs), int(lost_pairs))


def _false(rules: Sequence[Known], seed: int) -> list[tuple[str, ...]]:
    """For each rule the sentences of two others of other families, each rule's lent out about as often as any."""
    order = np.random.default_rng(seed).permutation(len(rules)).tolist()
    chosen = []
    for number, known in enumerate(rules):
        behind = [rules[order[(order.index(number) + step) % len(rules)]] for step in range(1, len(rules))]
        others = [one for one in behind if one.family != known.family] + behind
        chosen.append(tuple(dict.fromkeys(one.sentence for one in others))[: measures.QUALIFY_FALSE])
    return chosen


def _rank(made: Fields) -> float | None:
    return 0.0 if made["details"].get("constant") else made["value"]


def _won(true: float | None, other: float | None) -> float:
    if true is None or other is None:
        return 0.0
    return float(true > other) + 0.5 * float(true == other)


__all__ = ["qualify", "tried"]
