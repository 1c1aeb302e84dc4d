"""The frontier as a picture of plain characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from thrifty.report.words import times
from thrifty.units import fixed


@final
@dataclass(frozen=True)
class Point:
    """One trial in the picture: its mark, its speedup, its drop."""

    mark: str
    speedup: float
    drop: float


def scatter(points: Sequence[Point], width: int = 60, height: int = 12, unit: str = "") -> str:
    """Speedup from left to right, on a logarithmic scale; the drop from top (none) to bottom.

    Marks that fall on one place are shown as ``+``.

    >>> print(scatter([Point("1", 1.0, 0.0), Point("2", 4.0, 1.5)], width=21, height=4, unit="pt"))
         0.00pt |1
                |
                |
         1.50pt |                    2
                +---------------------
                 1.00x           4.00x  speedup
    """
    points = [p for p in points if p.speedup > 0 and math.isfinite(p.speedup) and math.isfinite(p.drop)]
    if not points:
        return ""
    left, right = (end(math.log(p.speedup) for p in points) for end in (min, max))
    top, bottom = (end(p.drop for p in points) for end in (min, max))
    if fixed(top, 2) == fixed(bottom, 2):
        bottom = top  # what reads alike stands alike
    rows = [[" "] * width for _ in range(height)]
    for point in points:
        column = _place(math.log(point.speedup), left, right, width)
        row = rows[_place(point.drop, top, bottom, height)]
        row[column] = point.mark[:1] if row[column] == " " else "+"
    labels = {0: f"{fixed(top, 2)}{unit}"} | ({height - 1: f"{fixed(bottom, 2)}{unit}"} if bottom > top else {})
    lines = [f"{labels.get(i, ''):>11} |{''.join(row)}".rstrip() for i, row in enumerate(rows)]
    low, high = (f"{times(math.exp(end))}x" for end in (left, right))
    axis = f"{low}{high:>{max(0, width - len(low))}}" if right > left else low
    return "\n".join([*lines, f"{'':>11} +{'-' * width}", f"{'':>11}  {axis}  speedup"])


def _place(value: float, low: float, high: float, cells: int) -> int:
    return 0 if high <= low else round((value - low) / (high - low) * (cells - 1))
