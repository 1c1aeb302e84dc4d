"""Adafactor: squares of gradients kept as a row and a column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from thrifty.recipes.card import Card
from thrifty.recipes.hyperparameters import number
from thrifty.training.optimizers.optimizer import Optimizer, optimizer_card

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class Adafactor(Optimizer):
    """The second moment of a matrix of gradients is kept as its row means R and column means C; there is no first moment.

        b = 1 - t^decay;  R <- b R + (1 - b) mean_rows(g^2);  C <- b C + (1 - b) mean_columns(g^2)
        u = g / sqrt(R C / mean(R));  u <- u / max(1, rms(u) / clip)
        p <- (1 - lr wd) p - max(1e-3, rms(p)) min(lr, 1 / sqrt(t)) u

    torch's implementation, with its reading of the paper's epsilon. The learning rate is relative to the weights' size.
    Biases and the scales of norms keep a whole second moment and are not decayed.

    Args:
        lr: largest relative step after warm-up.
        weight_decay: a step shrinks weights by lr * weight_decay.
        decay: exponent of the running means, below 0.
        clip: largest root mean square of an update.

    >>> Adafactor(lr=0.02)
    Adafactor(lr=0.02, weight_decay=0.0, decay=-0.8, clip=1.0)
    """

    lr: float = number(1e-2, 0, open_low=True, log=True)
    weight_decay: float = number(0.0, 0)
    decay: float = number(-0.8, -1, 0, open_high=True)
    clip: float = number(1.0, 1)

    name: ClassVar[str] = "adafactor"
    light: ClassVar[bool] = True
    card: ClassVar[Card] = optimizer_card(
        refuses=frozenset({"sharded"}),  # its factors are of whole matrices
        trade_off="state of one row and one column per matrix; no momentum, so it may need more steps; steps are slower",
        paper='"Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", Shazeer and Stern 2018, '
              "arXiv:1804.04235, algorithms 4 and 5",
    )

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(groups, lr=self.lr, beta2_decay=self.decay, d=self.clip,
                                     weight_decay=self.weight_decay)
