"""The math of Mamba-2's state-space dual as a recurrence over tokens, in torch's own operations: any device and precision."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token: the state after it, and what it gives out.

        h <- exp(dt A) h + dt x B^T        y = h C + D x

    Args:
        state: h [batch, heads, p, n].
        x: [batch, heads, p].
        dt: [batch, heads], 0 or more: at 0 the state stays as it is.
        A: [heads], below 0.
        B, C: [batch, groups, n]; heads divide into groups in order.
        D: [heads], or None for 0.

    Returns:
        (y [batch, heads, p], h).

    Source: "Transformers are SSMs", Dao and Gu 2024, arXiv:2405.21060, section 7.
    """
    repeat = x.shape[1] // B.shape[1]
    b, c = (v.repeat_interleave(repeat, 1).to(state.dtype) for v in (B, C))
    state = torch.exp(dt * A)[..., None, None] * state + (dt[..., None] * x)[..., None] * b[:, :, None]
    y = (state * c[:, :, None]).sum(-1)
    return (y if D is None else y + D[:, None] * x), state


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, initial: Tensor | None = None,
        offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`step` after `step`; each sequence of a row begins with its own state. Arguments as `thrifty.kernels.ssd.ssd`."""
    if offsets is not None:
        bounds = offsets.tolist()
        parts = [ssd(x[:, first:last], dt[:, first:last], A, B[:, first:last], C[:, first:last], D,
                     None if initial is None else initial[i : i + 1])
                 for i, (first, last) in enumerate(itertools.pairwise(bounds))]
        return torch.cat([y for y, _ in parts], 1), torch.cat([h for _, h in parts])
    batch, length, heads, width = x.shape
    state = dt.new_zeros(batch, heads, width, B.shape[-1]) if initial is None else initial.to(dt.dtype)
    outputs = []
    for t in range(length):
        y, state = step(state, x[:, t].to(dt.dtype), dt[:, t], A.to(dt.dtype), B[:, t], C[:, t], D)
        outputs.append(y)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x)).to(x.dtype), state
