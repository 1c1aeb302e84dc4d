"""Experts' matrices in few bits, dequantized where they are used."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from thrifty.kernels.grouped_integers import grouped_integers
from thrifty.kernels.grouped_linear.held import Held
from thrifty.numerics.grouped import Grouped
from thrifty.numerics.packing import pack, unpack


@final
class PackedExperts(Held):
    """w = s (q - z), one scale s and one zero z for each group of an expert's output channel.

    Args:
        found: without ``smooth``, of all experts' matrices one below the other, [experts * outputs, inputs].
        experts: how many there are.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, found: Grouped, experts: int) -> None:
        super().__init__()
        self.bits, self.inputs = found.bits, found.q.shape[1]
        for name, tensor in (("packed", pack(found.q, found.bits)), ("scale", found.scale), ("zero", found.zero)):
            self.register_buffer(name, tensor.reshape(experts, -1, tensor.shape[1]))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.scale.shape[0], self.scale.shape[1], self.inputs

    @property
    def numbers(self) -> int:
        """Weights that they stand for."""
        experts, outputs, inputs = self.shape
        return experts * outputs * inputs

    def matrices(self, chosen: Tensor | None = None) -> Tensor:
        packed, scale, zero = ((self.packed, self.scale, self.zero) if chosen is None else
                               (self.packed[chosen], self.scale[chosen], self.zero[chosen]))
        grouped = unpack(packed, self.bits).float().reshape(*scale.shape, -1)
        return ((grouped - zero.float().unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(-2)

    @torch.no_grad()
    def product(self, x: Tensor, ends: Tensor) -> Tensor:
        return grouped_integers(x, self.packed, self.scale, self.zero, ends, self.bits,
                                lambda expert: self.matrices(ends.new_tensor(expert)))
