"""Outputs that are numbers beside their targets: one output for each target, and what cannot be right."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thrifty.errors import WorkloadError


def compared(judge: str, outputs: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Outputs and targets of one shape, the targets'. A dimension of size 1, last or in dimension 1, may stand in one alone.

    Left to broadcasting, outputs [n, 1] and targets [n] would be compared all with all.

    Args:
        judge: name of the loss or quality, for the message.
        outputs: of the model.
        target: one number for each.

    Raises:
        WorkloadError: they are no tensors, or do not fit.

    >>> import torch
    >>> [tuple(x.shape) for x in compared("MSE", torch.zeros(3, 1), torch.zeros(3))]
    [(3,), (3,)]
    """
    for what, found in (("outputs", outputs), ("targets", target)):
        if not isinstance(found, Tensor):
            raise WorkloadError(f"the {what} are a {type(found).__name__} but {judge}() needs one tensor of numbers: give the "
                                "workload a forward or a collate that returns one, or define your own loss and quality")
    if outputs.shape == target.shape:
        return outputs, target
    if outputs.numel() == target.numel() and tuple(target.shape) in _without_one(outputs):
        return outputs.reshape(target.shape), target
    if outputs.numel() == target.numel() and tuple(outputs.shape) in _without_one(target):
        return outputs, target.reshape(outputs.shape)
    raise WorkloadError(f"outputs {list(outputs.shape)} and targets {list(target.shape)} do not fit: {judge}() compares one "
                        "output with each target, so both have one shape")


def _without_one(x: Tensor) -> list[tuple[int, ...]]:
    """The shape without its last dimension, or without dimension 1, where that is of size 1."""
    shape = tuple(x.shape)
    return [shape[:d] + shape[d + 1:] for d in {1, x.ndim - 1} if 0 < d < x.ndim and shape[d] == 1]
