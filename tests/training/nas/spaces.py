"""Small spaces to search."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty.training.nas.choice import Choice


class Scale(nn.Module):
    """x times a number that is not trained."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Two(nn.Module):
    """Two choices, one after the other, and a head."""

    def __init__(self, width: int = 4, group: str = "", node: str = "") -> None:
        super().__init__()
        self.first = Choice({"skip": nn.Identity(), "linear": layer(width), "zero": Scale(0.0)}, group, node)
        self.second = Choice({"skip": nn.Identity(), "linear": layer(width), "zero": Scale(0.0)}, group, node)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def layer(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def parity(n: int = 512, width: int = 4, seed: int = 0) -> TensorDataset:
    """Whether the signs of the first two numbers agree: a linear model tells nothing of it."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
