from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty.training.flops import count_flops


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_matrix_product_is_two_for_each_multiply_add(m, k, n):
    result, count = count_flops(lambda: torch.ones(m, k) @ torch.ones(k, n))
    assert count.flops == 2 * m * k * n
    assert result.shape == (m, n)


def test_backward_is_counted_too():
    layer, x = nn.Linear(8, 4), torch.randn(16, 8)
    _, forward = count_flops(lambda: layer(x))
    _, both = count_flops(lambda: layer(x).sum().backward())
    assert both.flops == 2 * forward.flops  # the input needs no gradient: one product forward, one backward


def test_a_convolution_counts_its_window():
    conv, x = nn.Conv2d(3, 5, 3, bias=False), torch.randn(2, 3, 7, 6)
    assert count_flops(lambda: conv(x))[1].flops == 2 * 2 * 5 * 5 * 4 * 3 * 9


def test_operators_without_a_formula_are_named():
    assert "aten.exp" in count_flops(lambda: torch.randn(4).exp())[1].uncounted
    assert count_flops(lambda: torch.ones(2, 2) @ torch.ones(2, 2))[1].uncounted == ()
