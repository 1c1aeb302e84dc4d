"""A single server with Poisson arrivals, driven by the durations of real calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_SAMPLES = 1000
"""Calls below which a p99 is refused: it would rest on fewer than ten of them."""

_ARRIVALS = 20_000


def latencies(service: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Waiting and service of each request, first come first served.

    Lindley's recursion W_0 = 0, W_i = max(0, W_{i-1} + S_{i-1} - A_i) in closed form: with C the running sum
    of S_{i-1} - A_i, W_i = C_i - min_{j <= i} C_j.

    Args:
        service: [n] seconds.
        gaps: [n] seconds from the request before; the first is not used.

    Returns:
        [n] seconds.

    >>> latencies(np.array([2.0, 2.0, 2.0]), np.array([0.0, 1.0, 9.0])).tolist()
    [2.0, 3.0, 2.0]

    Source: Lindley, "The theory of queues with a single server", 1952.
    """
    steps = np.concatenate([[0.0], service[:-1] - gaps[1:]])
    walk = np.cumsum(steps)
    answered: np.ndarray = walk - np.minimum.accumulate(walk) + service
    return answered


def highest_rate(service: Sequence[float], bound: float, seed: int = 0) -> float | None:
    """The highest rate of Poisson arrivals whose p99 latency stays within ``bound``.

    The queue is simulated on the durations of real calls, in their real order (slow spells stay together),
    repeated to 20,000 arrivals; the arrivals are one stream of unit exponentials stretched to each rate, so
    that latency falls with the rate and bisection is sound.

    Args:
        service: [n] seconds a call, n >= 1,000.
        bound: seconds at p99.
        seed: of the arrivals.

    Returns:
        requests per second; None where the bound is missed even with nobody waiting.

    Raises:
        ValueError: there are fewer than 1,000 calls.

    >>> 0.0 < highest_rate([0.01] * 1000, bound=0.1) < 100.0
    True
    """
    if len(service) < LEAST_SAMPLES:
        raise ValueError(f"a p99 needs {LEAST_SAMPLES} calls or more but there are {len(service)}")
    calls = np.resize(np.asarray(service, float), max(_ARRIVALS, len(service)))
    if np.percentile(calls, 99) > bound:
        return None
    gaps = np.random.default_rng(seed).exponential(1.0, len(calls))
    # Beyond 1 / mean service the queue grows without end: a finite stream could hide it.
    low, high = 0.0, 1.0 / float(calls.mean())
    for _ in range(40):
        rate = 0.5 * (low + high)
        within = np.percentile(latencies(calls, gaps / rate), 99) <= bound
        low, high = (rate, high) if within else (low, rate)
    return low or None
