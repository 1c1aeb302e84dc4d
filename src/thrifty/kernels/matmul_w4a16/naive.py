"""The math of a product with weights of few bits, in torch's own operations: any device, any precision."""

from __future__ import annotations

import torch
from torch import Tensor


def product(x: Tensor, q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """y = x (s (q - z))^T, one scale s and one zero z for each group of inputs.

    Args:
        x: [..., inputs], floating point.
        q: uint8 [rows, inputs].
        scale: float32 [rows, groups]; inputs = groups * group.
        zero: uint8 [rows, groups].

    Returns:
        [..., rows] in x's precision; the weights are rounded to it before they multiply.

    >>> q, scale, zero = torch.tensor([[3, 5]]), torch.tensor([[0.5]]), torch.tensor([[4]])
    >>> product(torch.tensor([[2.0, 1.0]]), q, scale, zero).tolist()
    [[-0.5]]
    """
    return torch.nn.functional.linear(x, dequantized(q, scale, zero).to(x.dtype))


def dequantized(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What the numbers stand for: s (q - z), float32 [rows, inputs]."""
    grouped = q.float().reshape(*scale.shape, -1)
    return ((grouped - zero.float().unsqueeze(2)) * scale.unsqueeze(2)).flatten(1)
