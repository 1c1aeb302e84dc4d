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


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x, gate=None, *rest, scale: float = 2.0):
        h = torch.relu(self.a(x))
        if gate is not None:
            h = h * gate
        return scale * self.b(h)


def test_arguments_that_are_not_given_have_their_defaults_in_a_trace():
    net, x, gate = Gated().eval(), torch.randn(2, 1, 6, 6), torch.rand(2, 8, 1, 1)
    alone, both = graphs.trace(net, 1), graphs.trace(net, 2)
    assert graphs.reproduces(alone, net, (x,)) == 0 and graphs.reproduces(both, net, (x, gate)) == 0
    assert graphs.reproduces(both, net, (x,)) == float("inf")


class Flagged(nn.Module):
    """A trace follows the way of proxies, which are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x) if isinstance(x, torch.Tensor) else -self.conv(x)


def test_a_trace_that_took_another_branch_is_told_from_the_model():
    net, x = Flagged().eval(), torch.randn(2, 1, 6, 6)
    graph = graphs.trace(net, 1)
    assert graph is not None and graphs.reproduces(graph, net, (x,)) > 1


def test_hooks_subclasses_and_weights_that_are_read_are_not_folded():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    def net(hook: bool, norm: type[nn.Module]) -> nn.Module:
        found = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU()).eval()
        if hook:
            found[0].register_forward_hook(lambda module, inputs, output: output + 1)
        return found

    for hook, norm, folded in ((False, nn.BatchNorm2d, 1), (True, nn.BatchNorm2d, 0), (False, Doubled, 0)):
        graph, x = graphs.trace(model := net(hook, norm), 1), torch.randn(2, 1, 6, 6)
        assert len(graphs.fold(graph)) == folded
        assert graphs.reproduces(graph, model, (x,)) < 1e-5


def test_a_module_of_two_names_is_replaced_under_both():
    layer = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    graphs.replace(net, "a", other := nn.Linear(2, 2))
    assert net["a"] is other and net["b"][0] is other
