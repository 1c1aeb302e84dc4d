from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.compilers.inprocess import blocks, compiled, eagerly, released


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self, depth: int = 4, width: int = 6) -> None:
        super().__init__()
        self.start, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        x = self.start(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def graphs():
    """Graphs that the compiler made."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


@pytest.mark.parametrize(("regions", "made"), [(True, 1), (False, 1)])
def test_it_computes_the_same_forward_and_backward(graphs, regions, made):
    torch.manual_seed(0)
    plain, x = Stack(), torch.randn(5, 3)
    fast = Stack()
    fast.load_state_dict(plain.state_dict())
    assert compiled(fast, regions=regions) is fast
    plain(x).square().sum().backward()
    fast(x).square().sum().backward()
    torch.testing.assert_close(fast(x), plain(x))
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert graphs() == made  # one for all blocks, or one for the whole


def test_names_stay_and_it_can_be_undone(graphs):
    net, x = Stack(), torch.randn(2, 3)
    names, before = list(net.state_dict()), net(x)
    compiled(net)
    assert list(net.state_dict()) == names
    assert all(layer._compiled_call_impl is not None for layer in net.layers) and net._compiled_call_impl is None
    released(net)
    assert all(module._compiled_call_impl is None for module in net.modules())
    assert torch.equal(net(x), before) and graphs() == 0


def test_a_row_is_of_one_class_and_long_enough():
    assert list(blocks(Stack(depth=2))) == []
    assert len(list(blocks(Stack(depth=3)))) == 3
    mixed = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert list(blocks(mixed)) == []
    nested = nn.ModuleList([nn.ModuleList([nn.Linear(1, 1) for _ in range(5)]) for _ in range(3)])
    assert len(list(blocks(nested))) == 3  # the outermost


@pytest.mark.gpu
def test_cuda_graphs_replay():
    net, x = Stack().cuda().eval(), torch.randn(4, 3, device="cuda")
    with torch.no_grad():
        want = net(x)
        compiled(net, cuda_graphs=True)
        for _ in range(4):
            got = net(x)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_pass_that_a_mode_looks_at_leaves_later_ones_compiled(graphs):
    from torch.utils.flop_counter import FlopCounterMode

    net, x = compiled(Stack()), torch.randn(2, 3)
    with eagerly(), FlopCounterMode(display=False) as counter:
        net(x)
    assert counter.get_total_flops() > 0 and graphs() == 0
    net(x)
    assert graphs() == 1


@pytest.mark.parametrize("net", [
    lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)),
    lambda: nn.Sequential(*[nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(4)]),
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), 3, enable_nested_tensor=False),
], ids=["sequential", "row of sequentials", "encoder"])
def test_modules_of_torch_itself_are_compiled(graphs, net):
    torch.manual_seed(0)
    model = net()
    x = torch.randn(2, 5, 4 if isinstance(model, nn.TransformerEncoder) else 3, requires_grad=True)
    want = model(x)
    torch.testing.assert_close(compiled(model)(x), want)
    assert graphs() == 1
