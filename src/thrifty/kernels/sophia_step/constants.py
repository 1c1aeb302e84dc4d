"""The numbers of a step of Sophia."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Constants:
    """What a step of Sophia multiplies with.

    Args:
        lr: learning rate of this step.
        beta1: of the running mean of gradients.
        gamma: scale of the curvature; smaller clips more.
        eps: least divisor.
        weight_decay: a step shrinks weights by lr * weight_decay.
        rounding: seed of the stochastic rounding of bfloat16 weights; None rounds to nearest.
    """

    lr: float
    beta1: float
    gamma: float
    eps: float
    weight_decay: float
    rounding: int | None = None
