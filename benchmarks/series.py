"""An LSTM over time series: which of three waves is it, under noise. A workload of recurrent layers that needs no download."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import Accuracy, CrossEntropy, SingleStream, Workload

STEPS, NOISE = 48, 0.8


class Classifier(nn.Module):
    """[n, steps, 1] -> [n, 3], from the last step's state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 48, batch_first=True), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def waves(seed: int, n: int) -> TensorDataset:
    """n series of sines, squares or saws of any phase, and which they are."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 3, (n,), generator=generator)
    turns = torch.rand(n, 1, generator=generator) + torch.arange(STEPS) / 16
    each = torch.stack([(2 * math.pi * turns).sin(), (2 * math.pi * turns).sin().sign(), 2 * (turns % 1) - 1])
    clean = each[kind, torch.arange(n)]
    return TensorDataset((clean + NOISE * torch.randn(n, STEPS, generator=generator))[..., None], kind)


workload = Workload(
    name="series", model=Classifier, train=waves(0, 3000), validation=waves(1, 1000), test=waves(2, 1000), loss=CrossEntropy(),
    quality=Accuracy(), example=lambda n: (torch.zeros(n, STEPS, 1),), scenario=SingleStream(),
    reference="train(adamw(lr=3e-3), epochs=6)",
)
