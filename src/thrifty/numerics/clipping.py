"""Clipping: a grid that leaves far-off weights out has smaller steps for all others."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.numerics.grid import from_group
from thrifty.numerics.grouped import rtn

CLIPS = 10
"""Ratios tried: 1, 0.95, ..., 0.55."""


def clips(weight: Tensor, moment: Tensor, bits: int, group: int) -> Tensor:
    """By how much to clip the extremes of every group, judged by the part of the outputs that the group gives.

    argmin over r in {1, 0.95, ..., 0.55} of ||(W_g - Q_r(W_g)) X_g||^2 for each row and group g.

    Args:
        weight: [out, in].
        moment: X X^T of what it reads, [in, in].
        bits: of a weight.
        group: weights a scale; divides in.

    Returns:
        r, float32 [out, groups].

    Source: the clipping search of "AWQ", Lin et al. 2023, arXiv:2306.00978.

    >>> import torch
    >>> w = torch.tensor([[0.1, -0.2, 0.3, -0.1, 0.2, -0.3, 0.1, 2.0]])
    >>> reads = torch.diag(torch.tensor([1.0] * 7 + [0.0]))  # nothing reads the outlier
    >>> round(float(clips(w, reads, bits=3, group=8)), 2)
    0.55
    """
    w = weight.detach().float()
    count = w.shape[1] // group
    own = moment.float().reshape(count, group, count, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # of each group
    best, least = torch.ones(len(w), count), torch.tensor(float("inf"))
    for step in range(CLIPS):
        ratio = 1 - 0.5 * step / CLIPS
        tried = rtn(w, bits, group, ratio)
        lost = (w - from_group(tried.q, tried.scale, tried.zero)).reshape(len(w), count, group)
        error = (torch.einsum("ngi,gij->ngj", lost, own) * lost).sum(2)
        best, least = torch.where(error < least, ratio, best), torch.minimum(error, least)
    return best
