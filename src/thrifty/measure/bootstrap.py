"""The paired bootstrap over clusters: intervals for values that are no sum over examples, such as R2 or an area under a curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from thrifty.measure.student import student_quantile

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(numerator [n, k], denominator [n, k], counts [b, n]) -> [b]: the value where example i stands counts[:, i] times;
NaN where those examples have none."""

RESAMPLES = 2000
"""The 2.5% ends are then order statistics of 50, known to about a tenth of a standard error."""
_AT_ONCE = 2**22
"""Counts that are held at a time."""
_ASKED = 100
"""Clusters whose loss is tried."""


def whole(statistic: Statistic, numerator: np.ndarray, denominator: np.ndarray) -> float:
    """The value of all examples, each counted once."""
    return float(statistic(*_columns(numerator, denominator), np.ones((1, len(numerator))))[0])


def replicates(statistic: Statistic, sides: Sequence[tuple[np.ndarray, np.ndarray]], index: np.ndarray) -> np.ndarray:
    """Values of resampled examples: whole clusters are drawn with replacement, and the same ones for every side.

    Args:
        statistic: of a side.
        sides: (numerator, denominator) of each.
        index: [n], the number of each example's cluster, from 0.

    Returns:
        [`RESAMPLES`, sides]; the same at every call.
    """
    columns = [_columns(*side) for side in sides]
    return np.concatenate([np.stack([statistic(*side, counts) for side in columns], 1) for counts in _counts(index)])


def _columns(numerator: np.ndarray, denominator: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(numerator)
    return numerator.reshape(n, -1), denominator.reshape(n, -1)


def _counts(index: np.ndarray) -> Iterator[np.ndarray]:
    draw, groups = np.random.default_rng(0), int(index.max()) + 1
    most = max(1, _AT_ONCE // len(index))
    for start in range(0, RESAMPLES, most):
        b = min(most, RESAMPLES - start)
        drawn = draw.integers(0, groups, (b, groups)) + groups * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * groups).reshape(b, groups)[:, index].astype(np.float64)


def one_lost(statistic: Statistic, numerator: np.ndarray, denominator: np.ndarray, index: np.ndarray) -> float:
    """By how much the value changes where the answers of one cluster become wrong, which is to make its numerators 0.

    Arguments as those of `replicates`.

    Returns:
        the root mean square of the changes, of at most `_ASKED` clusters evenly spread, of those with a numerator.
    """
    numerator, denominator = _columns(numerator, denominator)
    right = np.unique(index[numerator.any(1)])
    asked = right[:: -(-len(right) // _ASKED)] if len(right) else right
    lost = (index == asked[:, None]).astype(np.float64)
    both = np.concatenate([numerator, np.zeros_like(numerator)]), np.concatenate([denominator, denominator])
    changes = statistic(*both, np.concatenate([1 - lost, lost], 1)) - whole(statistic, numerator, denominator)
    return float(np.sqrt(np.mean(changes**2))) if len(asked) else 0.0


def ends(values: np.ndarray, groups: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """The expanded percentile interval of replicates.

    Its tails are Phi(-sqrt(G / (G - 1)) t_{(1+confidence)/2, G-1}) in place of (1 - confidence) / 2, by which the interval of
    a mean is as wide as Student's where there are few clusters.

    Args:
        values: replicates; those that are NaN had no value.
        groups: G, clusters that were drawn from, 2 or more.
        confidence: in (0, 1).

    Returns:
        (low, high), or None where fewer than half of the replicates had a value.

    >>> [round(end) for end in ends(np.arange(2001.0), 10**6)]
    [50, 1950]

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015.
    """
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values):
        return None
    t = math.sqrt(groups / (groups - 1)) * student_quantile(0.5 + 0.5 * confidence, groups - 1)
    tail = 0.5 * math.erfc(t / math.sqrt(2))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
