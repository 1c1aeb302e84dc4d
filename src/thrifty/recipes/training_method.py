"""A method that modifies training, by hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from thrifty.recipes.claim import Claim
from thrifty.recipes.method import Method
from thrifty.recipes.session import Session
from thrifty.workloads.workload import Batch

Stage = Literal["structure", "numerics", "checkpointing", "compile", "sharding", "optimizer"]
"""What a training method touches."""
STAGES: tuple[Stage, ...] = ("structure", "numerics", "checkpointing", "compile", "sharding", "optimizer")
"""The one order in which a training is put together, whatever the text's. Structure and numerics change the model where
it was made; sharding places it on its device."""


@dataclass(frozen=True)
class TrainingMethod(Method):
    """A method that modifies training, by hooks that default to doing nothing.

    What a method remembers during training lives in ``session.memory(self)``, a dictionary: the method is a value.
    Hooks of one kind are called in the order of `STAGES`; the first is the outermost of those that go around a pass.
    """

    stage: ClassVar[Stage] = "structure"
    placed_by: ClassVar[str] = "--training-device"

    def prepare(self, session: Session) -> None:
        """Change the model before the first step.

        Args:
            session: its ``model`` may be changed or replaced; there is no optimizer yet. Before the stage "sharding" the
                model is where it was made, from there on it is on the session's device.
        """

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Regroup the parameters that the optimizer gets.

        Args:
            session: the training.
            groups: as torch's optimizers take them: {"params": [...], hyperparameter: value}. "lr_factor" is how many
                times the learning rate a group gets.

        Returns:
            the groups to use: the same parameters, each once.
        """
        return groups

    def optimizer(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
        """Make the optimizer; only a method whose slot is "optimizer" does.

        Args:
            session: the training.
            groups: what every method made of the parameters.
        """
        return None

    def step_kind(self, session: Session) -> str:
        """What kind of step comes next, where steps on equal batches differ in FLOPs: each kind is counted once.

        Args:
            session: its ``step_number`` is that of the step before.
        """
        return ""

    def part(self, session: Session, batch: Batch) -> Batch:
        """Give the part of a batch that the step is trained on.

        Args:
            session: the training.
            batch: (inputs, target), on the device.

        Returns:
            the batch, or some of its examples.
        """
        return batch

    def before(self, session: Session, batch: Batch) -> None:
        """Do something before a step: no gradient is held yet, nor need any be left.

        Args:
            session: the training.
            batch: (inputs, target) that the step will take, on the device.
        """

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        """Go around the forward pass.

        Args:
            session: the training.
            batch: (inputs, target) of one micro-batch, on the device.
            proceed: batch -> outputs of the model and of the methods further inside.

        Returns:
            the outputs that the loss gets.
        """
        return proceed(batch)

    def loss(self, session: Session, outputs: Any, batch: Batch, total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Change what is minimized.

        Args:
            session: the training.
            outputs: outputs of the forward pass.
            batch: (inputs, target) that they are of.
            total: scalar, the sum of losses so far; it carries gradients.
            weight: scalar, valid examples or tokens in that sum.

        Returns:
            (sum, weight) that are minimized: the mean loss is their quotient over all micro-batches and ranks.
        """
        return total, weight

    def backward(self, session: Session, loss: Tensor, proceed: Callable[[Tensor], None]) -> None:
        """Go around the backward pass.

        Args:
            session: the training.
            loss: scalar, one micro-batch's part in the mean loss.
            proceed: loss -> None; adds the gradients.
        """
        proceed(loss)

    def update(self, session: Session, proceed: Callable[[], None]) -> None:
        """Go around clipping and the optimizer's step.

        Args:
            session: the training; its model holds the whole batch's gradients.
            proceed: clips and steps; not calling it skips the step.
        """
        proceed()

    def evaluate(self, session: Session, model: nn.Module) -> nn.Module:
        """Give the model that is evaluated now.

        Args:
            session: the training.
            model: that is trained, or that a method before this one gave.

        Returns:
            the model itself, or another (for example averaged weights).
        """
        return model

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        """Give the model as it leaves training.

        Args:
            session: the training, after its last step.
            model: from the methods after this one in the order of `STAGES`, which finish first.

        Returns:
            the model. Where its structure is another than before the training, ``session.plans`` says how to build it.
        """
        return model

    def state_dict(self, session: Session) -> dict[str, Any]:
        """What exact resumption needs beyond model and optimizer: plain values and tensors."""
        return {}

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Args:
            session: a fresh one of the same model and methods.
            state: as it was.
        """

    def claims(self, session: Session) -> tuple[Claim, ...]:
        """What the method says it did, counted during training."""
        return ()
