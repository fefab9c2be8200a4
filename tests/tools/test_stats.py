"""Intervals cover, weights count as repeats, and what is constant is undefined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from lamplighter.tools import measures, stats

LEVELS = [0.0, 0.4, 0.7, 1.0]


def clustered(seed: int, clusters: int = 40, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Hits whose chance differs from cluster to cluster (mean 0.6): their cluster [N] and the hits [N]."""
    generator = np.random.default_rng(seed)
    chance = generator.beta(1.2, 0.8, size=clusters)
    return np.repeat(np.arange(clusters), size), (generator.random(clusters * size) < np.repeat(chance, size)) * 1.0


def spread(cluster: np.ndarray, hits: np.ndarray, seed: int) -> stats.Bound:
    count = int(cluster.max()) + 1
    totals = np.stack([stats.by_cluster(cluster, count, hits), stats.by_cluster(cluster, count)], axis=1)
    draws = stats.resampled(totals, seed, draws=400)
    return stats.interval(stats.ratio(draws[:, 0], draws[:, 1]), count)


def covered(seeds: range, alone: bool) -> float:
    inside = 0
    for seed in seeds:
        cluster, hits = clustered(seed)
        low, high = spread(np.arange(len(hits)) if alone else cluster, hits, seed)
        assert low is not None and high is not None
        inside += low <= 0.6 <= high
    return inside / len(seeds)


def test_the_interval_covers_where_one_that_resamples_places_does_not() -> None:
    assert covered(range(200), alone=False) > 0.89
    assert covered(range(200), alone=True) < 0.75


def test_draws_of_equal_seed_are_paired_and_keep_the_number_of_clusters() -> None:
    totals = np.column_stack([np.arange(30.0), np.ones(30), 2 * np.arange(30.0)])
    draws = stats.resampled(totals, seed=3)
    assert draws.shape == (measures.BOOTSTRAP, 3)
    assert np.all(draws[:, 1] == 30) and np.array_equal(draws[:, 2], 2 * draws[:, 0])
    assert np.array_equal(draws[:, 0], stats.resampled(totals[:, :1], seed=3)[:, 0])
    assert not np.array_equal(draws, stats.resampled(totals, seed=4))
    # The variance of a bootstrap sum of C draws is C times the (population) variance of the totals.
    assert draws[:, 0].var() == pytest.approx(30 * np.arange(30.0).var(), rel=0.1)


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = np.random.default_rng(0).random((50, 2))
    whole = stats.resampled(totals, seed=1, draws=64)
    monkeypatch.setattr(stats, "_CELLS", 400)
    assert np.allclose(whole, stats.resampled(totals, seed=1, draws=64))


def test_an_interval_is_undefined_below_eight_positive_clusters_and_for_undefined_draws() -> None:
    draws = np.linspace(0, 1, 1001)
    assert stats.interval(draws, 7) == (None, None)
    assert stats.interval(draws, 8) == pytest.approx((0.025, 0.975))
    few, many = draws.copy(), draws.copy()
    few[::50], many[::10] = np.nan, np.nan
    assert stats.interval(few, 8)[0] is not None and stats.interval(many, 8) == (None, None)


def test_a_p_value_counts_draws_at_the_bound_and_undefined_ones_against_and_is_never_0() -> None:
    draws = np.array([0.4, 0.5, 0.6, np.nan, 0.9, 0.9, 0.9, 0.9, 0.9])
    assert stats.p_value(draws, 0.5) == pytest.approx((1 + 3) / 10)
    assert stats.p_value(np.ones(2000), 0.5) == pytest.approx(1 / 2001)


def test_p_is_even_where_nothing_is_there() -> None:
    below = []
    for seed in range(200):
        cluster, hits = clustered(seed)
        totals = np.stack([stats.by_cluster(cluster, 40, hits), stats.by_cluster(cluster, 40)], axis=1)
        draws = stats.resampled(totals, seed, draws=400)
        below.append(stats.p_value(draws[:, 0] / draws[:, 1], 0.6) <= 0.05)
    assert np.mean(below) < 0.12


@given(st.lists(st.floats(0, 1), max_size=12), st.randoms(use_true_random=False))
def test_false_discovery_is_the_step_up_procedure_in_any_order(p: list[float], random: object) -> None:
    q = stats.false_discovery(p)
    m = len(p)
    for i in range(m):
        bounds = [min(1.0, other * m / sum(x <= other for x in p)) for other in p if other >= p[i]]
        assert q[i] == pytest.approx(min(bounds))
    order = list(range(m))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert stats.false_discovery([p[i] for i in order]) == pytest.approx([q[i] for i in order])


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(LEVELS), st.integers(1, 4)), min_size=2, max_size=30))
def test_a_weight_counts_as_so_many_places(rows: list[tuple[bool, float, int]]) -> None:
    labels, x, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    y = labels + 0.1 * np.arange(len(rows))
    repeat = np.repeat(np.arange(len(rows)), weights.astype(int))
    one = np.ones(len(repeat))
    for statistic, truth in ((stats.weighted_auprc, labels), (stats.weighted_pearson, y)):
        weighted = statistic(truth, x, weights)
        assert weighted == (None if weighted is None else pytest.approx(statistic(truth[repeat], x[repeat], one)))
    if len(set(x)) > 1:
        assert stats.weighted_pearson(x, y, weights) == pytest.approx(np.corrcoef(x[repeat], y[repeat])[0, 1])
    else:
        assert stats.weighted_pearson(x, y, weights) is None and stats.weighted_auprc(labels, x, weights) is None


