from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from thrifty.measure.statistics import Interval, pair_log_ratio, paired_drop, ratio_interval, verdict

logs = st.lists(st.floats(-3, 3), min_size=2, max_size=8)


@dataclass(frozen=True)
class Scored:
    numerator: np.ndarray
    denominator: np.ndarray
    cluster: np.ndarray
    statistic: None = None


def hits(outcomes: list[int] | np.ndarray, cluster: list[int] | np.ndarray | None = None) -> Scored:
    values = np.asarray(outcomes, float)
    return Scored(
        values, np.ones_like(values), np.arange(len(values)) if cluster is None else np.asarray(cluster)
    )


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


# -- ratios -------------------------------------------------------------------------------------------------------


@given(logs)
def test_swapping_sides_inverts_the_ratio(values: list[float]) -> None:
    one, other = ratio_interval(values), ratio_interval([-x for x in values])
    assert one.value == pytest.approx(1 / other.value)
    assert ends(one) == pytest.approx(tuple(1 / x for x in reversed(ends(other))))


@given(logs, st.floats(-2, 2))
def test_a_side_slower_by_a_factor_scales_the_interval(values: list[float], shift: float) -> None:
    one, other = ratio_interval(values), ratio_interval([x + shift for x in values])
    factor = math.exp(shift)
    assert (other.value, *ends(other)) == pytest.approx(tuple(factor * x for x in (one.value, *ends(one))))


@given(logs)
def test_order_does_not_matter_and_the_value_is_inside(values: list[float]) -> None:
    interval = ratio_interval(values)
    low, high = ends(interval)
    assert low <= interval.value * (1 + 1e-12)
    assert interval.value <= high * (1 + 1e-12)
    assert ends(ratio_interval(sorted(values))) == pytest.approx((low, high))


@given(logs, st.sampled_from([0.8, 0.9, 0.99]))
def test_the_interval_is_scipys(values: list[float], confidence: float) -> None:
    found = ratio_interval(values, confidence)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    margin = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * spread
    mean = float(np.mean(values))
    assert ends(found) == pytest.approx((math.exp(mean - margin), math.exp(mean + margin)))


def test_one_pair_has_no_interval_and_claims_nothing() -> None:
    interval = ratio_interval([1.0])
    assert (interval.low, interval.high, interval.n) == (None, None, 1)
    assert verdict(interval) == "screened"


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf, 0.0]])
def test_no_ratio_and_ratios_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        ratio_interval(values)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.1, 1.3, "faster"),
        (0.7, 0.9, "slower"),
        (0.9, 1.2, "no significant gain"),
        (1.0, 1.2, "no significant gain"),
    ],
)
def test_verdicts(low: float, high: float, expected: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 5)) == expected


def test_a_linear_drift_cancels_in_a_palindrome() -> None:
    drift = np.exp(np.linspace(0, 0.3, 4))  # A B B A on a machine that slows down
    assert pair_log_ratio([drift[0], drift[3]], [drift[1], drift[2]]) == pytest.approx(0.0)


def test_a_slow_spell_in_one_cycle_is_left_out() -> None:
    steady, spell = [1.0] * 8, [1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert pair_log_ratio(spell, steady) == 0.0
    assert pair_log_ratio(steady, spell) == 0.0


@given(
    st.lists(st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)), min_size=2, max_size=12), st.floats(0.1, 10)
)
def test_block_units_do_not_matter_and_swapping_negates(
    blocks: list[tuple[float, float]], unit: float
) -> None:
    blocks = blocks[: len(blocks) // 2 * 2]
    a, b = [x for x, _ in blocks], [y for _, y in blocks]
    ratio = pair_log_ratio(a, b)
    assert pair_log_ratio(b, a) == pytest.approx(-ratio, abs=1e-12)
    assert pair_log_ratio([unit * x for x in a], [unit * x for x in b]) == pytest.approx(ratio, abs=1e-9)
    assert pair_log_ratio([unit * x for x in a], b) == pytest.approx(ratio + math.log(unit), abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([1.0], [1.0]), ([1.0, 1.0], [1.0] * 4), ([0.0, 1.0], [1.0] * 2), ([-1.0, 1.0], [1.0] * 2)],
)
def test_blocks_that_cannot_be_compared_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError):
        pair_log_ratio(a, b)


