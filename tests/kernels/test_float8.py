"""Numbers of 8 bits and their transposes, in one pass."""

from __future__ import annotations

import pytest
import torch

from thrifty.kernels.float8 import E4M3, E5M2, both, scale_of, to_float8

SIZES = [(3, 7), (130, 300), (257, 5040), (272, 4112), (1040, 4096)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
KINDS = pytest.mark.parametrize("kind", [E4M3, E5M2], ids=str)


def check(n: int, m: int, dtype: torch.dtype, kind: torch.dtype, device: str) -> None:
    x = torch.randn(n, m, device=device).to(dtype)
    for scale in (scale_of(x, kind), torch.tensor(1e-4, device=device)):  # the second sends numbers beyond the largest
        straight, turned = both(x, scale, kind)
        assert straight.is_contiguous() and turned.is_contiguous() and straight.dtype == turned.dtype == kind
        assert torch.equal(straight.float(), to_float8(x, scale, kind).float())
        assert torch.equal(straight.float().t(), turned.float())


@pytest.mark.parametrize("n, m", SIZES[:3])
@DTYPES
@KINDS
def test_both_layouts_hold_the_same_numbers(n: int, m: int, dtype: torch.dtype, kind: torch.dtype) -> None:
    check(n, m, dtype, kind, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("n, m", SIZES)
@DTYPES
@KINDS
def test_the_gpus_layouts_hold_the_same_numbers(n: int, m: int, dtype: torch.dtype, kind: torch.dtype) -> None:
    check(n, m, dtype, kind, "cuda")


def test_compilers_take_both_layouts_for_one_operator() -> None:
    x = torch.randn(17, 48)
    found = torch.compile(both, fullgraph=True, backend="aot_eager")(x, scale_of(x, E4M3), E4M3)
    for a, b in zip(found, both(x, scale_of(x, E4M3), E4M3), strict=True):
        assert torch.equal(a.float(), b.float())
    torch.library.opcheck(torch.ops.thrifty.float8_both, (x, scale_of(x, E5M2), E5M2))
