"""What an algorithm decides for the weight of one product: whole numbers on grids over groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from thrifty.numerics.grid import from_group, per_group, to_group


@final
@dataclass(frozen=True)
class Grouped:
    """The weight W as whole numbers: W * smooth is near s (q - z).

    Args:
        q: uint8 [out, in], in 0..2^bits - 1.
        scale: s, float32 [out, groups], above 0.
        zero: z, uint8 [out, groups].
        bits: 3, 4 or 8.
        smooth: float32 [in], above 0; None where columns are as they were.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    smooth: Tensor | None = None

    def dequantized(self) -> Tensor:
        """float32 [out, in]: what stands for W, with ``smooth`` taken out."""
        weight = from_group(self.q, self.scale, self.zero)
        return weight if self.smooth is None else weight / self.smooth


def rtn(weight: Tensor, bits: int, group: int, ratio: float | Tensor = 1.0, smooth: Tensor | None = None) -> Grouped:
    """Round to nearest: every weight to the nearest number of its group's grid, which reaches to the group's extremes.

    Args:
        weight: [out, in].
        bits: of a weight.
        group: weights a scale; divides in.
        ratio: by which the extremes are clipped; a number or [out, groups].
        smooth: [in], above 0, by which the columns are multiplied first.

    >>> import torch
    >>> round(float((rtn(torch.tensor([[0.0, 0.8, 1.5, 0.31]]), 4, 4).dequantized()).sum()), 2)
    2.6
    """
    scaled = weight.detach().float() if smooth is None else weight.detach().float() * smooth
    scale, zero = per_group(scaled, bits, group, ratio)
    return Grouped(to_group(scaled, scale, zero, bits), scale, zero, bits, smooth)


def output_error(weight: Tensor, other: Tensor, moment: Tensor) -> float:
    """Squared error of a product's outputs when another weight stands for its own, summed over what was read.

    ||(W - W') X||_F^2 = tr((W - W') X X^T (W - W')^T).

    Args:
        weight, other: [out, in].
        moment: X X^T, float64 [in, in].
    """
    lost = (weight - other).to(moment)
    return float(((lost @ moment) * lost).sum())
