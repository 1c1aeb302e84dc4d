"""AdamW: the optimizer that others are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from thrifty.recipes.card import Card
from thrifty.training.optimizers.adam import Adam
from thrifty.training.optimizers.optimizer import fusable, optimizer_card

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, torch's fused kernel: one pass over parameters, gradients and state.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        p <- (1 - lr wd) p - lr m_hat / (sqrt(v_hat) + eps),  m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    Parameters of one dimension (biases, the scales of norms) are not decayed. With complex ones the kernel is not fused.

    Args:
        lr: learning rate after warm-up.
        weight_decay: a step shrinks weights by lr * weight_decay.
        beta1, beta2: decay of the running means of gradients and of their squares.
        eps: added to the root.

    >>> AdamW(lr=0.003)
    AdamW(lr=0.003, weight_decay=0.01, beta1=0.9, beta2=0.999, eps=1e-08)
    """

    name: ClassVar[str] = "adamw"
    card: ClassVar[Card] = optimizer_card(
        trade_off="two states for each parameter: 8 bytes each in fp32",
        paper='"Decoupled Weight Decay Regularization", Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2',
    )

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps,
                                 weight_decay=self.weight_decay, fused=fusable(groups))

