"""Whole numbers in groups, and what is dequantized with operators that every backend has."""

from __future__ import annotations

import pytest
import torch

from tests.compilers.nets import called, error, lowered
from tests.numerics.test_packed import NETS, WIDTHS, in_few_bits
from thrifty.compilers.placement.groups import Halves, Rows, joined, parted
from thrifty.numerics.grouped import rtn
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear
from thrifty.numerics.packed import PackedWeight
from thrifty.recipes.registry import method_class


@pytest.mark.parametrize(("bits", "n", "held"), [(4, 6, 3), (3, 8, 4), (4, 5, 5), (8, 6, 6)])
def test_joined_numbers_are_parted_again(bits, n, held):
    q = (torch.arange(2 * n).reshape(2, n) % 2**bits).to(torch.uint8)
    b = joined(q, bits)
    assert b.shape == (2, held) and torch.equal(torch.cat(parted(b.float(), n), 1), q.float())


@pytest.mark.parametrize(("bits", "group", "columns"), [(8, 7, 7), (4, 32, 96), (3, 32, 64), (4, 2, 6)])
def test_the_same_numbers(bits, group, columns):
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(bits))
    held = PackedWeight(rtn(weight, bits, group))
    assert torch.equal(Halves(held)(), held())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_table_s(dtype):
    found = rtn(torch.randn(7, 64, generator=torch.Generator().manual_seed(0)), 4, 32)
    table = GroupedEmbedding(GroupedLinear(found.q, found.scale, found.zero, 4), dtype)
    ids = torch.tensor([[0, 6], [3, 3]])
    assert Rows(table)(ids).dtype == dtype and torch.equal(Rows(table)(ids), table(ids))


@pytest.mark.parametrize("compiler", ["export", "onnxruntime", "openvino"])
@pytest.mark.parametrize(("net", "scheme"), [
    pytest.param("gru", "w3a16", marks=pytest.mark.slow), pytest.param("lstm", "w4a16", marks=pytest.mark.slow),
    pytest.param("conv", "w8a16", marks=pytest.mark.slow), ("conv", "w4a16")])
def test_engines_compute_the_same(compiler, net, scheme, tmp_path):
    method = method_class(compiler)()
    if lacks := method.missing():
        pytest.skip(lacks)
    model, x = NETS[net]()
    integer = in_few_bits(model, scheme, x)
    _, engine, size = lowered(method, integer, (x[:2],), tmp_path / "few", {0: {0: (1, 8)}})
    assert error(called(engine, x[:3]), integer(x[:3])) < 1e-5
    if compiler != "openvino":  # which computes such weights when it converts the model
        _, _, large = lowered(method, model, (x[:2],), tmp_path / "fp32", {0: {0: (1, 8)}})
        assert size < WIDTHS[scheme] * large
