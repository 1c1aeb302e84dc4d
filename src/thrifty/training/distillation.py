"""Knowledge distillation: a student learns a teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number, recipe_text
from thrifty.recipes.training_method import Stage, TrainingMethod

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch


@final
@dataclass(frozen=True)
class Distill(TrainingMethod):
    """The student matches the teacher's softened distribution as well as the labels.

        L = (1 - w) CE(student, labels) + w T^2 KL(softmax(teacher / T) || softmax(student / T))

    summed over valid examples or tokens. T^2 keeps the gradient's size whatever the temperature. The teacher runs in
    eval mode without gradients, in its own precision, on the very batch that the student sees; its FLOPs are counted
    with the step's.

    Args:
        temperature: T; higher shows more of the small probabilities.
        weight: w, the share of the teacher's term.
        teacher: a recipe's text; the workload's reference where empty. It is run, kept and charged like any recipe.

    >>> Distill(temperature=4)
    Distill(temperature=4, weight=0.9, teacher='')
    """

    temperature: float = number(2.0, 0, open_low=True)
    weight: float = number(0.9, 0, 1, open_low=True)
    teacher: str = recipe_text()

    name: ClassVar[str] = "distill"
    stage: ClassVar[Stage] = "structure"
    card: ClassVar[Card] = Card(
        family="distillation",
        benefit="inference time",
        trade_off="the teacher's training, and a forward pass of it in every step",
        paper='"Distilling the Knowledge in a Neural Network", Hinton, Vinyals and Dean 2015, arXiv:1503.02531, '
              "section 2",
        needs=frozenset({"labels", "logits", "teacher"}),
        requires=frozenset({"module", "float-weights"}),
    )

    def prepare(self, session: Session) -> None:
        session.memory(self).update(teacher=session.teacher(self.teacher), calls=0)

    def loss(self, session: Session, outputs: Any, batch: Batch, total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        memory = session.memory(self)
        with torch.no_grad(), torch.autocast(session.device, enabled=False):
            taught = session.call(memory["teacher"], batch)
        memory["calls"] += 1
        student, valid = session.loss.logits(outputs, batch)
        teacher, _ = session.loss.logits(taught, batch)
        if student.shape != teacher.shape:
            raise ThriftyError(
                f"the teacher gives logits of shape {tuple(teacher.shape)} and the student {tuple(student.shape)}: "
                "logits are distilled between models of the same classes"
            )
        softened = divergence(student[valid].float(), teacher[valid].float(), self.temperature)
        return (1 - self.weight) * total + self.weight * softened, weight

    def state_dict(self, session: Session) -> dict[str, Any]:
        return {"calls": session.memory(self)["calls"]}

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        session.memory(self).update(state)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        return (Claim("teacher's forward passes", 0.0, float(session.memory(self)["calls"]), minimum=1.0),)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 sum over rows of KL(softmax(teacher / T) || softmax(student / T)).

    Args:
        student, teacher: [n, classes] logits.
        temperature: T > 0.

    >>> float(divergence(torch.zeros(2, 3), torch.zeros(2, 3), 2.0))
    0.0
    """
    log_p = torch.log_softmax(teacher / temperature, -1)
    log_q = torch.log_softmax(student / temperature, -1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
