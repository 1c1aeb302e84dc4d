"""Small nets, data and a training that the tests of adapters share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thrifty import AdamW, CrossEntropy
from thrifty.recipes.phases import Train
from thrifty.recipes.training_method import TrainingMethod
from thrifty.training.session import TrainingSession

CONSTANT = Train(schedule="constant", warmup=0, clip=None, steps=1)


def mlp(seed: int = 1) -> nn.Sequential:
    """Odd sizes, one layer smaller than most ranks."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 24, bias=False), nn.Tanh(), nn.Linear(24, 5))


def batch(n: int = 32, width: int = 13) -> tuple[tuple[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, width, generator=generator),), torch.randint(0, 5, (n,), generator=generator)


def adapted(method: TrainingMethod, model: nn.Module, steps: int = 4, lr: float = 0.02,
            data: tuple[tuple[Tensor], Tensor] | None = None) -> TrainingSession:
    """A few steps of training, not yet finished."""
    torch.manual_seed(0)
    session = TrainingSession(model, [method, AdamW(lr=lr)], CrossEntropy(), steps=steps, settings=CONSTANT)
    for _ in range(steps):
        session.step(data or batch())
    session.model.eval()
    return session


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model.eval()(x)
    return outputs
