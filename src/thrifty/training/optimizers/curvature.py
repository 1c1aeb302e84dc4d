"""Estimates of the diagonal of a loss's curvature: Gauss-Newton-Bartlett's and Hutchinson's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from thrifty.errors import ThriftyError

IGNORED = -100
BLOCK = 256
"""Classes of a block in `draw`."""


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sample a class from softmax(logits) for each row, by the inverse of the distribution function.

    One uniform number a row decides, whatever the number of classes. The function is built in two levels, blocks of
    classes and then the classes of the chosen block: a running sum over a whole vocabulary is slow on GPUs, and less
    exact. A class of probability 0 is never drawn.

    Args:
        logits: [n, classes].
        generator: on the logits' device.

    >>> draw(torch.tensor([[-99.0, 9.0], [9.0, -99.0]]), torch.Generator().manual_seed(0)).tolist()
    [1, 0]
    """
    p = torch.softmax(logits.detach().float(), -1)
    if p.shape[-1] % BLOCK:
        p = F.pad(p, (0, -p.shape[-1] % BLOCK))
    p = p.unflatten(-1, (-1, BLOCK))
    blocks = p.sum(-1).cumsum(-1)
    at = torch.rand(len(p), 1, device=p.device, generator=generator) * blocks[:, -1:]
    block = _first_above(blocks, at)
    at = at - torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = p.gather(1, block.unsqueeze(-1).expand(-1, 1, BLOCK)).squeeze(1).cumsum(-1)
    return (block * BLOCK + _first_above(within, at)).squeeze(-1)


def _first_above(cumulated: Tensor, at: Tensor) -> Tensor:
    """The first class whose cumulated probability is above ``at``, [n, 1]; rounding never leads past the last one."""
    below = torch.minimum(at, cumulated[:, -1:] * (1 - 2.0**-24))
    return torch.searchsorted(cumulated, below.clamp(min=0), right=True)


def sampled_loss(logits: Tensor, valid: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cross entropy against labels that the model draws itself: its gradient g gives the diagonal of Gauss-Newton.

        y_hat ~ softmax(logits);  E[B g^2] = diag(1/B sum_i J_i^T (diag(p_i) - p_i p_i^T) J_i),  g of the mean over B

    B counts valid rows alone: padding neither counts nor has a gradient. The labels that the data holds are not used.

    Args:
        logits: [n, classes], with their graph.
        valid: [n] bool.
        generator: random generator of the labels.

    Returns:
        (sum of losses, B).

    Source: "Sophia", Liu et al. 2023, arXiv:2305.14342, algorithm 2.
    """
    labels = torch.where(valid, draw(logits, generator), IGNORED)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum"), valid.sum()


def hutchinson(loss: Tensor, parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """u * (H u) with u ~ N(0, I): its mean is the diagonal of the loss's Hessian H. It may be negative.

    Args:
        loss: a scalar with its graph.
        parameters: that it depends on; where it does not, the estimate is 0.
        generator: of u.

    Raises:
        ThriftyError: an operation of the model has no second derivative.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> (estimate,) = hutchinson((x**3).sum(), [x], torch.Generator().manual_seed(0))  # H = diag(6 x)
    >>> bool((estimate > 0).all())
    True

    Source: "Sophia", Liu et al. 2023, arXiv:2305.14342, algorithm 1; Hutchinson 1989.
    """
    try:
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        probes = [torch.randn(p.shape, dtype=p.dtype, device=p.device, generator=generator) for p in parameters]
        along = torch.stack([(g * u).sum() for g, u in zip(first, probes, strict=True)]).sum()
        if not along.requires_grad:  # the loss is linear
            return [torch.zeros_like(p) for p in parameters]
        _refuse_dead_ends(along)
        second = torch.autograd.grad(along, parameters, allow_unused=True, materialize_grads=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ThriftyError(f"Hutchinson's estimator differentiates twice, which this model does not allow: {error}; "
                           "use the other estimator: sophia(gnb)") from error
    return [u * hu for u, hu in zip(probes, second, strict=True)]


def _refuse_dead_ends(output: Tensor) -> None:
    """An operation that is marked as differentiable once ends the graph in an error node that leads nowhere: autograd
    goes around it, and its second derivative would silently be 0.

    Raises:
        RuntimeError: there is such a node.
    """
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "Error" in node.name():
            raise RuntimeError("an operation is marked as differentiable only once")
        waiting += [following for following, _ in node.next_functions]
