"""Estimates that carry their error: what was estimated so far, beside what it took, mends what is estimated next. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

LAST = 8
"""Estimates that are looked back at: the machine may have become busy since."""
UNKNOWN = 1.6
"""How far off an estimate may be while fewer than `ENOUGH` have been seen, either way."""
ENOUGH = 3
LEAST = 1.15
"""How far off an estimate may always be."""


@final
@dataclass(frozen=True)
class Estimate:
    """Seconds that something will take: about so many, and up to so many."""

    seconds: float
    high: float

    def __str__(self) -> str:
        return f"about {self.seconds:.0f} s, up to {self.high:.0f}"


@final
@dataclass(frozen=True)
class Estimates:
    """(what was estimated, what it took) in seconds, in order.

    >>> busy = Estimates([(10.0, 20.0), (5.0, 10.0), (8.0, 17.6)])
    >>> Estimates([]).of(10.0), busy.scale, busy.of(10.0).seconds
    (Estimate(seconds=10.0, high=16.0), 2.0, 20.0)
    """

    seen: Sequence[tuple[float, float]] = ()

    @property
    def ratios(self) -> list[float]:
        return [took / estimated for estimated, took in self.seen[-LAST:] if estimated > 0 and took > 0]

    @property
    def scale(self) -> float:
        """Times as long as estimated that things take, the median of the last ones."""
        return statistics.median(self.ratios) if self.ratios else 1.0

    @property
    def error(self) -> float:
        """The factor by which about one in six exceeds the corrected estimate: a standard deviation of the logarithms."""
        found = [math.log(ratio / self.scale) for ratio in self.ratios]
        if len(found) < ENOUGH:
            return UNKNOWN
        return max(LEAST, min(UNKNOWN, math.exp(math.sqrt(statistics.fmean([x * x for x in found])))))

    def of(self, seconds: float) -> Estimate:
        """What something will take that is estimated at so many seconds by what its parts took."""
        value = seconds * self.scale
        return Estimate(value, value * self.error)
