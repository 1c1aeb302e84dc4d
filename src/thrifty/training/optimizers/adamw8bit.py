"""AdamW with its state in eight bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch.utils._python_dispatch import _disable_current_modes

from thrifty.recipes.card import Card
from thrifty.training.optimizers.adam import Adam
from thrifty.training.optimizers.optimizer import library, optimizer_card

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class AdamW8bit(Adam):
    """AdamW with its two running means kept in 8 bits, and a float32 scale for each 256 values.

    The update is `AdamW`'s, computed in float32 from what was stored. torchao's implementation: it is compiled for each
    shape of weights, which takes seconds at the first step; tensors of fewer than 4,096 numbers, or whose numbers are
    no multiple of 256, keep a float32 state.

    Args:
        lr: learning rate after warm-up.
        weight_decay: a step shrinks weights by lr * weight_decay.
        beta1, beta2: decay of the running means of gradients and of their squares.
        eps: added to the root.

    >>> AdamW8bit(lr=0.003)
    AdamW8bit(lr=0.003, weight_decay=0.01, beta1=0.9, beta2=0.999, eps=1e-08)
    """

    name: ClassVar[str] = "adamw8bit"
    light: ClassVar[bool] = True
    card: ClassVar[Card] = optimizer_card(
        trade_off="rounded state; seconds of compilation for each shape of weights; steps are slower on a CPU",
        paper='"8-bit Optimizers via Block-wise Quantization", Dettmers et al. 2021, arXiv:2110.02861',
        refuses=frozenset({"split"}),  # its blocks run over the rows of one mesh
    )

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return library("torchao.optim", "torchao").AdamW8bit(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, weight_decay=self.weight_decay)

    def update(self, session: Session, proceed: Callable[[], None]) -> None:
        with _disable_current_modes():  # what counts FLOPs would forbid torchao to compile; a step has no products
            proceed()
