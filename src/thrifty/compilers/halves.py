"""Matrices of few bits in operators that every backend has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thrifty.numerics.grid import from_group
from thrifty.numerics.packed import PackedWeight
from thrifty.numerics.packing import unpack


class Halves(nn.Module):
    """Up to four bits, a byte holds columns j and j + n / 2 of a row: b = q_j + 16 q_(j + n / 2), taken apart in floats.

    Not every backend has shifts. An odd number of columns, and more bits, are held in bytes.
    """

    few_bits: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, held: PackedWeight) -> None:
        super().__init__()
        q = unpack(held.packed, held.bits)
        self.halves = held.bits <= 4 and q.shape[1] % 2 == 0
        if self.halves:
            low, high = q.chunk(2, 1)
            q = low + 16 * high
        self.register_buffer("few_bits", q)
        self.register_buffer("scale", held.scale.clone())
        self.register_buffer("zero", held.zero.clone())

    def forward(self) -> Tensor:
        q = self.few_bits.float()
        if self.halves:
            high = torch.floor(q / 16)
            q = torch.cat([q - 16 * high, high], 1)
        return from_group(q, self.scale, self.zero)
