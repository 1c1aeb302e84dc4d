"""Stacks of matrices, one for each expert, whatever they are kept as."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn


class Held(nn.Module, abc.ABC):
    """Matrices [experts, outputs, inputs] that are not kept as floats; it stands where their parameter stood."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(experts, outputs, inputs)."""

    @abc.abstractmethod
    def matrices(self, chosen: Tensor | None = None) -> Tensor:
        """Float32 [..., outputs, inputs] of the experts chosen, of all in order where None."""

    @abc.abstractmethod
    def product(self, x: Tensor, ends: Tensor) -> Tensor:
        """As `grouped_linear`, without gradients of the matrices."""

    def __len__(self) -> int:
        return self.shape[0]


Stack = Tensor | Held
"""Matrices of experts."""


def matrices(stack: Stack, dtype: torch.dtype, chosen: Tensor | None = None) -> Tensor:
    """[..., outputs, inputs] of the experts chosen, of all in order where None.

    >>> matrices(torch.ones(3, 2, 4), torch.float32, torch.tensor([[2, 0]])).shape
    torch.Size([1, 2, 2, 4])
    """
    if isinstance(stack, Held):
        return stack.matrices(chosen).to(dtype)
    return (stack if chosen is None else stack[chosen]).to(dtype)
