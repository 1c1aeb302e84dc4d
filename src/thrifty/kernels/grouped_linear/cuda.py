"""torch's grouped product of bfloat16, which reads where groups end on the device."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLE = 8
"""Numbers of 16 bytes: what rows of an operand must begin at."""


def forward(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """[rows, outputs]."""
    outputs = weight.shape[1]
    x, weight = _padded(x, 1), _padded(_padded(weight, 2), 1)
    y = torch._grouped_mm(x, weight.transpose(1, 2), offs=ends.int())
    return y[:, :outputs].contiguous() if y.shape[1] != outputs else y


def outer(by_y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """[groups, outputs, inputs]; 0 for groups without rows, which the product itself may leave as the memory was."""
    outputs, inputs = by_y.shape[1], x.shape[1]
    found = torch._grouped_mm(_padded(by_y, 1).T, _padded(x, 1), offs=ends.int())[:, :outputs, :inputs]
    empty = ends.diff(prepend=ends.new_zeros(1)) == 0
    return torch.where(empty[:, None, None], found.new_zeros(()), found)


def _padded(x: Tensor, dim: int) -> Tensor:
    """The tensor with zeros up to a multiple, copied only where it has to be: a transposed weight is taken as it is."""
    more = -x.shape[dim] % MULTIPLE
    if more:
        shape = list(x.shape)
        shape[dim] = more
        return torch.cat([x, x.new_zeros(shape)], dim)
    return x if 1 in x.stride()[-2:] else x.contiguous()
