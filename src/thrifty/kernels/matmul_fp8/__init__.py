"""A product of float8 tokens with float8 rows, a scale for each of both: the math, and torch's own product for GPUs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from thrifty.kernels.matmul_int8.naive import product as naive

CAPABILITY = (8, 9)
"""Least compute capability of a GPU that multiplies float8."""


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether torch multiplies such tensors: e4m3, on a GPU that multiplies them, sides of multiples of 16, no gradients.

    >>> x = torch.zeros(1, 16).to(torch.float8_e4m3fn)
    >>> fits(x, x)
    False
    """
    return (x.is_cuda and x.dtype == weight.dtype == torch.float8_e4m3fn and x.shape[-1] % 16 == 0 and len(weight) % 16 == 0
            and not (torch.is_grad_enabled() and x.requires_grad)
            and _here(x.device))


def product(x: Tensor, weight: Tensor, token: Tensor, row: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """y = t s (x w^T) + b: torch's product where it `fits`, else the math.

    Args:
        x: float8_e4m3fn [tokens, inputs].
        weight: float8_e4m3fn [rows, inputs].
        token: float32 [tokens].
        row: float32 [rows].
        dtype: of the result; torch's product rounds to bfloat16 first, finer than float8 by 32 times.
        bias: float32 [rows], or none.

    Returns:
        [tokens, rows].

    >>> x = torch.tensor([[2.0, 448.0]]).to(torch.float8_e4m3fn)
    >>> product(x, x, torch.tensor([0.5]), torch.tensor([1.0]), torch.float32).tolist()
    [[100354.0]]
    """
    if fits(x, weight):
        # Added before the result is rounded, where the result is bfloat16 too: a number that is rounded twice may become the
        # next layer's other neighbor in float8.
        inside = bias.bfloat16() if bias is not None and dtype == torch.bfloat16 else None
        y = torch._scaled_mm(x.contiguous(), weight.t(), token[:, None], row[None, :], inside, out_dtype=torch.bfloat16,
                             use_fast_accum=True).to(dtype)
        return y if bias is None or inside is not None else y + bias.to(dtype)
    return naive(x, weight, token, row, dtype, bias)


@functools.cache
def _here(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= CAPABILITY
