"""What a chosen model may use, as people write it: ``latency<=2ms, bytes<=40%, throughput>=500/s``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from thrifty.errors import ThriftyError
from thrifty.units import NUMBER, seconds, size

MOST = ("latency", "bytes", "memory", "drop")
"""What is to be small."""
LEAST = ("throughput",)
"""What is to be large."""
UNITS = {"latency": "2ms, or 50% of the model as it is", "bytes": "40MB, or 25%", "memory": "64MB, or 50%",
         "drop": "1pt, or 0.01 in the quality's unit", "throughput": "500/s, or 200%"}


@final
@dataclass(frozen=True)
class Limit:
    """A limit on one thing.

    Args:
        what: of `MOST` or `LEAST`.
        value: in seconds, bytes, units of quality, or requests per second; a share of the model's own where relative.
        relative: whether it is such a share.
    """

    what: str
    value: float
    relative: bool = False

    def absolute(self, own: float) -> float:
        """The limit for a model that has, or uses, so much as it is."""
        return self.value * abs(own) if self.relative else self.value

    def met(self, used: float, own: float, tolerance: float = 0.0) -> bool:
        """Whether a measured value keeps to it."""
        most = self.absolute(own)
        if self.what in LEAST:
            return used >= most * (1 - tolerance)
        return used <= most * (1 + (0.0 if self.what == "drop" else tolerance)) + 1e-12


def read(text: str) -> tuple[Limit, ...]:
    """Limits from their text.

    Raises:
        ThriftyError: it cannot be read: an unknown quantity, a wrong unit, a comparison the wrong way round.

    >>> read("latency<=2ms, bytes <= 40%")
    (Limit(what='latency', value=0.002, relative=False), Limit(what='bytes', value=0.4, relative=True))
    """
    found = [_one(part.strip()) for part in text.split(",")]
    twice = {limit.what for limit in found if sum(other.what == limit.what for other in found) > 1}
    if twice:
        raise ThriftyError(f"{min(twice)} is limited twice in {text!r}: keep one")
    return tuple(found)


def _one(text: str) -> Limit:
    match = re.fullmatch(r"([a-z]+)\s*(<=|>=)\s*(.+)", text)
    if not match:
        raise ThriftyError(f"{text!r} is not a limit: write latency<=2ms, bytes<=40%, memory<=64MB, throughput>=500/s or "
                           "drop<=1pt")
    what, sign, amount = match[1], match[2], match[3].strip()
    if what not in (*MOST, *LEAST):
        raise ThriftyError(f"{what!r} cannot be limited; these can: {', '.join((*MOST, *LEAST))}")
    if (sign == ">=") != (what in LEAST):
        raise ThriftyError(f"{text!r} has the wrong direction: {what} is limited by {'>=' if what in LEAST else '<='}")
    if share := re.fullmatch(rf"{NUMBER}\s*%", amount):
        if not float(share[1]) > 0 or what == "drop":
            raise ThriftyError(f"{text!r}: {what} is written {UNITS[what]}")
        return Limit(what, float(share[1]) / 100, relative=True)
    return Limit(what, _amount(what, amount, text))


def _amount(what: str, amount: str, text: str) -> float:
    says = f"{text!r}: {what} is written {UNITS[what]}"
    try:
        if what == "latency":
            return seconds(amount)
        if what in ("bytes", "memory"):
            return float(size(amount))
    except ThriftyError as error:
        raise ThriftyError(says) from error
    match = re.fullmatch(rf"{NUMBER}\s*{'/s' if what == 'throughput' else '(?:pt)?'}", amount)
    if not match or not float(match[1]) > 0:
        raise ThriftyError(says)
    return float(match[1]) / (100 if amount.endswith("pt") else 1)
