"""Intervals: a ratio over pairs of processes, a drop over paired examples. Pure functions on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import numpy as np

from thrifty.measure.bootstrap import Statistic, ends, one_lost, replicates, whole
from thrifty.measure.student import student_quantile

_ENOUGH = 30
"""Differing examples from which their own clustering is trusted."""

Verdict = Literal["faster", "slower", "no significant gain", "screened", "not measured"]


@final
@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Args:
        value: the estimate.
        low, high: the ends, None where one unit was measured: no interval, no claim.
        n: independent units behind it: process pairs of a ratio, clusters of a drop.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


class Paired(Protocol):
    """Quality per example, as `thrifty.workloads.quality.Scores` holds it; each array is [n], or what its statistic takes."""

    @property
    def numerator(self) -> np.ndarray: ...
    @property
    def denominator(self) -> np.ndarray: ...
    @property
    def cluster(self) -> np.ndarray: ...
    @property
    def statistic(self) -> Statistic | None: ...


# -- ratios of time --------------------------------------------------------------------------------


def pair_log_ratio(baseline: Sequence[float], side: Sequence[float]) -> float:
    """One process pair's log of baseline seconds / side seconds, over its interleaved blocks.

    The interquartile mean over the palindromic cycles (A B B A) of log(b_c / s_c), b_c and s_c being the geometric
    means of the cycle's two blocks. Within a cycle a linear drift of the machine cancels; a cycle that met a slow
    spell is left out with its opposite (a quarter at each end, none of fewer than four). On real pairs of equal
    processes, against the mean of all cycles, the standard deviation was 1.6% for 2.3% in one run of 95 pairs and
    1.8% for 2.0% in another of 100. What remains is between processes.

    Args:
        baseline, side: [2 cycles] seconds a call, one for each block in the order in which they ran.

    Raises:
        ValueError: no blocks, oddly or unequally many, or a time that is not above 0.

    >>> round(math.exp(pair_log_ratio([2.0, 2.2], [1.0, 1.1])), 6)
    2.0
    """
    a, b = np.asarray(baseline, float), np.asarray(side, float)
    if a.shape != b.shape or a.ndim != 1 or not a.size or a.size % 2:
        raise ValueError(f"both sides need the same even number of blocks but have {a.shape} and {b.shape}")
    if not (np.all(a > 0) and np.all(b > 0)):
        raise ValueError("block times must be above 0 seconds")
    cycles = np.sort((np.log(a) - np.log(b)).reshape(-1, 2).mean(axis=1))
    cut = len(cycles) // 4
    return float(cycles[cut : len(cycles) - cut].mean())


def ratio_interval(log_ratios_per_process: Sequence[float], confidence: float = 0.95) -> Interval:
    """exp of the Student t interval on the mean of log ratios.

    exp(m -+ t_{(1+confidence)/2, n-1} s / sqrt(n)), m and s the mean and standard deviation over n process
    pairs. The unit is the process, since memory layout and the like are drawn once a process and shared by
    its iterations.

    Args:
        log_ratios_per_process: [n], one for each pair of fresh processes.
        confidence: in (0, 1).

    Returns:
        the ratio; with n == 1 its ends are None.

    Raises:
        ValueError: there is no ratio, or one is not finite.

    >>> ratio_interval([math.log(2.0)]).low is None
    True

    Source: Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013.
    """
    found = mean_interval(log_ratios_per_process, confidence)
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Interval(math.exp(found.value), low, high, found.n)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The Student t interval on a mean.

    m -+ t_{(1+confidence)/2, n-1} s / sqrt(n), m and s the mean and standard deviation over n independent units.

    Args:
        values: [n], one for each unit: a pair of processes, a seed.
        confidence: in (0, 1).

    Returns:
        the mean; with n == 1 its ends are None.

    Raises:
        ValueError: there is no value, or one is not finite.

    >>> mean_interval([1.0, 3.0]).value, mean_interval([2.0]).low is None
    (2.0, True)
    """
    x = np.asarray(values, float)
    if x.ndim != 1 or not x.size or not np.all(np.isfinite(x)):
        raise ValueError(f"values must be [n], n >= 1, and finite but are {x}")
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Interval(mean, None, None, 1)
    margin = student_quantile(0.5 + 0.5 * confidence, n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - margin, mean + margin, n)


