"""Layers that round: the same function folded and unfolded, in training and in integers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thrifty.numerics.grid import Affine, per_group, per_row, rows, to_group
from thrifty.numerics.modules import GroupedLinear, QuantConv, QuantEdge, QuantEmbedding, QuantLinear
from thrifty.training.qat.layers import (
    RoundedConv,
    RoundedEdge,
    RoundedEmbedding,
    RoundedGroups,
    RoundedLinear,
    WeightGrid,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shrunk(twin: nn.Module, weight: torch.Tensor, bits: int) -> None:
    """Hold fewer bits than the constructor's eight."""
    q, scale = per_row(weight, bits)
    twin.weight.copy_(q)
    twin.scale.copy_(scale)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_convolution_with_its_norm_is_the_folded_one(kind, bits, learned):
    torch.manual_seed(0)
    conv = kind(6, 9, 3, padding=1, groups=3)
    norm = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}[kind](9)
    nn.init.uniform_(norm.weight, -1.5, 1.5)  # negative factors too
    nn.init.normal_(norm.bias)
    x = drawn(5, 6, 7) if kind is nn.Conv1d else drawn(5, 6, 7, 5)
    norm.train()(conv(x))
    folded = copy.deepcopy(conv)
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    folded.weight.data.mul_(factor.reshape(-1, *[1] * (conv.weight.dim() - 1)))
    grid = Affine.of(-3.0, 3.0)
    twin = QuantConv(folded, grid, rounds=False)
    shrunk(twin, folded.weight, bits)
    edge = RoundedEdge(QuantEdge(grid), learned)
    layer = RoundedConv(conv, norm, twin, edge, learned).train()
    x = edge(x)

    want = rows(*per_row(folded.weight, bits))  # the post-training numbers, before anything is trained
    made = copy.deepcopy(layer).integer()
    torch.testing.assert_close(rows(made.weight, made.scale), want)

    if learned:
        layer.grid.ratio.data.uniform_(0.7, 1.2)
    norm.eval()  # statistics stand still: training computes what is served
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(x), layer.integer()(x))
    assert int(layer.integer().weight.abs().max()) == 2 ** (bits - 1) - 1 or learned
    layer.train()(x).square().sum().backward()
    assert conv.weight.grad.abs().sum() > 0 and norm.weight.grad.abs().sum() > 0
    assert (layer.grid.ratio.grad.abs() > 0).all() if learned else layer.grid.ratio is None


