"""Durations, sizes and other values as people write them."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping

from thrifty.errors import ThriftyError

NUMBER = r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)"
"""A positive decimal number, as a group of a regular expression."""
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9,
          "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class UnitError(ThriftyError):
    """A text that is no duration or size."""


def seconds(text: str | float) -> float:
    """Read a duration: "200us", "5ms", "1.5s", "5m", "2h"; a bare number is in seconds.

    Raises:
        UnitError: it is not one, or not above 0.

    >>> seconds("5m"), seconds("0.5ms"), seconds(3)
    (300.0, 0.0005, 3.0)
    """
    return _scaled(text, _SECONDS, "a duration is written 5ms, 1.5s, 5m or 2h")


def size(text: str | float) -> int:
    """Read a size: "500kB", "1.5MB", "2MiB"; a bare number is in bytes.

    Raises:
        UnitError: it is not one, or not above 0.

    >>> size("1.5MB"), size("2KiB")
    (1500000, 2048)
    """
    return int(_scaled(text, _BYTES, "a size is written 500kB, 1.5MB or 2MiB"))


def fixed(value: float, digits: int = 4, sign: str = "-") -> str:
    """A number with so many decimals; what rounds to zero has no sign.

    Args:
        value: the number.
        digits: decimals.
        sign: "+" for one before positive numbers too.

    >>> fixed(0.98765), fixed(-0.00001), fixed(0.004, 2, "+"), fixed(0.25, 2, "+")
    ('0.9877', '0.0000', '0.00', '+0.25')
    """
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text


def plainly(value: object) -> str:
    """A value as a person would write it: no brackets, quotes or names of types.

    >>> plainly({"device": "cpu", "memory": None}), plainly(("a", "b")), plainly(()), plainly(True), plainly(0.5)
    ('device cpu, memory none', 'a, b', 'none', 'yes', '0.5')
    """
    match value:
        case None | "" | () | []:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case Mapping():
            return ", ".join(f"{name} {plainly(each)}" for name, each in value.items()) or "none"
        case list() | tuple() | set() | frozenset():
            return ", ".join(map(plainly, value)) or "none"
        case enum.Enum():
            return plainly(value.value)
    return str(value)


def _scaled(text: str | float, units: Mapping[str, float], says: str) -> float:
    match = re.fullmatch(rf"\s*{NUMBER}\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2] not in units or not 0 < float(match[1]) * units[match[2]] < math.inf:
        raise UnitError(f"{says}, and is above 0, but here is {str(text)!r}")
    return float(match[1]) * units[match[2]]
