"""Nets with weights of few bits, for every compiler's tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.compilers.nets import called, error, lowered
from thrifty.numerics.grid import per_group, to_group
from thrifty.numerics.modules import GroupedLinear
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.compiler import Compiler

WIDE = 640
"""Inputs of `layered`: its weights outweigh any file's graph."""


def grouped(out: int, inputs: int, bits: int, group: int | None = None, bias: bool = True,
            smooth: bool = False) -> GroupedLinear:
    """A random layer of grids that are far from symmetric."""
    generator = torch.Generator().manual_seed(out + inputs + bits)
    middle = 0.5 * torch.randn(out, 1, generator=generator)
    weight = (torch.randn(out, inputs, generator=generator) + middle) / inputs**0.5
    scale, zero = per_group(weight, bits, group or inputs)
    return GroupedLinear(to_group(weight, scale, zero, bits), scale, zero, bits,
                         torch.randn(out, generator=generator) if bias else None,
                         torch.rand(inputs, generator=generator) + 0.5 if smooth else None)


ODD = {
    "w4 of a group of 32, an odd number of groups": grouped(33, 96, 4, 32),
    "w4 of a group of 128, smoothed, without bias": grouped(31, 256, 4, 128, bias=False, smooth=True),
    "w4 of whole rows": grouped(7, 58, 4),
    "w3 of a group of 64": grouped(65, 192, 3, 64, smooth=True),
    "w8 of whole rows, an odd number": grouped(29, 513, 8),
    "w8 of a group of 24": grouped(16, 48, 8, 24, bias=False),
}
"""Layers whose sizes are no multiples of what kernels like."""


class Around(nn.Module):
    """A layer of few bits between float operations, some in the model's own precision."""

    def __init__(self, layer: GroupedLinear) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.in_features)
        self.layer = layer
        self.last = nn.Linear(layer.out_features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(self.norm(x))))


def around(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Around(ODD[name]).eval().requires_grad_(False)


def tokens(name: str, *sizes: int) -> Tensor:
    return torch.randn(*sizes, ODD[name].in_features, generator=torch.Generator().manual_seed(1))


def layered() -> tuple[nn.Module, Tensor]:
    """A float net that is nearly all weights, as trained ones are distributed, and its inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDE, 2 * WIDE), nn.GELU(), nn.Linear(2 * WIDE, WIDE), nn.GELU(),
                        nn.Linear(WIDE, 2 * WIDE + 1))
    for layer in net[::2]:
        nn.init.normal_(layer.weight, std=0.05)
    return net.eval().requires_grad_(False), torch.randn(48, WIDE)


def in_few_bits(net: nn.Module, scheme: str, *inputs: Tensor, **options: object) -> nn.Module:
    return Quantize(scheme, algorithm="rtn" if scheme.endswith("a16") else "auto", **options)(
        net, [(inputs, None)]).requires_grad_(False)


class Tied(nn.Module):
    """A language model's two ends: one table that is looked up and multiplied by."""

    def __init__(self, words: int = 200, width: int = 64) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(words, width), nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.table(ids))))


def tied() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Tied().eval().requires_grad_(False), torch.randint(0, 200, (3, 9))


def check_bytes(compiler: Compiler, scheme: str, most: float, place: Path) -> None:
    """A quantized net takes at most so much of the float net's file, and computes the same."""
    net, x = layered()
    _, _, large = lowered(compiler, net, (x[:1],), place / "fp32")
    integer = in_few_bits(net, scheme, x)
    record, engine, small = lowered(compiler, integer, (x[:1],), place / scheme)
    assert small <= most * large
    assert record.facts["few_bit_layers"] == (0 if scheme == "w8a8" else 3)
    assert error(called(engine, x[:1]), integer(x[:1])) < (0.01 if scheme == "w8a8" else 1e-5)


def check_tied(compiler: Compiler, place: Path) -> int:
    """A table and the product that it is tied to compute the same; bytes of what is written."""
    net, ids = tied()
    integer = in_few_bits(net, "w4a16", ids, group=32)
    record, engine, size = lowered(compiler, integer, (ids,), place, {0: {0: (1, 8)}})
    assert record.facts["few_bit_layers"] == 2
    assert error(called(engine, ids[:1]), integer(ids[:1])) < 1e-5
    return size
