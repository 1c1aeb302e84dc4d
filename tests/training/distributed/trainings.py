"""Trainings that ranks do together and one process does alone, with everything that makes their parts unequal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, CrossEntropy, Muon, Sophia, Train, fit
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.ranks import Ranks
from thrifty.recipes.registry import method_class
from thrifty.training.optimizers import curvature
from thrifty.training.optimizers.optimizer import Optimizer, optimizer_card

VOCABULARY, WIDTH, LENGTH = 37, 12, 7


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A small language model: tied embedding of 37 rows, which no number of ranks divides; a frozen layer; a layer that nothing
    reaches; blocks in a row; odd sizes."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.unreached = nn.Linear(3, 5)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.frozen(x) * self.scale)  # type: ignore[no-any-return]


def text() -> TensorDataset:
    """52 rows of tokens; of some, most have no target: the parts of a batch weigh differently."""
    generator = torch.Generator().manual_seed(101)
    tokens = torch.randint(0, VOCABULARY, (52, LENGTH), generator=generator)
    target = (tokens * 5 + 3) % VOCABULARY
    for row in torch.randperm(52, generator=generator)[:20]:
        target[row, : int(row) % LENGTH] = -100
    return TensorDataset(tokens, target)


@dataclass(frozen=True)
class Sgd(Optimizer):
    """With momentum: unlike Adam, it sees the scale of gradients."""

    lr: float = number(0.03, 0)
    weight_decay: float = number(0.0, 0)
    name = "sgd"
    card = optimizer_card(trade_off="none", paper="none")

    def make(self, session: Any, groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Sgd(), "adamw": AdamW(lr=3e-3), "sophia": Sophia(lr=3e-3, every=3), "muon": Muon(lr=3e-3),
}


@contextmanager
def certain() -> Iterator[None]:
    """In place of a draw, the likeliest label: the noise of ranks differs by design, the labels here may not."""
    before, curvature.draw = curvature.draw, lambda logits, noise: logits.argmax(-1)
    try:
        yield
    finally:
        curvature.draw = before


def trained(ranks: Ranks, parallel: str, optimizer: str, *, steps: int, **settings: Any) -> dict[str, Any]:
    """Losses, and the parameters at the end."""
    methods = [OPTIMIZERS[optimizer]] + ([method_class(parallel)()] if parallel else [])
    with certain():
        done = fit(Tied(), methods, text(), CrossEntropy(), batch_size=13, ranks=ranks, seed=5,
                   settings=Train(steps=steps, **{"clip": 1.0, "schedule": "constant", "warmup": 0.1, **settings}))
    weights = {name: p.detach().clone() for name, p in done.model.named_parameters(remove_duplicate=False)}
    return {"losses": torch.tensor([loss for _, loss in done.history], dtype=torch.float64), "weights": weights,
            "tied": done.model.head.weight is done.model.embedding.weight, "claims": done.claims}
