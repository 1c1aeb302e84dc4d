"""SparseGPT: weights leave column by column, and those to the right make up for what that costs the outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.numerics.gptq import DAMPING, NotDefinite, upper_factor
from thrifty.posttraining.pruning.patterns import Pattern, lowest

BLOCK = 128
"""Columns whose masks are chosen together, in the unstructured form."""


def sparsegpt(weight: Tensor, moment: Tensor, pattern: Pattern, damping: float = DAMPING) -> Tensor:
    """Set weights to zero and change the others so that the outputs change least.

    With H = X X^T + d I, d = damping * mean(diag H), and U the upper Cholesky factor of H^-1 = U^T U. The mask of a block of
    columns takes the weights with the smallest w_ij^2 / U_jj^2, as they are by then; for each column j in turn

        e = (w_j - mask w_j) / U_jj,   W_:k -= e U_jk   for every k >= j

    A column whose input was always 0 is set to zero for nothing.

    Args:
        weight: W, [out, in].
        moment: X X^T, [in, in].
        pattern: which share leaves, or how many of how many.

    Returns:
        [out, in] float64, the mask being its zeros.

    Raises:
        NotDefinite: H has no Cholesky factor.

    Paper: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", Frantar & Alistarh 2023,
    arXiv:2301.00774, algorithm 1.
    """
    w, h = weight.detach().double().clone(), moment.double()
    dead = h.diagonal() == 0
    h = h + torch.diag(dead.double())
    w[:, dead] = 0
    upper = upper_factor(h, damping)
    block = BLOCK // pattern.period * pattern.period or pattern.period
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        errors = torch.zeros_like(w[:, start:stop])
        lost = torch.zeros_like(errors, dtype=torch.bool)
        importance = upper.diagonal()[start:stop].square()
        if pattern.period == 1:
            lost = lowest(w[:, start:stop].square() / importance, pattern)
        for j in range(start, stop):
            i = j - start
            if pattern.period > 1 and i % pattern.period == 0:
                here = slice(i, i + pattern.period)
                lost[:, here] = lowest(w[:, j:j + pattern.period].square() / importance[here], pattern)
            errors[:, i] = torch.where(lost[:, i], w[:, j], 0) / upper[j, j]
            w[:, j:stop] -= torch.outer(errors[:, i], upper[j, j:stop])
        w[:, start:stop][lost] = 0
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return w


__all__ = ["NotDefinite", "sparsegpt"]
