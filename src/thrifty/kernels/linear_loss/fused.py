"""A linear layer and its cross entropy as one operation: logits exist a part at a time, and become their gradient in place."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thrifty.kernels.float8 import E4M3, both, product, scale_of
from thrifty.kernels.linear_loss import naive

STEP = 128
"""Parts hold a multiple of so many rows: what the tiles of matrix products like."""

Part: TypeAlias = tuple[Tensor, Callable[[], Tensor], Callable[[], Tensor]]
"""Of some rows: losses [n], and what makes the gradients of their sum at hidden [n, h] and at weight [v, h] in float32."""


def part_rows(rows: int, columns: int, bytes_each: int, most: int) -> int:
    """Rows of equal parts whose logits take at most so many bytes.

    >>> part_rows(32768, 50304, 2, 2**30)
    8192
    """
    fitting = max(STEP, most // (columns * bytes_each) // STEP * STEP)
    parts = max(1, math.ceil(rows / fitting))
    return max(STEP, math.ceil(rows / parts / STEP) * STEP)


@torch.library.custom_op("thrifty::linear_loss", mutates_args=())
def linear_loss(hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, part: int, float8: bool,
                for_hidden: bool, for_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of losses, and its gradients at hidden [n, h] and at weight [v, h] in float32; what is not asked for is empty.

    One opaque operator for compilers: nothing of it is copied, cut or moved. ``part`` rows are taken at a time.
    """
    kernels, gradient = _kernels(hidden), for_hidden or for_weight
    make = _products8(kernels, weight) if float8 else _products16(kernels, weight)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    by_hidden, by_weight = [hidden.new_empty(0, hidden.shape[1])], torch.zeros_like(weight[:0], dtype=torch.float32)
    for x, y in zip(hidden.split(part), target.split(part), strict=True):
        lost, at_hidden, at_weight = make(x, y, ignore_index, gradient)
        total += lost.sum()
        if for_hidden:
            by_hidden.append(at_hidden())
        if for_weight:
            by_weight = by_weight.add_(at_weight()) if len(by_weight) else at_weight()
        del at_hidden, at_weight  # they hold the logits: the next part's take their place
    if for_weight and not len(by_weight):  # no rows at all
        by_weight = torch.zeros_like(weight, dtype=torch.float32)
    return total, by_hidden[1] if len(by_hidden) == 2 else torch.cat(by_hidden), by_weight


@linear_loss.register_fake
def _(hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, part: int, float8: bool,
      for_hidden: bool, for_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (hidden.new_empty((), dtype=torch.float32),
            hidden.new_empty(hidden.shape[0] if for_hidden else 0, hidden.shape[1]),
            weight.new_empty(weight.shape[0] if for_weight else 0, weight.shape[1], dtype=torch.float32))


def _kernels(x: Tensor) -> Any:
    if not (x.is_cuda and importlib.util.find_spec("triton")):
        return naive
    from thrifty.kernels.linear_loss import triton  # Triton comes with torch for CUDA alone

    return triton


def _products16(kernels: Any, weight: Tensor) -> Callable[..., Part]:
    """The three products in the precision of the operands."""
    def make(x: Tensor, y: Tensor, ignore_index: int, gradient: bool) -> Part:
        logits = x @ weight.t()
        lost, _ = kernels.losses(logits, y, ignore_index, gradient)
        return lost, lambda: logits @ weight, lambda: _wide(logits.t(), x)

    return make


def _products8(kernels: Any, weight: Tensor) -> Callable[..., Part]:
    """The three products in 8 bits: e4m3, and e5m2 for the gradient of the logits, whose range is known beforehand."""
    weight_scale = scale_of(weight, E4M3)
    weight8, weight8_t = both(weight, weight_scale, E4M3)
    gradient_scale = torch.full((), 1 / naive.GRADIENT_SCALE, device=weight.device)

    def make(x: Tensor, y: Tensor, ignore_index: int, gradient: bool) -> Part:
        scale = scale_of(x, E4M3)
        x8, x8_t = both(x, scale, E4M3)
        logits = product(x8, weight8, scale, weight_scale, x.dtype, fast=True)
        lost, norm = kernels.losses(logits, y, ignore_index, False)
        straight, turned = kernels.gradient8(logits, norm, y, ignore_index) if gradient else (logits, logits)
        return (lost, lambda: product(straight, weight8_t, gradient_scale, weight_scale, x.dtype),
                lambda: product(turned, x8_t, gradient_scale, scale, torch.float32))

    return make


def _wide(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32: parts are added up without rounding each."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()
