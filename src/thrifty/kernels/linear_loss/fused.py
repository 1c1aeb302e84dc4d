"""A linear layer and its cross entropy as one operation: logits exist a part at a time, and become their gradient in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thrifty.kernels.float8 import E4M3, both, product, scale_of
from thrifty.kernels.hardware import runs_triton
from thrifty.kernels.linear_loss import naive

STEP = 128
"""Parts hold a multiple of so many rows: what the tiles of matrix products like."""

Part: TypeAlias = tuple[Tensor, Callable[[Tensor], None], Callable[[Tensor, bool], None]]
"""Of some rows: losses [n]; what writes the gradient of their sum at hidden [n, h]; and what adds that at weight [v, h] to a
sum, or writes it where it is the first."""


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
                for_hidden: bool, for_weight: bool, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of losses, and its gradients at hidden [n, h] and at weight [v, h]; what is not asked for is empty.

    One opaque operator for compilers: nothing of it is copied, cut or moved. ``part`` rows are taken at a time. The weight's
    gradient is float32 where ``wide``, else of the weight's own precision, in which the parts are then added.
    """
    kernels = _kernels(hidden)
    make = _products8(kernels, weight) if float8 else _products16(kernels, weight)
    parts = ((x, lambda gradient, x=x, y=y: make(x, y, ignore_index, gradient))
             for x, y in zip(hidden.split(part), target.split(part), strict=True))
    return summed(hidden, weight, parts, for_hidden, for_weight, wide)


def summed(hidden: Tensor, weight: Tensor, parts: Iterable[tuple[Tensor, Callable[[bool], Part]]], for_hidden: bool,
           for_weight: bool, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The parts' losses and gradients, each written where it belongs: one part's logits are held at a time.

    Args:
        hidden: [n, h].
        weight: [v, h].
        parts: (rows of hidden, whether gradients are wanted -> the part).
        for_hidden, for_weight: which gradients are wanted.
        wide: whether the weight's is float32.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    by_hidden = torch.empty_like(hidden if for_hidden else hidden[:0])
    by_weight = torch.empty_like(weight if for_weight else weight[:0], dtype=torch.float32 if wide else weight.dtype)
    done = 0
    for rows, make in parts:
        lost, at_hidden, at_weight = make(for_hidden or for_weight)
        total += lost.sum()
        if for_hidden:
            at_hidden(by_hidden[done : done + len(rows)])
        if for_weight:
            at_weight(by_weight, done == 0)
        done += len(rows)
        del at_hidden, at_weight, lost  # they hold the logits: the next part's take their place
    return total, by_hidden, by_weight if done else by_weight.zero_()


@linear_loss.register_fake
def _(hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, part: int, float8: bool,
      for_hidden: bool, for_weight: bool, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    return outlines(hidden, weight, for_hidden, for_weight, wide)


def outlines(hidden: Tensor, weight: Tensor, for_hidden: bool, for_weight: bool, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `summed` gives, as far as a compiler looks at it."""
    return (hidden.new_empty((), dtype=torch.float32),
            hidden.new_empty(hidden.shape[0] if for_hidden else 0, hidden.shape[1]),
            weight.new_empty(weight.shape[0] if for_weight else 0, weight.shape[1],
                             dtype=torch.float32 if wide else weight.dtype))


def _kernels(x: Tensor) -> Any:
    if not runs_triton(x.device):
        return naive
    from thrifty.kernels.linear_loss import triton  # Triton comes with torch for CUDA alone

    return triton


def _products16(kernels: Any, weight: Tensor) -> Callable[..., Part]:
    """The three products in the precision of the operands."""
    def make(x: Tensor, y: Tensor, ignore_index: int, gradient: bool) -> Part:
        logits = x @ weight.t()
        lost, _ = kernels.losses(logits, y, ignore_index, gradient)
        return backwards(lost, logits, weight, x)

    return make


def backwards(lost: Tensor, gradient: Tensor, weight: Tensor, x: Tensor) -> Part:
    """The products of a gradient of logits [n, v]: with the weight, and with the rows that the logits are of."""
    def at_hidden(place: Tensor) -> None:
        torch.mm(gradient, weight, out=place)

    def at_weight(place: Tensor, first: bool) -> None:
        if place.dtype == x.dtype:
            torch.mm(gradient.t(), x, out=place) if first else place.addmm_(gradient.t(), x)
        else:
            _gather(place, first, _wide(gradient.t(), x))

    return lost, at_hidden, at_weight


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

        def at_hidden(place: Tensor) -> None:
            place.copy_(product(straight, weight8_t, gradient_scale, weight_scale, x.dtype))

        def at_weight(place: Tensor, first: bool) -> None:
            _gather(place, first, product(turned, x8_t, gradient_scale, scale, torch.float32))

        return lost, at_hidden, at_weight

    return make


def _gather(place: Tensor, first: bool, found: Tensor) -> None:
    place.copy_(found) if first else place.add_(found)


def _wide(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32: parts are added up without rounding each."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()
