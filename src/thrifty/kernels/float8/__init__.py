"""Numbers of 8 bits with one scale per tensor, and the products of their matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.float8.formats import E4M3 as E4M3
from thrifty.kernels.float8.formats import E5M2 as E5M2
from thrifty.kernels.float8.formats import LARGEST
from thrifty.kernels.hardware import runs_triton


def scale_of(x: Tensor, kind: torch.dtype) -> Tensor:
    """The scale under which the largest number of x becomes the format's largest: max |x| / LARGEST, a float32 scalar.

    >>> float(scale_of(torch.tensor([1.0, -896.0]), E4M3))
    2.0
    """
    return torch.linalg.vector_norm(x, float("inf"), dtype=torch.float32).clamp(min=1e-12) / LARGEST[kind]


def to_float8(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """x / scale in 8 bits, rounded to the nearest; what lies beyond the largest number becomes it.

    >>> to_float8(torch.tensor([1.0, 1.06, 2000.0]), torch.tensor(1.0), E4M3).tolist()
    [1.0, 1.0, 448.0]
    """
    return (x.float() / scale).clamp(-LARGEST[kind], LARGEST[kind]).to(kind)


def both(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """`to_float8` of a matrix and of its transpose, both contiguous: what the products of a gradient want.

    One opaque operator for compilers: x is read once.

    Args:
        x: [n, m].
        scale: a float32 scalar.
        kind: e4m3 or e5m2.

    Returns:
        ([n, m], [m, n]).

    >>> straight, turned = both(torch.tensor([[1.0, 1.06, 2000.0]]), torch.tensor(1.0), E4M3)
    >>> straight.tolist(), turned.tolist()
    ([[1.0, 1.0, 448.0]], [[1.0], [1.0], [448.0]])
    """
    straight, turned = _both(x, scale, kind)
    return straight, turned


@torch.library.custom_op("thrifty::float8_both", mutates_args=())
def _both(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    if runs_triton(x.device):
        from thrifty.kernels.float8 import triton  # Triton comes with torch for CUDA alone

        return triton.both(x.contiguous(), scale, kind)
    found = to_float8(x, scale, kind)
    # A copy even of a single row: an operator's outputs must not share their memory.
    return found.contiguous(), found.t().clone(memory_format=torch.contiguous_format)


@_both.register_fake
def _(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    n, m = x.shape
    return x.new_empty(n, m, dtype=kind), x.new_empty(m, n, dtype=kind)


def product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype, fast: bool = False) -> Tensor:
    """scale_a scale_b a b^T.

    Args:
        a: [m, k] in 8 bits, contiguous.
        b: [n, k] in 8 bits, contiguous; at most one of the two is e5m2. On a GPU k and n are multiples of 16.
        scale_a, scale_b: float32 scalars.
        dtype: of the result.
        fast: sums in the tensor cores' own 14 bits, which is good enough for a forward pass.

    Returns:
        [m, n].

    >>> one = torch.tensor(1.0)
    >>> a, b = (torch.ones(16, 32).to(kind) for kind in (E4M3, E5M2))
    >>> float(product(a, b, one, 2 * one, torch.float32)[3, 4])
    64.0
    """
    return torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=dtype, use_fast_accum=fast)