def verdict(ratio: Interval | None) -> Verdict:
    """What may be said of a speed ratio (baseline seconds / side seconds).

    >>> verdict(Interval(1.2, 1.1, 1.3, 5)), verdict(Interval(1.2, 0.9, 1.6, 5)), verdict(None)
    ('faster', 'no significant gain', 'not measured')
    """
    if ratio is None:
        return "not measured"
    if ratio.low is None or ratio.high is None:
        return "screened"
    if ratio.low > 1.0:
        return "faster"
    return "slower" if ratio.high < 1.0 else "no significant gain"


# -- differences of quality ------------------------------------------------------------------------


def paired_drop(
    reference: Paired, trial: Paired, higher_is_better: bool, confidence: float = 0.95
) -> Interval:
    """How much worse the trial is than the reference on the same examples; positive = worse.

    The difference of sum(numerator) / sum(denominator), signed. Its variance is the jackknife over clusters,
    (G-1)/G sum_g (d_-g - d)^2, with a t interval on G-1 degrees of freedom (fewer where clusters are unequal):
    examples of one cluster are not independent. Hits (numerators 0 or 1, denominators 1) take Bonett and Price's
    adjusted interval instead, which stays sound where few examples or none differ: one lost and one gained
    example are added, so that zero differences among n leave an upper end near 2.8 / n and not 0. With clusters
    it counts n / design effect examples. Other scores that are equal on every example leave a width of 0.
    Scores with a ``statistic`` of their own are resampled instead, the same clusters for both: `thrifty.measure.bootstrap`.
    Where they count one answer an example, as F1 does, the variance of a cluster lost and one gained is added, so that
    there too no difference among few examples is no certainty.

    Args:
        reference, trial: scores of the same examples in the same order.
        higher_is_better: of the value.
        confidence: in (0, 1).

    Returns:
        the drop in the value's own units; ends are None where there is one cluster, or resampled ones mostly have no value;
        ``n`` counts clusters.

    Raises:
        ValueError: the examples are not the same ones, a score is not finite, or they have no value.

    Source: Bonett & Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
        paired data", J. Educational and Behavioral Statistics 2012; Shao & Wu on the jackknife, 1989.
    """
    _refuse_unpaired(reference, trial)
    sign = 1.0 if higher_is_better else -1.0
    groups, index = np.unique(reference.cluster, return_inverse=True)
    value = sign * (_value(reference) - _value(trial))
    clusters = len(groups)
    if clusters < 2:
        return Interval(value, None, None, clusters)
    if reference.statistic is not None:
        drawn = replicates(reference.statistic, [(x.numerator, x.denominator) for x in (reference, trial)], index)
        found = ends(sign * (drawn[:, 0] - drawn[:, 1]), clusters, confidence)
        if found is None:
            return Interval(value, None, None, clusters)
        if _is_answers(reference) and _is_answers(trial):
            one = one_lost(reference.statistic, reference.numerator, reference.denominator, index)
            more = student_quantile(0.5 + 0.5 * confidence, clusters - 1) * math.sqrt(2) * one
            found = value - math.hypot(value - found[0], more), value + math.hypot(found[1] - value, more)
        return Interval(value, *found, clusters)
    quantile = student_quantile(0.5 + 0.5 * confidence, _freedom(reference.denominator, index))
    if _is_hits(reference) and _is_hits(trial):
        low, high = _hits_ends(reference.numerator, trial.numerator, index, sign, quantile)
        return Interval(value, low, high, clusters)
    margin = quantile * math.sqrt(_jackknife((reference, trial), index))
    return Interval(value, value - margin, value + margin, clusters)


def standard_error(scores: Paired) -> float:
    """By linearization over examples where the value is a ratio of sums, otherwise over resampled clusters."""
    if scores.statistic is None:
        off = scores.numerator - _value(scores) * scores.denominator
        return float(np.linalg.norm(off) / scores.denominator.sum())
    index = np.unique(scores.cluster, return_inverse=True)[1]
    return float(np.nanstd(replicates(scores.statistic, [(scores.numerator, scores.denominator)], index)))


