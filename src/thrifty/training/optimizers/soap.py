"""SOAP: Adam in the eigenbasis of Shampoo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number
from thrifty.training.optimizers.optimizer import Optimizer, library, optimizer_card

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class Soap(Optimizer):
    """Adam, in a rotated basis where the gradient's covariances are diagonal.

        L <- b2 L + (1 - b2) G G^T;  R <- b2 R + (1 - b2) G^T G;  Q_L, Q_R: their eigenvectors, every few steps
        W <- W - lr Q_L Adam(Q_L^T G Q_R) Q_R^T

    Eigenvectors are followed by one power iteration and a QR decomposition. Dimensions above ``largest`` are not
    rotated; vectors get plain Adam. The first step only fills L and R, as in the authors' code. Biases and the scales
    of norms are not decayed.

    Args:
        lr: learning rate after warm-up.
        weight_decay: a step shrinks weights by lr * weight_decay.
        beta1, beta2: decay of the running means of gradients, and of their squares and covariances.
        every: steps from one update of the eigenvectors to the next.
        largest: dimension that is still rotated.

    >>> Soap(every=5)
    Soap(lr=0.003, weight_decay=0.01, beta1=0.95, beta2=0.95, every=5, largest=10000)
    """

    lr: float = number(3e-3, 0, open_low=True, log=True)
    weight_decay: float = number(0.01, 0)
    beta1: float = number(0.95, 0, 1, open_high=True, near_one=True)
    beta2: float = number(0.95, 0, 1, open_high=True, near_one=True)
    every: int = number(10, 1)
    largest: int = number(10_000, 1)

    name: ClassVar[str] = "soap"
    card: ClassVar[Card] = optimizer_card(
        trade_off="two covariances and two bases for each matrix besides Adam's state; matrix multiplications and decompositions "
                  "in the step",
        refuses=frozenset({"sharded"}),  # its covariances and bases are of whole matrices
        paper='"SOAP: Improving and Stabilizing Shampoo using Adam", Vyas et al. 2024, arXiv:2409.11321, algorithm 3',
    )

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return library("pytorch_optimizer").SOAP(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay,
            precondition_frequency=self.every, max_precondition_dim=self.largest)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        rotated = sum(p.numel() for p, state in session.optimizer.state.items()
                      if any(isinstance(basis, Tensor) for basis in state.get("Q") or ()))
        whole = sum(p.numel() for group in session.optimizer.param_groups for p in group["params"])
        share = rotated / whole
        return (Claim("share of parameters in a rotated basis", 0.0, share, minimum=share or 1.0),)
