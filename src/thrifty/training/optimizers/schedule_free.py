"""Schedule-Free AdamW: an average of the iterates in place of a falling learning rate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import nn

from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number
from thrifty.training.optimizers.optimizer import Optimizer, library, optimizer_card

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch


@final
@dataclass(frozen=True)
class ScheduleFree(Optimizer):
    """Gradients are taken between an iterate z and the average x of all iterates, and x is the final model.

        y = (1 - b1) z + b1 x;  v <- b2 v + (1 - b2) g(y)^2
        z <- z - lr (g / (sqrt(v_hat) + eps) + wd y);  x <- (1 - c) x + c z,  c = lr_max^2 / sum lr_max^2

    The phase's warm-up stays, its schedule does not: the learning rate is held, which is the point. Evaluation sees x.
    The statistics of batch norm are those met at y, and are a little off at x. Biases and the scales of norms are not
    decayed.

    Args:
        lr: learning rate after warm-up.
        weight_decay: shrinks weights by lr * weight_decay, at y.
        beta1: share of the average in the point where gradients are taken.
        beta2: decay of the running mean of squares.

    >>> ScheduleFree(lr=0.01)
    ScheduleFree(lr=0.01, weight_decay=0.01, beta1=0.9, beta2=0.999)
    """

    lr: float = number(2.5e-3, 0, open_low=True, log=True)
    weight_decay: float = number(0.01, 0)
    beta1: float = number(0.9, 0, 1, open_low=True, open_high=True, near_one=True)
    beta2: float = number(0.999, 0, 1, open_high=True, near_one=True)

    name: ClassVar[str] = "schedule_free"
    tuned: ClassVar[tuple[str, ...]] = ("lr", "beta1")
    card: ClassVar[Card] = optimizer_card(
        refuses=frozenset({"sharded"}),  # a copy of the model is evaluated, and a sharded one cannot be copied
        trade_off="two states for each parameter, as AdamW has; a copy of the model while it is evaluated",
        paper='"The Road Less Scheduled", Defazio et al. 2024, arXiv:2405.15682, algorithm 1',
    )

    def prepare(self, session: Session) -> None:
        session.schedule = "constant"

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return library("pytorch_optimizer").ScheduleFreeAdamW(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay)

    def before(self, session: Session, batch: Batch) -> None:
        session.optimizer.train()  # type: ignore[attr-defined]

    def evaluate(self, session: Session, model: nn.Module) -> nn.Module:
        session.optimizer.eval()  # type: ignore[attr-defined]
        averaged = copy.deepcopy(model)
        session.optimizer.train()  # type: ignore[attr-defined]
        return averaged

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        session.optimizer.eval()  # type: ignore[attr-defined]
        return model

    def claims(self, session: Session) -> tuple[Claim, ...]:
        taken = float(session.optimizer.param_groups[0].get("step", 0))
        return (Claim("iterates averaged", 0.0, taken, minimum=1.0),)