@given(st.integers(0, 10_000))
def test_totals_summed_over_clusters_give_the_statistic_itself(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, labels = generator.choice(np.array(LEVELS), 40), (generator.random(40) < 0.4).astype(np.float64)
    weights, cluster = generator.random(40) * 5, generator.integers(6, size=40)
    summed = stats.auprc_totals(labels, x, weights, cluster, 6).sum(axis=0)
    expected = stats.weighted_auprc(labels, x, weights)
    assert stats.number(stats.auprc_of(summed)) == pytest.approx(expected)
    assert expected == pytest.approx(average_precision_score(labels, x, sample_weight=weights))
    y = labels + generator.random(40)
    summed = stats.pearson_totals(x, y, weights, cluster, 6).sum(axis=0)
    covariance = np.cov(x, y, aweights=weights)
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert stats.number(stats.pearson_of(summed)) == pytest.approx(expected)


def test_a_draw_of_one_cluster_twice_is_that_cluster_twice() -> None:
    generator = np.random.default_rng(0)
    x, y, cluster = generator.choice(np.array(LEVELS), 60), generator.random(60), np.repeat([0, 1, 2], 20)
    labels, one = (y > 0.6).astype(np.float64), np.ones(60)
    picked = np.concatenate([np.flatnonzero(cluster == 1)] * 2 + [np.flatnonzero(cluster == 2)])
    times = np.array([0.0, 2.0, 1.0])
    drawn = stats.auprc_of(times @ stats.auprc_totals(labels, x, one, cluster, 3))
    assert drawn == pytest.approx(average_precision_score(labels[picked] > 0, x[picked]))
    drawn = stats.pearson_of(times @ stats.pearson_totals(x, y, one, cluster, 3))
    assert drawn == pytest.approx(np.corrcoef(x[picked], y[picked])[0, 1])


def test_constant_predictions_are_undefined_and_not_0_or_1() -> None:
    y, w = np.linspace(0, 1, 10), np.ones(10)
    for constant in (0.0, 0.3, 1.0):
        assert stats.weighted_pearson(np.full(10, constant), y, w) is None
        assert stats.weighted_pearson(y, np.full(10, constant), w) is None
        assert stats.weighted_auprc((y > 0.5).astype(np.float64), np.full(10, constant), w) is None
    assert stats.weighted_auprc(np.zeros(10), y, w) is None
    # A constant that only some draws see is undefined in those draws alone.
    x, cluster = np.repeat([0.2, 0.2, 0.9], 4), np.repeat([0, 1, 2], 4)
    totals = stats.pearson_totals(x, np.linspace(0, 1, 12), np.ones(12), cluster, 3)
    found = stats.pearson_of(np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]) @ totals)
    assert np.isnan(found[0]) and found[1] > 0.5


def test_a_linear_change_of_scale_leaves_the_correlation() -> None:
    generator = np.random.default_rng(5)
    x, y, w = generator.random(50), generator.random(50), generator.random(50)
    assert stats.weighted_pearson(3 * x + 1e6, y, w) == pytest.approx(stats.weighted_pearson(x, y, w), abs=1e-6)
    assert stats.weighted_pearson(-x, y, w) == pytest.approx(-(stats.weighted_pearson(x, y, w) or 0))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_f1_is_sklearns_with_its_limit_at_nothing_right(rows: list[tuple[bool, bool]]) -> None:
    truth, guess = (np.array(column) for column in zip(*rows, strict=True))
    right = float((truth & guess).sum())
    precision, recall = stats.ratio(right, guess.sum()), stats.ratio(right, truth.sum())
    if guess.any() and truth.any():
        assert stats.f1(precision, recall) == pytest.approx(f1_score(truth, guess))
    else:
        assert np.isnan(stats.f1(precision, recall))


# Shares, and ranks


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_by_hand(part, whole, low, high):
    """The last is Newcombe's (1998) example."""
    assert stats.wilson(part, whole) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_undefined():
    assert stats.wilson(0, 0) == (None, None)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30))
def test_auroc_is_that_of_scikit_learn_with_weights_and_ties(rows):
    labels, scores = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    weights = np.array([[r[2] for r in rows], [1] * len(rows)], dtype=float)
    found = stats.auroc(labels, scores, weights)
    for row, value in zip(weights, found, strict=True):
        if row[labels].sum() == 0 or row[~labels].sum() == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(labels, scores, sample_weight=row))


def test_draws_in_blocks_are_the_same_draws(monkeypatch):
    """Sums and counts of one seed are paired, however many draws fit into memory at a time."""
    totals = np.arange(12.0).reshape(6, 2)
    whole = stats.resampled(totals, 3, 50)
    times = np.concatenate(list(stats.times_drawn(6, 3, 50)))
    assert (times.sum(axis=1) == 6).all() and np.array_equal(times @ totals, whole)
    monkeypatch.setattr(stats, "_CELLS", 6 * 7)
    assert np.array_equal(stats.resampled(totals, 3, 50), whole)
