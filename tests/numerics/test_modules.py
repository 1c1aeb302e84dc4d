from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.numerics.grid import Affine, from_group, per_group, per_row, per_token, rows, to_group
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantConv, QuantLinear


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grouped_product_is_the_product_with_what_its_integers_stand_for(bits, dtype):
    generator = torch.Generator().manual_seed(bits)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((5, 48), (5,), (2, 7, 48)))
    smooth = torch.rand(48, generator=generator) + 0.5
    scale, zero = per_group(weight * smooth, bits, 16)
    q = to_group(weight * smooth, scale, zero, bits)
    layer = GroupedLinear(q, scale, zero, bits, bias, smooth)
    assert layer.group == 16 and layer.packed.numel() * 8 == weight.numel() * bits
    assert torch.equal(layer.integers(), q)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    exact = (x / smooth) @ from_group(q, scale, zero).T + bias
    torch.testing.assert_close(y.float(), exact, **({} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}))


def test_a_grouped_product_can_be_exported():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    scale, zero = per_group(weight, 3, 8)
    layer = GroupedLinear(to_group(weight, scale, zero, 3), scale, zero, 3)
    x = torch.randn(3, 16)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_integer_modules_hold_as_many_bits_as_they_are_given(bits):
    generator = torch.Generator().manual_seed(0)
    linear, conv = nn.Linear(16, 8), nn.Conv2d(3, 4, 3)
    most = 2 ** (bits - 1) - 1
    for integer in (QuantLinear(linear, torch.ones(16), bits), QuantConv(conv, Affine.of(-3, 3), True, bits)):
        assert integer.weight.dtype == torch.int8 and int(integer.weight.abs().max()) == most
    x = torch.randn(5, 16, generator=generator)
    expected = nn.functional.linear(rows(*per_token(x)), rows(*per_row(linear.weight, bits)), linear.bias)
    torch.testing.assert_close(QuantLinear(linear, torch.ones(16), bits)(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_on_one_grid_is_that_of_the_numbers_on_it(dtype):
    generator = torch.Generator().manual_seed(1)
    linear, grid = nn.Linear(17, 5), Affine.of(-1.5, 3.0)
    smooth, x = torch.rand(17, generator=generator) + 0.5, 2 * torch.randn(3, 7, 17, generator=generator).to(dtype)
    layer = QuantLinear(linear, smooth, 8, grid)
    y = layer(x)
    assert y.dtype == dtype
    q = torch.clamp(torch.round(x / smooth / grid.scale) + grid.zero, 0, 255).double()  # most lie on it, some beyond
    weight = layer.weight.double() * layer.scale.double()[:, None]
    want = grid.scale * (q - grid.zero) @ weight.T + linear.bias.detach().double()
    torch.testing.assert_close(y.double(), want, **({"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32
                                                    else {"rtol": 0.02, "atol": 0.02}))
    again = QuantLinear(linear, torch.ones(17), 8, Affine.of(0.0, 1.0))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), y)


def test_a_tied_table_looks_up_the_integers_of_its_product():
    weight = torch.randn(11, 24, generator=torch.Generator().manual_seed(0))
    scale, zero = per_group(weight, 4, 8)
    product = GroupedLinear(to_group(weight, scale, zero, 4), scale, zero, 4)
    table = GroupedEmbedding(product, torch.float32)
    ids = torch.tensor([[0, 10, 3], [3, 3, 1]])
    assert table.packed.data_ptr() == product.packed.data_ptr()
    assert torch.equal(table(ids), product.dequantized()[ids])
