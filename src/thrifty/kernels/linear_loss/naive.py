"""The math of a linear layer and its cross entropy, in torch's own operations: any device, any precision."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.float8 import E5M2, to_float8

GRADIENT_SCALE = 2.0**15
"""Gradients of logits lie in [-1, 1]: times this they use e5m2's range from its largest number down to 2^-31."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """sum over i with y_i != ignore_index of log sum_j exp(x_i . w_j) - x_i . w_{y_i}.

    Args:
        hidden: x, [n, h].
        weight: w, [v, h].
        target: y, [n] int64.

    Returns:
        a scalar, in float32 or better.

    >>> float(linear_cross_entropy(torch.zeros(3, 4), torch.ones(2, 4), torch.tensor([0, 1, -100])))
    1.3862943649291992
    """
    logits = hidden @ weight.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = target != ignore_index
    chosen = logits.gather(1, target.where(valid, 0)[:, None])[:, 0]
    return (logits.logsumexp(1) - chosen).where(valid, 0.0).sum()


def losses(logits: Tensor, target: Tensor, ignore_index: int, gradient: bool) -> tuple[Tensor, Tensor]:
    """Losses of rows, and log sum exp of each; where asked, the logits become the gradient of the losses' sum, in place:
    softmax(logits) - onehot(target), zero in rows that are ignored.

    Args:
        logits: [n, v].
        target: [n] int64.

    Returns:
        ([n] float32, [n] float32).
    """
    valid = target != ignore_index
    known = target.where(valid, 0)[:, None]
    norm = logits.float().logsumexp(1)
    lost = (norm - logits.gather(1, known)[:, 0].float()).where(valid, 0.0)
    if gradient:
        logits.copy_(_gradient(logits, norm, target, ignore_index))
    return lost, norm


def gradient8(logits: Tensor, norm: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The same gradient times `GRADIENT_SCALE` in e5m2, and its transpose: [n, v] and [v, n], both contiguous."""
    found = to_float8(_gradient(logits, norm, target, ignore_index), norm.new_full((), 1 / GRADIENT_SCALE), E5M2)
    return found, found.t().contiguous()


def _gradient(logits: Tensor, norm: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    valid = target != ignore_index
    found = (logits.float() - norm[:, None]).exp()
    found.scatter_add_(1, target.where(valid, 0)[:, None], found.new_full((len(target), 1), -1.0))
    return found.where(valid[:, None], 0.0)
