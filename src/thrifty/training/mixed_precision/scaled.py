"""A linear layer whose products are of 8 bits, and its gradients."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from thrifty.kernels.float8 import E4M3, E5M2, both, product, scale_of, to_float8

Products = Literal["all", "but_weight"]
"""Which of a linear layer's three products are of 8 bits: all, or all but the one that makes the weight's gradient."""
MULTIPLE = 16
"""Sizes of matrices of 8 bits are multiples of so many."""


def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, products: Products = "all",
           low: torch.dtype = torch.bfloat16) -> Tensor:
    """y = x W^T + b with dynamic scales, one per tensor: s(a) = max |a| / largest, q(a) = round(a / s(a)).

        y  = s(x) s(W) q(x) q(W)^T + b        x, W in e4m3
        dx = s(g) s(W) q(g) q(W)              g = dL/dy in e5m2, whose range is wider
        dW = s(g) s(x) q(g)^T q(x)            or g^T x in ``low``

    Args:
        x: [..., in].
        weight: W, [out, in]; its gradient has its precision.
        bias: b, [out].
        products: "all", or "but_weight": dW in ``low``, which needs no transposes.
        low: precision of y and dx.

    Returns:
        [..., out] in ``low``. Where sizes are no multiples of 16, products of ``low``.

    >>> x, w = torch.randn(32, 64), torch.randn(48, 64)
    >>> error = (fp8_linear(x, w).float() - x @ w.T).norm() / (x @ w.T).norm()
    >>> 0.01 < float(error) < 0.06
    True

    Source: "FP8 Formats for Deep Learning", Micikevicius et al. 2022, arXiv:2209.05433.
    """
    rows = x.reshape(-1, x.shape[-1])
    sizes = (*weight.shape, *(rows.shape[:1] if products == "all" else ()))
    if any(size % MULTIPLE for size in sizes):
        return F.linear(x.to(low), weight.to(low), None if bias is None else bias.to(low))
    y: Tensor = _Linear.apply(rows, weight, products == "all", low)
    y = y.view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias.to(low)


class _Linear(torch.autograd.Function):
    """Transposes of 8 bits are made with the numbers, in one pass, and only they are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, all8: bool, low: torch.dtype) -> Tensor:
        x_scale, weight_scale = scale_of(x, E4M3), scale_of(weight, E4M3)
        weight8, weight8_t = both(weight, weight_scale, E4M3)
        x8, kept = both(x, x_scale, E4M3) if all8 else (to_float8(x, x_scale, E4M3), x.to(low))
        ctx.save_for_backward(kept, weight8_t, x_scale, weight_scale)
        ctx.all8, ctx.kinds = all8, (x.dtype, weight.dtype, low)
        return product(x8, weight8, x_scale, weight_scale, low, fast=True)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        kept, weight8_t, x_scale, weight_scale = ctx.saved_tensors
        (g,), (x_kind, weight_kind, low) = upstream, ctx.kinds
        scale = scale_of(g, E5M2)
        g8, g8_t = both(g, scale, E5M2) if ctx.all8 else (to_float8(g, scale, E5M2), g)
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = product(g8, weight8_t, scale, weight_scale, low).to(x_kind)
        if ctx.needs_input_grad[1] and ctx.all8:
            by_weight = product(g8_t, kept, scale, x_scale, weight_kind)
        elif ctx.needs_input_grad[1]:
            by_weight = (g.to(low).t() @ kept).to(weight_kind)
        return by_x, by_weight, None, None
