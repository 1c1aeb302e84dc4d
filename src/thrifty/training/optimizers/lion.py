"""Lion: the sign of a momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from thrifty.recipes.card import Card
from thrifty.recipes.hyperparameters import number
from thrifty.training.optimizers.optimizer import Optimizer, library, optimizer_card

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class Lion(Optimizer):
    """Every weight moves by the same amount, in the direction of a momentum's sign.

        p <- (1 - lr wd) p - lr sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g

    It wants a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as many times larger. Biases and the
    scales of norms are not decayed.

    Args:
        lr: learning rate after warm-up.
        weight_decay: a step shrinks weights by lr * weight_decay.
        beta1: share of the momentum in the direction.
        beta2: decay of the momentum.

    >>> Lion(lr=0.001)
    Lion(lr=0.001, weight_decay=0.1, beta1=0.9, beta2=0.99)
    """

    lr: float = number(3e-4, 0, open_low=True, log=True)
    weight_decay: float = number(0.1, 0)
    beta1: float = number(0.9, 0, 1, open_high=True, near_one=True)
    beta2: float = number(0.99, 0, 1, open_high=True, near_one=True)

    name: ClassVar[str] = "lion"
    tuned: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    light: ClassVar[bool] = True
    card: ClassVar[Card] = optimizer_card(
        trade_off="one state for each parameter; a learning rate to be tuned again; noise at small batches",
        paper='"Symbolic Discovery of Optimization Algorithms", Chen et al. 2023, arXiv:2302.06675, algorithm 2',
    )

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return library("pytorch_optimizer").Lion(groups, lr=self.lr, betas=(self.beta1, self.beta2),
                                                 weight_decay=self.weight_decay, weight_decouple=True)
