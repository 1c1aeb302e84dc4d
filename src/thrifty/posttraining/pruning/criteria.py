"""How much a channel matters: by its weights, by what is read of it, by what the loss would lose without it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.pruning.dependency import Dependencies, Group
from thrifty.recipes.context import Context


def magnitude(model: nn.Module, found: Dependencies, norm: str) -> list[np.ndarray]:
    """[channels] for each group: sum over tied weights of the norms of each channel's slices, each weight's mean being 1.

    Biases are left out: what they add is the same for every input.
    """
    weights = dict(model.named_parameters())
    return [_summed(group, weights, found, lambda w: w.abs() if norm == "l1" else w.square(),
                    lambda sums: sums if norm == "l1" else np.sqrt(sums)) for group in found.groups]


def taylor(model: nn.Module, found: Dependencies, context: Context) -> list[np.ndarray]:
    """[channels] for each group: |sum of w dL/dw| over all of a channel's slices, what the loss changes without it, to
    first order. Mean of absolute values over batches.

    Paper: "Importance Estimation for Neural Network Pruning", Molchanov et al. 2019, arXiv:1906.10771.

    Raises:
        CalibrationError: there is no loss to take gradients of.
    """
    if context.labelled is None or context.loss is None:
        raise CalibrationError("criterion=taylor needs gradients of the loss, and there are no labels here: give the workload "
                               "a train set and a loss, or choose criterion=magnitude or activation")
    model = copy.deepcopy(model).requires_grad_(True)
    weights = dict(model.named_parameters())
    total, batches = [np.zeros(group.size) for group in found.groups], 0
    for batch in context.labelled():
        model.zero_grad()
        with torch.enable_grad():
            context.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        moved = {name: (w.detach() * w.grad).double() for name, w in weights.items() if w.grad is not None}
        for i, group in enumerate(found.groups):
            parts = [_slices(moved[place.tensor], place.dim)[indices].sum(1) for place, indices in group.members.items()
                     if place.tensor in moved and place not in found.reads]
            total[i] += np.abs(np.sum(parts, axis=0)) if parts else 0
        batches += 1
    if not batches or not all(np.isfinite(x).all() for x in total):
        raise CalibrationError("criterion=taylor found NaN or infinity in the gradients, or no batch: check the data")
    return total


def activation(model: nn.Module, found: Dependencies, batches: Iterable[tuple[Tensor, ...]]) -> list[np.ndarray]:
    """[channels] for each group: sum over the layers that read it of ||x_c|| ||W_c||, what it brings to their outputs, each
    layer's mean being 1.

    Readers that are no layers of their own (experts in one tensor) count by their weights alone.

    Raises:
        CalibrationError: there is no batch.
    """
    weights = dict(model.named_parameters())
    read = {place.tensor: place.dim for place in found.reads}
    norms: dict[str, Tensor] = {}

    def hook(name: str, dim: int) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().double()
            along = 1 if weights[name].ndim > 2 else x.ndim - 1
            if x.shape[along] == weights[name].shape[dim]:
                norms[name] = norms.get(name, torch.zeros(())) + x.movedim(along, 0).flatten(1).square().sum(1).cpu()

        return see

    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in read}
    handles = [owners[name].register_forward_pre_hook(hook(name, dim)) for name, dim in read.items()]
    ran = 0
    try:
        with torch.no_grad():
            for batch in batches:
                model(*batch)
                ran += 1
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise CalibrationError("criterion=activation had no calibration data: give batches of inputs, or use magnitude")
    scores = []
    for group in found.groups:
        total = np.zeros(group.size)
        for place, indices in group.members.items():
            if place not in found.reads:
                continue
            size = np.square(_slices(weights[place.tensor].detach().double(), place.dim, square=True))
            seen = norms[place.tensor].numpy() if place.tensor in norms else np.ones(len(size))
            brought = np.sqrt((size * seen)[indices].sum(1))
            total += brought / max(brought.mean(), 1e-30)
        scores.append(total)
    return scores


def scored(criterion: str, norm: str, model: nn.Module, found: Dependencies, context: Context) -> list[np.ndarray]:
    """[channels] for each group, by a criterion's name."""
    match criterion:
        case "magnitude":
            return magnitude(model, found, norm)
        case "taylor":
            return taylor(model, found, context)
        case "activation":
            return activation(model, found, context.calibration())
    raise ThriftyError(f"criterion={criterion} does not rank channels: choose magnitude, taylor or activation")


def _slices(tensor: Tensor, dim: int, square: bool = False) -> np.ndarray:
    """[length] sums over each slice along a dimension; with ``square`` their 2-norms."""
    rows = tensor.movedim(dim, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    found: np.ndarray = (rows.square().sum(1).sqrt() if square else rows.sum(1)).cpu().numpy()
    return found


def _summed(group: Group, weights: dict[str, nn.Parameter], found: Dependencies, size: Any, root: Any) -> np.ndarray:
    total = np.zeros(group.size)
    for place, indices in group.members.items():
        weight = weights.get(place.tensor)
        if weight is None or (weight.ndim < 2 and place.tensor not in found.scales):
            continue
        norms = root(_slices(size(weight.detach().double()), place.dim)[indices].sum(1))
        total += norms / max(norms.mean(), 1e-30)
    return total


def ranked(scores: np.ndarray, kept: int) -> list[int]:
    """The ``kept`` highest, in ascending order; of equals the earlier."""
    return sorted(np.argsort(-scores, kind="stable")[:kept].tolist())
