"""What is exchanged for integer layers, alone and in every engine that fuses it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.compilers.nets import called, encoder, error, lowered, texts
from thrifty.compilers.placement.layers import RowWeight, Unsmoothed, exchanged, peaks
from thrifty.numerics.grid import Affine, per_row, rows
from thrifty.numerics.modules import QuantEdge, QuantLinear
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.registry import method_class

BOTH = {0: {0: (1, 16)}, 1: {0: (1, 16)}}


def test_products_are_told_apart_by_their_grid():
    smooth, grid = torch.ones(3), Affine(0.1, 7)
    net = nn.Sequential(QuantLinear(nn.Linear(3, 3), smooth), QuantLinear(nn.Linear(3, 3), smooth, grid=grid), QuantEdge(grid))
    found = exchanged(net, edge=lambda scale, zero: nn.Threshold(float(scale), float(zero)), conv=nn.Sequential,
                      on_grid=lambda layer: nn.Flatten(), by_token=lambda layer: nn.Identity(), grouped=nn.Sequential)
    assert [type(layer) for layer in found[:2]] == [nn.Identity, nn.Flatten]
    assert (round(found[2].threshold, 6), found[2].value) == (0.1, 7)


def test_what_was_smoothed_is_taken_back():
    x = torch.randn(2, 3)
    assert Unsmoothed(None)(x) is x and Unsmoothed(torch.ones(3))(x) is x
    smooth = torch.tensor([0.5, 2.0, 1.0])
    assert torch.equal(Unsmoothed(smooth)(x), x / smooth)
    assert Unsmoothed(smooth)(x.bfloat16()).dtype == torch.bfloat16


def test_weights_of_a_scale_a_row():
    q, scale = per_row(torch.randn(4, 3))
    assert torch.equal(RowWeight(q, scale, rows)(), rows(q, scale))
    shifted = RowWeight(q, scale, lambda q, scale, zeros: rows(q - zeros[:, None], scale), zeros=torch.int8)
    assert shifted.zeros.dtype == torch.int8 and torch.equal(shifted(), rows(q, scale))


def test_the_peak_of_a_token_of_zeros_is_above_0():
    assert peaks(torch.tensor([[1.0, -3.0], [0.0, 0.0]])).tolist() == [[3.0], [pytest.approx(1e-12)]]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", pytest.param("inductor", marks=pytest.mark.slow)])
def test_integer_kernels_run_and_agree_with_the_simulation(backend, tmp_path):
    compiler = method_class(backend)()
    if missing := compiler.missing():
        pytest.skip(missing)
    (ids, mask), net = texts(), encoder()
    integer = Quantize("w8a8", activations="static")(net, [((ids, mask), None)]).requires_grad_(False)
    assert all(m.x_scale is not None for m in integer.modules() if isinstance(m, QuantLinear))
    record, engine, _ = lowered(compiler, integer, (ids[:1], mask[:1]), tmp_path, BOTH)
    assert record.precision == "int8" and record.facts["integer_layers"] == 6
    for n in (1, 3, 6):
        assert error(called(engine, ids[:n], mask[:n]), integer(ids[:n], mask[:n])) < 0.02
    assert error(integer(ids, mask), net(ids, mask)) < 0.1
