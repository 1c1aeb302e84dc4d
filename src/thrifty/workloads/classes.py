"""Outputs for classes beside their targets: where the classes stand, and what cannot be right."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thrifty.errors import WorkloadError


def paired(judge: str, outputs: Any, target: Any, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits [..., classes] and their targets [...].

    Args:
        judge: "Accuracy" or "CrossEntropy", for the message.
        outputs: with classes in the last dimension, or in dimension 1 as torch's own losses have them.
        target: of one class each.
        axis: of the classes; where None, the one that fits; dimension 1 where there are four or more, and both do.

    Raises:
        WorkloadError: they do not fit, or might be judged wrongly; says what to do.

    >>> import torch
    >>> logits, target = paired("Accuracy", torch.zeros(2, 5, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))
    >>> tuple(logits.shape), tuple(target.shape)
    ((2, 8, 8, 5), (2, 8, 8))
    """
    if not isinstance(outputs, Tensor):
        raise WorkloadError(f"the outputs are a {type(outputs).__name__} and must be one tensor of logits: select "
                            "it in the model's forward, or define your own loss and quality")
    if not isinstance(target, Tensor):
        held = f" of {type(target[0]).__name__}" if isinstance(target, list | tuple) and target else ""
        raise WorkloadError(f"the targets are a {type(target).__name__}{held} and must be a tensor of classes: map names to "
                            "whole numbers in the data set")
    if outputs.shape in (target.shape, (*target.shape, 1)):
        raise WorkloadError(
            f"the outputs {list(outputs.shape)} have one value for each target, but {judge}() picks the highest of several "
            "logits: compare the value itself, with BCEWithLogits() and F1() or AUC() if it decides between two classes, with "
            "MSE() and RMSE() if it is a quantity; or give the model two outputs")
    if target.is_floating_point() or target.is_complex():
        raise WorkloadError(f"the targets are {str(target.dtype).removeprefix('torch.')}, but {judge}() needs whole numbers: one "
                            "class each, as int64")
    fits = axes(outputs, target)
    if axis is not None:
        fits = [fit for fit in fits if fit % outputs.ndim == axis % outputs.ndim]
    elif len(fits) == 2 and outputs.ndim == 3:
        raise WorkloadError(f"outputs {list(outputs.shape)} and targets {list(target.shape)} could have classes in dimension 1 "
                            f"or in the last: say which, {judge}(axis=1) or {judge}(axis=-1)")
    if not fits:
        raise WorkloadError(
            f"outputs {list(outputs.shape)} and targets {list(target.shape)} do not fit"
            f"{'' if axis is None else f' with classes in dimension {axis}'}: logits are [n, classes], [n, ..., classes] or "
            "[n, classes, ...], targets [n] or [n, ...]")
    logits = outputs.movedim(1, -1) if fits[0] == 1 and outputs.ndim > 2 else outputs
    return logits, target.reshape(logits.shape[:-1])


def axes(outputs: Tensor, target: Tensor) -> list[int]:
    """Dimensions, 1 and -1, in which the classes may stand; the one to prefer first."""
    sizes, wanted = tuple(outputs.shape), tuple(target.shape)
    if not sizes:
        return []
    flat = len(sizes) > 1 and (len(sizes) == 2 or len(wanted) == 1) and outputs[..., 0].numel() == target.numel()
    found = [-1] if len(sizes) > 1 and (sizes[:-1] == wanted or flat) else []
    if len(sizes) > 2 and (sizes[0], *sizes[2:]) == wanted:
        found = [1, *found]
    return found
