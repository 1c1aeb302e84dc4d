"""Layers that hold few bits. Their eager forward computes with them on GPUs, and else simulates that in float32."""

from __future__ import annotations

from typing import Any, Self, final

import torch
from torch import Tensor, nn

from thrifty.kernels import matmul_fp8, matmul_int8, matmul_w4a16
from thrifty.numerics import float8
from thrifty.numerics.grid import Affine, affine, from_group, on_grid, per_row, per_token, rows
from thrifty.numerics.packing import pack, unpack


def stand_in(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A float32 tensor of that shape without numbers of its own, where ``like`` is."""
    return torch.zeros((), device=like.device).expand(shape)


def _tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


@final
class QuantEdge(nn.Module):
    """Rounds a tensor to 256 values: the engine keeps it as bytes from here on."""

    scale: Tensor
    zero: Tensor

    def __init__(self, grid: Affine) -> None:
        super().__init__()
        self.register_buffer("scale", _tensor(grid.scale))
        self.register_buffer("zero", _tensor(grid.zero))

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.scale, self.zero)


@final
class QuantConv(nn.Module):
    """A convolution of bytes (static grid) with integer weights (a scale for each output channel).

    y = conv(x_q, s_w * q_w) + b with x_q on the grid ``x_scale, x_zero``.

    Args:
        conv: Conv1d or Conv2d, float.
        grid: of the input.
        rounds: whether the input is rounded here; False where its producer was already.
        bits: of a weight; fewer than 8 are held in int8 all the same.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    x_scale: Tensor
    x_zero: Tensor

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, grid: Affine, rounds: bool,
                 bits: int = 8) -> None:
        super().__init__()
        q, scale = per_row(conv.weight, bits)
        bias = torch.zeros(len(q)) if conv.bias is None else conv.bias.detach().float().clone()
        for name, value in (("weight", q), ("scale", scale), ("bias", bias),
                            ("x_scale", _tensor(grid.scale)), ("x_zero", _tensor(grid.zero))):
            self.register_buffer(name, value)
        self.rounds = rounds
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        # "same" and "valid" are words; engines want numbers. Other padding modes stay float.
        self.padding = conv.padding

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds:
            x = affine(x.float(), self.x_scale, self.x_zero)
        return self.convolve(x, rows(self.weight, self.scale), self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        function: Any = nn.functional.conv2d if weight.dim() == 4 else nn.functional.conv1d
        result: Tensor = function(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return result


@final
class WithEdge(nn.Sequential):
    """A convolution and the edge behind it, where no graph says what reads it.

    ``weight`` has the float weight's shape, type and device and no numbers: models look at them before they call the layer.
    """

    def __init__(self, conv: nn.Module, edge: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__(conv, edge)
        self._shape = shape

    @property
    def weight(self) -> Tensor:
        return stand_in(self._shape, next(self.buffers(), next(self.parameters(), torch.empty(0))))


@final
class QuantLinear(nn.Module):
    """A product of 8-bit activations with integer weights (a scale per row).

    y = t * s_w * (q_x q_w^T) + b, t q_x = x / smooth, s_w q_w = W * smooth. Without a grid t is each token's, found as it
    comes; with one it is the grid's, and q_x = clamp(round(x / smooth / t) + zero, 0, 255) - zero.

    ``smooth`` [in] moves what is hard to round from activations to weights ("SmoothQuant", Xiao et al. 2022,
    arXiv:2211.10438). A GPU multiplies the integers themselves; elsewhere they are exact in float32 while their sums stay
    under 2^24.

    Args:
        linear: float.
        smooth: [in], above 0.
        bits: of a weight; fewer than 8 are held in int8 all the same.
        grid: of x / smooth, the same for every token.
    """

    weight: Tensor
    scale: Tensor
    smooth: Tensor
    bias: Tensor | None
    x_scale: Tensor | None
    x_zero: Tensor | None

    def __init__(self, linear: nn.Linear, smooth: Tensor, bits: int = 8, grid: Affine | None = None) -> None:
        super().__init__()
        q, scale = per_row(linear.weight.detach().float() * smooth, bits)
        self.register_buffer("weight", q)
        self.register_buffer("scale", scale)
        self.register_buffer("smooth", smooth.clone())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("x_scale", None if grid is None else _tensor(grid.scale))
        self.register_buffer("x_zero", None if grid is None else _tensor(grid.zero))

    @property
    def out_features(self) -> int:
        return len(self.weight)

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(q_x as float32, t): what the product is made of."""
        smoothed = x / self.smooth
        if self.x_scale is None or self.x_zero is None:
            return per_token(smoothed)
        return on_grid(smoothed.float(), self.x_scale, self.x_zero), self.x_scale

    def forward(self, x: Tensor) -> Tensor:
        q, step = self.rounded(x)
        kernel = matmul_int8 if self.x_scale is None else None  # numbers on a grid with a zero reach past int8
        return _product(kernel, q, step, self, x.dtype)


@final
class Float8Linear(nn.Module):
    """A product of float8 tokens (a scale for each, found as they come) with float8 weights (a scale per row).

    y = t s_w (q_x q_w^T) + b, t q_x = x, s_w q_w = W, all q in e4m3; the sums are float32.

    Args:
        linear: float.

    Source: "FP8 Formats for Deep Learning", Micikevicius et al. 2022, arXiv:2209.05433.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        q, scale = float8.per_row(linear.weight.detach().contiguous())
        self.register_buffer("weight", q)
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    @property
    def out_features(self) -> int:
        return len(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, token = float8.per_row(x)
        return _product(matmul_fp8, q, token, self, x.dtype)


def _product(kernel: Any, q: Tensor, token: Tensor, layer: QuantLinear | Float8Linear, dtype: torch.dtype) -> Tensor:
    """t s (q q_w^T) + b: by the kernel where it takes such numbers, else simulated in float32.

    Args:
        kernel: `matmul_int8`, `matmul_fp8` or none.
        q, token: numbers [..., in], whole ones still floats, and their scales [..., 1] or [].
        layer: that they enter.
        dtype: of the result.
    """
    y: Tensor
    if kernel is not None and kernel.fits(q, layer.weight):
        flat = q.reshape(-1, q.shape[-1]).to(layer.weight.dtype)
        y = kernel.product(flat, layer.weight, token.reshape(-1), layer.scale, dtype, layer.bias)
        return y.reshape(*q.shape[:-1], layer.out_features)
    y = nn.functional.linear(q.float(), layer.weight.float()) * token * layer.scale
    return (y if layer.bias is None else y + layer.bias).to(dtype)


@final
class GroupedLinear(nn.Module):
    """A product with weights of few bits, dequantized where they are used; activations stay floating point.

    y = (x / smooth) (s (q - z))^T + b, one scale s and one zero z for each group of inputs.

    Args:
        q: uint8 [out, in], whole numbers in 0..2^bits - 1.
        scale: float32 [out, groups]; in = groups * group.
        zero: uint8 [out, groups].
        bits: 3, 4 or 8.
        bias: [out], or None.
        smooth: [in], above 0, that the weights were multiplied by (AWQ); None where they were not.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor
    smooth: Tensor | None
    bias: Tensor | None

    def __init__(self, q: Tensor, scale: Tensor, zero: Tensor, bits: int, bias: Tensor | None = None,
                 smooth: Tensor | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.out_features, self.in_features = q.shape
        self.register_buffer("packed", pack(q, bits))
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero", zero.to(torch.uint8))
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self.register_buffer("smooth", None if smooth is None else smooth.float().clone())
        self._held: tuple[Tensor, Tensor] | None = None

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.in_features // self.scale.shape[1]

    def integers(self) -> Tensor:
        """uint8 [out, in]."""
        return unpack(self.packed, self.bits)

    def dequantized(self) -> Tensor:
        """float32 [out, in]: what the product is with, before ``smooth`` is taken out of the inputs."""
        return from_group(self.integers(), self.scale, self.zero)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.smooth is None else x / self.smooth.to(x.dtype)
        if matmul_w4a16.fits(x, self.bits, self.group):
            if self._held is None:
                self._held = matmul_w4a16.prepare(self.integers(), self.scale, self.zero)
            product: Tensor = matmul_w4a16.product(x, *self._held, self.bias, self.out_features, self.group)
            return product
        y = nn.functional.linear(x, self.dequantized().to(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._held = None  # what is moved or changed is put in the kernel's order again where it is used
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._held = None
        super()._load_from_state_dict(*args, **kwargs)


@final
class QuantEmbedding(nn.Module):
    """A table of int8 rows, a scale for each; rows are looked up first, so the float table never exists."""

    weight: Tensor
    scale: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        q, scale = per_row(embedding.weight)
        self.register_buffer("weight", q)
        self.register_buffer("scale", scale)
        self.dtype = embedding.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        # Indexing, not nn.functional.embedding: backends lower an int8 gather, few lower an int8 embedding.
        return (self.weight[ids].float() * self.scale[ids].unsqueeze(-1)).to(self.dtype)


@final
class GroupedEmbedding(nn.Module):
    """A table that looks its rows up in the integers of a product: the two were tied and stay one.

    Args:
        product: whose weight is the table; without ``smooth``.
        dtype: of what is looked up.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, product: GroupedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.bits, self.dtype = product.bits, dtype
        self.register_buffer("packed", product.packed)
        self.register_buffer("scale", product.scale)
        self.register_buffer("zero", product.zero)

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        found = from_group(unpack(self.packed[flat], self.bits), self.scale[flat], self.zero[flat])
        return found.reshape(*ids.shape, -1).to(self.dtype)


@final
class InBfloat16(nn.Module):
    """Runs a bfloat16 model for float32 callers: casts inputs and outputs, nothing else."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        cast = {name: _cast(value, torch.float32, torch.bfloat16) for name, value in kwargs.items()}
        out = self.module(*(_cast(value, torch.float32, torch.bfloat16) for value in args), **cast)
        return _cast(out, torch.bfloat16, torch.float32)


def _cast(value: Any, source: torch.dtype, to: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(to) if value.dtype == source else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(v, source, to) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_cast(v, source, to) for v in value)
    if isinstance(value, dict):
        return type(value)((k, _cast(v, source, to)) for k, v in value.items())
    return value
