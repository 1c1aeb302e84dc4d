"""The math of a product of eight-bit tokens and rows, in torch's own operations: any device."""

from __future__ import annotations

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor, token: Tensor, row: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """y = t s (q_x q_w^T) + b, one t a token and one s a row of the weight.

    Args:
        x: int8 or float8 [tokens, inputs].
        weight: the same [rows, inputs].
        token: float32 [tokens].
        row: float32 [rows].
        dtype: of the result.
        bias: b, [rows], or none.

    Returns:
        [tokens, rows]; in float64 until the end, where sums of whole numbers are exact.

    >>> q = torch.tensor([[127, -127]], dtype=torch.int8)
    >>> product(q, q, torch.tensor([0.5]), torch.tensor([2.0]), torch.float32).tolist()
    [[32258.0]]
    """
    y = (x.double() @ weight.double().T) * token.double()[:, None] * row.double()
    return (y if bias is None else y + bias.double()).to(dtype)