# -- drops --------------------------------------------------------------------------------------------------------

outcomes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=3, max_size=60)


@given(outcomes)
def test_swapping_reference_and_trial_negates_the_drop(pairs: list[tuple[int, int]]) -> None:
    a, b = hits([x for x, _ in pairs]), hits([y for _, y in pairs])
    one, other = paired_drop(a, b, True), paired_drop(b, a, True)
    assert one.value == pytest.approx(-other.value)
    assert ends(one) == pytest.approx(tuple(-x for x in reversed(ends(other))))
    assert ends(paired_drop(a, b, False)) == pytest.approx(ends(other))


@given(outcomes)
def test_hits_have_an_interval_around_the_drop_that_never_vanishes(pairs: list[tuple[int, int]]) -> None:
    drop = paired_drop(hits([x for x, _ in pairs]), hits([y for _, y in pairs]), True)
    low, high = ends(drop)
    assert -1 <= low <= drop.value <= high <= 1
    assert high - low > 1 / len(pairs)


def test_nothing_differs_and_the_upper_end_is_not_zero() -> None:
    same = hits([1] * 980 + [0] * 20)
    drop = paired_drop(same, same, True)
    low, high = ends(drop)
    assert drop.value == 0
    assert 0.0015 < high < 0.004  # near 2.8 / n
    assert low == pytest.approx(-high)


def test_nothing_differs_in_few_large_clusters_says_less() -> None:
    outcome = [1] * 980 + [0] * 20
    alone = ends(paired_drop(hits(outcome), hits(outcome), True))[1]
    clustered = hits(outcome, np.arange(1000) // 100)
    assert ends(paired_drop(clustered, clustered, True))[1] > 2 * alone


def test_clusters_are_counted_not_examples() -> None:
    rng = np.random.default_rng(0)
    bits, shift = rng.normal(2, 0.3, 40), rng.normal(0.05, 0.02, 40)
    index = np.repeat(np.arange(40), 10)

    def scored(x: np.ndarray, cluster: np.ndarray) -> Scored:
        return Scored(x, np.ones_like(x), cluster)

    few = paired_drop(scored(bits, np.arange(40)), scored(bits + shift, np.arange(40)), False)
    many = paired_drop(scored(bits[index], index), scored((bits + shift)[index], index), False)
    assert many.n == few.n == 40
    assert ends(many) == pytest.approx(ends(few))  # copies of an example are no new evidence


def test_equal_weights_give_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(2, 0.3, 30), rng.normal(2.1, 0.3, 30)
    drop = paired_drop(
        Scored(a, np.ones(30), np.arange(30)), Scored(b, np.ones(30), np.arange(30)), higher_is_better=False
    )
    low, high = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert ends(drop) == pytest.approx((low, high))


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_units_scale_the_drop(bits: float, size: float) -> None:
    rng = np.random.default_rng(2)
    a, b, n, cluster = (
        rng.normal(2, 0.1, 50),
        rng.normal(2.1, 0.1, 50),
        rng.uniform(1, 9, 50),
        np.arange(50) // 3,
    )
    one = paired_drop(Scored(a * n, n, cluster), Scored(b * n, n, cluster), False)
    other = paired_drop(
        Scored(a * n * bits, n * size, cluster), Scored(b * n * bits, n * size, cluster), False
    )
    assert ends(other) == pytest.approx(tuple(x * bits / size for x in ends(one)))


def test_one_cluster_has_no_interval() -> None:
    drop = paired_drop(hits([1, 1], [7, 7]), hits([1, 0], [7, 7]), True)
    assert (drop.value, drop.low, drop.n) == (0.5, None, 1)


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (hits([1, 0]), "same examples"),
        (hits([1, 0, 1], [0, 2, 1]), "same order"),
        (hits(np.array([1, math.nan, 1])), "not finite, first at 1"),
        (Scored(np.ones(3), np.zeros(3), np.arange(3)), "above 0"),
    ],
)
def test_scores_that_are_not_paired_are_refused(trial: Scored, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_drop(hits([1, 1, 0]), trial, True)
