"""Layers on static grids in torch's decomposed operators compute what the integer layers do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.compilers.placement.decomposed import Convolution, Edge, StaticLinear
from thrifty.compilers.placement.layers import RowWeight, entry
from thrifty.numerics.grid import Affine, rows
from thrifty.numerics.modules import QuantConv, QuantEdge, QuantLinear

GRID = Affine(0.03, 101)


def weight(layer):
    return RowWeight(layer.weight, layer.scale, rows)


def test_an_edge():
    x, edge = 4 * torch.randn(50), QuantEdge(GRID)
    torch.testing.assert_close(Edge(edge.scale, edge.zero)(x), edge(x))


@pytest.mark.parametrize("rounds", [False, True])
def test_a_convolution_rounds_its_input_where_no_other_has(rounds):
    torch.manual_seed(0)
    conv, x = QuantConv(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), GRID, rounds), torch.randn(2, 4, 9, 7)
    made = Convolution(conv, entry(conv, Edge), weight(conv))
    assert isinstance(made.edge, Edge) == rounds
    torch.testing.assert_close(made(x), conv(x))


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_on_one_grid(bias):
    torch.manual_seed(0)
    linear, x = QuantLinear(nn.Linear(5, 3, bias=bias), torch.rand(5) + 0.5, grid=GRID), torch.randn(2, 4, 5)
    made = StaticLinear(linear, weight(linear))
    torch.testing.assert_close(made(x), linear(x))
    assert made(x.bfloat16()).dtype == torch.bfloat16
