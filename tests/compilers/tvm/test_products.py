from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.compilers.nets import error

pytest.importorskip("tvm")
from tests.compilers.tvm.helpers import through_tvm
from thrifty.compilers.tvm.products import Registers, panels

NARROW = Registers(lanes=8, sums=12)
"""A processor with AVX2."""


class Product(nn.Module):
    def forward(self, a, b):
        return torch.matmul(a, b)


def naive_conv(x, w, stride, padding, dilation, groups):
    """out[n, o, p, q] = sum x[n, c, p t + r d - pad, q t + s d - pad] w[o, c, r, s], as it is written."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding))).astype(np.float64)
    outputs, inner, height, width = w.shape
    p = (x.shape[2] - (height - 1) * dilation - 1) // stride + 1
    q = (x.shape[3] - (width - 1) * dilation - 1) // stride + 1
    out = np.zeros((len(x), outputs, p, q))
    for o in range(outputs):
        first = o // (outputs // groups) * inner
        for r in range(height):
            for s in range(width):
                window = x[:, first:first + inner, r * dilation:r * dilation + (p - 1) * stride + 1:stride,
                           s * dilation:s * dilation + (q - 1) * stride + 1:stride]
                out[:, o] += np.einsum("ncpq,c->npq", window, w[o, :, r, s].astype(np.float64))
    return out


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 70), depth=st.integers(1, 40), columns=st.integers(1, 90), bias=st.booleans(),
       narrow=st.booleans())
def test_a_dense_layer_of_any_size(rows, depth, columns, bias, narrow):
    torch.manual_seed(rows)
    net, x = nn.Linear(depth, columns, bias=bias).requires_grad_(False), torch.randn(rows, depth)
    got, = through_tvm(net, x, registers=NARROW if narrow else None)
    want = x.double() @ net.weight.double().T + (net.bias.double() if bias else 0)
    assert got.shape == want.shape
    assert error(got, want) < 1e-6


@pytest.mark.parametrize("shape", [(7, 1, 33), (1, 1, 33), (2, 3, 5, 33), (33,), (5, 1, 1, 33)], ids=str)
def test_a_dense_layer_behind_any_leading_dimensions(shape):
    net, x = nn.Sequential(nn.Linear(33, 20), nn.ReLU()).requires_grad_(False), torch.randn(shape)
    assert error(through_tvm(net, x)[0], net(x)) < 1e-6


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(left=st.sampled_from([(), (3,), (1,), (2, 3), (2, 1)]), right=st.sampled_from([(), (3,), (1,), (2, 3), (1, 3)]),
       rows=st.integers(1, 30), depth=st.integers(1, 20), columns=st.integers(1, 40))
def test_products_of_two_inputs_broadcast(left, right, rows, depth, columns):
    a, b = torch.randn(*left, rows, depth), torch.randn(*right, depth, columns)
    got, = through_tvm(Product(), a, b)
    want = np.matmul(a.numpy().astype(np.float64), b.numpy().astype(np.float64))
    assert error(got, torch.from_numpy(want)) < 1e-6


@pytest.mark.parametrize("inputs,outputs,size,stride,padding,dilation,groups,narrow", [
    (3, 16, 7, 2, 3, 1, 1, False), (5, 7, 3, 1, 0, 1, 1, False), (16, 33, 1, 1, 0, 1, 1, True), (4, 40, 3, 1, 2, 2, 1, False),
    (1, 24, 3, 2, 1, 1, 1, False), (20, 20, 3, 1, 1, 1, 20, False), (32, 32, 5, 2, 2, 1, 32, True), (8, 12, 3, 1, 1, 1, 4, False),
    (6, 12, 3, 1, 1, 1, 6, False),
])
def test_convolutions(inputs, outputs, size, stride, padding, dilation, groups, narrow):
    """Plain, strided, dilated, depthwise and grouped, on odd images, channels that fill no vector among them."""
    net = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups).requires_grad_(False)
    x = torch.randn(2, inputs, 17, 29)
    got, = through_tvm(net, x, registers=NARROW if narrow else None)
    want = naive_conv(x.numpy(), net.weight.numpy(), stride, padding, dilation, groups) + net.bias.numpy()[:, None, None]
    assert error(got, torch.from_numpy(want)) < 1e-6


def test_padding_that_differs_by_side():
    net, x = nn.Conv2d(3, 8, (2, 4), padding="same").requires_grad_(False), torch.randn(1, 3, 9, 11)
    assert error(through_tvm(net, x)[0], net(x)) < 1e-6


@given(k=st.integers(1, 9), n=st.integers(1, 50), columns=st.sampled_from([8, 16, 48]))
def test_panels_hold_every_weight_once(k, n, columns):
    weight = np.random.default_rng(n).normal(size=(k, n))
    packed = panels(weight, columns)
    assert packed.shape == (-(-n // columns), k, columns)
    assert np.array_equal(packed.transpose(1, 0, 2).reshape(k, -1)[:, :n], weight)
    assert np.count_nonzero(packed) == np.count_nonzero(weight)


@given(rows=st.none() | st.integers(1, 4000), columns=st.integers(1, 4000), lanes=st.sampled_from([8, 16]),
       sums=st.sampled_from([12, 28]), depth=st.integers(1, 9000))
def test_a_tile_fits_the_registers(rows, columns, lanes, sums, depth):
    r, c = Registers(lanes, sums).tile(rows, columns, depth)
    assert c % lanes == 0
    assert r * c // lanes <= sums
    assert rows is None or r <= rows


@pytest.mark.parametrize("rows,columns", [(128, 384), (56, 64), (49, 512), (1, 192), (3136, 64)])
def test_no_arithmetic_is_wasted_where_tiles_can_divide(rows, columns):
    r, c = Registers(16, 28).tile(rows, columns, 576)
    assert rows % r == columns % c == 0