def test_statistics_are_those_of_the_rounded_convolution():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=1.0)
    twin = QuantConv(conv, Affine.of(-3, 3), rounds=True)
    shrunk(twin, conv.weight, 4)
    layer = RoundedConv(conv, norm, twin, RoundedEdge(QuantEdge(Affine.of(-3, 3)), True), True).train()
    x = drawn(8, 3, 6, 6)
    layer(x)
    y = nn.functional.conv2d(QuantEdge(Affine.of(-3, 3))(x), rows(*per_row(conv.weight, 4)))
    torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_of_tokens_and_rows(bits, learned):
    torch.manual_seed(0)
    linear, smooth = nn.Linear(17, 9), torch.rand(17) + 0.5
    twin = QuantLinear(linear, smooth)
    shrunk(twin, linear.weight * smooth, bits)
    layer, x = RoundedLinear(linear, twin, learned).train(), drawn(3, 5, 17).requires_grad_()
    torch.testing.assert_close(layer(x), layer.integer()(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.eval()(x), layer.integer()(x))
    layer.train()(x).sum().backward()
    # Straight through: as if neither had been rounded, but by the rounded other one.
    torch.testing.assert_close(x.grad[0, 0], (rows(*per_row(linear.weight * smooth, bits)) / smooth).sum(0).detach(),
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("smoothed", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(3, 32), (4, 16), (8, 64)])
def test_groups(bits, group, smoothed, learned):
    torch.manual_seed(0)
    linear, smooth = nn.Linear(64, 9), torch.rand(64) + 0.5 if smoothed else None
    scaled = linear.weight * smooth if smooth is not None else linear.weight
    scale, zero = per_group(scaled, bits, group, 0.9)
    twin = GroupedLinear(to_group(scaled, scale, zero, bits), scale, zero, bits, linear.bias, smooth)
    first, x = twin.dequantized(), drawn(4, 64)
    layer = RoundedGroups(linear, twin, learned).train()
    torch.testing.assert_close(layer.integer().dequantized(), first)
    if learned:
        layer.grid.ratio.data.uniform_(0.8, 1.1)
    linear.weight.data.add_(0.01 * drawn(9, 64, seed=1))
    torch.testing.assert_close(layer(x), layer.integer()(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.eval()(x), layer.integer()(x))
    assert not torch.equal(layer.integer().dequantized(), first)


@pytest.mark.parametrize("learned", [True, False])
def test_tables_alone_and_tied(learned):
    torch.manual_seed(0)
    embedding, ids = nn.Embedding(50, 8, padding_idx=0), torch.arange(30).reshape(2, 15)
    layer = RoundedEmbedding(embedding, QuantEmbedding(embedding), None, learned).train()
    assert torch.equal(layer(ids), layer.integer()(ids))
    layer(ids).sum().backward()
    assert not embedding.weight.grad[0].any() and embedding.weight.grad[1:30].all()

    linear = nn.Linear(8, 50, bias=False)
    linear.weight = embedding.weight
    product, table = QuantLinear(linear, torch.ones(8)), QuantEmbedding(embedding)
    shrunk(product, linear.weight, 4)
    rounded = RoundedLinear(linear, product, learned)
    tied = RoundedEmbedding(embedding, table, rounded, learned).train()
    torch.testing.assert_close(tied(ids), rows(*per_row(embedding.weight, 4))[ids])
    assert tied.integer().weight is rounded.integer().weight and tied.integer().scale is product.scale


def test_an_edge_learns_its_step_and_keeps_its_zero():
    edge, x = RoundedEdge(QuantEdge(Affine(0.02, 30)), True).train(), drawn(4, 50)
    torch.testing.assert_close(edge(x), edge.integer()(x))
    edge(x).square().sum().backward()
    assert edge.ratio.grad.abs() > 0
    edge.ratio.data.fill_(1.5)
    assert float(edge.integer().scale) == pytest.approx(0.03) and float(edge.integer().zero) == 30
    still = RoundedEdge(QuantEdge(Affine(0.02, 30)), False)
    assert not list(still.parameters())


@pytest.mark.parametrize("learned", [True, False])
def test_settled_integers_stay_and_steps_learn_on(learned):
    weight, held = drawn(6, 32).requires_grad_(), drawn(6, 32, seed=1)
    scale, zero = per_group(weight, 4, 16)
    grid = WeightGrid(weight, scale, zero, 15, learned)
    before = grid(weight).detach()
    grid.settle(weight)
    torch.testing.assert_close(grid(weight), before)
    q = grid.numbers(weight + held)[0]  # whatever becomes of the weight
    assert torch.equal(q, grid.numbers(weight)[0])
    assert torch.equal(q.reshape(6, 2, 16), to_group(weight, scale, zero, 4).reshape(6, 2, 16) - zero.float().unsqueeze(2))
    (grid(weight) * held).sum().backward()
    assert not weight.grad.any()
    if learned:  # d(s q)/dr = s_0 q
        want = (q * held).reshape(6, 2, 16).sum(2) * scale
        torch.testing.assert_close(grid.ratio.grad, want.flatten(), rtol=1e-4, atol=1e-5)
    again = WeightGrid(held, scale, zero, 15, learned)
    again.load_state_dict(grid.state_dict())
    torch.testing.assert_close(again(weight), grid(weight))


def test_rows_that_calibration_knew_nothing_of_can_still_learn():
    weight = drawn(3, 8)
    weight[1] = 0
    q, scale = per_row(weight, 4)
    grid = WeightGrid(weight, scale.unsqueeze(1), None, 7, learned=True)
    steps = grid.steps(weight).squeeze(1).detach()
    torch.testing.assert_close(steps[[0, 2]], scale[[0, 2]])
    assert float(steps[1]) == pytest.approx(2 * float(weight.abs().mean()) / 7**0.5, rel=1e-5)
    follows = WeightGrid(weight, scale.unsqueeze(1), None, 7, learned=False)
    torch.testing.assert_close(follows.numbers(weight)[0], q.float())
    torch.testing.assert_close(follows.steps(2 * weight).squeeze(1)[[0, 2]], 2 * scale[[0, 2]])
