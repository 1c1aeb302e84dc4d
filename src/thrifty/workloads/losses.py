"""What a training makes small: losses as (sum, weight), so that micro-batches, padding and ranks add up."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.errors import WorkloadError
from thrifty.workloads.classes import paired
from thrifty.workloads.values import compared

Batch = tuple[tuple[Tensor, ...], Any]
"""A collated batch: (inputs, target). ``inputs`` is what the server gets; ``target`` what the loss needs."""


class Loss(abc.ABC):
    """Maps (outputs, batch) to (sum, weight): the mean loss of any grouping is sum of sums / sum of weights."""

    @abc.abstractmethod
    def __call__(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (sum of losses, number of valid examples or tokens), both scalars; the sum carries gradients."""

    def logits(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (logits [n, classes], valid [n] bool): what distillation and Sophia's estimator need.

        A loss that compares no distribution leaves it out; methods that need logits are then refused.

        Raises:
            WorkloadError: this loss has none.
        """
        raise WorkloadError(f"the loss {type(self).__name__} gives no logits: define its logits(outputs, batch)")

    @property
    def gives_logits(self) -> bool:
        return type(self).logits is not Loss.logits


# -- of classes -------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Sum of -log softmax(outputs)[target] over targets other than ``ignore_index``.

    ``outputs``: [batch, classes] with targets [batch], [batch, tokens, classes] with targets [batch, tokens], or, as torch's
    own, [batch, classes, height, width] with targets [batch, height, width].

    Args:
        ignore_index: targets that do not count.
        axis: axis of the classes, 1 or -1; where None, the one that fits the targets.

    >>> import torch
    >>> loss_sum, weight = CrossEntropy()(torch.zeros(4, 10), ((), torch.tensor([1, 2, 3, -100])))
    >>> round(float(loss_sum / weight), 4), int(weight)
    (2.3026, 3)
    """

    ignore_index: int = -100
    axis: int | None = None

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, target = self._flat(outputs, batch)
        total = nn.functional.cross_entropy(
            logits.float(), target, ignore_index=self.ignore_index, reduction="sum"
        )
        return total, (target != self.ignore_index).sum()

    def logits(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, target = self._flat(outputs, batch)
        return logits, target != self.ignore_index

    def _flat(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, target = paired("CrossEntropy", outputs, batch[1], self.axis)
        return logits.reshape(-1, logits.shape[-1]), target.reshape(-1)


@final
@dataclass(frozen=True)
class BCEWithLogits(Loss):
    """Sum of -(y log s(z) + (1 - y) log(1 - s(z))) over all outputs z and targets y in [0, 1], s being the sigmoid.

    One output for each target: [batch] or [batch, 1] for two classes, [batch, labels] for labels that do not exclude one
    another, [batch, 1, height, width] with targets [batch, height, width] for masks. To distillation and Sophia each output
    is one choice between two classes, of logits (0, z).

    >>> loss_sum, weight = BCEWithLogits()(torch.zeros(4, 1), ((), torch.tensor([0, 1, 1, 0])))
    >>> round(float(loss_sum / weight), 4), int(weight)
    (0.6931, 4)
    """

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        z, y = compared("BCEWithLogits", outputs, batch[1])
        return _total(nn.functional.binary_cross_entropy_with_logits, z, y)

    def logits(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        z = compared("BCEWithLogits", outputs, batch[1])[0].reshape(-1)
        return torch.stack([torch.zeros_like(z), z], -1), torch.ones_like(z, dtype=torch.bool)


# -- of numbers -------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class MSE(Loss):
    """Sum of (output - target)^2 over all elements, whose count is the weight: the mean is torch's ``mse_loss``.

    >>> [float(x) for x in MSE()(torch.tensor([[1.0], [4.0]]), ((), torch.tensor([0.0, 2.0])))]
    [5.0, 2.0]
    """

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return _total(nn.functional.mse_loss, *compared("MSE", outputs, batch[1]))


@final
@dataclass(frozen=True)
class MAE(Loss):
    """Sum of |output - target| over all elements, whose count is the weight: the mean is torch's ``l1_loss``.

    >>> [float(x) for x in MAE()(torch.tensor([[1.0], [4.0]]), ((), torch.tensor([0.0, 2.0])))]
    [3.0, 2.0]
    """

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return _total(nn.functional.l1_loss, *compared("MAE", outputs, batch[1]))


# -- of inputs alone -------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Unlabelled(Loss):
    """The loss of inputs alone: 0, of one example each; what is learned is what a teacher says.

    Logits are the outputs with their classes last, in dimension 1 of images [batch, classes, height, width].
    """

    def __call__(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        x = batch[0][0]
        return x.new_zeros((), dtype=torch.float32), torch.tensor(len(x), device=x.device)

    def logits(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if not isinstance(outputs, Tensor):
            raise WorkloadError(f"the outputs are a {type(outputs).__name__} and must be one tensor of logits to be distilled "
                                "without labels: select it in the model's forward")
        logits = (outputs.movedim(1, -1) if outputs.dim() == 4 else outputs).flatten(0, -2)
        return logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device)


def _total(function: Callable[..., Tensor], outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return function(outputs.float(), target.float(), reduction="sum"), torch.tensor(target.numel(), device=target.device)
