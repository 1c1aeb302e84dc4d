"""The space of subnets: which there are, and that each is what it says."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from thrifty import testing
from thrifty.posttraining.nas import elastic
from thrifty.posttraining.nas.elastic import DEPTH, KERNEL, WIDTH, Elastic, Space
from thrifty.posttraining.pruning.criteria import magnitude, ranked
from thrifty.posttraining.pruning.dependency import Place, dependencies
from thrifty.recipes.context import Context

EVERYTHING = Elastic((0.5, 0.75), True, True, "channels", "magnitude", 8)


class Chain(nn.Module):
    """Blocks without sums around them: each layer's channels are its own, until a block between two is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16 if i else 4, 16), nn.ReLU()) for i in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(),
                                   nn.Conv2d(hidden, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


def residual() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.Sequential(*[Residual(16, 32) for _ in range(3)]),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


def space(model: nn.Module, *shape: int, of: Elastic = EVERYTHING) -> Space:
    generator = torch.Generator().manual_seed(1)
    return Space(model, of, Context.of([torch.randn(12, *shape, generator=generator)]))


def made(found: Space, subnet: dict[str, int]) -> nn.Module:
    return elastic.build(copy.deepcopy(found.model), found.decide(subnet), {})


def test_it_has_depths_widths_and_kernels():
    found = space(residual(), 1, 9, 9)
    kinds = {v.key: v.options for v in found.variables}
    assert kinds["depth 1"] == (0, 1, 2, 3)
    assert kinds["width 0.weight"] == (16, 8)  # 12 is no multiple of 8
    assert kinds["width 1.2.inner.0.weight"] == (32, 24, 16)
    assert kinds["kernel 0"] == (5, 3, 1) and kinds["kernel 1.0.inner.3"] == (3, 1)
    assert found.size == 4 * 2 * 3**3 * 3 * 2**6


def test_subnets_that_differ_in_blocks_that_they_leave_out_are_one():
    found = space(residual(), 1, 9, 9, of=dataclasses.replace(EVERYTHING, kernel=False))
    assert found.size == 4 * 2 * 3**3
    assert len({found.told(subnet) for subnet in found.every()}) == 2 * (3**3 + 3**2 + 3 + 1)


def test_the_whole_model_is_a_subnet_that_changes_nothing():
    found = space(residual(), 1, 9, 9)
    x = torch.randn(2, 1, 9, 9)
    assert found.told(found.whole) == () and elastic.changes(found.decide(found.whole)) == {}
    torch.testing.assert_close(made(found, found.whole)(x), found.model(x))


def test_the_least_missed_blocks_are_left_out_first():
    model = residual()
    with torch.no_grad():
        model[1][1].inner[3].weight.mul_(1e-4)
        model[1][1].inner[3].bias.zero_()
        model[1][0].inner[3].weight.mul_(10)
    found = space(model, 1, 9, 9)
    assert found.decide({**found.whole, "depth 1": 1})["left_out"] == {"1.1": False}
    assert list(found.decide({**found.whole, "depth 1": 3})["left_out"])[-1] == "1.0"
    x = torch.randn(2, 1, 9, 9)
    torch.testing.assert_close(made(found, {**found.whole, "depth 1": 1})(x), nn.Sequential(
        model[0], model[1][0], model[1][2], *model[2:])(x))


def test_the_most_important_channels_stay():
    model = residual()
    found = space(model, 1, 9, 9)
    small = made(found, {**found.whole, "width 1.0.inner.0.weight": 16})
    groups = dependencies(model, (torch.zeros(1, 1, 9, 9),))
    i = next(i for i, group in enumerate(groups.groups) if Place("1.0.inner.0.weight", 0) in group.members)
    kept = ranked(magnitude(model, groups, "l2")[i], 16)
    assert torch.equal(small[1][0].inner[0].weight, model[1][0].inner[0].weight[kept])
    assert torch.equal(small[1][0].inner[3].weight, model[1][0].inner[3].weight[:, kept])


def test_widths_on_both_sides_of_a_block_that_is_left_out_are_one():
    """Without the block the channels before it are those after it: cut apart, they would be mixed up."""
    torch.manual_seed(0)
    found = space(Chain().eval(), 4)
    assert [v.name for v in found.variables if v.kind == DEPTH] == ["blocks"]
    for count in (1, 2, 3):
        subnet = {**found.whole, "depth blocks": count, "width blocks.0.0.weight": 8}
        small, gone = made(found, subnet), found.decide(subnet)["left_out"]
        masked = elastic.without(found.model, gone)
        kept = dict.fromkeys(range(16))
        for tensor, dim, stays in found.decide(subnet)["cutting"]["slices"]:
            if tensor == "blocks.0.0.weight" and dim == 0:
                kept = dict.fromkeys(stays)
        with torch.no_grad():
            for c in set(range(16)) - kept.keys():
                masked.blocks[0][0].weight[c] = 0
                masked.blocks[0][0].bias[c] = 0
        x = torch.randn(5, 4)
        torch.testing.assert_close(small(x), masked(x))


def test_every_subnet_of_a_small_net_runs_and_is_made_again_from_its_values():
    found = Space(testing.trained().eval(), Elastic((0.5,), True, True, "channels", "magnitude", 8),
                  Context.of([testing.stripes(16, 5).tensors[0]]))
    x = testing.stripes(4, 6).tensors[0]
    sizes = set()
    for subnet in list(found.every())[::7]:
        values = found.decide(subnet)
        with torch.no_grad():
            once, again = (elastic.build(testing.trained(), values, {}) for _ in range(2))
            assert torch.equal(once(x), again(x)) and once(x).shape == (4, 4)
        sizes.add(sum(p.numel() for p in once.parameters()))
    assert len(sizes) > 5


def test_uniform_subnets_treat_all_alike():
    found = space(residual(), 1, 9, 9)
    *shares, kernels, least = found.uniform()
    assert [{s[v.key] for v in found.variables if v.kind == WIDTH and v.options[0] == 32} for s in shares] == [{24}, {16}]
    assert all(kernels[v.key] == (v.options[-1] if v.kind == KERNEL else v.options[0]) for v in found.variables)
    assert all(least[v.key] == v.options[-1] for v in found.variables)


@pytest.mark.parametrize(("of", "kinds"), [
    (Elastic((), True, False, "channels", "magnitude", 8), {DEPTH}),
    (Elastic((0.5,), False, False, "channels", "magnitude", 8), {WIDTH}),
    (Elastic((), False, True, "channels", "magnitude", 8), {KERNEL})])
def test_each_kind_can_stand_alone(of, kinds):
    assert {v.kind for v in space(residual(), 1, 9, 9, of=of).variables} == kinds


def test_heads_and_the_residual_stream_of_a_transformer_are_elastic():
    found = Space(testing.SmallAttention().eval(), Elastic((0.5,), True, False, "width", "magnitude", 8),
                  Context.of([testing.stripes(8, 5).tensors[0]]))
    least = list(found.uniform())[-1]
    widths = {v.key: v.options for v in found.variables if v.kind == WIDTH}
    assert (32, 16) in widths.values() and len(widths) > 1
    small = made(found, {**least, **{v.key: 0 for v in found.variables if v.kind == DEPTH}})
    x = testing.stripes(3, 6).tensors[0]
    assert small(x).shape == (3, 4)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in found.model.parameters())
