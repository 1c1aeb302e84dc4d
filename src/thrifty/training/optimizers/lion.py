"""Lion: the sign of a momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.training.optimizers.common import decayed, library, smaller_state, stamped

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class Lion(TrainingMethod):
    """Every weight moves by the same length, in the direction that a momentum points to.

        p <- (1 - lr wd) p - lr sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g

    It wants a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as many times larger. Biases and the
    scales of norms are not decayed.

    Args:
        lr: learning rate after warm-up.
        weight_decay: a step shrinks weights by lr * weight_decay.
        beta1: share of the momentum in the direction.
        beta2: of the momentum.

    >>> Lion(lr=0.001)
    Lion(lr=0.001, weight_decay=0.1, beta1=0.9, beta2=0.99)
    """

    lr: float = number(3e-4, 0, open_low=True, log=True)
    weight_decay: float = number(0.1, 0)
    beta1: float = number(0.9, 0, 1, open_high=True)
    beta2: float = number(0.99, 0, 1, open_high=True)

    name: ClassVar[str] = "lion"
    stage: ClassVar[Stage] = "optimizer"
    card: ClassVar[Card] = Card(
        family="optimizers",
        benefit="training time",
        trade_off="one state for each parameter; a learning rate to be found anew; noise at small batches",
        paper='"Symbolic Discovery of Optimization Algorithms", Chen et al. 2023, arXiv:2302.06675, algorithm 2',
        needs=frozenset({"labels"}),
        requires=frozenset({"module", "float-weights"}),
        slot="optimizer",
    )

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return decayed(groups, self.weight_decay)

    def optimizer(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made = library("pytorch_optimizer").Lion(groups, lr=self.lr, betas=(self.beta1, self.beta2),
                                                 weight_decay=self.weight_decay, weight_decouple=True)
        return stamped(made, self.name)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        return smaller_state(session.optimizer)
