"""Two linear layers and the divergence of what they give as one operation: the logits of some rows exist at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thrifty.kernels.hardware import runs_triton
from thrifty.kernels.linear_divergence import naive
from thrifty.kernels.linear_loss.fused import STEP, Part, backwards, outlines, part_rows, summed


def rows_at_once(rows: int, columns: int, bytes_each: int, most: int) -> int:
    """Rows of equal parts: the student's logits of one and the teacher's of half of one take at most so many bytes.

    >>> rows_at_once(8192, 131072, 2, 3 * 2**27)
    1024
    """
    return part_rows(rows, columns, bytes_each, most * 2 // 3)


@torch.library.custom_op("thrifty::linear_divergence", mutates_args=())
def linear_divergence(hidden: Tensor, weight: Tensor, taught: Tensor, teaching: Tensor, valid: Tensor, kind: str,
                      temperature: float, beta: float, part: int, for_hidden: bool, for_weight: bool,
                      wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of divergences, and its gradients at hidden [n, h] and at weight [v, h]; what is not asked for is empty.

    One opaque operator for compilers. ``part`` rows are taken at a time, the teacher's logits in halves of that: a half is
    used up before the next is made.
    """
    kernels = _kernels(hidden)

    def make(x: Tensor, t: Tensor, counts: Tensor) -> Callable[[bool], Part]:
        def part_of(gradient: bool) -> Part:
            logits = x @ weight.t()
            half = max(STEP, part // 2)
            lost = [kernels.divergences(s, one @ teaching.t(), some, kind, temperature, beta, gradient)
                    for s, one, some in zip(logits.split(half), t.split(half), counts.split(half), strict=True)]
            return backwards(torch.cat(lost), logits, weight, x)

        return part_of

    pieces = zip(hidden.split(part), taught.split(part), valid.split(part), strict=True)
    return summed(hidden, weight, ((x, make(x, t, counts)) for x, t, counts in pieces), for_hidden, for_weight, wide)


@linear_divergence.register_fake
def _(hidden: Tensor, weight: Tensor, taught: Tensor, teaching: Tensor, valid: Tensor, kind: str, temperature: float,
      beta: float, part: int, for_hidden: bool, for_weight: bool, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    return outlines(hidden, weight, for_hidden, for_weight, wide)


def _kernels(x: Tensor) -> Any:
    if not runs_triton(x.device):
        return naive
    from thrifty.kernels.linear_divergence import triton  # Triton comes with torch for CUDA alone

    return triton
