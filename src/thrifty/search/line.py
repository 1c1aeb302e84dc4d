"""Search of one number on a logarithmic grid: bracket the best, then halve the gaps beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from thrifty.errors import ThriftyError
from thrifty.recipes.hyperparameters import Range

FACTOR = 4.0
"""From one value to the next, until the best stands between two others."""
FINEST = 1 / 8
"""Gap in exponents that is not halved any more: values 19% apart."""
FAILED = -math.inf
"""The quality of a value that could not be used: a training that diverged."""


class LineError(ThriftyError):
    """A number that no logarithmic grid can stand around."""


@final
@dataclass(frozen=True)
class Line:
    """A logarithmic grid around a number.

        value(e) = center * FACTOR^e;  e = 0, -1, 1, beyond an end that is best, halfway to the best's neighbors

    Where the range says `near_one`, 1 - value is what is multiplied.

    Args:
        name: of the hyperparameter.
        center: above 0; it is tried first.
        permitted: range of the values.

    Raises:
        LineError: the center is not above 0, or not below 1 where it is near 1.

    >>> line = Line("lr", 1e-3)
    >>> line.following({0.0: 0.5, -1.0: 0.4, 1.0: 0.6}), line.value(2.0)
    (2.0, 0.016)
    >>> line = Line("beta2", 0.999, Range(0, 1, open_high=True, near_one=True))
    >>> line.value(-1.0), line.value(1.0), line.value(2.0)
    (0.99975, 0.996, 0.984)
    """

    name: str
    center: float
    permitted: Range = Range(0, math.inf, open_low=True)

    def __post_init__(self) -> None:
        high = 1 if self.permitted.near_one else math.inf
        if not 0 < self.center < high:
            between = "between 0 and 1" if high == 1 else "above 0"
            raise LineError(f"{self.name} must be {between} to be searched on a logarithmic grid but is "
                            f"{self.center:g}: give the value to search around")

    def value(self, exponent: float) -> float:
        """The number at an exponent, to three digits (of 1 - value near 1) but for the center itself."""
        if not exponent:
            return self.center
        if self.permitted.near_one:
            return float(f"{1 - float(f'{(1 - self.center) * FACTOR**exponent:.3g}'):.12g}")
        return float(f"{self.center * FACTOR**exponent:.3g}")

    def following(self, known: Mapping[float, float]) -> float | None:
        """The exponent to try next.

        Args:
            known: {exponent: quality}, higher is better, `FAILED` where there is none.

        Returns:
            None where the best stands on the end of what is permitted, or no gap beside it is left to halve.
        """
        for exponent in (0.0, -1.0, 1.0):
            if exponent not in known and self.value(exponent) in self.permitted:
                return exponent
        at = best(known)
        if not inside(known):
            outward = 1 if at == max(known) and known[at] > FAILED else -1
            steps = (at + outward * step for step in (1.0, 0.5, 0.25, FINEST))
            return next((exponent for exponent in steps if self.value(exponent) in self.permitted), None)
        below, above = neighbors(known)
        wider = above - at > at - below or (above - at == at - below and known[above] > known[below])
        gaps = [(at, above), (below, at)] if wider else [(below, at), (at, above)]
        return next(((low + high) / 2 for low, high in gaps if high - low > FINEST), None)


def best(known: Mapping[float, float]) -> float:
    """The exponent of the highest quality, the middle one of those that are equal; the least where all failed.

    >>> best({-1.0: 0.8, 0.0: 0.9, 0.5: 0.9, 1.0: 0.9}), best({0.0: FAILED, 1.0: FAILED})
    (0.5, 0.0)
    """
    top = max(known.values())
    if top == FAILED:
        return min(known)
    equal = [exponent for exponent, quality in known.items() if quality == top]
    middles = [(min(some) + max(some)) / 2 for some in (equal, known)]  # of two, the one that is further inside
    return min(equal, key=lambda exponent: [abs(exponent - middle) for middle in middles])


def inside(known: Mapping[float, float]) -> bool:
    """Whether the best has a worse or equal value known on either side: only then is it an optimum that was found."""
    at = best(known)
    return known[at] > FAILED and min(known) < at < max(known)


def neighbors(known: Mapping[float, float]) -> tuple[float, float]:
    """The exponents next to the best, which must be inside."""
    at = best(known)
    return max(e for e in known if e < at), min(e for e in known if e > at)
