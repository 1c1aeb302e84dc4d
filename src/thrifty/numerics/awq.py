"""AWQ: columns that read large inputs are scaled up before they are rounded, and extremes that cost more than they
give are clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thrifty.numerics.grid import from_group
from thrifty.numerics.grouped import Grouped, output_error, rtn

STRENGTHS = 20
CLIPS = 10
"""Ratios tried: 1, 0.95, ..., 0.55."""


def awq_scales(weights: Sequence[Tensor], moment: Tensor, size: Tensor, bits: int, group: int) -> Tensor:
    """The scaling of columns that costs the outputs least, for all layers that read one tensor.

    s = m^a / sqrt(max(m^a) min(m^a)), a the one of 0, 1/20, ..., 19/20 with the least squared error of
    Q(W diag(s)) diag(s)^-1 X, m_j = mean|x_j| over what was read.

    Args:
        weights: each [out, in], of the layers that read the same inputs.
        moment: X X^T, float64 [in, in].
        size: m, [in], not all 0.
        bits, group: of the grids.

    Returns:
        s, float32 [in], above 0.

    Paper: "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", Lin et al. 2023,
    arXiv:2306.00978, equations 4 and 5.
    """
    together = torch.cat([weight.detach().float() for weight in weights])
    best, least = torch.ones_like(size, dtype=torch.float32), float("inf")
    for step in range(STRENGTHS):
        powers = size.float().clamp_min(1e-4) ** (step / STRENGTHS)
        scales = powers / (powers.max() * powers.min()).sqrt()
        error = output_error(together, rtn(together, bits, group, smooth=scales).dequantized(), moment)
        if error < least:
            best, least = scales, error
    return best


def awq_clips(weight: Tensor, moment: Tensor, bits: int, group: int) -> Tensor:
    """By how much to clip the extremes of every group, judged by the part of the outputs that the group gives.

    argmin over r in {1, 0.95, ..., 0.55} of ||(W_g - Q_r(W_g)) X_g||^2 for each row and group g.

    Args:
        weight: [out, in], scaled already.
        moment: X X^T of what the scaled weight reads.

    Returns:
        r, float32 [out, groups].
    """
    w = weight.detach().float()
    parts = moment.float().unflatten(0, (-1, group)).unflatten(2, (-1, group))
    own = parts.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [groups, group, group]
    best, least = None, None
    for step in range(CLIPS):
        ratio = 1 - 0.5 * step / CLIPS
        tried = rtn(w, bits, group, ratio)
        lost = (w - from_group(tried.q, tried.scale, tried.zero)).unflatten(1, (-1, group))
        error = (torch.einsum("ngi,gij->ngj", lost, own) * lost).sum(2)
        if best is None or least is None:
            best, least = torch.ones_like(error), error
        best = torch.where(error < least, ratio, best)
        least = torch.minimum(error, least)
    assert best is not None
    return best


def awq(weight: Tensor, moment: Tensor, scales: Tensor, bits: int, group: int) -> Grouped:
    """Scale by what `awq_scales` found, clip by what `awq_clips` finds, round to nearest."""
    scaled = weight.detach().float() * scales
    ratio = awq_clips(scaled, moment / torch.outer(scales, scales), bits, group)
    return rtn(weight, bits, group, ratio, scales)
