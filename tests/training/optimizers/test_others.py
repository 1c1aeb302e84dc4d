"""Muon, SOAP, Lion, Adafactor, Schedule-Free, 8-bit AdamW and the average of weights, against their papers' updates."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import Adafactor, AdamW, AdamW8bit, CrossEntropy, Ema, Lion, Muon, ScheduleFree, Soap
from thrifty.errors import MissingExtra, NoEffect
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.phases import Train
from thrifty.recipes.training_method import TrainingMethod
from thrifty.training.loop import fit
from thrifty.training.optimizers.optimizer import WrongOptimizer
from thrifty.training.session import TrainingSession

CONSTANT = Train(schedule="constant", warmup=0, clip=None, steps=20)
SHAPE = (5, 7)


class Plane(nn.Module):
    """A hidden matrix between two linear layers; its gradient is read off after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x)))  # type: ignore[no-any-return]


def trace(method: TrainingMethod, steps: int = 20) -> tuple[list[Tensor], list[Tensor]]:
    """(the hidden matrix before each step and after the last, its gradients), in float64 copies."""
    torch.manual_seed(0)
    model = Plane()
    session = TrainingSession(model, [method], CrossEntropy(), steps=steps, settings=CONSTANT)
    weights, gradients = [model.hidden.weight.detach().double()], []
    model.hidden.weight.register_hook(lambda g: gradients.append(g.detach().clone().double()))
    for _ in range(steps):
        session.step(((torch.randn(16, 7),), torch.randint(0, 3, (16,))))
        weights.append(model.hidden.weight.detach().clone().double())
    return weights, gradients


