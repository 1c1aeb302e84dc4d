from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty.numerics import graph as graphs
from thrifty.numerics.equalize import channel_peaks, equalize, rescale, scales


def uneven(conv: nn.Module, seed: int = 0) -> nn.Module:
    """Channels whose weights differ by orders of magnitude, as in depthwise nets."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        shape = (-1, *([1] * (conv.weight.dim() - 1)))
        conv.weight.mul_(torch.exp(2 * torch.randn(len(conv.weight), generator=generator)).reshape(shape))
    return conv


class Inverted(nn.Module):
    """A MobileNetV2 block between two convolutions; the residual sum ends what may be evened out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.wide, self.norm = nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10)
        self.depthwise, self.narrow = nn.Conv2d(10, 10, 3, padding=1, groups=10), nn.Conv2d(10, 6, 1)
        self.pool, self.grouped, self.last = nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(self.depthwise(torch.relu(self.norm(self.wide(x)))))
        return self.last(nn.functional.leaky_relu(self.pool(self.grouped(torch.relu(x + self.narrow(y))))))


def test_pairs_of_a_net_and_its_function():
    torch.manual_seed(0)
    net, x = Inverted(), torch.randn(4, 3, 9, 11)
    net.train()(x)
    graph = graphs.trace(net.eval())
    graphs.fold(graph)
    for module in graph.modules():
        if graphs.is_convolution(module):
            uneven(module)
    assert graphs.pairs(graph) == [("wide", "depthwise"), ("depthwise", "narrow"), ("grouped", "last")]
    with torch.no_grad():
        want, other = graph(x), copy.deepcopy(graph)
        found = equalize(graph, graphs.pairs(graph))
        torch.testing.assert_close(graph(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
        for (first, second), scale in found.items():
            writes = graph.get_submodule(first).weight.flatten(1).abs().amax(1)
            reads = channel_peaks(graph.get_submodule(second).weight, graph.get_submodule(second).groups)
            torch.testing.assert_close(writes, reads, rtol=0.05, atol=0)
            rescale(other.get_submodule(first), other.get_submodule(second), scale)
        for name, weight in other.named_parameters():  # what is returned does the same again
            torch.testing.assert_close(weight, graph.get_parameter(name), rtol=1e-5, atol=1e-7)


@given(st.integers(0, 999), st.sampled_from([1, 2, 6]), st.sampled_from([1, 3]))
def test_scales_equal_a_loop(seed, groups, kernel):
    torch.manual_seed(seed)
    first, second = uneven(nn.Conv2d(4, 6, 1), seed), nn.Conv2d(6, 12, kernel, groups=groups)
    got = scales(first.weight.detach(), second.weight.detach(), groups)
    for i, channel in enumerate(first.weight.tolist()):
        group, position = divmod(i, 6 // groups)
        writes = max(abs(w[0][0]) for w in channel)
        reads = max(abs(float(w)) for j in range(group * 12 // groups, (group + 1) * 12 // groups)
                    for row in second.weight[j, position].tolist() for w in row)
        assert float(got[i]) == pytest.approx((writes / reads) ** 0.5, rel=1e-5)


def test_a_channel_that_is_dead_stays():
    first, second = nn.Conv1d(2, 3, 1), nn.Conv1d(3, 2, 3)
    with torch.no_grad():
        first.weight[1] = 0
        second.weight[:, 2] = 0
    got = scales(first.weight.detach(), second.weight.detach(), 1)
    assert got[1] == got[2] == 1 and got[0] != 1


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Hardswish(), nn.Sigmoid(), nn.GELU()])
def test_what_does_not_scale_is_no_pair(between):
    graph = graphs.trace(nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 3, 1)))
    assert graphs.pairs(graph) == []


def test_what_is_read_or_called_twice_is_no_pair():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            y = torch.relu(self.a(x))
            return self.c(torch.relu(self.c(self.b(y) + y)))

    assert graphs.pairs(graphs.trace(Twice())) == []


def test_the_relu_that_follows():
    graph = graphs.trace(Inverted())
    graphs.fold(graph)
    x = torch.tensor([-1.0, 2.0])
    assert graphs.activation(graph, "wide")(x).tolist() == [0.0, 2.0]
    assert graphs.activation(graph, "narrow")(x).tolist() == [-1.0, 2.0]
