from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from thrifty.measure.bootstrap import RESAMPLES, ends, one_lost, replicates, whole
from thrifty.measure.statistics import paired_drop, standard_error
from thrifty.workloads.quality import Scores


def root(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.sqrt((counts @ numerator)[:, 0] / (counts @ denominator)[:, 0])


def median(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """By repeating each example: what counts mean, word for word."""
    return np.array([np.median(np.repeat(numerator[:, 0], row.astype(int))) for row in counts])


def scores(values: np.ndarray, cluster: np.ndarray | None = None, statistic=root) -> Scores:
    return Scores(values, np.ones_like(values), np.arange(len(values)) if cluster is None else cluster, statistic)


def test_replicates_count_whole_clusters_and_the_same_for_both_sides() -> None:
    cluster = np.repeat(np.arange(7), [1, 2, 3, 4, 5, 6, 7])
    seen = []

    def watch(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
        seen.append(counts)
        return counts @ numerator[:, 0]

    values = np.random.default_rng(1).normal(size=28)
    drawn = replicates(watch, [(values, values), (values, values)], cluster)
    assert drawn.shape == (RESAMPLES, 2) and np.array_equal(drawn[:, 0], drawn[:, 1])
    first = np.stack([seen[0][:, cluster == g][:, 0] for g in range(7)], 1)
    assert np.array_equal(first[:, cluster], seen[0]), "examples of one cluster are drawn together"
    assert (first.sum(1) == 7).all() and first.std() == pytest.approx(math.sqrt(6 / 7), rel=0.05)
    assert np.array_equal(drawn, replicates(watch, [(values, values)] * 2, cluster)), "the same at every call"


def test_the_interval_of_a_mean_is_as_wide_as_students() -> None:
    values = np.random.default_rng(2).normal(size=40)
    drawn = replicates(lambda a, b, counts: counts @ a[:, 0] / counts.sum(1), [(values, values)], np.arange(40))[:, 0]
    low, high = ends(drawn, 40)  # type: ignore[misc]
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.08)
    assert standard_error(scores(values**2)) == pytest.approx(
        np.std([math.sqrt(np.mean(np.random.default_rng(i).choice(values**2, 40))) for i in range(4000)]), rel=0.08)


def test_replicates_without_a_value_are_left_out_until_most_have_none() -> None:
    values = np.arange(100.0)
    assert ends(np.where(values < 40, np.nan, values), 50) is not None
    assert ends(np.where(values < 60, np.nan, values), 50) is None


def test_a_drop_of_a_statistic_agrees_with_scipys_paired_bootstrap() -> None:
    draw = np.random.default_rng(3)
    shared = draw.normal(size=150) ** 2
    worse = shared * draw.uniform(0.9, 1.4, 150)
    drop = paired_drop(scores(shared), scores(worse), higher_is_better=False)
    assert drop.value == pytest.approx(math.sqrt(worse.mean()) - math.sqrt(shared.mean())) and drop.n == 150
    other = stats.bootstrap((worse, shared), lambda a, b, axis: np.sqrt(a.mean(axis)) - np.sqrt(b.mean(axis)), paired=True,
                            method="percentile", n_resamples=4000, random_state=draw).confidence_interval
    width = other.high - other.low
    assert drop.low == pytest.approx(other.low, abs=0.1 * width) and drop.high == pytest.approx(other.high, abs=0.1 * width)
    assert paired_drop(scores(worse), scores(shared), True).value == pytest.approx(drop.value)


def test_the_same_scores_leave_no_width_and_counts_are_repetitions() -> None:
    values = np.random.default_rng(4).normal(size=31)
    drop = paired_drop(scores(values, statistic=median), scores(values, statistic=median), True)
    assert (drop.value, drop.low, drop.high) == (0, 0, 0)
    assert whole(median, values, values) == np.median(values) == scores(values, statistic=median).value


def test_an_interval_covers_what_it_should() -> None:
    """A difference whose true value is 0.2, in 150 draws of 60 pairs."""
    draw, covered = np.random.default_rng(5), 0
    for _ in range(150):
        base = draw.normal(size=60)
        trial = base - 0.2 + 0.3 * draw.normal(size=60)
        drop = paired_drop(scores(np.exp(base), statistic=log_mean), scores(np.exp(trial), statistic=log_mean), True)
        covered += drop.low <= 0.2 <= drop.high  # type: ignore[operator]
    assert 135 <= covered <= 149  # 95% of 150 is 142.5, its standard deviation 2.7


def log_mean(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return counts @ np.log(numerator[:, 0]) / counts.sum(1)


def test_what_one_cluster_costs_is_found_by_losing_each() -> None:
    draw = np.random.default_rng(6)
    numerator, cluster = draw.integers(0, 3, 40).astype(float), np.arange(40) // 2
    changes = []
    for g in range(20):
        lost = np.where(cluster == g, 0, numerator)
        if numerator[cluster == g].any():
            changes.append(whole(root, lost, np.ones(40)) - whole(root, numerator, np.ones(40)))
    assert one_lost(root, numerator, np.ones(40), cluster) == pytest.approx(np.sqrt(np.mean(np.square(changes))))
    assert one_lost(root, np.zeros(40), np.ones(40), cluster) == 0


def test_what_cannot_be_paired_is_refused() -> None:
    values = np.ones(5)
    with pytest.raises(ValueError, match="same statistic"):
        paired_drop(scores(values), scores(values, statistic=median), True)
    nothing = lambda numerator, denominator, counts: np.full(len(counts), np.nan)
    with pytest.raises(ValueError, match="no value on these 5 examples"):
        paired_drop(scores(values, statistic=nothing), scores(values, statistic=nothing), True)
    one = scores(values, np.zeros(5, int))
    assert paired_drop(one, one, True).low is None
