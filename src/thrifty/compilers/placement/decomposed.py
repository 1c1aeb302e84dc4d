"""Layers on static grids in ``quantized_decomposed``, operators of torch's own that OpenVINO and Inductor both fuse."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, nn

from thrifty.compilers.placement.layers import Unsmoothed
from thrifty.numerics.grid import UINT8_MAX
from thrifty.numerics.modules import QuantConv, QuantLinear


def rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    """scale * (clamp(round(x / scale) + zero, 0, 255) - zero): in OpenVINO one FakeQuantize of 256 levels."""
    ops: Any = torch.ops.quantized_decomposed
    q = ops.quantize_per_tensor.default(x, scale, zero, 0, UINT8_MAX, torch.uint8)
    result: Tensor = ops.dequantize_per_tensor.default(q, scale, zero, 0, UINT8_MAX, torch.uint8)
    return result


@final
class Edge(nn.Module):
    """Rounds a tensor to 256 values."""

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.scale, self.zero = float(scale), int(zero)

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, self.scale, self.zero)


@final
class Convolution(nn.Module):
    """conv(x_q, W) + b.

    Args:
        conv: whose geometry and bias it takes.
        edge: gives x_q of x.
        weight: gives W of nothing.
    """

    bias: Tensor

    def __init__(self, conv: QuantConv, edge: nn.Module, weight: nn.Module) -> None:
        super().__init__()
        self.convolve, self.edge, self.weight = conv.convolve, edge, weight
        self.register_buffer("bias", conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(self.edge(x), self.weight(), self.bias)


@final
class StaticLinear(nn.Module):
    """x_q W^T + b, one grid for x / smooth whatever the token.

    Args:
        linear: with a grid.
        weight: gives W of nothing.
    """

    bias: Tensor | None

    def __init__(self, linear: QuantLinear, weight: nn.Module) -> None:
        super().__init__()
        assert linear.x_scale is not None and linear.x_zero is not None
        self.unsmoothed, self.edge, self.weight = Unsmoothed(linear.smooth), Edge(linear.x_scale, linear.x_zero), weight
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.edge(self.unsmoothed(x.float())), self.weight(), self.bias).to(x.dtype)
