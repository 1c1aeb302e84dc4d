"""A product with weights of four bits or fewer, a scale and a zero a group: the math, and a kernel for few tokens on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.exporting import exporting
from thrifty.kernels.hardware import runs_triton
from thrifty.kernels.matmul_w4a16 import layout
from thrifty.kernels.matmul_w4a16 import naive as naive

MOST = 64
"""Tokens up to which the kernel is used: beyond, reading the weights is no longer what takes the time."""


def fits(x: Tensor, bits: int, group: int) -> bool:
    """Whether `product` takes such activations: few, of 16 bits, on a GPU, without gradients; and such weights.

    >>> fits(torch.zeros(1, 128), bits=4, group=128)
    False
    """
    return (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and 0 < x.numel() <= MOST * x.shape[-1]
            and bits <= 4 and group % 128 == 0  # with smaller groups Triton 3.6 does not compile it
            and not (torch.is_grad_enabled() and x.requires_grad)
            and not exporting()  # a program that is carried elsewhere holds torch's operations only
            and runs_triton(x.device))


def prepare(q: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """(words, grids) that `product` reads, as many bytes as the four-bit numbers and four for each group.

    Args:
        q: uint8 [rows, inputs], numbers in 0..15.
        scale: float32 [rows, groups], above 0; inputs = groups * group.
        zero: uint8 [rows, groups].
    """
    return layout.words(q), layout.grids(scale, zero, q.shape[1] // scale.shape[1])


@torch.library.custom_op("thrifty::matmul_w4a16", mutates_args=(), device_types="cuda")
def product(x: Tensor, words: Tensor, grids: Tensor, bias: Tensor | None, rows: int, group: int) -> Tensor:
    """As `naive.product`, plus bias, for what `fits`.

    Args:
        x: [..., inputs], bfloat16 or float16, on a GPU.
        words, grids: what `prepare` made.
        bias: float32 [rows], or None.
        rows: outputs.
        group: inputs that share a scale.

    Returns:
        [..., rows] in x's precision; sums are float32.
    """
    from thrifty.kernels.matmul_w4a16 import triton  # Triton comes with torch for CUDA alone

    flat = x.reshape(-1, x.shape[-1]).contiguous()
    flat = flat if flat.data_ptr() % 16 == 0 else flat.clone()  # lanes read sixteen bytes
    with torch.cuda.device(x.device):
        return triton.product(flat, words, grids, bias, rows, group).view(*x.shape[:-1], rows)


@product.register_fake
def _(x: Tensor, words: Tensor, grids: Tensor, bias: Tensor | None, rows: int, group: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)
