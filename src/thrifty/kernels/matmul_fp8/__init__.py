"""A product of float8 tokens with float8 rows, a scale for each of both: the maths, and torch's own product for GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.matmul_int8.naive import product as naive


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether torch multiplies such tensors: e4m3, on a GPU of compute capability 9.0 or above, sides of a multiple of 16.

    >>> x = torch.zeros(1, 16).to(torch.float8_e4m3fn)
    >>> fits(x, x)
    False
    """
    return (x.is_cuda and x.dtype == weight.dtype == torch.float8_e4m3fn and x.shape[-1] % 16 == 0 and len(weight) % 16 == 0
            and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (9, 0))


def product(x: Tensor, weight: Tensor, token: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    """y = t s (x w^T): torch's product where it `fits`, else the maths.

    Args:
        x: float8_e4m3fn [tokens, inputs].
        weight: float8_e4m3fn [rows, inputs].
        token: float32 [tokens].
        row: float32 [rows].
        dtype: of the result; torch's product gives bfloat16.

    Returns:
        [tokens, rows].

    >>> x = torch.tensor([[2.0, 448.0]]).to(torch.float8_e4m3fn)
    >>> product(x, x, torch.tensor([0.5]), torch.tensor([1.0]), torch.float32).tolist()
    [[100354.0]]
    """
    if fits(x, weight) and dtype == torch.bfloat16:
        return torch._scaled_mm(x, weight.t(), token[:, None], row[None, :], out_dtype=dtype, use_fast_accum=True)
    return naive(x, weight, token, row, dtype)
