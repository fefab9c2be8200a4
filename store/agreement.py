"""Whether people agree about explanations: Krippendorff's alpha, also by tag, and Cohen's kappa by pair.

Over explanations that two people or more reviewed blind. alpha = 1 − D_o / D_e, the disagreement that there is over
that of the same labels dealt out at random; it takes whoever reviewed what. kappa takes two people who both labelled
all items, so that each pair is a task of its own over what both reviewed. Both are nltk's. Both are functions of sums
over explanations (of coincidences, and of pairs of labels), whose bootstrap gives the interval.

Where only one label was ever given, both are undefined: nothing could have contradicted an agreement. Sources:
Krippendorff, Content Analysis (1980); Cohen, Educational and Psychological Measurement 20 (1960).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ..tools import stats
from ..tools.stats import Floats
from .claims import TAGS
from .findings import Findings

LABELS = ("accept", "reject", "edit", "unsure")
RIGHT = {"accept": "right", "reject": "not right", "edit": "not right"}      # unsure says neither

# The last thing that each person said of an explanation, if it was anything.
_SAID = """
    SELECT hypothesis AS item, reviewer, verdict, tags, blind, reasons FROM standing_reviews
    WHERE verdict <> 'skip'
    QUALIFY row_number() OVER (PARTITION BY hypothesis, reviewer ORDER BY created_at DESC, id DESC) = 1
    ORDER BY item, reviewer
"""

Ratings = Mapping[str, Mapping[str, str]]      # item → reviewer → label


@dataclass(frozen=True)
class Agreement:
    """A coefficient with its 95 % interval. n: explanations, ratings: labels that it rests on; reason: why it is none.

    Below 8 explanations there is no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    ratings: int
    reason: str | None = None


def said(findings: Findings, audit: bool = False) -> tuple[list[dict[str, Any]], int]:
    """What people said blind, {item, reviewer, verdict, tags, reasons}, and how many said something in sight of scores.

    audit: only of explanations of the random share.
    """
    rows = [row for row in findings.sql(_SAID, unpack=True) if not audit or "audit" in row["reasons"]]
    return [row for row in rows if row["blind"]], sum(not row["blind"] for row in rows)


def agreement(findings: Findings, audit: bool = False) -> dict[str, Any]:
    """{audit, reviews, not_blind, explanations, shared, reviewers, verdicts, right, tags, pairs} of what people said.

    shared: explanations with two reviews or more. verdicts: alpha over accept, reject, edit and unsure; right: over
    accept against reject and edit; tags: over having given a tag or not, for each that was given. pairs: kappa over the
    verdicts of two people, with `same`, how many were equal. audit: only the random share.
    """
    rows, not_blind = said(findings, audit)
    verdicts = rated(rows, lambda row: str(row["verdict"]))
    given = [tag for tag in TAGS if any(tag in row["tags"] for row in rows)]
    tags = {tag: rated(rows, lambda row, tag=tag: "yes" if tag in row["tags"] else "no") for tag in given}
    people = sorted({row["reviewer"] for row in rows})
    return {
        "audit": audit, "reviews": len(rows), "not_blind": not_blind, "explanations": len(verdicts),
        "shared": len(shared(verdicts)), "reviewers": people, "verdicts": asdict(alpha(verdicts)),
        "right": asdict(alpha(rated(rows, lambda row: RIGHT.get(row["verdict"])))),
        "tags": [{"tag": tag} | asdict(alpha(ratings)) for tag, ratings in tags.items()],
        "pairs": [{"a": a, "b": b} | _pair(verdicts, a, b) for a, b in combinations(people, 2)],
    }  # fmt: skip


