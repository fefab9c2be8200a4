"""The statistics behind every score: clustered bootstrap, weighted AUPRC and Pearson, false discoveries.

Tokens of one document, and documents that are near copies, are not independent, so whole clusters are resampled.
Every statistic here is a function of sums over places; a bootstrap draw is therefore the sum of per-cluster totals,
each times how often the cluster was drawn, and statistics computed from the same draws are paired.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals; Davison & Hinkley,
Bootstrap Methods (1997), the +1 in p values; Benjamini & Hochberg, JRSS B 57 (1995).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import false_discovery_control, norm, spearmanr
from sklearn.metrics import average_precision_score

from .measures import BOOTSTRAP, CONFIDENCE, MIN_CLUSTERS

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Bound = tuple[float | None, float | None]

_CELLS = 2**22     # cluster choices held in memory at once


def ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    """part / whole, elementwise; NaN where whole is 0 (and nothing can be said)."""
    top, bottom = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    result: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return result


def f1(precision: ArrayLike, recall: ArrayLike) -> Floats:
    """2pr / (p + r), elementwise; 0 where both are 0 (its limit), NaN where either is."""
    p, r = np.asarray(precision, dtype=np.float64), np.asarray(recall, dtype=np.float64)
    return np.where((p == 0) & (r == 0), 0.0, ratio(2 * p * r, p + r))


def by_cluster(cluster: Ints, clusters: int, values: Floats | None = None) -> Floats:
    """Sums [C] of values [N] (default: 1 each) over the places of each cluster, `cluster` [N] counting from 0."""
    return np.bincount(cluster, weights=values, minlength=clusters).astype(np.float64)


def resampled(totals: Floats, seed: int, draws: int = BOOTSTRAP) -> Floats:
    """Sums [B, K] of per-cluster totals [C, K] over C clusters drawn with replacement, B times.

    Equal seeds and cluster counts give the same draws: columns of one call, and calls that agree in both, are paired.
    """
    return np.concatenate([times @ totals for times in times_drawn(len(totals), seed, draws)])


def times_drawn(count: int, seed: int, draws: int = BOOTSTRAP) -> Iterator[Ints]:
    """How often each of `count` clusters is drawn in each of B draws with replacement, as blocks [b, C] in order."""
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // max(count, 1))
    for start in range(0, draws, step):
        lines = min(step, draws - start)
        picks = generator.integers(count, size=(lines, count)) + count * np.arange(lines)[:, None]
        yield np.bincount(picks.ravel(), minlength=lines * count).reshape(lines, count)


def interval(draws: Floats, clusters: int) -> Bound:
    """The percentile interval of bootstrap draws [B]: their quantiles at .025 and .975.

    `clusters`: how many clusters hold a positive. Undefined (None, None) below 8 of them, and where the statistic is
    undefined (NaN) in more than 5 % of the draws; rarer undefined draws are left out.
    """
    known = draws[np.isfinite(draws)]
    if clusters < MIN_CLUSTERS or len(known) < CONFIDENCE * len(draws):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: Sequence[float], seed: int) -> Bound:
    """The interval of the mean of independent values, such as one a unit."""
    totals = np.array([[value, 1.0] for value in values]).reshape(-1, 2)
    draws = resampled(totals, seed)
    return interval(ratio(draws[:, 0], draws[:, 1]), len(totals))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's ρ; None where one of the two does not vary, or fewer than three values are there."""
    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return float(spearmanr(one, other).statistic)


def p_value(draws: Floats, bound: float) -> float:
    """One-sided bootstrap p of "the statistic exceeds `bound`": (1 + #{draws ≤ bound}) / (B + 1).

    It inverts the percentile interval: p ≤ .025 where the interval's low end lies above the bound. An undefined draw
    counts against the statistic. The 1 keeps p above 0, since the sample itself is one of the draws.
    """
    return float(1 + np.count_nonzero(~(draws > bound))) / (len(draws) + 1)


def false_discovery(p: Sequence[float]) -> list[float]:
    """Benjamini–Hochberg: for each p value the smallest false-discovery rate at which it is still accepted.

    q₍ᵢ₎ = min over j ≥ i of p₍ⱼ₎ m / j; independent of the order of `p`, empty for no values.
    """
    return [float(q) for q in false_discovery_control(list(p), method="bh")] if len(p) else []


