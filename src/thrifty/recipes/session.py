"""What the hooks of a training method see of the training under way."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from thrifty.recipes.method import Method
from thrifty.recipes.ranks import Ranks
from thrifty.recipes.transform import Plan, Transform
from thrifty.workloads.workload import Batch, Forward, Loss

T = TypeVar("T")

Teachers = Callable[..., nn.Module]
"""A recipe's text -> the model that it leaves; called with a workload's reference too where the recipe is another workload's."""


class Session(abc.ABC):
    """A training under way, as the hooks of a `TrainingMethod` see it.

    Attributes:
        model: the model that is trained, in train mode; `TrainingMethod.prepare` may replace it.
        loss: (outputs, batch) -> (sum, weight).
        forward: (model, batch) -> outputs, the workload's.
        device: "cpu" or "cuda": where the steps run.
        steps: optimizer steps of the whole training.
        step_number: number of the step under way, from 1; 0 before the first.
        batch_size: examples per step, as the recipe has it; None where the workload's holds.
        accumulate: micro-batches that each batch is taken in.
        compiled: whether the model's steps are compiled.
        optimizer: there after every method's `prepare`.
        schedule: name of the learning rate's schedule after warm-up; a method may choose another while it prepares.
        loss_scale: the factor on the loss under the backward pass; 1 but for fp16.
        products: precision of the matrix products; the methods that set it do so while they prepare.
        weight: scalar, the weight of the last batch's loss, over all ranks.
        plans: (transform, plan) of every method that changed the model's structure; they rebuild it.
        ranks: the processes that train together.
    """

    model: nn.Module
    loss: Loss
    forward: Forward
    device: str
    steps: int
    step_number: int
    batch_size: int | None
    accumulate: int
    compiled: bool
    optimizer: torch.optim.Optimizer
    schedule: str
    loss_scale: float
    products: torch.dtype
    weight: Tensor
    plans: list[tuple[Transform, Plan]]
    ranks: Ranks

    @abc.abstractmethod
    def memory(self, method: Method) -> dict[str, Any]:
        """What a method remembers during this training: a dictionary of its own, empty at first."""

    @abc.abstractmethod
    def teacher(self, recipe: str, workload: str = "") -> nn.Module:
        """The model that a recipe leaves, frozen, in eval mode, on the device.

        Args:
            recipe: its text; "" for the workload's reference.
            workload: whose recipe it is; "" for the one that is trained.

        Raises:
            ThriftyError: nobody provides teachers here.
        """

    @abc.abstractmethod
    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The workload's forward on any model, without the methods around it."""

    @abc.abstractmethod
    def outputs(self, batch: Batch) -> Any:
        """The model's outputs on a batch, with every method around the forward pass."""

    @abc.abstractmethod
    def mean_loss(self, batch: Batch) -> Tensor:
        """The loss that is minimized on a batch, every method's part in it: a scalar that carries gradients."""

    @abc.abstractmethod
    def fresh(self, batch: Batch, share: float) -> Batch:
        """A batch that the coming step is not trained on, on the device.

        Args:
            batch: the coming step's.
            share: share of its number of examples, in (0, 1].

        Returns:
            examples drawn apart from those that are trained on. Where the session does not know the data (a loop of the
            user's own), the batch's first examples, which are fresh as long as no step was taken on them.
        """

    @abc.abstractmethod
    def aside(self, examples: int) -> Iterator[Batch]:
        """Endless batches to look at and not to train on, the same ones each time, where the model is.

        Args:
            examples: in each batch.

        Raises:
            ThriftyError: the session does not know the data.
        """

    @abc.abstractmethod
    def charged(self, work: Callable[[], T]) -> T:
        """Do what a method needs done before the first step; its seconds and FLOPs are the training's."""

    @abc.abstractmethod
    def backward(self, loss: Tensor) -> bool:
        """Leave the gradients of a loss that is not the step's own (for example an estimate's).

        Args:
            loss: a scalar; it is scaled on its way where the precision wants it.

        Returns:
            whether all gradients are finite, on every rank.
        """