def _refuse_unpaired(reference: Paired, trial: Paired) -> None:
    if reference.statistic is not trial.statistic:
        raise ValueError("reference and trial must be scored by the same statistic")
    if reference.numerator.shape != trial.numerator.shape or not reference.numerator.size:
        raise ValueError(
            "reference and trial must score the same examples, 1 or more, but there are "
            f"{reference.numerator.size} and {trial.numerator.size}"
        )
    if not np.array_equal(reference.cluster, trial.cluster):
        raise ValueError(
            "reference and trial must score the same examples in the same order: their clusters differ"
        )
    for name, scores in (("reference", reference), ("trial", trial)):
        finite = np.isfinite(scores.numerator) & np.isfinite(scores.denominator)
        bad = ~finite.reshape(len(finite), -1).all(1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} scores of the {name} are not finite, first at {int(bad.argmax())}"
            )
        if scores.statistic is None and not scores.denominator.sum() > 0:
            raise ValueError(f"the denominators of the {name} must sum above 0")
        if not math.isfinite(_value(scores)):
            raise ValueError(f"the quality of the {name} has no value on these {len(finite)} examples: are all targets alike?")


def _value(scores: Paired) -> float:
    if scores.statistic is not None:
        return whole(scores.statistic, scores.numerator, scores.denominator)
    return float(scores.numerator.sum() / scores.denominator.sum())


def _is_hits(scores: Paired) -> bool:
    return bool(np.all(scores.denominator == 1) and np.all((scores.numerator == 0) | (scores.numerator == 1)))


def _is_answers(scores: Paired) -> bool:
    """Counts of one answer an example: predicted once and actual once at most."""
    both = scores.numerator, scores.denominator
    return all(bool(np.all((x >= 0) & (x == np.floor(x)))) for x in both) and bool(
        scores.denominator.reshape(len(scores.denominator), -1).sum(1).max() <= 2)


def _freedom(denominator: np.ndarray, index: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 - 1 with w the clusters' denominators: G - 1 where all are equal."""
    weights = np.bincount(index, denominator)
    return float(max(1.0, weights.sum() ** 2 / np.sum(weights**2) - 1.0))


def _leave_one_out(scores: Paired, index: np.ndarray) -> np.ndarray:
    """The value without each cluster in turn, [G]; the value itself where nothing is left."""
    numerator = scores.numerator.sum() - np.bincount(index, scores.numerator)
    denominator = scores.denominator.sum() - np.bincount(index, scores.denominator)
    whole = np.full_like(numerator, _value(scores))
    without: np.ndarray = np.divide(numerator, denominator, out=whole, where=denominator > 0)
    return without


def _jackknife(pair: tuple[Paired, Paired], index: np.ndarray) -> float:
    """Variance of the first value - the second over clusters."""
    without = _leave_one_out(pair[0], index) - _leave_one_out(pair[1], index)
    n = len(without)
    return float((n - 1) / n * np.sum((without - (_value(pair[0]) - _value(pair[1]))) ** 2))


def _hits_ends(
    reference: np.ndarray, trial: np.ndarray, index: np.ndarray, sign: float, quantile: float
) -> tuple[float, float]:
    difference = sign * (reference - trial)
    n = len(difference) / _design_effect(reference, difference, index)
    lost = (float(np.mean(difference > 0)) * n + 1.0) / (n + 2.0)
    gained = (float(np.mean(difference < 0)) * n + 1.0) / (n + 2.0)
    margin = quantile * math.sqrt((lost + gained - (lost - gained) ** 2) / (n + 2.0))
    return max(-1.0, lost - gained - margin), min(1.0, lost - gained + margin)


def _design_effect(reference: np.ndarray, difference: np.ndarray, index: np.ndarray) -> float:
    """By how much clustering inflates the variance of a mean, at least 1.

    Read off the differences; where fewer than 30 examples differ they say too little, and the reference's
    hits are asked too, the larger counting.
    """
    sizes = np.bincount(index)
    if len(sizes) == len(index):
        return 1.0
    differing = int(np.count_nonzero(difference))
    sources = (difference,) if differing >= _ENOUGH else (reference, difference)
    effects = [_inflation(x, index, sizes) for x in sources if np.ptp(x) > 0]
    # Nothing varies at all: assume that the examples of a cluster all move together.
    return max([1.0, *effects]) if effects else float(np.sum(sizes.astype(float) ** 2) / len(index))


def _inflation(x: np.ndarray, index: np.ndarray, sizes: np.ndarray) -> float:
    n, groups = len(index), len(sizes)
    sums = np.bincount(index, x - x.mean())
    return float(groups / (groups - 1) * np.sum(sums**2) / n**2 / (x.var(ddof=1) / n))
