"""Rules of one unit held against each other: by how much one is the better, and on which texts that shows.

The difference of two F1 is paired: both rules are counted on the same clusters of near copies, which are resampled
together. F1 = 2 TP / (M + N), where M is how often a rule predicts (counted), N how often the unit fires (counted by
the sweep) and TP = recall × N, the recall from the kept firings of the side (see `floors`).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any

import numpy as np
from pydantic import WithJsonSchema

from ..store.records import Evidence, Refused
from . import stats
from .floors import hit_f1
from .labels import Flags, Labelled, hash_sample, kept_exemplars, place_row, read_places
from .measures import FIRES
from .rules import RULE_SCHEMA, Rule
from .stats import Floats
from .subject import Subject
from .sweep import Sweep
from .units import UnitId

MOST = 5       # rules at once: their 2^n ways to disagree must stay few
_RULES = {"type": "array", "items": RULE_SCHEMA, "minItems": 2, "maxItems": MOST}


def separate(
    subject: Subject, sweep: Sweep, unit: UnitId, *,
    rules: Annotated[list[dict[str, Any]], WithJsonSchema(_RULES)], side: str = "explain", reads: int = 12,
) -> Evidence:  # fmt: skip
    """Finds the texts on which rules of a unit disagree, reads the unit there, and says which rule is the better.

    Rows: `{document, offset, text, token, ids, activation, ratio, fires, says}`, `says` one bool a rule in the order
    given, ratio = activation / P (it fires from 0.5), `text` and `ids` up to the token. Each way to disagree gets its
    share of the reads, its places of smallest position hash. checks: `f1` of each rule; `right`, how many rows each is
    right about; `differ`, on how many tokens of the side they disagree; `pairs`: for each two rules {first, second,
    difference = F1 of the first − F1 of the second, low, high}, a 95 % interval over clusters of near copies, null
    below 8 of them with a firing. Raises Refused for fewer than two or more than five rules, malformed ones, reads < 1,
    and the score side.

    Args:
        rules: the rules; patterns are RE2 and match a whole word.
        side: explain or tune; the score side is never shown.
        reads: places that are read at most.
    """
    if side not in ("explain", "tune"):
        raise Refused(f"side {side!r} cannot be shown; choose explain or tune.")
    if not 2 <= len(rules) <= MOST:
        raise Refused(f"{len(rules)} rules cannot be told apart here; give 2 to {MOST}.")
    if reads < 1:
        raise Refused(f"reads = {reads} reads nothing; give at least 1.")
    asked = [Rule.from_json(rule) for rule in rules]
    with subject.metered() as cost:
        sample = kept_exemplars(subject, sweep, unit, side)
        said = np.stack([rule.predict_flat(sample.text.text) > 0 for rule in asked])
        found, pairs = f1_differences(sweep, sample, said, list(combinations(range(len(asked)), 2)))
        rows = _disputed(subject, sweep, unit, sample, said, reads)
    right = [sum(row["says"][k] == row["fires"] for row in rows) for k in range(len(asked))]
    differ = int((said.any(axis=0) & ~said.all(axis=0)).sum())
    return Evidence(
        tool="separate", unit=unit.bare, sign=unit.sign, summary=_summary(found, right, len(rows), differ, side),
        rows=rows, checks={"f1": found, "right": right, "differ": differ, "pairs": pairs}, cost=cost,
        warnings=[] if rows else [f"the rules predict the same on every text of the {side} side."],
    )  # fmt: skip


def _summary(f1: Sequence[float | None], right: Sequence[int], read: int, differ: int, side: str) -> str:
    told = "; ".join(
        f"rule {k} F1 {'undefined' if v is None else f'{v:.2f}'}, right on {r} of {read}"
        for k, (v, r) in enumerate(zip(f1, right, strict=True), 1)
    )
    return f"The rules differ on {differ} tokens of the {side} side, of which {read} were read: {told}."


def f1_differences(
    sweep: Sweep, sample: Labelled, said: Flags, pairs: Sequence[tuple[int, int]]
) -> tuple[list[float | None], list[dict[str, Any]]]:
    """F1 of each rule on one side, and of pairs of them the difference with its interval.

    said [K, N]: where each of K rules predicts, over the side's tokens. pairs: numbers of two rules each. Returns K F1
    (None where undefined) and one {first, second, difference, low, high} a pair.
    """
    tally, positive = _tally(sweep, sample, said)
    point, spread = _f1(tally.sum(axis=0)), _f1(stats.resampled(tally, 0))
    told = []
    for first, second in pairs:
        low, high = stats.interval(spread[:, first] - spread[:, second], positive)
        difference = stats.number(point[first] - point[second])
        told.append({"first": first, "second": second, "difference": difference, "low": low, "high": high})
    return [stats.number(value) for value in point], told


def _tally(sweep: Sweep, sample: Labelled, said: Flags) -> tuple[Floats, int]:
    """Per-cluster totals [C, 1 + 2K]: weight of firings, then of those that each rule meets, then its predictions;
    and how many clusters hold a firing."""
    number = np.array([document.cluster for document in sweep.documents])[sample.text.document]
    _, cluster = np.unique(number, return_inverse=True)
    count = int(cluster.max()) + 1
    fires = sample.values >= FIRES
    rows, weights = sample.rows[fires], sample.weights[fires]
    columns = [stats.by_cluster(cluster[rows], count, weights)]
    columns += [stats.by_cluster(cluster[rows], count, weights * says[rows]) for says in said]
    columns += [stats.by_cluster(cluster[says], count) for says in said]
    return np.stack(columns, axis=1), len(np.unique(cluster[rows]))


def _f1(totals: Floats) -> Floats:
    """F1 [.., K] of summed `_tally` [.., 1 + 2K]."""
    rules = (totals.shape[-1] - 1) // 2
    return hit_f1(totals[..., 1 : 1 + rules], totals[..., :1], totals[..., 1 + rules :])


def _disputed(
    subject: Subject, sweep: Sweep, unit: UnitId, sample: Labelled, said: Flags, reads: int
) -> list[dict[str, Any]]:
    """Rows of places where the rules disagree, read: as many of each way to disagree as there is room for."""
    ways = [way for way in np.unique(said, axis=1).T if way.any() and not way.all()]
    found = [hash_sample(sweep, sample.text, (said == way[:, None]).all(axis=0)) for way in ways]
    turns = ((rank, k) for rank in range(max(map(len, found), default=0)) for k in range(len(found)))
    chosen = [int(found[k][rank]) for rank, k in turns if rank < len(found[k])][:reads]
    if not chosen:
        return []
    peak = sweep.statistics(unit).peak
    exact = dict(zip(sample.rows.tolist(), sample.values.tolist(), strict=True))
    values = read_places(subject, sweep, unit, sample.text, np.array(chosen), exact, peak)
    return [
        place_row(subject, sweep, sample.text, row, value, peak)
        | {"fires": value >= FIRES, "says": said[:, row].tolist()}
        for row, value in zip(chosen, values.tolist(), strict=True)
    ]
