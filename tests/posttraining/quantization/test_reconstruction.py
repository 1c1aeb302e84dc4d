from __future__ import annotations

import copy

import torch
from torch import nn

from thrifty.numerics.modules import QuantConv, QuantLinear
from thrifty.posttraining.quantization import integers
from thrifty.posttraining.quantization.reconstruction import reconstruct
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context


class Net(nn.Module):
    """Strided, depthwise, grouped and linear layers, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.twice, self.wide = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 3, groups=2)
        self.head, self.last = nn.Linear(16, 40), nn.Linear(40, 40, bias=False)

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.deep(torch.relu(self.stem(x))))))
        x = torch.relu(self.wide(torch.relu(self.twice(x))))
        return self.last(torch.relu(self.head(x.mean((2, 3)))))


class Untraceable(Net):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) != 1e9 else x


NAMES = ("stem", "deep", "twice", "wide", "head", "last")


def made(kind: type[nn.Module] = Net) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A float net, the same in w4a8, and inputs."""
    torch.manual_seed(0)
    net, x = kind().eval().requires_grad_(False), torch.rand(96, 3, 12, 12)
    method = Quantize("w4a8", equalize=False, correct=False)
    return net, method.build(copy.deepcopy(net), method.plan(net, Context.of([x]))), x


def adjust(net: nn.Module, rounded: nn.Module, x: torch.Tensor, adaround: bool, correct: bool) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return reconstruct(net, rounded, {name: integers.place(rounded, name) for name in NAMES}, (x,),
                           dict.fromkeys(NAMES[:-1], torch.relu), bits=dict.fromkeys(NAMES, 4) if adaround else {},
                           steps=60, correct=correct, seed=0)


def outputs(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each layer gives at its first call, channels last."""
    found: dict[str, torch.Tensor] = {}

    def see(name: str):
        def hook(module, given, y):
            found.setdefault(name, y.movedim(1, -1).flatten(0, -2))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(see(name)) for name in NAMES]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def test_biases_keep_every_channels_mean():
    net, rounded, x = made()
    exact, before = outputs(net, x), outputs(rounded, x)
    adjust(net, rounded, x, adaround=False, correct=True)
    after = outputs(rounded, x)
    for name in NAMES:  # sequentially: each layer is right on what the corrected ones before it give
        assert float((before[name].mean(0) - exact[name].mean(0)).abs().max()) > 1e-3
        torch.testing.assert_close(after[name].mean(0), exact[name].mean(0), rtol=1e-3, atol=1e-4)


def test_adaround_lowers_the_error_of_the_outputs_and_of_layers():
    net, rounded, x = made()
    fresh = torch.rand(96, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    exact, before = outputs(net, fresh), outputs(rounded, fresh)
    found = adjust(net, rounded, x, adaround=True, correct=False)
    after = outputs(rounded, fresh)

    def error(got: dict[str, torch.Tensor], name: str) -> float:
        return float((torch.relu(got[name]) - torch.relu(exact[name])).square().mean())

    assert set(found) == {f"weight.{name}" for name in NAMES}
    assert all(q.dtype == torch.int8 and int(q.abs().max()) <= 7 for q in found.values())
    assert sum(error(after, name) < error(before, name) for name in NAMES) >= 5
    assert float((after["last"] - exact["last"]).square().mean()) < 0.6 * float((before["last"] - exact["last"]).square().mean())


def test_a_model_without_a_graph():
    net, rounded, x = made(Untraceable)
    assert isinstance(rounded.deep, nn.Sequential) and isinstance(rounded.deep[0], QuantConv)
    before = float((rounded(x) - net(x)).square().mean())
    found = adjust(net, rounded, x, adaround=True, correct=True)
    assert torch.equal(rounded.deep[0].weight, found["weight.deep"]) and isinstance(rounded.head, QuantLinear)
    assert float((rounded(x) - net(x)).square().mean()) < before


def test_the_same_seed_decides_the_same():
    first, second = (adjust(*made(), adaround=True, correct=True) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
