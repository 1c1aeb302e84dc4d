"""Positions to look at where looking at all of them would cost too much."""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0.6180339887498949
"""The fractional part of the golden ratio, whose multiples fall apart most evenly."""


def scattered(n: int, most: int) -> Tensor:
    """At most ``most`` of n positions, evenly spread and without a period.

    floor((i + frac(i g)) n / most), i = 0..most - 1, g the golden ratio: one in each of ``most`` equal parts, at places
    within the parts that never fall into step. A constant step would: it is a multiple of many tensors' widths, and then
    sees one column of every image, or one token of every text.

    Args:
        n: how many there are, 0 or more.
        most: how many to take, 1 or more.

    Returns:
        [min(n, most)] int64, ascending.

    >>> scattered(100, 4).tolist(), scattered(3, 4).tolist()
    ([0, 40, 55, 96], [0, 1, 2])

    Source: Kronecker sequences; Kuipers & Niederreiter, "Uniform distribution of sequences", 1974, chapter 2.
    """
    if n <= most:
        return torch.arange(n)
    part = torch.arange(most, dtype=torch.float64)
    return ((part + part * GOLDEN % 1) * (n / most)).long()
