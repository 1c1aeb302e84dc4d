"""Rows of a table whose integers a product multiplies by too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thrifty.numerics.modules import GroupedEmbedding
from thrifty.numerics.packing import unpack


class Rows(nn.Module):
    """Looks rows up in integers that are laid out as the product's own, so that they lie in the file once."""

    few_bits: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, table: GroupedEmbedding) -> None:
        super().__init__()
        self.dtype = table.dtype
        self.register_buffer("few_bits", unpack(table.packed, table.bits).reshape(*table.scale.shape, -1))
        self.register_buffer("scale", table.scale.unsqueeze(2))
        self.register_buffer("zero", table.zero.unsqueeze(2))

    def forward(self, ids: Tensor) -> Tensor:
        rows = (self.few_bits[ids].to(torch.float32) - self.zero[ids].to(torch.float32)) * self.scale[ids]
        return rows.flatten(-2).to(self.dtype)
