"""AdamW, against the update written from the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty import AdamW, CrossEntropy
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.phases import Train
from thrifty.training.session import TrainingSession

CONSTANT = Train(schedule="constant", warmup=0, clip=None, steps=5)


def batch() -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    return (torch.randn(16, 6),), torch.randint(0, 3, (16,))


def test_steps_are_the_papers() -> None:
    method = AdamW(lr=0.02, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    mine = [p.detach().clone().double() for p in model.parameters()]
    m, v = [torch.zeros_like(p) for p in mine], [torch.zeros_like(p) for p in mine]
    session = TrainingSession(model, [method], CrossEntropy(), steps=5, settings=CONSTANT)
    for t in range(1, 6):
        session.step(batch())
        for i, parameter in enumerate(model.parameters()):
            assert parameter.grad is not None
            g = parameter.grad.double()
            m[i], v[i] = 0.8 * m[i] + 0.2 * g, 0.95 * v[i] + 0.05 * g * g
            decay = 0.1 if mine[i].ndim > 1 else 0.0
            mine[i] = (1 - 0.02 * decay) * mine[i] - 0.02 * (m[i] / (1 - 0.8**t)) / (
                (v[i] / (1 - 0.95**t)).sqrt() + 1e-6)
            torch.testing.assert_close(parameter.detach().double(), mine[i], rtol=1e-4, atol=1e-6)


def test_every_parameter_is_in_one_group() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    session = TrainingSession(model, [AdamW()], CrossEntropy(), steps=1)
    held = [p for group in session.optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    assert all((group["weight_decay"] > 0) == (p.ndim > 1) for group in session.optimizer.param_groups
               for p in group["params"])


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"beta1": 1.0}, {"weight_decay": -0.1}, {"eps": 0.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(HyperparameterError, match=next(iter(wrong))):
        AdamW(**wrong)


class Waves(nn.Module):
    """Complex weights over frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, dtype=torch.cfloat)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=6))


def test_complex_parameters_are_trained_by_the_unfused_form() -> None:
    torch.manual_seed(0)
    model, data = Waves(), batch()
    before = model.weight.detach().clone()
    session = TrainingSession(model, [AdamW(lr=0.01)], CrossEntropy(), steps=5, settings=CONSTANT)
    losses = [float(session.step(data)) for _ in range(5)]
    moved = model.weight.detach() - before
    assert losses[-1] < losses[0] and bool(moved.real.any()) and bool(moved.imag.any())
    assert not session.optimizer.defaults["fused"]
