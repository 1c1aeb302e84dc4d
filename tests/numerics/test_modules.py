from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.numerics.grid import Affine, from_group, per_group, per_row, per_token, rows, to_group
from thrifty.numerics.modules import (
    Float8Linear,
    GroupedEmbedding,
    GroupedLinear,
    QuantConv,
    QuantEmbedding,
    QuantLinear,
)


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


def test_integers_of_a_weight_of_any_strides_are_contiguous():
    """An orthogonal parametrization or a transposed view leaves such weights, and Inductor's integer products misread them."""
    linear, conv = nn.Linear(6, 5), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    linear.weight = nn.Parameter(torch.randn(6, 5).T)
    assert not linear.weight.is_contiguous() and not conv.weight.is_contiguous()
    made = [QuantLinear(linear, torch.ones(6)), Float8Linear(linear), QuantConv(conv, Affine(0.1, 3), True),
            QuantEmbedding(nn.Embedding.from_pretrained(torch.randn(6, 5).T))]
    assert all(module.weight.is_contiguous() for module in made)


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


def float8(x):
    """In float64, number by number: three bits of mantissa below the row's largest, which becomes 448."""
    scale = x.double().abs().amax(-1, keepdim=True) / 448
    y = x.double() / scale
    step = 2.0 ** (torch.floor(torch.log2(y.abs().clamp_min(2.0**-6))) - 3)
    return torch.round(y / step) * step * scale


def error(found, wanted):
    return float((found.double().cpu() - wanted.double().cpu()).norm() / wanted.double().norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (2, 3, 48), (0, 16)], ids=str)
def test_a_float8_product_is_that_of_rounded_rows_and_tokens(shape, dtype, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(shape[-1], 7, bias), torch.randn(shape).to(dtype)
    layer = Float8Linear(linear)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.weight.element_size() == 1
    y = layer(x)
    assert y.dtype == dtype and y.shape == (*shape[:-1], 7)
    exact = float8(x) @ float8(linear.weight.detach()).T + (linear.bias.detach().double() if bias else 0)
    torch.testing.assert_close(y.double(), exact, **({"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32
                                                     else {"rtol": 1e-2, "atol": 1e-2}))


def test_a_float8_product_can_be_exported_and_compiled():
    layer, x = Float8Linear(nn.Linear(33, 5)), torch.randn(3, 33)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_a_layer_on_a_gpu_runs_its_product_eager_compiled_and_in_a_graph(kind, dtype):
    torch.manual_seed(0)
    linear, smooth = nn.Linear(512, 96), torch.rand(512) + 0.5
    x = torch.randn(2, 3, 512).to(dtype)
    if kind == "int8":
        layer, operator = QuantLinear(linear, smooth), "thrifty::matmul_int8"
        q, token = per_token(x.float() / smooth)
        wanted = (q * token) @ rows(layer.weight, layer.scale).T + layer.bias
    else:
        layer, operator = Float8Linear(linear), "aten::_scaled_mm"
        wanted = (float8(x.float()) @ float8(linear.weight.detach()).T + layer.bias).float()
    bound = 1e-3 if (kind, dtype) == ("int8", torch.float32) else 1e-2
    assert error(layer(x).float(), wanted) < bound
    layer, x = layer.cuda(), x.cuda()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen, torch.no_grad():
        y = layer(x)
    assert operator in {event.key for event in seen.key_averages()}
    assert y.dtype == dtype and y.shape == (2, 3, 96) and error(y, wanted) < bound
    with torch.no_grad():
        assert error(torch.compile(layer, fullgraph=True)(x), wanted) < bound
        layer(x)
        graph, held = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            out = layer(held)
        held.copy_(2 * x)  # scales of tokens are found anew
        graph.replay()
        bias = layer.bias.cpu()
        assert error(out.float().cpu() - bias, 2 * (wanted - bias)) < bound


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "float8"])
@pytest.mark.parametrize("sizes", [(500, 96), (512, 97), (16, 16)], ids=str)
def test_a_layer_of_any_sizes_on_a_gpu_is_what_it_is_elsewhere(kind, sizes):
    torch.manual_seed(0)
    linear, x = nn.Linear(*sizes), torch.randn(40, sizes[0])
    layer = QuantLinear(linear, torch.ones(sizes[0])) if kind == "int8" else Float8Linear(linear)
    with torch.no_grad():
        wanted = layer(x)
        turned = x.T.contiguous().T  # strided as a transpose
        assert error(layer.cuda()(x.cuda()), wanted) < 1e-2 and error(layer(turned.cuda()), wanted) < 1e-2
    grown = x.cuda().requires_grad_()
    layer(grown).sum().backward()  # gradients take the simulated way
    assert bool(grown.grad.isfinite().all())
