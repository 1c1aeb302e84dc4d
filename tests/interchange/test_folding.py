"""Vectors that go into norms, on modules small enough to be written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thrifty.interchange.folding import folded
from thrifty.interchange.layers import InterchangeError
from thrifty.numerics.grouped import rtn
from thrifty.numerics.modules import GroupedLinear, QuantLinear

WIDTH = 32


class Block(nn.Module):
    """x -> norm -> (a, b) -> sum -> c."""

    def __init__(self, norm: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.table = nn.Embedding(20, WIDTH)
        self.norm, (self.a, self.b, self.c) = norm, layers

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.norm(self.table(input_ids))
        return self.c(self.a(x) + self.b(x[:, :, :]))


def grouped(smooth: Tensor | None) -> GroupedLinear:
    made = rtn(torch.randn(WIDTH, WIDTH), 4, 32, smooth=smooth)
    return GroupedLinear(made.q, made.scale, made.zero, 4, None, smooth)


def integer(smooth: Tensor) -> QuantLinear:
    return QuantLinear(nn.Linear(WIDTH, WIDTH), smooth)


def layers(block: Block) -> dict[str, QuantLinear | GroupedLinear]:
    return {name: module for name, module in block.named_modules() if isinstance(module, QuantLinear | GroupedLinear)}


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("make", [grouped, integer])
@torch.no_grad()
def test_a_norm_takes_the_vector_that_all_its_readers_share(norm, make) -> None:
    torch.manual_seed(0)
    smooth, ids = torch.rand(WIDTH) + 0.5, torch.arange(12).reshape(2, 6)
    block = Block(norm(WIDTH), make(smooth), make(smooth), make(torch.ones(WIDTH))).eval()
    nn.init.normal_(block.norm.weight)
    if norm is nn.LayerNorm:
        nn.init.normal_(block.norm.bias)
    expected = block(ids)
    changed = folded(block, layers(block), ids)
    assert changed.keys() == {f"norm.{name}" for name, _ in block.norm.named_parameters()}
    assert torch.equal(changed["norm.weight"], block.norm.weight / smooth)
    for name, tensor in changed.items():
        block.get_parameter(name).copy_(tensor)
    block.a.smooth, block.b.smooth = torch.ones(WIDTH), torch.ones(WIDTH)
    torch.testing.assert_close(block(ids), expected, atol=1e-4, rtol=1e-4)


def test_without_vectors_nothing_changes_and_nothing_runs() -> None:
    block = Block(nn.LayerNorm(WIDTH), grouped(None), integer(torch.ones(WIDTH)), grouped(torch.ones(WIDTH)))
    assert folded(block, layers(block), torch.full((1, 1), 10**6)) == {}


@pytest.mark.parametrize("other", [lambda s: nn.Linear(WIDTH, WIDTH), lambda s: integer(s * 2), lambda s: grouped(None)],
                         ids=["float", "another vector", "no vector"])
def test_readers_that_differ_are_refused(other) -> None:
    smooth = torch.rand(WIDTH) + 0.5
    block = Block(nn.LayerNorm(WIDTH), integer(smooth), other(smooth), grouped(None)).eval()
    with pytest.raises(InterchangeError, match="layer 'a' divides its inputs.*algorithm=rtn"):
        folded(block, layers(block), torch.arange(6)[None])


def test_a_reader_without_a_norm_before_it_is_refused() -> None:
    smooth = torch.rand(WIDTH) + 0.5
    block = Block(nn.LayerNorm(WIDTH), grouped(smooth), grouped(smooth), grouped(smooth)).eval()
    with pytest.raises(InterchangeError, match=r"layer 'c' divides its inputs.*1 layers do.*algorithm=gptq or hqq"):
        folded(block, layers(block), torch.arange(6)[None])


def test_a_norm_without_a_weight_takes_nothing() -> None:
    smooth = torch.rand(WIDTH) + 0.5
    block = Block(nn.LayerNorm(WIDTH, elementwise_affine=False), grouped(smooth), grouped(smooth), grouped(None)).eval()
    with pytest.raises(InterchangeError, match="layer 'a'"):
        folded(block, layers(block), torch.arange(6)[None])
