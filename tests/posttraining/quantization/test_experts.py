"""Experts in few bits: against rounding each row of each expert by itself, and by tokens few and many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thrifty import Moe, Quantize
from thrifty.architectures.moe import MoE
from thrifty.compilers.capture import capture
from thrifty.kernels.grouped_integers import FEW, grouped_integers, naive
from thrifty.numerics.experts import PackedExperts
from thrifty.numerics.grouped import rtn
from thrifty.numerics.packing import pack, unpack


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """Row by row, group by group, number by number of [experts, outputs, inputs]."""
    found = torch.empty_like(weight)
    for expert, matrix in enumerate(weight.tolist()):
        for row, numbers in enumerate(matrix):
            for start in range(0, len(numbers), group):
                part = numbers[start : start + group]
                low, high = min(0.0, *part), max(0.0, *part)
                scale = max((high - low) / (2**bits - 1), 1e-12)
                zero = round(-low / scale)
                for i, x in enumerate(part):
                    q = min(max(round(x / scale) + zero, 0), 2**bits - 1)
                    found[expert, row, start + i] = scale * (q - zero)
    return found


def mixtral() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    block = transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock(transformers.MixtralConfig(
        hidden_size=64, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2)).eval()
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.2)
    return block


@pytest.fixture
def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(MoE(64, 32, 4, 2, rate=0)).eval()


@pytest.mark.parametrize(("scheme", "bits", "group"), [("w8a16", 8, None), ("w4a16", 4, 32), ("w3a16", 3, 32), ("w8a8", 8, None)])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_each_output_channel_of_each_expert_is_rounded_by_itself(layer: Any, scheme: str, bits: int, group: int | None,
                                                                 tokens: int) -> None:
    x = torch.randn(tokens, 64)
    small: Any = Quantize(scheme, **({"group": group} if group else {}))(layer, [x])
    with torch.no_grad():
        for name in ("gate_up", "down"):
            float_one = getattr(layer[0], name)
            want = rounded(float_one.detach(), bits, group or float_one.shape[-1])
            held = getattr(small[0], name)
            assert isinstance(held, PackedExperts)
            assert (held.matrices() - want).abs().max() <= 1e-6 + float(held.scale.max()) * 1e-4
            getattr(layer[0], name).copy_(held.matrices())
        torch.testing.assert_close(small(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("ends", [[0, 2, 2, 9], [0, 0, 0, 1], [40, 40, 90, 90]])
def test_products_are_those_of_the_definition(bits: int, ends: list[int]) -> None:
    torch.manual_seed(1)
    weight, x, where = torch.randn(4 * 24, 64), torch.randn(ends[-1], 64), torch.tensor(ends)
    held = PackedExperts(rtn(weight, bits, 32), 4)
    want = naive.forward(x.double(), unpack(held.packed, bits), held.scale, held.zero, where)
    torch.testing.assert_close(held.product(x, where), want.float(), rtol=1e-4, atol=1e-4)
    assert (len(x) > 2 * FEW) == (ends[-1] == 90), "both ways of multiplying are taken"


@pytest.mark.parametrize(("inputs", "groups"), [(8, 1), (62, 1), (40, 5), (136, 1), (1000, 1), (1024, 8)])
@pytest.mark.parametrize("bits", [8, 4])
def test_few_rows_of_any_number_and_width_are_multiplied_as_defined(bits: int, inputs: int, groups: int) -> None:
    torch.manual_seed(2)
    ends, outputs = torch.tensor([1, 1, 3, 6, 10, 15, 21]), 13  # an expert gets 0 to 6 rows
    q = torch.randint(0, 2**bits, (7 * outputs, inputs), dtype=torch.uint8)
    scale, zero = torch.rand(7, outputs, groups) + 0.1, torch.randint(0, 2**bits, (7, outputs, groups), dtype=torch.uint8)
    x, packed = torch.randn(21, inputs), pack(q, bits).reshape(7, outputs, -1)
    found = grouped_integers(x, packed, scale, zero, ends, bits, lambda expert: pytest.fail("this is for many rows"))
    want = naive.forward(x.double(), q.reshape(7, outputs, inputs), scale, zero, ends)
    assert (found - want).norm() <= 1e-6 * want.norm()


def test_experts_of_transformers_and_of_moe_become_integers_too() -> None:
    x = torch.randn(1, 6, 64)
    block = nn.Sequential(mixtral())
    net = Moe(experts=4)(nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)), [x[0]]).eval()
    for model, given, count in ((block, x, 2), (net, x[0], 2)):
        small = Quantize("w8a16")(model, [given])
        stacks = [m for m in small.modules() if isinstance(m, PackedExperts)]
        assert len(stacks) == count
        with torch.no_grad():
            want = model(given)
            assert (small(given) - want).norm() < 0.02 * want.norm()
            exported = capture(small, (given,), {})
            torch.testing.assert_close(exported.module()(given), small(given), rtol=1e-4, atol=1e-5)
        assert not any(p.dim() == 3 and p.shape[1] > 1 for p in small.parameters())


def test_a_pattern_leaves_experts_as_they_are(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Linear(64, 64))
    small: Any = Quantize("w8a16", algorithm="rtn", layers={"0.0": "fp32"})(model, [torch.randn(3, 64)])
    assert isinstance(small[0][0].gate_up, nn.Parameter)
