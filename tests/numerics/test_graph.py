from __future__ import annotations

import torch
from torch import nn

from thrifty.numerics import graph as graphs


class Block(nn.Module):
    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.norm2 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.shortcut = nn.Identity()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return self.conv2(self.pool(torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))))


def test_folding_keeps_the_function_and_shared_convolutions():
    torch.manual_seed(0)
    net, x = Block(), torch.randn(3, 8, 7, 5)
    net.train()(x)
    net.eval()
    graph = graphs.trace(net)
    assert graph is not None
    with torch.no_grad():
        want = net(x)
        # conv2 is called twice: what follows one call must not change the other
        assert graphs.fold(graph) == [("conv1", "norm1")]
        torch.testing.assert_close(graph(x), want, rtol=1e-5, atol=1e-5)


def test_edges_are_what_integer_kernels_read():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
                        nn.Flatten(), nn.Linear(72, 4)).eval()
    graph = graphs.trace(net)
    assert graph is not None
    graphs.fold(graph)
    marked = graphs.edges(graph)
    assert marked == ["input_1", "_2", "_3", "_5"]
    assert graphs.same_grid(graph, marked) == {"_3": "_2"}
    assert graphs.input_edges(graph, marked) == {"0": "input_1", "4": "_3"}


def test_a_model_that_cannot_be_traced_is_none():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert graphs.trace(Branch()) is None


def test_modules_of_a_kind_are_exchanged_wherever_they_stand():
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    found = graphs.exchange(net, {nn.ReLU: lambda _: nn.Tanh()})
    assert found is net and [type(m) for m in found.modules() if not list(m.children())] == [nn.Tanh, nn.Linear, nn.Tanh]
    assert isinstance(graphs.exchange(nn.ReLU(), {nn.ReLU: lambda _: nn.Tanh()}), nn.Tanh)
    assert isinstance(graphs.exchange(nn.LeakyReLU(), {nn.ReLU: lambda _: nn.Tanh()}), nn.LeakyReLU)
