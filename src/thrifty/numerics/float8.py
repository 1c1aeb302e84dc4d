"""Rows of numbers in float8, a scale for each."""

from __future__ import annotations

from torch import Tensor

from thrifty.kernels.float8 import E4M3, LARGEST, to_float8
from thrifty.numerics.grid import TINY


def per_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row along the last dimension in e4m3, its largest number becoming the format's.

    s = max |x| / 448, q = round(x / s) to 3 bits of mantissa.

    Args:
        x: [..., features], any float dtype.

    Returns:
        (float8_e4m3fn [..., features], float32 [..., 1]); |x - s q| <= max(|x| / 16, s / 1024).

    >>> import torch
    >>> q, scale = per_row(torch.tensor([[2.0, -896.0, 2.2]]))
    >>> q.tolist(), scale.tolist()
    ([[1.0, -448.0, 1.125]], [[2.0]])

    Source: "FP8 Formats for Deep Learning", Micikevicius et al. 2022, arXiv:2209.05433.
    """
    scale = (x.float().abs().amax(-1, keepdim=True) / LARGEST[E4M3]).clamp_min(TINY)
    return to_float8(x, scale, E4M3), scale
