"""Layers as Inductor's patterns find them, which oneDNN's integer kernels stand behind, and loops that it generates."""

from __future__ import annotations

import copy
import math
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.compilers.placement.decomposed import Convolution, Edge, StaticLinear
from thrifty.compilers.placement.groups import by_row, joined, parted
from thrifty.compilers.placement.layers import RowWeight, Unsmoothed, entry, exchanged, peaks
from thrifty.engines.instructions import saturates
from thrifty.numerics.grid import INT8_MAX, UINT8_MAX
from thrifty.numerics.modules import GroupedLinear, QuantConv, QuantLinear
from thrifty.numerics.patches import Geometry
from thrifty.numerics.ranges import full_range

FEW_ROWS = 4
"""Rows up to which a product with weights of few bits dequantizes them for every row, in registers."""


def placed(model: nn.Module) -> nn.Module:
    """Exchange integer modules for what Inductor's patterns find."""
    return exchanged(
        model, edge=Edge, conv=_conv, on_grid=lambda linear: StaticLinear(linear, _weight(linear.weight, linear.scale)),
        by_token=_by_token, grouped=_Grouped,
    )


def _weight(q: Tensor, scale: Tensor) -> RowWeight:
    ops: Any = torch.ops.quantized_decomposed
    return RowWeight(q, scale, lambda *parts: ops.dequantize_per_channel.default(*parts, 0, -INT8_MAX, INT8_MAX, torch.int8),
                     zeros=torch.int64)


def _conv(conv: QuantConv) -> nn.Module:
    if conv.weight.dim() == 3:
        return _Sequences(conv)
    if conv.groups != 1 or conv.weight.shape[1] != 1:
        return Convolution(conv, entry(conv, Edge), _weight(conv.weight, conv.scale))
    # Under free dimensions oneDNN's wrapper misreads the layout of a single input channel (errors of 0.8 of the
    # output's norm, torch 2.13): a second one, of zeros, costs nothing that can be measured.
    wider = nn.ConstantPad3d((0, 0, 0, 0, 0, 1), 0.0)
    # What is padded may be rounded already: rounding again on the same grid changes nothing and is what is matched.
    return Convolution(conv, nn.Sequential(wider, Edge(conv.x_scale, conv.x_zero)), _weight(wider(conv.weight), conv.scale))


@final
class _Sequences(nn.Module):
    """A convolution over sequences as one over images of height 1.

    Torch 2.13 takes the kernel's width for 1 when it infers the shape of an integer convolution over sequences, so that what
    follows is compiled for another length.
    """

    def __init__(self, conv: QuantConv) -> None:
        super().__init__()
        at, flat = Geometry.of(conv), copy.deepcopy(conv)
        flat.weight, flat.rounds = conv.weight.unsqueeze(2), True  # the rounding has to stand next to the product
        flat.stride, flat.padding, flat.dilation = at.stride, at.padding, at.dilation
        self.images = _conv(flat)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.images(x.unsqueeze(2)).squeeze(2)
        return result


def _by_token(linear: QuantLinear) -> nn.Module:
    """The product that this processor has a kernel for.

    Without VNNI, torch._int_mm is a plain loop: 128 x 384 by 384 x 1536 takes 83 ms, and 1.6 ms in oneDNN's kernel for unsigned
    tokens. That kernel saturates if weights have eight bits, so these keep the loop, which is exact.
    """
    return _OnOneGrid(linear) if saturates() and not full_range(linear) else _Linear(linear)


@final
class _OnOneGrid(nn.Module):
    """t * (q s_w q_w^T) + b with q = round(x / smooth / t): one grid of step 1, which Inductor takes for a static one."""

    bias: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        self.unsmoothed, self.edge = Unsmoothed(linear.smooth), Edge(torch.tensor(1.0), torch.tensor(INT8_MAX + 1))
        self.weight = _weight(linear.weight, linear.scale)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.unsmoothed(x.float())
        token = peaks(y) / INT8_MAX
        y = nn.functional.linear(self.edge(y * (1 / token)), self.weight()) * token
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@final
class _Linear(nn.Module):
    """q = round(x / smooth / t); t * s_w * int_mm(q, q_w^T) + b: Inductor prepacks it for oneDNN."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        self.unsmoothed = Unsmoothed(linear.smooth)
        self.register_buffer("weight", linear.weight)
        self.register_buffer("scale", linear.scale)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.unsmoothed(x.reshape(-1, x.shape[-1]).float())
        token = peaks(flat) / INT8_MAX
        q = torch.round(flat * (1 / token)).to(torch.int8)
        y = torch._int_mm(q, self.weight.t()).to(torch.float32) * token * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], len(self.weight)).to(x.dtype)


def _number(x: Tensor) -> Tensor:
    """Bytes as the floats that they are. Freezing would fold any other conversion, and keep what it gives in the file."""
    ops: Any = torch.ops.quantized_decomposed
    result: Tensor = ops.dequantize_per_tensor.default(x, 1.0, 0, 0, UINT8_MAX, torch.uint8)
    return result


@final
class _Grouped(nn.Module):
    """Weights of few bits in one generated loop where there are few rows; else dequantized, all at once, before the product.

    Each group is `joined`, and all is computed in floats.
    """

    bias: Tensor | None

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        self.group, self.outputs = linear.group, linear.out_features
        q = linear.integers().reshape(*linear.scale.shape, self.group)
        self.unsmoothed, self.held = Unsmoothed(linear.smooth), by_row(joined(q, linear.bits), linear.scale, linear.zero)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.unsmoothed(x)
        rows = math.prod(x.shape[:-1])
        y = self.fused(y) if isinstance(rows, int) and rows <= FEW_ROWS else nn.functional.linear(y, self.weight().to(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def parts(self) -> tuple[Tensor, ...]:
        """The whole numbers of every group as floats: all of them, or its two halves."""
        return parted(_number(self.held.few_bits), self.group)

    def weight(self) -> Tensor:
        zero = _number(self.held.zero)
        return torch.cat([(q - zero) * self.held.scale for q in self.parts()], 2).flatten(1)

    def fused(self, x: Tensor) -> Tensor:
        """sum_g s_g (sum_j x_j q_j - z_g sum_j x_j), for each row."""
        scale, zero, parts = self.held.scale, _number(self.held.zero), self.parts()
        groups = x.float().reshape(-1, 1, scale.shape[1], self.group)
        product = sum(x * q for x, q in zip(groups.chunk(len(parts), 3), parts, strict=True))
        y = (product * scale).sum((2, 3)) - (zero * scale * groups.sum(3, keepdim=True)).sum((2, 3))
        return y.reshape(*x.shape[:-1], self.outputs).to(x.dtype)
