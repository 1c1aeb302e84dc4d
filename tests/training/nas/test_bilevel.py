"""Second-order gradients equal explicit bilevel differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.nas.spaces import Two
from thrifty.recipes.phases import Train
from thrifty.training.nas import mixtures
from thrifty.training.nas.bilevel import With, second_order
from thrifty.training.nas.choice import decisions, places
from thrifty.training.nas.darts import Darts
from thrifty.training.session import TrainingSession


def problem(seed: int):
    """Losses of a one-layer net whose two options are weighed by ``a``, with everything in the open."""
    torch.manual_seed(seed)
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    a = torch.randn(2, dtype=torch.float64, requires_grad=True)
    (x, y), (u, v) = ((torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)) for _ in range(2))

    def loss(weights, a, inputs, wanted):
        p = a.softmax(0)
        return ((p[0] * torch.tanh(inputs @ weights) + p[1] * (inputs @ weights)) - wanted).square().mean()

    return w, a, (x, y), (u, v), loss


@pytest.mark.parametrize("seed", range(3))
def test_they_equal_the_formula_with_an_explicit_matrix_of_second_derivatives(seed):
    w, a, train, held, loss = problem(seed)
    rate = 0.3
    found = second_order(lambda now: loss(now["w"], a, *train), lambda now: loss(now["w"], a, *held), {"w": w}, [a], rate)[0]

    (slope,) = torch.autograd.grad(loss(w, a, *train), w)
    stepped = (w - rate * slope).detach().requires_grad_()
    direct, through = torch.autograd.grad(loss(stepped, a, *held), [a, stepped])

    def slope_of(a):
        return torch.func.grad(lambda w: loss(w, a, *train))(w)

    mixed = torch.autograd.functional.jacobian(slope_of, a)  # d2 L_train / dw da, [4, 3, 2]
    explicit = direct - rate * torch.einsum("ij,ijk->k", through, mixed)
    torch.testing.assert_close(found, explicit, rtol=0, atol=1e-9)
    assert (found - direct).abs().max() > 1e-4  # the second order is not nothing


@pytest.mark.parametrize("seed", range(3))
def test_they_equal_differences_of_the_whole_bilevel_function(seed):
    w, a, train, held, loss = problem(seed)
    rate, h = 0.3, 1e-6
    found = second_order(lambda now: loss(now["w"], a, *train), lambda now: loss(now["w"], a, *held), {"w": w}, [a], rate)[0]

    def whole(a):
        (slope,) = torch.autograd.grad(loss(w, a, *train), w)
        return float(loss(w - rate * slope, a, *held).detach())

    for k in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[k] = h
        up, down = ((a.detach() + sign * step).requires_grad_() for sign in (1, -1))
        assert abs(float(found[k]) - (whole(up) - whole(down)) / (2 * h)) < 1e-6


def in_float64(outputs, batch):
    """Sum and count of the cross entropy, in the outputs' own precision."""
    return nn.functional.cross_entropy(outputs, batch[1], reduction="sum"), torch.tensor(float(len(outputs)), dtype=outputs.dtype)


def test_the_search_takes_them_on_a_net():
    """What `Darts` computes of a batch, against central differences through one step of the net's own weights."""
    torch.manual_seed(0)
    model = Two().double()
    method = Darts("softmax", order=2)
    batch = ((torch.randn(40, 4, dtype=torch.float64),), torch.randint(0, 2, (40,)))
    session = TrainingSession(model, [method], in_float64, steps=10, settings=Train(warmup=0.0, schedule="constant"))
    memory = session.memory(method)
    memory["logits"] = {name: a.detach().double().requires_grad_() for name, a in memory["logits"].items()}
    own = method.part(session, batch)
    assert 0 < len(own[1]) < 40 and len(own[1]) + len(memory["held"][1]) == 40
    rate = session.optimizer.param_groups[0]["lr"]
    variables = list(memory["logits"].values())
    method._mix(session, memory, 0.0, attached=True)
    found = method._second(session, own, memory["held"], variables)

    def whole(logits):
        for one, a in zip(decisions(model), logits, strict=True):
            for name in one.places:
                places(model)[name].mixture = mixtures.drawn("softmax", a, 0.0).detach()
        weights = dict(model.named_parameters())

        def mean(now, on):
            total, count = session.loss(With(model, now)(*on[0]), on)
            return total / count

        slopes = torch.autograd.grad(mean(weights, own), list(weights.values()), allow_unused=True)
        stepped = {name: p if g is None else p - rate * g for (name, p), g in zip(weights.items(), slopes, strict=True)}
        return float(mean(stepped, memory["held"]))

    h = 1e-5
    for i, variable in enumerate(variables):
        for k in range(len(variable)):
            up, down = ([a.detach().clone() for a in variables] for _ in range(2))
            up[i][k] += h
            down[i][k] -= h
            assert abs(float(found[i][k]) - (whole(up) - whole(down)) / (2 * h)) < 1e-6


def test_other_weights_run_in_a_model_that_keeps_its_own():
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    found = With(model, {"weight": torch.zeros(1, 2), "bias": torch.ones(1)})(torch.ones(1, 2))
    assert float(found) == 1.0 and torch.equal(model.weight, before) and not list(With(model, {}).parameters())
