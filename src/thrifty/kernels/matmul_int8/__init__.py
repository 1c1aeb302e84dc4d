"""A product of int8 tokens with int8 rows, a scale for each of both: the math, torch's product, and a kernel for GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.exporting import exporting
from thrifty.kernels.hardware import runs_triton
from thrifty.kernels.matmul_int8 import naive as naive

BLOCK_COPIES = (9, 0)
"""The kernel is written for GPUs that copy blocks on their own: compute capability 9.0 and above."""


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` takes such tensors: on a GPU that multiplies bytes, rows of a multiple of 16, without gradients.

    >>> fits(torch.zeros(1, 16, dtype=torch.int8), torch.zeros(8, 16, dtype=torch.int8))
    False
    """
    return (x.is_cuda and weight.is_cuda and x.numel() > 0 and x.shape[-1] % 16 == 0
            and not (torch.is_grad_enabled() and x.requires_grad)
            and not exporting()  # a program that is carried elsewhere holds torch's operations only
            and runs_triton(x.device, BLOCK_COPIES))


@torch.library.custom_op("thrifty::matmul_int8", mutates_args=(), device_types="cuda")
def product(x: Tensor, weight: Tensor, token: Tensor, row: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """As `naive.product`, for what `fits`; the sums are int32.

    Args:
        x: int8 [tokens, inputs], on a GPU.
        weight: int8 [rows, inputs].
        token: float32 [tokens].
        row: float32 [rows].
        dtype: of the result.
        bias: float32 [rows], or none.

    Returns:
        [tokens, rows].
    """
    from thrifty.kernels.matmul_int8 import triton  # Triton comes with torch for CUDA alone

    with torch.cuda.device(x.device):
        return triton.product(_aligned(x), _aligned(weight), token.contiguous(), row, dtype, bias)


@product.register_fake
def _(x: Tensor, weight: Tensor, token: Tensor, row: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, and at an address that blocks can be copied from."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