def assert_follows(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_lion_is_the_papers() -> None:
    weights, gradients = trace(Lion(lr=0.01, weight_decay=0.2, beta1=0.8, beta2=0.95))
    w, m, path = weights[0], torch.zeros(SHAPE).double(), [weights[0]]
    for g in gradients:
        w = (1 - 0.01 * 0.2) * w - 0.01 * (0.8 * m + 0.2 * g).sign()
        m = 0.95 * m + 0.05 * g
        path.append(w)
    assert_follows(weights, path)


def test_adafactor_is_torchs_reading_of_the_paper() -> None:
    weights, gradients = trace(Adafactor(lr=0.05, weight_decay=0.1))
    w, row, column, path = weights[0], torch.zeros(5, 1).double(), torch.zeros(1, 7).double(), [weights[0]]
    tiny = torch.finfo(torch.float32).eps
    for t, g in enumerate(gradients, 1):
        b = 1 - t**-0.8
        scale = max(1e-3, float(w.square().mean().sqrt())) * min(0.05, t**-0.5)
        w = (1 - 0.05 * 0.1) * w
        row = b * row + (1 - b) * g.square().mean(1, keepdim=True)
        column = b * column + (1 - b) * g.square().mean(0, keepdim=True)
        u = g / (row @ column / row.mean().clamp(min=tiny)).clamp(min=tiny**2).sqrt()
        w = w - scale * u / max(1.0, float(u.square().mean().sqrt()))
        path.append(w)
    assert_follows(weights, path)


def test_muon_is_the_papers_and_the_rest_is_adamws() -> None:
    weights, gradients = trace(Muon(lr=0.02, weight_decay=0.1))
    w, buffer, path = weights[0], torch.zeros(SHAPE).double(), [weights[0]]
    for g in gradients:
        buffer = 0.95 * buffer + 0.05 * g
        x = 0.05 * g + 0.95 * buffer
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
        w = (1 - 0.02 * 0.1) * w - 0.02 * 0.2 * math.sqrt(7) * x
        path.append(w)
    assert_follows(weights, path)

    torch.manual_seed(0)
    mine, theirs = Plane(), Plane()
    theirs.load_state_dict(mine.state_dict())
    session = TrainingSession(mine, [Muon(lr=0.02)], CrossEntropy(), steps=20, settings=CONSTANT)
    heads = torch.optim.AdamW([{"params": [theirs.head.weight], "weight_decay": 0.1}], lr=0.02)
    session.step(((torch.randn(16, 7),), torch.randint(0, 3, (16,))))
    theirs.head.weight.grad = mine.head.weight.grad
    heads.step()
    torch.testing.assert_close(mine.head.weight, theirs.head.weight)


def test_soap_is_adam_in_the_eigenbasis() -> None:
    """With the eigenvectors of the first step held (``every`` beyond the run), from the paper's algorithm 3."""
    weights, gradients = trace(Soap(lr=0.01, weight_decay=0.1, every=1000))
    first = gradients[0]
    left, right = (torch.linalg.eigh(x)[1] for x in (first @ first.T, first.T @ first))
    w, m, v, path = weights[0], torch.zeros(SHAPE).double(), torch.zeros(SHAPE).double(), [weights[0], weights[0]]
    for t, g in enumerate(gradients[1:], 1):  # the first step fills the covariances alone
        m, turned = 0.95 * m + 0.05 * g, left.T @ g @ right
        v = 0.95 * v + 0.05 * turned**2
        step = (left.T @ m @ right / (1 - 0.95**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        w = (w - 0.01 * left @ step @ right.T) * (1 - 0.01 * 0.1)
        path.append(w)
    # The null space of a first gradient of rank 3 has no basis of its own, and Adam depends on it: what is compared is
    # how far the weights went, and the direction.
    moved, wanted = (weights[-1] - weights[0]).flatten(), (path[-1] - path[0]).flatten()
    assert float(moved.norm() / wanted.norm()) == pytest.approx(1, abs=0.2)
    assert float(torch.cosine_similarity(moved, wanted, 0)) > 0.9


def test_schedule_free_is_the_papers() -> None:
    weights, gradients = trace(ScheduleFree(lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.99))
    y = z = x = weights[0]
    v, path = torch.zeros(SHAPE).double(), [weights[0]]
    for t, g in enumerate(gradients, 1):
        v = 0.99 * v + 0.01 * g**2
        z = z - 0.01 * (g / ((v / (1 - 0.99**t)).sqrt() + 1e-8) + 0.1 * y)
        x = (1 - 1 / t) * x + z / t
        y = 0.1 * z + 0.9 * x
        path.append(y)
    assert_follows(weights, path)


def data() -> TensorDataset:
    x = torch.randn(64, 7, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def test_schedule_free_holds_the_rate_and_leaves_the_average() -> None:
    torch.manual_seed(0)
    model = Plane()
    session = TrainingSession(model, [ScheduleFree()], CrossEntropy(), steps=100, settings=Train(warmup=0.1))
    assert session._rates.lr_lambdas[0](99) == 1.0
    for _ in range(5):
        session.step(((torch.randn(8, 7),), torch.randint(0, 3, (8,))))
    at = model.hidden.weight.detach().clone()
    averaged = session.evaluated()
    torch.testing.assert_close(model.hidden.weight.detach(), at)  # training goes on from where it was
    assert not torch.equal(averaged.hidden.weight, at)
    torch.testing.assert_close(session.finish().hidden.weight, averaged.hidden.weight)


def test_the_average_of_weights_is_the_formulas_and_is_what_leaves() -> None:
    torch.manual_seed(0)
    model = Plane()
    session = TrainingSession(model, [AdamW(lr=0.05), Ema(decay=0.5)], CrossEntropy(), steps=20, settings=CONSTANT)
    wanted = None
    for t in range(20):
        session.step(((torch.randn(8, 7),), torch.randint(0, 3, (8,))))
        w = model.hidden.weight.detach().clone()
        wanted = w if wanted is None else wanted + (1 - min(0.5, (1 + t) / (10 + t))) * (w - wanted)
    left = session.finish()
    torch.testing.assert_close(left.hidden.weight.detach(), wanted)
    assert not torch.equal(left.hidden.weight, model.hidden.weight)


class Wide(nn.Module):
    """A matrix that is large enough to be kept in eight bits."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 64, bias=False), nn.Linear(64, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x)))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_adamw_in_eight_bits_stays_near_adamw() -> None:
    ends = []
    for method in (AdamW(lr=0.01), AdamW8bit(lr=0.01)):
        torch.manual_seed(0)
        model = Wide()
        start = model.hidden.weight.detach().clone()
        session = TrainingSession(model, [method], CrossEntropy(), steps=20, settings=CONSTANT)
        for _ in range(20):
            session.step(((torch.randn(16, 64),), torch.randint(0, 3, (16,))))
        ends.append((model.hidden.weight.detach() - start).flatten())
    assert float(torch.cosine_similarity(*ends, 0)) > 0.98
    ((_, claim),) = session.claims()
    assert 2.0 <= claim.after < 3.0  # two bytes, the scales and two tables of 256 values a tensor


@pytest.mark.parametrize("method", [Muon(lr=0.01), Soap(lr=0.01), Lion(lr=0.003), Adafactor(lr=0.05),
                                    ScheduleFree(lr=0.01)], ids=lambda method: method.name)
def test_it_learns_keeps_its_state_and_refuses_anothers(method: TrainingMethod) -> None:
    torch.manual_seed(0)
    done = fit(Plane(), [method], data(), CrossEntropy(), settings=Train(epochs=60), batch_size=16)
    assert done.history[-1][1] < 0.5 * done.history[0][1]
    assert all(claim.checked(name) for name, claim in done.claims)

    batch = ((torch.randn(8, 7),), torch.randint(0, 3, (8,)))
    sessions = []
    for made in (method, method, AdamW()):
        torch.manual_seed(1)
        sessions.append(TrainingSession(Plane(), [made], CrossEntropy(), steps=9, settings=CONSTANT))
    first, second, other = sessions
    for session in (first, other):
        session.step(batch)
        session.step(batch)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))  # torch would share the tensors
    for session in (first, second):
        session.step(batch)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(WrongOptimizer, match=f"this state is adamw, which {method.name} cannot resume from"):
        second.optimizer.load_state_dict(other.optimizer.state_dict())


def test_muon_without_a_hidden_matrix_says_so() -> None:
    with pytest.raises(NoEffect, match="no hidden matrix"):
        TrainingSession(nn.Linear(3, 2), [Muon()], CrossEntropy(), steps=1)


@pytest.mark.parametrize(("method", "package", "extra"), [
    (Soap(), "pytorch_optimizer", "optimizers"), (AdamW8bit(), "torchao", "torchao")], ids=["soap", "adamw8bit"])
def test_a_package_that_is_missing_is_named_with_its_extra(
        method: TrainingMethod, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.setitem(__import__("sys").modules, f"{package}.optim", None)
    with pytest.raises(MissingExtra, match=rf"thrifty\[{extra}\]"):
        TrainingSession(Plane(), [method], CrossEntropy(), steps=1)


@pytest.mark.parametrize(("made", "wrong"), [
    (Muon, {"lr": 0.0}), (Muon, {"momentum": 1.0}), (Soap, {"every": 0}), (Lion, {"beta2": 1.0}),
    (Adafactor, {"decay": 0.0}), (Adafactor, {"clip": 0.5}), (ScheduleFree, {"beta1": 0.0}), (AdamW8bit, {"eps": 0.0}),
    (Ema, {"decay": 1.0})], ids=str)
def test_values_out_of_range_are_refused(made: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(HyperparameterError, match=next(iter(wrong))):
        made(**wrong)