def rated(rows: Iterable[Mapping[str, Any]], label: Any) -> dict[str, dict[str, str]]:
    """Rows by item and reviewer, each with what `label` makes of it; one of which it makes None is left out."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if (given := label(row)) is not None:
            found.setdefault(row["item"], {})[row["reviewer"]] = given
    return found


def shared(ratings: Ratings) -> dict[str, Mapping[str, str]]:
    """The items that two people or more rated."""
    return {item: by for item, by in ratings.items() if len(by) > 1}


def alpha(ratings: Ratings, seed: int = 0) -> Agreement:
    """Krippendorff's alpha for labels without an order, whoever rated what."""
    from nltk.metrics.agreement import AnnotationTask

    both = shared(ratings)
    labels = sorted({label for by in both.values() for label in by.values()})
    why = _lack(len(both), labels, "two people")
    if why is not None:
        return _none(both, why)
    value = AnnotationTask([(who, item, label) for item, by in both.items() for who, label in by.items()]).alpha()
    totals = np.stack([coincidences(list(by.values()), labels) for by in both.values()])
    return _bounded(float(value), alpha_of(stats.resampled(totals, seed)), both)


def coincidences(given: Sequence[str], labels: Sequence[str]) -> Floats:
    """How often each two of `labels` (first × second, flat) were given to one item by two people, over (people − 1)."""
    counts = np.array([given.count(label) for label in labels], dtype=np.float64)
    pairs = np.outer(counts, counts) - np.diag(counts)
    result: Floats = pairs.ravel() / (len(given) - 1)
    return result


def alpha_of(totals: Floats) -> Floats:
    """alpha [B] of summed coincidences [B, K²]: 1 − (n − 1) Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k; NaN for one label."""
    size = round(totals.shape[1] ** 0.5)
    table = totals.reshape(-1, size, size)
    each, apart = table.sum(axis=2), table.sum(axis=(1, 2)) - np.trace(table, axis1=1, axis2=2)
    whole = each.sum(axis=1)
    return 1 - stats.ratio((whole - 1) * apart, whole**2 - (each**2).sum(axis=1))


def kappa(ratings: Ratings, a: str, b: str, seed: int = 0) -> Agreement:
    """Cohen's kappa of two people over the items that both rated."""
    from nltk.metrics.agreement import AnnotationTask

    both = {item: {who: by[who] for who in (a, b)} for item, by in ratings.items() if a in by and b in by}
    labels = sorted({label for by in both.values() for label in by.values()})
    why = _lack(len(both), labels, f"{a} and {b}")
    if why is not None:
        return _none(both, why)
    value = AnnotationTask([(who, item, label) for item, by in both.items() for who, label in by.items()]).kappa()
    place = {label: n for n, label in enumerate(labels)}
    totals = np.zeros((len(both), len(labels) ** 2))
    for row, by in zip(totals, both.values(), strict=True):
        row[place[by[a]] * len(labels) + place[by[b]]] = 1
    return _bounded(float(value), kappa_of(stats.resampled(totals, seed)), both)


def kappa_of(totals: Floats) -> Floats:
    """kappa [B] of summed counts of pairs of labels [B, K²]; NaN where chance alone makes all equal."""
    size = round(totals.shape[1] ** 0.5)
    table = totals.reshape(-1, size, size) / totals.sum(axis=1)[:, None, None]
    same, chance = np.trace(table, axis1=1, axis2=2), (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
    return stats.ratio(np.where(chance < 1, same - chance, np.nan), 1 - chance)


def _pair(ratings: Ratings, a: str, b: str) -> dict[str, Any]:
    same = sum(by[a] == by[b] for by in ratings.values() if a in by and b in by)
    return {"same": same, **asdict(kappa(ratings, a, b))}


def _lack(count: int, labels: Sequence[str], who: str) -> str | None:
    """Why there is no coefficient."""
    if not count:
        return f"no explanation was reviewed by {who}"
    if len(labels) == 1:
        return f"only {labels[0]!r} was ever said, which cannot tell agreement from chance"
    return None


def _none(both: Ratings, reason: str) -> Agreement:
    return Agreement(None, None, None, len(both), sum(map(len, both.values())), reason)


def _bounded(value: float, draws: Floats, both: Ratings) -> Agreement:
    low, high = stats.interval(draws, len(both))
    return Agreement(value, low, high, len(both), sum(map(len, both.values())))


__all__ = ["LABELS", "Agreement", "agreement", "alpha", "kappa", "rated", "said", "shared"]
