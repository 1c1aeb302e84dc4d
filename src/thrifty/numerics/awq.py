"""AWQ: columns that read large inputs are scaled up before they are rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thrifty.numerics.clipping import clips
from thrifty.numerics.grouped import Grouped, output_error, rtn

STRENGTHS = 20

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


def awq(weight: Tensor, moment: Tensor, scales: Tensor, bits: int, group: int) -> Grouped:
    """Scale by what `awq_scales` found, clip by what `clips` finds, round to nearest."""
    scaled = weight.detach().float() * scales
    ratio = clips(scaled, moment / torch.outer(scales, scales), bits, group)
    return rtn(weight, bits, group, ratio, scales)
