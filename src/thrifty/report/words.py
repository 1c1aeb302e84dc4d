"""Figures and foreign texts as words for a terminal."""

from __future__ import annotations

import math

from thrifty.studies.trial import QualityFigure, Ratio
from thrifty.units import fixed

NOT_MEASURED = "not measured"


def literal(text: object) -> str:
    """The text on one line, with whatever could steer a terminal (escapes, line ends, bidi marks) written out.

    >>> print(literal("prune[red]\\x1b[31m\\n"))
    prune[red]\\x1b[31m\\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def shortened(text: str, most: int = 1000) -> str:
    r"""A message of several lines, each as `literal` has it: its first lines, as many characters as a reader bears.

    >>> shortened("a\x1b[31m\nb"), len(shortened("x" * 5000))
    ('a\\x1b[31m\nb', 1003)
    """
    told = "\n".join(map(literal, text.split("\n")))
    return told if len(told) <= most else f"{told[:most]}..."


def significant(value: float, digits: int = 3) -> str:
    """A number with that many significant digits and no exponent where it is between 0.001 and a million.

    >>> significant(12345.6), significant(0.01234), significant(1e9), significant(-0.0)
    ('12346', '0.0123', '1e+09', '0')
    """
    if value == 0:
        return "0"
    if not math.isfinite(value) or not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def seconds(value: float | None) -> str:
    """A duration.

    >>> seconds(0.0106), seconds(63.2), seconds(7300), seconds(None)
    ('10.6 ms', '63.2 s', '2 h 02 min', 'not measured')
    """
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if value == 0:
        return "0 s"
    if value < 1e-3:
        return f"{significant(value * 1e6)} us"
    if value < 1:
        return f"{significant(value * 1e3)} ms"
    if value < 120 or math.isinf(value):
        return f"{significant(value)} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def scaled(value: float | None, unit: str) -> str:
    """A count with its unit and a decimal prefix.

    >>> scaled(1_234_567, "B"), scaled(3e12, "FLOP"), scaled(12, "B"), scaled(None, "B")
    ('1.23 MB', '3.00 TFLOP', '12 B', 'not measured')
    """
    if value is None or math.isnan(value):
        return NOT_MEASURED
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{significant(value / size)} {prefix}{unit}"
    return f"{value or 0:g} {unit}"


def ratio(found: Ratio | None) -> str:
    """A ratio with its interval; one without says that it was only screened.

    >>> ratio(Ratio(4.123, 3.9, 4.3567, "faster", 5)), ratio(Ratio(2.0, pairs=1)), ratio(None)
    ('4.12x [3.90, 4.36]', '2.00x [no interval]', 'not measured')
    """
    if found is None or found.value is None:
        return NOT_MEASURED
    if found.low is None or found.high is None:
        return f"{times(found.value)}x [no interval]"
    return f"{times(found.value)}x [{times(found.low)}, {times(found.high)}]"


def times(value: float) -> str:
    """A ratio's number: two decimals where that says enough."""
    return fixed(value, 2) if 0.1 <= abs(value) < 100 else significant(value)


def in_points(quality: QualityFigure) -> bool:
    """Whether the quality is a share of 1, so that its drop is told in points of a hundred."""
    return quality.higher_is_better and 0 <= quality.baseline <= 1


def drop(quality: QualityFigure | None) -> str:
    """The quality lost, with its interval."""
    if quality is None:
        return NOT_MEASURED
    value, low, high = (getattr(quality.drop, end) for end in ("value", "low", "high"))
    if in_points(quality):
        return f"{fixed(100 * value, 2)}pt [{fixed(100 * low, 2)}, {fixed(100 * high, 2)}]"
    return f"{fixed(value)} [{fixed(low)}, {fixed(high)}]"
