"""Student's t distribution, by hand: numpy has no quantiles and nothing else needs scipy at run time."""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300


def _continued_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b) by Lentz's method; fast where x < (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    fraction = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        change = 1.0
        for coefficient in (even, odd):
            d = 1.0 + coefficient * d
            c = 1.0 + coefficient / c
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = c if abs(c) > _TINY else _TINY
            change = c * d
            fraction *= change
        if abs(change - 1.0) < 1e-15:
            return fraction
    raise ArithmeticError(f"the incomplete beta of a={a}, b={b}, x={x} did not converge")


def incomplete_beta(a: float, b: float, x: float, complement: float) -> float:
    """I_x(a, b) = integral_0^x u^(a-1) (1-u)^(b-1) du / B(a, b).

    Args:
        a, b: above 0.
        x: in [0, 1].
        complement: 1 - x, given apart so that an x near 1 loses no digits.

    Source: Didonato & Morris 1992; Lentz's evaluation of the continued fraction.
    """
    if x <= 0.0 or complement <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(complement)
    )
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, complement) / b


def student_tail(t: float, dof: float) -> float:
    """P(T > t) for t >= 0 with ``dof`` degrees of freedom: I_{dof/(dof+t^2)}(dof/2, 1/2) / 2."""
    square = t * t
    return 0.5 * incomplete_beta(0.5 * dof, 0.5, dof / (dof + square), square / (dof + square))


@lru_cache(maxsize=1024)
def student_quantile(p: float, dof: float) -> float:
    """The t with P(T <= t) = p.

    Args:
        p: in (0, 1).
        dof: degrees of freedom, above 0.

    Raises:
        ValueError: p or dof out of range.

    >>> round(student_quantile(0.975, 4), 4)
    2.7764
    """
    if not 0.0 < p < 1.0 or not dof > 0.0:
        raise ValueError(f"p must be in (0, 1) and dof above 0 but they are {p} and {dof}")
    tail = min(p, 1.0 - p)
    low, high = 0.0, 1.0
    while student_tail(high, dof) > tail:
        low, high = high, 2.0 * high
    # Bisection, not Newton: the tail falls monotonically, and 60 halvings are exact for any dof.
    while high - low > 4e-16 * high and high > 1e-300:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if student_tail(middle, dof) > tail else (low, middle)
    return math.copysign(0.5 * (low + high), p - 0.5)
