"""GPTQ: a column is rounded, and what that costs the outputs is made up for by the columns still to come."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.numerics.grid import per_group
from thrifty.numerics.grouped import Grouped

BLOCK = 128
"""Columns whose errors are carried to the rest together."""
DAMPING = 0.01


class NotDefinite(ValueError):
    """A second moment of which no Cholesky factor can be taken."""


def gptq(weight: Tensor, moment: Tensor, bits: int, group: int, *, ratio: float | Tensor = 1.0,
         smooth: Tensor | None = None, reordered: bool = True, damping: float = DAMPING, block: int = BLOCK) -> Grouped:
    """Round the columns one by one, each error spread over the columns after it so that the outputs change least.

    With H = 2 X X^T + d I, d = damping * mean(diag H), and U the upper Cholesky factor of H^-1 = U^T U, for each
    column j in turn:

        e = (w_j - Q(w_j)) / U_jj,   W_:k -= e U_jk   for every k > j

    A column whose input was always 0 (H_jj = 0) gets H_jj = 1 and is rounded to nearest: other data may bring it to life.
    Grids are those of the weights as they come.
    ``reordered`` takes the columns by falling H_jj, each on the grid of its own group, so that groups stay contiguous.

    Args:
        weight: W, [out, in].
        moment: X X^T, [in, in].
        bits: of a weight.
        group: weights a scale; divides in.
        ratio: by which the extremes of every grid are clipped; a number or [out, groups].
        smooth: [in], above 0: W * smooth is what is rounded, for inputs that are divided by it.
        reordered: whether the columns that matter most are rounded first.
        damping: share of the mean diagonal that is added to the diagonal.
        block: columns rounded before the rest is updated; changes the time, not the result.

    Raises:
        NotDefinite: H has no Cholesky factor.

    Paper: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", Frantar et al. 2022,
    arXiv:2210.17323, algorithm 1.

    >>> x = torch.randn(100, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    >>> gptq(torch.randn(4, 8), x.T @ x, bits=4, group=8).q.dtype
    torch.uint8
    """
    w, h = weight.detach().double(), 2 * moment.double()
    if smooth is not None:
        w, h = w * smooth, h / torch.outer(smooth, smooth)
    dead = h.diagonal() == 0
    h = h + torch.diag(dead.double())
    scale, zero = per_group(w.float(), bits, group, ratio)
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if reordered else torch.arange(w.shape[1])
    upper = upper_factor(h[order][:, order], damping)
    # Rows of these are the columns of W: the loop below goes along them.
    columns, step, middle = w.T[order].contiguous(), scale.double().T[order // group], zero.double().T[order // group]
    q = torch.empty_like(columns)
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for j in range(start, stop):
            q[j] = (torch.round(columns[j] / step[j]) + middle[j]).clamp(0, 2**bits - 1)
            error = errors[j - start] = (columns[j] - step[j] * (q[j] - middle[j])) / upper[j, j]
            columns[j + 1:stop] -= torch.outer(upper[j, j + 1:stop], error)
        columns[stop:] -= upper[start:stop, stop:].T @ errors
    return Grouped(q[torch.argsort(order)].T.to(torch.uint8).contiguous(), scale, zero, bits, smooth)


def upper_factor(h: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped h."""
    damped = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    root, failed = torch.linalg.cholesky_ex(damped)
    upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
    if failed or failed_too or not upper.isfinite().all():
        raise NotDefinite("the second moment of the inputs is not positive definite")
    found: Tensor = upper
    return found
