from __future__ import annotations

import pytest
import torch

from thrifty.numerics.grid import from_group, per_group, to_group
from thrifty.numerics.modules import GroupedLinear


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
