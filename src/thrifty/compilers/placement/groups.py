"""Whole numbers in groups, each group with a scale and a zero, in operators that every backend has."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from thrifty.kernels.grouped_linear import grouped_linear
from thrifty.kernels.grouped_linear.held import Held
from thrifty.numerics.experts import PackedExperts
from thrifty.numerics.grid import from_group
from thrifty.numerics.modules import GroupedEmbedding
from thrifty.numerics.packed import PackedWeight
from thrifty.numerics.packing import unpack


@final
class Groups(nn.Module):
    """Whole numbers, and scales and zeros of their groups, laid out as what reads them takes them."""

    few_bits: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, few_bits: Tensor, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.register_buffer("few_bits", few_bits)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)


def by_row(q: Tensor, scale: Tensor, zero: Tensor) -> Groups:
    """[rows, groups, group], scales and zeros [rows, groups, 1].

    Args:
        q: uint8 [rows, columns] or [rows, groups, group].
        scale: float32 [rows, groups].
        zero: uint8 [rows, groups].
    """
    return Groups(q.reshape(*scale.shape, -1), scale.unsqueeze(2), zero.unsqueeze(2))


def dequantized(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """s (q - z), float32; scales and zeros are broadcast."""
    return (q.float() - zero.float()) * scale


def joined(q: Tensor, bits: int) -> Tensor:
    """Up to four bits, two numbers in a byte: b_j = q_j + 16 q_(j + n / 2) along the last dimension.

    An odd n, and more bits, stay a number in a byte.

    >>> joined(torch.tensor([[1, 2, 15, 0]]), 4).tolist(), joined(torch.tensor([[1, 2, 15]]), 4).tolist()
    ([[241, 2]], [[1, 2, 15]])
    """
    if bits > 4 or q.shape[-1] % 2:
        return q
    low, high = q.chunk(2, -1)
    return low + 16 * high


def parted(b: Tensor, n: int) -> tuple[Tensor, ...]:
    """The n numbers that `joined` joined, all of them or their two halves.

    Computed in floats: not every backend has shifts, and where it has, floats vectorize and shifts do not.

    Args:
        b: its bytes, as floats.
        n: numbers along the last dimension.

    >>> [x.tolist() for x in parted(torch.tensor([[241.0, 2.0]]), 4)]
    [[[1.0, 2.0]], [[15.0, 0.0]]]
    """
    if b.shape[-1] == n:
        return (b,)
    high = torch.floor(b * (1 / 16))
    return b - 16 * high, high


@final
class Halves(nn.Module):
    """A matrix of few bits, its rows `joined`."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        q = unpack(packed.packed, packed.bits)
        self.columns = q.shape[1]
        self.held = Groups(joined(q, packed.bits), packed.scale.clone(), packed.zero.clone())

    def forward(self) -> Tensor:
        q = torch.cat(parted(self.held.few_bits.float(), self.columns), 1)
        return from_group(q, self.held.scale, self.held.zero)


@final
class HalvedExperts(Held):
    """Experts' matrices of few bits, their rows `joined`."""

    few_bits: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, packed: PackedExperts) -> None:
        super().__init__()
        experts, outputs, self.columns = packed.shape
        q = unpack(packed.packed, packed.bits).reshape(-1, self.columns)
        self.register_buffer("few_bits", joined(q, packed.bits).reshape(experts, outputs, -1))
        self.register_buffer("scale", packed.scale.clone())
        self.register_buffer("zero", packed.zero.clone())

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.scale.shape[0], self.scale.shape[1], self.columns

    def matrices(self, chosen: Tensor | None = None) -> Tensor:
        few, scale, zero = ((self.few_bits, self.scale, self.zero) if chosen is None else
                            (self.few_bits[chosen], self.scale[chosen], self.zero[chosen]))
        q = torch.cat(parted(few.float(), self.columns), -1).reshape(*scale.shape, -1)
        return ((q - zero.float().unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(-2)

    def product(self, x: Tensor, ends: Tensor) -> Tensor:
        return grouped_linear(x, self.matrices().to(x.dtype), ends)


@final
class Rows(nn.Module):
    """Looks rows up in integers that are laid out as the product's own, so that they lie in the file once."""

    def __init__(self, table: GroupedEmbedding) -> None:
        super().__init__()
        self.dtype = table.dtype
        self.held = by_row(unpack(table.packed, table.bits), table.scale, table.zero)

    def forward(self, ids: Tensor) -> Tensor:
        rows = dequantized(self.held.few_bits[ids], self.held.scale[ids], self.held.zero[ids])
        return rows.flatten(-2).to(self.dtype)
