"""Layers as OpenVINO's low-precision transformations find them.

What is rounded to a static grid is a FakeQuantize; weights are integers times a scale, and stay integers in the file.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from thrifty.compilers.placement.decomposed import Convolution, Edge, StaticLinear, rounded
from thrifty.compilers.placement.groups import by_row, dequantized
from thrifty.compilers.placement.layers import RowWeight, Unsmoothed, entry, exchanged, peaks
from thrifty.numerics.grid import INT8_MAX, rows
from thrifty.numerics.modules import GroupedLinear, QuantConv, QuantLinear

MIDDLE = 128
"""Of unsigned bytes: where zero lies."""


def placed(model: nn.Module) -> nn.Module:
    """Exchange integer modules for what the low-precision transformations look for."""
    return exchanged(
        model, edge=Edge, conv=lambda conv: Convolution(conv, entry(conv, Edge), _weight(conv)),
        on_grid=lambda linear: StaticLinear(linear, _weight(linear)), by_token=_Linear, grouped=_Grouped,
    )


def _weight(layer: QuantConv | QuantLinear) -> RowWeight:
    return RowWeight(layer.weight, layer.scale, rows)


@final
class _Linear(nn.Module):
    """t * ((s_w q_w) (u - 128)) + b, u = 128 + round(x / smooth / t), t the token's step.

    The rounding is a FakeQuantize whose grid, the whole numbers, is static; so the product runs in the integer kernel of
    static activations. OpenVINO's own dynamic quantization is slower, and groups tokens' features by a rule of its own.
    Where several layers read one tensor, OpenVINO finds that they round it alike and does it once. The kernel takes unsigned
    bytes as they are and shifts signed ones itself; what 128 adds to every output is a bias, which costs nothing.
    """

    shift: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        self.unsmoothed, self.weight = Unsmoothed(linear.smooth), _weight(linear)
        self.register_buffer("shift", -MIDDLE * linear.weight.sum(1) * linear.scale)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.unsmoothed(x.float())
        peak = peaks(flat)
        u = rounded(flat * (INT8_MAX / peak) + MIDDLE, 1.0, 0)
        y = (nn.functional.linear(u, self.weight()) + self.shift) * (peak / INT8_MAX)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@final
class _Grouped(nn.Module):
    """Integers less their zeros, times a scale, reshaped: what the runtime's compressed products are recognized by.

    Under bfloat16 the product, written in float32, still runs in bfloat16. There it forgets the last of an odd number of
    inputs (2026.4): rows of one group are given one more, whose weight is 0.
    """

    bias: Tensor | None

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        q = linear.integers()
        self.odd = linear.in_features % 2 == 1 == linear.scale.shape[1]
        if self.odd:
            q = torch.cat([q, linear.zero], 1)
        self.shape = (linear.out_features, -1)
        self.unsmoothed, self.held = Unsmoothed(linear.smooth), by_row(q, linear.scale, linear.zero)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantized(self.held.few_bits, self.held.scale, self.held.zero).reshape(self.shape)
        y = self.unsmoothed(x.float())
        y = nn.functional.pad(y, (0, 1)) if self.odd else y
        return nn.functional.linear(y, weight, self.bias).to(x.dtype)
