from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from thrifty.numerics.lockstep import in_lockstep


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def test_a_layer_is_visited_once_with_what_all_batches_bring():
    model, batches, seen = chain(), [(torch.randn(n, 4),) for n in (2, 5, 1)], {}
    in_lockstep(model, linears(model), batches, lambda name, inputs: seen.update({name: list(inputs)}) or [])
    assert list(seen) == ["0", "2"]
    for i, (x,) in enumerate(batches):
        assert torch.equal(seen["0"][i], x) and torch.equal(seen["2"][i], torch.relu(model[0](x)))


def test_later_layers_read_what_earlier_ones_have_become():
    model, read = chain(), []

    def visit(name, inputs):
        if name == "0":
            model[0].weight.data.zero_()
            model[0].bias.data.fill_(2)
        read.append(float(torch.cat(list(inputs)).mean()))
        return []

    in_lockstep(model, linears(model), [(torch.randn(2, 4),)] * 3, visit)
    assert read[1] == 2.0


class Routed(nn.Module):
    """Batches part ways and meet again; the last layer is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = self.left(x) if float(x.sum()) > 0 else self.right(x)
        return self.both(self.both(x))


def test_batches_that_part_ways():
    model, seen = Routed(), []
    batches = [(sign * torch.ones(3, 4),) for sign in (1, -1, 1)]
    in_lockstep(model, linears(model), batches, lambda name, inputs: seen.append((name, len(inputs))) or [])
    assert seen == [("left", 2), ("right", 1), ("both", 3)]


def test_names_that_need_no_visit_any_more():
    model, seen = Routed(), []
    in_lockstep(model, linears(model), [(torch.ones(1, 4),)], lambda name, inputs: seen.append(name) or ["both"])
    assert seen == ["left"]


@pytest.mark.parametrize("where", ["visit", "model"])
def test_an_error_ends_all_threads(where):
    model, before = chain(), threading.active_count()

    def visit(name, inputs):
        if where == "visit":
            raise ValueError("no")
        return []

    width = 4 if where == "visit" else 7
    with pytest.raises(ValueError if where == "visit" else RuntimeError):
        in_lockstep(model, linears(model), [(torch.ones(1, 4),), (torch.ones(1, width),)], visit)
    assert threading.active_count() == before
    assert not model[0]._forward_pre_hooks
