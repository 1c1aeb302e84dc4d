"""The math of Mamba-1's selective scan as a recurrence over tokens, in torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor


def step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token: (y [batch, d], the state after it).

        h <- exp(dt A) h + dt x B^T        y = h C + D x

    Args:
        state: h [batch, d, n].
        x, dt: [batch, d].
        A: [d, n], below 0.
        B, C: [batch, n].
        D: [d], or None for 0.

    Source: "Mamba", Gu and Dao 2023, arXiv:2312.00752, section 3.2.
    """
    state = torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B[:, None].to(state.dtype)
    y = (state @ C[..., None].to(state.dtype))[..., 0]
    return (y if D is None else y + D * x), state


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
         initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`step` after `step`. Arguments as `thrifty.kernels.selective_scan.selective_scan`."""
    state = dt.new_zeros(x.shape[0], *A.shape) if initial is None else initial.to(dt.dtype)
    outputs = []
    for t in range(x.shape[1]):
        y, state = step(state, x[:, t].to(dt.dtype), dt[:, t], A.to(dt.dtype), B[:, t], C[:, t], D)
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x)).to(x.dtype), state
