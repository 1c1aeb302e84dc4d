"""Integer grids: how a real number becomes eight bits and what it is worth afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

INT8_MAX = 127
"""Weights and tokens use [-127, 127]: a symmetric grid needs no zero point."""
UINT8_MAX = 255
TINY = 1e-12
"""The least scale: it keeps rows of zeros from dividing by zero."""


@final
@dataclass(frozen=True)
class Affine:
    """The grid of a whole tensor: x is worth scale * (q - zero) with q in 0..255.

    Args:
        scale: step, in the unit of x; above 0.
        zero: the integer that is worth 0.
    """

    scale: float
    zero: int

    @staticmethod
    def of(low: float, high: float) -> Affine:
        """The grid over [min(low, 0), max(high, 0)]: zero is on the grid, since convolutions pad with it.

        >>> Affine.of(-1.0, 1.55)
        Affine(scale=0.01, zero=100)
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / UINT8_MAX, TINY)
        return Affine(round(scale, 12) if scale > 1e-6 else scale, min(UINT8_MAX, max(0, round(-low / scale))))


def affine(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Round x to the grid of `Affine` and back: scale * (clamp(round(x / scale) + zero, 0, 255) - zero).

    Args:
        x: of any shape, float32.
        scale, zero: scalars, float32.
    """
    return on_grid(x, scale, zero) * scale


def on_grid(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The same in steps: whole numbers, 0 where x is."""
    return torch.clamp(torch.round(x / scale) + zero, 0, UINT8_MAX) - zero


def per_row(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Integer weights with one symmetric scale for each row (output channel).

    q = round(w / s), s = max|w| / (2^(b-1) - 1) over everything but the first dimension.

    Args:
        weight: [rows, ...], any float dtype.
        bits: b; fewer than 8 are held in eight all the same.

    Returns:
        (int8 of weight's shape, contiguous, since oneDNN's integer products read it so whatever its strides; float32 [rows]);
        |w - s q| <= s / 2.

    >>> q, s = per_row(torch.tensor([[1.0, -127.0], [0.0, 0.0]]))
    >>> q.tolist(), [round(x, 3) for x in s.tolist()]
    ([[1, -127], [0, 0]], [1.0, 0.0])
    """
    flat = weight.detach().float().flatten(1).contiguous()
    most = 2 ** (bits - 1) - 1
    scale = (flat.abs().amax(1) / most).clamp_min(TINY)
    q = torch.round(flat / scale[:, None]).clamp(-most, most)
    return q.to(torch.int8).reshape(weight.shape), scale


def rows(q: Tensor, scale: Tensor) -> Tensor:
    """The float32 weights that `per_row`'s integers stand for."""
    return q.float() * scale.reshape(-1, *([1] * (q.dim() - 1)))


def per_group(weight: Tensor, bits: int, group: int, ratio: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Scales and zeros of asymmetric grids, one for each group of weights along the inputs.

    s = r (max(w, 0) - min(w, 0)) / (2^b - 1), z = round(-r min(w, 0) / s), so that 0 is on every grid.

    Args:
        weight: [rows, inputs], any float dtype.
        bits: of a weight.
        group: weights a group; divides the inputs.
        ratio: r, by which both extremes are clipped: a number or [rows, groups].

    Returns:
        (scale float32 [rows, groups], above 0; zero uint8 [rows, groups]).
    """
    grouped = weight.detach().float().reshape(len(weight), -1, group)
    low, high = grouped.amin(2).clamp_max(0) * ratio, grouped.amax(2).clamp_min(0) * ratio
    scale = ((high - low) / (2**bits - 1)).clamp_min(TINY)
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1).to(torch.uint8)


def to_group(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest whole numbers on such grids: q = clamp(round(w / s) + z, 0, 2^b - 1), uint8 [rows, inputs]."""
    grouped = weight.float().reshape(*scale.shape, -1)
    q = torch.round(grouped / scale.unsqueeze(2)) + zero.unsqueeze(2)
    return q.clamp(0, 2**bits - 1).to(torch.uint8).flatten(1)


def from_group(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The float32 weights that they stand for: w = s (q - z).

    >>> w = torch.tensor([[0.0, 1.6, -1.4, 0.25]])
    >>> s, z = per_group(w, bits=4, group=4)
    >>> [round(x, 3) for x in from_group(to_group(w, s, z, bits=4), s, z)[0].tolist()]
    [0.0, 1.6, -1.4, 0.2]
    """
    grouped = q.float().reshape(*scale.shape, -1)
    return ((grouped - zero.float().unsqueeze(2)) * scale.unsqueeze(2)).flatten(1)


def per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric integers for each row along the last dimension, still stored as floats.

    Args:
        x: [..., features].

    Returns:
        (integers in [-127, 127] as float32 [..., features], float32 [..., 1]).

    Paper: "ZeroQuant", Yao et al. 2022, arXiv:2206.01861 (token-wise activations).

    >>> q, scale = per_token(torch.tensor([[1.0, -2.0]]))
    >>> q.tolist(), round(float(scale), 5)
    ([[64.0, -127.0]], 0.01575)
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp_min(TINY) / INT8_MAX
    return torch.round(x / scale), scale
