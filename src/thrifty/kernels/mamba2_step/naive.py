"""The math of one token through a Mamba-2 layer, between its two projections, in torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thrifty.kernels.ssd import Limits, ssd_step, time_steps


def norm_gated(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """RMSNorm(y silu(z)) of each group's channels: [..., d], in float32 (float64 where y is), then as y is."""
    kind = torch.float64 if y.dtype == torch.float64 else torch.float32
    gated = (y.to(kind) * F.silu(z.to(kind))).unflatten(-1, (groups, -1))
    scaled = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return weight * scaled.flatten(-2).to(y.dtype)


def step(zxbcdt: Tensor, conv: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, dt_bias: Tensor, A: Tensor,
         D: Tensor, norm: Tensor, groups: int, limits: Limits, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, conv, state) after one token; nothing is changed in place. Arguments as `thrifty.kernels.mamba2_step.mamba2_step`."""
    _, heads, width, size = state.shape
    inner = heads * width
    z, raw, dt = zxbcdt.split([inner, inner + 2 * groups * size, heads], dim=-1)
    window = torch.cat([conv.to(raw.dtype), raw[:, None]], 1)  # [batch, taps, channels]
    mixed = (window * weight.mT.to(raw.dtype)).sum(1)
    mixed = F.silu(mixed if bias is None else mixed + bias.to(raw.dtype))
    x, B, C = mixed.split([inner, groups * size, groups * size], dim=-1)
    y, state = ssd_step(state, x.unflatten(-1, (heads, width)), time_steps(dt, dt_bias, limits), A,
                        B.unflatten(-1, (groups, size)), C.unflatten(-1, (groups, size)), D)
    return norm_gated(y.flatten(1), z, norm, groups, eps), window[:, 1:], state
