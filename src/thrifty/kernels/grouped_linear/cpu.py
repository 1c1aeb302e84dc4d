"""One product a group that has rows; also for precisions that CUDA's grouped product does not take."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """[rows, outputs]."""
    y = x.new_empty(len(x), weight.shape[1])
    for group, rows in _groups(ends):
        torch.mm(x[rows], weight[group].T, out=y[rows])
    return y


def outer(by_y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """[groups, outputs, inputs]; 0 for groups without rows."""
    found = x.new_zeros(len(ends), by_y.shape[1], x.shape[1])
    for group, rows in _groups(ends):
        torch.mm(by_y[rows].T, x[rows], out=found[group])
    return found


def _groups(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """(group, its rows) of those that have any."""
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            yield group, slice(start, end)
        start = max(start, end)
