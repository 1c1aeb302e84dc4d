"""A model's layers as ONNX's own operators: quantization where ONNX Runtime's integer kernels look for it."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.compilers.placement.groups import Groups, dequantized
from thrifty.compilers.placement.layers import RowWeight, Unsmoothed, entry, exchanged, peaks
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantConv, QuantLinear
from thrifty.numerics.packing import pack, unpack

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
"""Weights that share a scale in MatMulNBits: a power of two."""


def _op(name: str, inputs: tuple[Tensor | None, ...], like: Any, dtype: torch.dtype, version: int = 19,
        **attributes: Any) -> Tensor:
    result: Tensor = torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like, version=version)
    return result


def placed(model: nn.Module) -> nn.Module:
    """Exchange integer modules for ONNX's own operators."""
    return exchanged(model, edge=_Edge, conv=_Conv, on_grid=_Linear, by_token=_Linear, grouped=_grouped, table=_Rows)


@final
class _Edge(nn.Module):
    """QuantizeLinear, DequantizeLinear: the runtime moves them through ReLUs, sums and pools and fuses them there."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero", zero.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        q = _op("QuantizeLinear", (x, self.scale, self.zero), x.shape, torch.uint8)
        return _op("DequantizeLinear", (q, self.scale, self.zero), x.shape, torch.float32)


def _weight(q: Tensor, scale: Tensor) -> RowWeight:
    return RowWeight(q, scale, lambda *parts: _op("DequantizeLinear", parts, q.shape, torch.float32, axis=0), zeros=q.dtype)


@final
class _Conv(nn.Module):
    """Weights by channel and a bias of 32 bits at scale x_scale * w_scale, as QLinearConv wants them."""

    def __init__(self, conv: QuantConv) -> None:
        super().__init__()
        scale = conv.x_scale * conv.scale
        bias = torch.round(conv.bias / scale).clamp(-(2**31) + 1, 2**31 - 129).to(torch.int32)
        self.convolve, self.edge = conv.convolve, entry(conv, _Edge)
        self.weight, self.bias = _weight(conv.weight, conv.scale), _weight(bias, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(self.edge(x), self.weight(), self.bias())


@final
class _Linear(nn.Module):
    """The fused MatMulIntegerToFloat takes one grid for all tokens: the layer's own, or, where each token has a scale of its own,
    the one that fits them all once they are divided by their peaks.
    """

    weight: Tensor
    scale: Tensor
    step: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        step, zero = linear.x_scale, linear.x_zero
        self.by_token = step is None or zero is None
        self.unsmoothed = Unsmoothed(linear.smooth)
        self.register_buffer("weight", linear.weight.t().contiguous())
        self.register_buffer("scale", linear.scale.clone())
        self.register_buffer("step", torch.tensor(1 / 127) if step is None else step.clone())
        self.register_buffer("zero", torch.tensor(128, dtype=torch.uint8) if zero is None else zero.to(torch.uint8))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        x = self.unsmoothed(x)
        if not self.by_token:
            return self.product(x, self.bias)
        peak = peaks(x)
        y = self.product(x * (1 / peak), None) * peak
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q = _op("QuantizeLinear", (x, self.step, self.zero), x.shape, torch.uint8)
        given = (q, self.weight, self.step, self.scale, self.zero, *(() if bias is None else (None, bias)))
        return _op("com.microsoft::MatMulIntegerToFloat", given, (*x.shape[:-1], self.weight.shape[1]), torch.float32, version=1)


def _grouped(linear: GroupedLinear) -> nn.Module:
    """Up to four bits run in MatMulNBits, held in four. Its kernels of eight bits are fast only where they round activations
    to int8 as well, and so are dequantized beside their product.
    """
    block = math.gcd(linear.group, LARGEST_BLOCK)
    if linear.bits == 8 or (block < SMALLEST_BLOCK and linear.scale.shape[1] > 1):
        return _Dequantized(linear)
    return _Blocks(linear, max(block, SMALLEST_BLOCK))


@final
class _Blocks(nn.Module):
    """com.microsoft::MatMulNBits, its blocks of a power of two being parts of the groups."""

    bias: Tensor | None

    def __init__(self, linear: GroupedLinear, block: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.block = linear.in_features, linear.out_features, block
        blocks = -(-self.inputs // block)
        q = nn.functional.pad(linear.integers(), (0, blocks * block - self.inputs))
        repeats = -(-blocks // linear.scale.shape[1])
        zero = linear.zero.repeat_interleave(repeats, 1)
        self.unsmoothed = Unsmoothed(linear.smooth)
        self.held = Groups(pack(q.reshape(self.outputs, blocks, block), 4), linear.scale.repeat_interleave(repeats, 1),
                           pack(nn.functional.pad(zero, (0, blocks % 2)), 4))
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x, held = self.unsmoothed(x), self.held
        # Its accuracy_level stays 0: from 4 on activations are rounded to int8.
        return _op("com.microsoft::MatMulNBits", (x, held.few_bits, held.scale, held.zero, None, self.bias),
                   (*x.shape[:-1], self.outputs), torch.float32, version=1, K=self.inputs, N=self.outputs, bits=4,
                   block_size=self.block)


def _flat(q: Tensor, scale: Tensor, zero: Tensor) -> Groups:
    """[rows * groups, group], scales and zeros [rows * groups], of one dimension as DequantizeLinear takes them.

    Args:
        q: uint8 [rows, columns].
        scale: float32 [rows, groups].
        zero: uint8 [rows, groups].
    """
    return Groups(q.reshape(scale.numel(), -1), scale.flatten(), zero.flatten())


@final
class _Dequantized(nn.Module):
    """Weights of bytes, dequantized at every call, in a Gemm: of a MatMul, the runtime would make its own integer product."""

    bias: Tensor | None

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        self.shape = (linear.out_features, linear.in_features)
        self.unsmoothed, self.held = Unsmoothed(linear.smooth), _flat(linear.integers(), linear.scale, linear.zero)
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat, held = self.unsmoothed(x).reshape(-1, self.shape[1]), self.held
        # Scales wait for the input: the runtime would else dequantize the weights of all layers before its first product.
        scale = held.scale + (flat[:1, 0] < -math.inf).float()  # zero, whatever the number, a NaN too
        weight = _op("DequantizeLinear", (held.few_bits, scale, held.zero), held.few_bits.shape, torch.float32, axis=0)
        y = _op("Gemm", (flat, weight.reshape(self.shape), self.bias), (flat.shape[0], self.shape[0]), torch.float32,
                version=13, transB=1)
        return y.reshape(*x.shape[:-1], self.shape[0])


@final
class _Rows(nn.Module):
    """Rows of what `_Dequantized` multiplies by, which lies in the file once."""

    def __init__(self, table: GroupedEmbedding) -> None:
        super().__init__()
        self.groups = table.scale.shape[1]
        self.held = _flat(unpack(table.packed, table.bits), table.scale, table.zero)

    def forward(self, ids: Tensor) -> Tensor:
        at, held = ids.unsqueeze(-1) * self.groups + torch.arange(self.groups), self.held
        return dequantized(held.few_bits[at], held.scale[at].unsqueeze(-1), held.zero[at].unsqueeze(-1)).flatten(-2)


class Attention(TorchFunctionMode):
    """Attention as the runtime's one operator: its own fusion does not find it in what torch.onnx writes.

    Half the time of a small encoder's float part goes into the transposes and masks that this leaves out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and (fused := _attention(*args, **(kwargs or {}))) is not None:
            return fused
        return func(*args, **(kwargs or {}))


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor | None:
    if query.dim() != 4 or enable_gqa or query.dtype != torch.float32 or (is_causal and attn_mask is not None):
        return None
    heads, bias = query.shape[1], attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:  # a large negative number: with -inf, rows without any token would be NaN
            bias = torch.where(bias, 0.0, -1e30)
        if bias.dim() > 4:
            return None
        bias = bias[(None,) * (4 - bias.dim())]  # the first two dimensions may be 1, the others may not
        bias = bias.expand(-1, -1, query.shape[2], key.shape[2])
    joined = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]  # [batch, tokens, heads * features]
    options: dict[str, Any] = {"num_heads": heads, "unidirectional": int(is_causal)}
    if scale is not None:
        options["scale"] = float(scale)
    shape = (*joined[0].shape[:2], heads * value.shape[-1])
    out = _op("com.microsoft::MultiHeadAttention", (*joined, None, None, bias), shape, torch.float32, version=1, **options)
    return out.unflatten(2, (heads, value.shape[-1])).transpose(1, 2)
