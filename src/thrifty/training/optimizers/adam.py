"""What AdamW and its eight-bit form have in common: their hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.recipes.hyperparameters import number
from thrifty.training.optimizers.optimizer import Optimizer


@dataclass(frozen=True)
class Adam(Optimizer):
    """An optimizer of Adam's update with decoupled weight decay.

    Args:
        lr: learning rate after warm-up.
        weight_decay: a step shrinks weights by lr * weight_decay.
        beta1, beta2: of the running means of gradients and of their squares.
        eps: added to the root.
    """

    lr: float = number(1e-3, 0, open_low=True, log=True)
    weight_decay: float = number(0.01, 0)
    beta1: float = number(0.9, 0, 1, open_high=True, near_one=True)
    beta2: float = number(0.999, 0, 1, open_high=True, near_one=True)
    eps: float = number(1e-8, 0, open_low=True, log=True)

    tuned: ClassVar[tuple[str, ...]] = ("lr", "beta2", "weight_decay")
