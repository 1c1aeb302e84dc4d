"""A linear layer of 8 bits against its math, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from thrifty.kernels.float8 import E4M3, E5M2, LARGEST, product, scale_of, to_float8
from thrifty.training.mixed_precision.scaled import Products, fp8_linear


def nearest(x: float, mantissa: int, lowest: int, largest: float) -> float:
    """x rounded to a number of so many bits of mantissa, ties to even; exponents end at 2^lowest, below are subnormals."""
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x))), lowest)
    step = 2.0 ** (exponent - mantissa)
    return max(-largest, min(largest, round(x / step) * step))


FORMATS = {E4M3: (3, -6), E5M2: (2, -14)}


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), st.sampled_from([E4M3, E5M2]))
def test_rounding_is_to_the_nearest_number_of_the_format(values: list[float], kind: torch.dtype) -> None:
    x = torch.tensor(values)
    scale = scale_of(x, kind)
    found = to_float8(x, scale, kind).double().tolist()
    assert found == [nearest(float(v), *FORMATS[kind], LARGEST[kind]) for v in x / scale]


def exact(x: Tensor, kind: torch.dtype) -> Tensor:
    """What 8 bits hold of x, in float64."""
    scale = scale_of(x, kind)
    return to_float8(x, scale, kind).double() * scale.double()


@pytest.mark.parametrize("kinds", [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2)], ids=str)
def test_a_product_is_that_of_the_numbers(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    a, b = torch.randn(48, 64), torch.randn(32, 64)
    scales = [scale_of(x, kind) for x, kind in zip((a, b), kinds, strict=True)]
    held = [to_float8(x, scale, kind) for x, scale, kind in zip((a, b), scales, kinds, strict=True)]
    found = product(*held, *scales, torch.float32)
    torch.testing.assert_close(found.double(), exact(a, kinds[0]) @ exact(b, kinds[1]).t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("products", ["all", "but_weight"])
@pytest.mark.parametrize("weight_kind", [torch.float32, torch.bfloat16], ids=str)
def test_forward_and_gradients_are_those_of_the_rounded_numbers(products: Products, weight_kind: torch.dtype) -> None:
    x = torch.randn(2, 48, 64, dtype=torch.bfloat16, requires_grad=True)
    w, b = torch.randn(80, 64).to(weight_kind).requires_grad_(), torch.randn(80, requires_grad=True)
    g = torch.randn(2, 48, 80, dtype=torch.bfloat16)
    y = fp8_linear(x, w, b, products=products)
    by_x, by_w, by_b = torch.autograd.grad(y, (x, w, b), g)
    assert (y.dtype, by_x.dtype, by_w.dtype, by_b.dtype) == (torch.bfloat16, torch.bfloat16, weight_kind, torch.float32)
    rows, up = x.detach().view(96, 64), g.view(96, 80)
    x8, w8, g8 = exact(rows, E4M3), exact(w.detach(), E4M3), exact(up, E5M2)
    close = {"rtol": 2.0**-7, "atol": 2e-2}
    torch.testing.assert_close(y.detach().view(96, 80).double(), x8 @ w8.t() + b.detach().double(), **close)
    torch.testing.assert_close(by_x.view(96, 64).double(), g8 @ w8, **close)
    wanted = g8.t() @ x8 if products == "all" else up.double().t() @ rows.double()
    torch.testing.assert_close(by_w.double(), wanted, rtol=2.0**-7, atol=5e-2)
    torch.testing.assert_close(by_b.double(), up.double().sum(0), rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("shape", [(7, 64, 32), (32, 60, 32), (32, 64, 30)], ids=str)
def test_sizes_that_8_bits_cannot_take_are_products_of_bf16(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    x, w, b = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    assert torch.equal(fp8_linear(x, w, b), F.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()))


def test_rows_of_any_number_do_where_the_weights_gradient_is_not_of_8_bits() -> None:
    x, w = torch.randn(7, 64), torch.randn(32, 64)
    assert not torch.equal(fp8_linear(x, w, products="but_weight"), F.linear(x.bfloat16(), w.bfloat16()))


def test_zeros_and_nan() -> None:
    w = torch.randn(32, 16)
    assert torch.equal(fp8_linear(torch.zeros(16, 16), w), torch.zeros(16, 32, dtype=torch.bfloat16))
    x = torch.randn(16, 16)
    x[3, 4] = math.nan
    assert bool(fp8_linear(x, w)[3].isnan().all())


def test_a_compiler_takes_it_whole() -> None:
    x, w = torch.randn(32, 64, requires_grad=True), torch.randn(48, 64, requires_grad=True)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return fp8_linear(x * 2, w).float().square().sum()

    found, wanted = (torch.autograd.grad(f(x, w), (x, w))
                     for f in (torch.compile(run, fullgraph=True, backend="aot_eager"), run))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("products", ["all", "but_weight"])
def test_the_gpu_is_right(products: Products) -> None:
    x, w, g = (torch.randn(*size, device="cuda").bfloat16() for size in ((256, 128), (384, 128), (256, 384)))
    leaves = x.requires_grad_(), w.float().requires_grad_()
    found = [fp8_linear(*leaves, products=products)]
    found += torch.autograd.grad(found[0], leaves, g)
    x8, w8, g8 = exact(x.detach(), E4M3), exact(w, E4M3), exact(g, E5M2)
    by_weight = g8.t() @ x8 if products == "all" else g.double().t() @ x.detach().double()
    for a, b in zip(found, (x8 @ w8.t(), g8 @ w8, by_weight), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 5e-3
