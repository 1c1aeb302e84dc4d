"""Losses of routers against their sums written out, and in a training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty import CrossEntropy, Moe
from thrifty.architectures.moe import MoE, Router, penalties, penalty
from thrifty.training.session import TrainingSession


def naive(logits: Tensor, chosen: Tensor, score: str) -> tuple[float, float]:
    """(auxiliary, z), number by number."""
    tokens, experts = logits.shape
    choices = [expert for row in chosen.tolist() for expert in row]
    aux = z = 0.0
    for expert in range(experts):
        mean = 0.0
        for row in logits.tolist():
            scores = [math.exp(x) if score == "softmax" else 1 / (1 + math.exp(-x)) for x in row]
            mean += scores[expert] / sum(scores) / tokens
        aux += experts * choices.count(expert) / len(choices) * mean
    for row in logits.tolist():
        if score == "softmax":
            z += math.log(sum(math.exp(x) for x in row)) ** 2 / tokens
        else:
            z += sum(math.log(1 + math.exp(x)) ** 2 for x in row) / experts / tokens
    return aux, z


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_they_are_the_sums_of_their_definition(score: str) -> None:
    torch.manual_seed(0)
    router, x = Router(6, 5, 2, score=score, rate=0, auxiliary=0.3, z=0.07), 3 * torch.randn(11, 6)
    with torch.no_grad():
        router.weight.normal_()
    chosen = router(x).chosen
    aux, z = naive(x @ router.weight.detach().T, chosen, score)
    paid = penalty(router)
    assert paid is not None
    assert float(paid.detach()) == pytest.approx(0.3 * aux + 0.07 * z, rel=1e-5)
    paid.backward()
    assert router.weight.grad is not None and router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_their_gradients_are_right(score: str) -> None:
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([4, 0, 7, 3])
    torch.autograd.gradcheck(lambda v: penalties.auxiliary(v, counts, score), logits)
    torch.autograd.gradcheck(lambda v: penalties.z(v, score), logits)


def test_eval_asks_for_nothing_and_copies_hold_no_graph() -> None:
    router = Router(6, 5, 2, auxiliary=1.0, z=1.0).eval()
    router(torch.randn(3, 6))
    assert penalty(router) is None
    router.train()(torch.randn(3, 6))
    assert copy.deepcopy(router).penalty is None and penalty(router) is not None
    plain = Router(6, 5, 2)
    plain(torch.randn(3, 6))
    assert penalty(plain) is None


class Classifier(nn.Module):
    def __init__(self, **settings: float) -> None:
        super().__init__()
        self.moe, self.head = MoE(8, 16, 4, 1, rate=0, **settings), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.moe(x))


def test_a_step_minimizes_the_mean_loss_and_what_the_routers_ask() -> None:
    """Over two micro-batches of unlike size each counts by its weight."""
    torch.manual_seed(0)
    model = Classifier(auxiliary=0.5, z=0.1)
    batch = (torch.randn(12, 8),), torch.randint(3, (12,))
    twin = copy.deepcopy(model)
    total, weight = CrossEntropy()(twin(batch[0][0]), batch)
    paid = penalty(twin)
    (total / weight + paid).backward()
    session = TrainingSession(model, [], CrossEntropy(), steps=1)
    loss = session.step(batch)
    assert float(loss) == pytest.approx(float((total / weight + paid).detach()), rel=1e-5)
    assert model.moe.router.penalty is None


def test_the_loss_evens_a_collapsed_router() -> None:
    shares = {}
    for auxiliary in (0.0, 1.0):
        torch.manual_seed(0)
        model = Classifier(auxiliary=auxiliary)
        x = torch.randn(512, 8) + 1.0
        with torch.no_grad():
            model.moe.router.weight[1] += 0.3
        data = torch.utils.data.TensorDataset(x, torch.randint(3, (512,)))
        done = thrifty.fit(model, [thrifty.AdamW(lr=1e-2)], data, CrossEntropy(), settings=thrifty.Train(steps=60))
        after = done.model.moe.router.eval()
        ends = after(x).ends
        shares[auxiliary] = float(ends.diff(prepend=ends.new_zeros(1)).max()) / len(x)
    assert shares[1.0] < 0.5 < shares[0.0]


def test_moe_hands_the_weights_to_its_routers() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    mixture = Moe(experts=4, auxiliary=0.02, z=0.001)(net, [torch.randn(4, 8)]).train()
    mixture(torch.randn(9, 8))
    paid = penalty(mixture)
    assert paid is not None and 0.02 * 0.9 < float(paid.detach()) < 0.02 * 4 + 0.001 * 4
