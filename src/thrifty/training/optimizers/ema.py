"""An exponential average of the weights, which is the model that is evaluated and leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.training_method import Stage, TrainingMethod

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
@dataclass(frozen=True)
class Ema(TrainingMethod):
    """The model that is evaluated and returned is a running average of the weights after each step.

        d_t = min(decay, (1 + t) / (10 + t));  average <- d_t average + (1 - d_t) p

    The first steps weigh less than ``decay`` alone would let them. Buffers (the statistics of batch norm) are the
    trained model's. It works beside any optimizer.

    Args:
        decay: d; the average reaches about 1 / (1 - d) steps back.

    >>> Ema(decay=0.99)
    Ema(decay=0.99)
    """

    decay: float = number(0.999, 0, 1, open_low=True, open_high=True)

    name: ClassVar[str] = "ema"
    stage: ClassVar[Stage] = "optimizer"
    card: ClassVar[Card] = Card(
        family="optimizers",
        benefit="training time",
        trade_off="a second copy of the weights, and a pass over both in each step",
        paper='"Acceleration of Stochastic Approximation by Averaging", Polyak and Juditsky 1992; as in "Rethinking the '
              'Inception Architecture for Computer Vision", Szegedy et al. 2015, arXiv:1512.00567, section 8',
        requires=frozenset({"module", "float-weights"}),
        refuses=frozenset({"sharded"}),  # a sharded model cannot be copied
    )

    def update(self, session: Session, proceed: Callable[[], None]) -> None:
        proceed()
        memory = session.memory(self)
        if "average" not in memory:
            memory["average"] = AveragedModel(session.model, multi_avg_fn=self._average)
        memory["average"].update_parameters(session.model)

    def _average(self, averaged: Any, current: Any, taken: Any) -> None:
        done = int(taken)
        torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + done) / (10 + done)))

    def evaluate(self, session: Session, model: nn.Module) -> nn.Module:
        average = session.memory(self).get("average")
        return average.module if average is not None else model

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        return self.evaluate(session, model)

    def state_dict(self, session: Session) -> dict[str, Any]:
        average = session.memory(self).get("average")
        return {} if average is None else dict(average.state_dict())

    def load_state_dict(self, session: Session, state: dict[str, Tensor]) -> None:
        if state:
            session.memory(self)["average"] = AveragedModel(session.model, multi_avg_fn=self._average)
            session.memory(self)["average"].load_state_dict(state)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        average = session.memory(self).get("average")
        return (Claim("steps averaged", 0.0, float(average.n_averaged) if average else 0.0, minimum=1.0),)
