"""Batch norms' statistics, taken anew: those of a whole model are wrong for every subnet of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 64
"""Requests of which batches are made, about."""


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """{name: batch norm} of those that normalize by kept statistics."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None}


def renew(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Take the statistics of all batch norms anew, in place; all else in eval mode.

    Means and variances are those of batches of about `ROWS` requests, and of these the mean, whatever the norms' own momentum.

    Args:
        model: left in eval mode.
        inputs: of many requests, along the first dimension.

    Returns:
        {name of a buffer: its new value}.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> {name: x.tolist() for name, x in renew(net, (torch.tensor([[1.0], [3.0]]),)).items()}
    {'0.running_mean': [2.0], '0.running_var': [2.0]}
    """
    found: dict[str, Any] = norms(model)
    if not found:
        return {}
    momenta = {name: norm.momentum for name, norm in found.items()}
    counts = {name: norm.num_batches_tracked.clone() for name, norm in found.items() if norm.num_batches_tracked is not None}
    model.eval()
    try:
        for norm in found.values():
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        pieces = max(1, len(inputs[0]) // ROWS)
        with torch.no_grad():
            for batch in zip(*(x.tensor_split(pieces) for x in inputs), strict=True):
                model(*batch)
    finally:
        for name, norm in found.items():
            norm.momentum = momenta[name]
            if name in counts:
                norm.num_batches_tracked.copy_(counts[name])
            norm.eval()
    return {f"{name}.{key}": getattr(norm, key).detach().clone()
            for name, norm in found.items() for key in ("running_mean", "running_var")}