def wilson(part: int, whole: int) -> Bound:
    """Wilson's 95 % interval of a share, part of whole; undefined (None, None) of nothing.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n): it never leaves 0 to 1, and is not empty at 0 or 1. Source:
    Wilson, JASA 22 (1927).
    """
    if not whole:
        return None, None
    z, p = float(norm.ppf((1 + CONFIDENCE) / 2)), part / whole
    middle, half = p + z * z / (2 * whole), z * float(np.sqrt(p * (1 - p) / whole + (z / (2 * whole)) ** 2))
    scale = 1 + z * z / whole
    return (middle - half) / scale if part else 0.0, (middle + half) / scale if part < whole else 1.0


def auroc(labels: Flags, scores: Floats, weights: ArrayLike) -> Floats:
    """The share of pairs of a true and a false case in which the true one scores higher, ties counting half.

    labels, scores [N]; weights [B, N], a row for each answer; NaN where a row has no true or no false case.
    """
    levels, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    firsts = np.searchsorted(level[order], np.arange(len(levels)))
    weighed = np.atleast_2d(np.asarray(weights, dtype=np.float64))[:, order]
    true, false = (np.add.reduceat(weighed * side[order], firsts, axis=1) for side in (labels, ~labels))
    below = false.cumsum(axis=1) - false / 2
    return ratio((true * below).sum(axis=1), true.sum(axis=1) * false.sum(axis=1))


def weighted_auprc(labels: Floats, predictions: Floats, weights: Floats) -> float | None:
    """Average precision Σ (R_k − R_{k−1}) P_k over the distinct predictions, places [N] weighing `weights`.

    Undefined (None) where all labels or all predictions are equal.
    """
    used = weights > 0
    if len(np.unique(labels[used])) < 2 or len(np.unique(predictions[used])) < 2:
        return None
    return float(average_precision_score(labels[used] > 0, predictions[used], sample_weight=weights[used]))


def auprc_totals(labels: Floats, predictions: Floats, weights: Floats, cluster: Ints, clusters: int) -> Floats:
    """Per-cluster totals [C, 2V] behind the average precision: weight of positives, then of all, at each of the V
    distinct predictions, highest first."""
    levels, level = np.unique(-predictions, return_inverse=True)
    cell = cluster * len(levels) + level.ravel()
    sums = [np.bincount(cell, w, clusters * len(levels)) for w in (weights * (labels > 0), weights)]
    return np.concatenate([s.reshape(clusters, len(levels)) for s in sums], axis=1)


def auprc_of(totals: Floats) -> Floats:
    """Average precision [B] of summed `auprc_totals` [B, 2V]; NaN where labels or predictions are all equal."""
    positive, every = np.split(totals, 2, axis=-1)
    found, shown = positive.cumsum(axis=-1), every.cumsum(axis=-1)
    precision = np.nan_to_num(ratio(found, shown))
    recall_steps = ratio(positive, found[..., -1:])
    mixed = (found[..., -1] > 0) & (found[..., -1] < shown[..., -1]) & (np.count_nonzero(every, axis=-1) > 1)
    return np.where(mixed, (precision * recall_steps).sum(axis=-1), np.nan)


def pearson_totals(x: Floats, y: Floats, weights: Floats, cluster: Ints, clusters: int) -> Floats:
    """Per-cluster totals [C, 6] behind a weighted correlation: Σw, Σwx, Σwy, Σwxx, Σwyy, Σwxy.

    x and y are shifted by their weighted means first, which changes no correlation and keeps the digits.
    """
    x, y = (v - np.average(v, weights=weights) for v in (x, y))
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([by_cluster(cluster, clusters, weights * c) for c in columns], axis=1)


def pearson_of(totals: Floats) -> Floats:
    """Weighted Pearson correlation [B] of summed `pearson_totals` [B, 6]; NaN where x or y is constant."""
    w, x, y, xx, yy, xy = np.moveaxis(totals, -1, 0)
    spread_x, spread_y = xx - ratio(x * x, w), yy - ratio(y * y, w)
    flat = (spread_x <= 1e-12 * xx) | (spread_y <= 1e-12 * yy)
    together = xy - ratio(x * y, w)
    result = ratio(together, np.sqrt(np.where(flat, 0.0, spread_x * spread_y)))
    return np.where(np.isnan(result), np.nan, np.clip(result, -1.0, 1.0))


def weighted_pearson(x: Floats, y: Floats, weights: Floats) -> float | None:
    """Correlation of x and y [N] with places weighing `weights`: Σw x'y' / √(Σw x'² Σw y'²) about weighted means.

    Undefined (None) where x or y is constant: a constant prediction has no correlation, neither 0 nor 1.
    """
    totals = pearson_totals(x, y, weights, np.zeros(len(x), dtype=np.int64), 1)
    return number(pearson_of(totals)[0])


def number(value: Any) -> float | None:
    """A Python float, or None where the value is not finite."""
    return float(value) if np.isfinite(value) else None
