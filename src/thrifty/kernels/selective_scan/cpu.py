"""The selective scan on a CPU: factors of a chunk at once, then one multiply-add of the state for each token."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of x, dt, A, B, C, D and the initial state."""


def _states(state: Tensor, decay: Tensor, added: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + added_t of q tokens, [q, batch, d, n]; takes the place of ``added``."""
    for factor, place in zip(decay.unbind(0), added.unbind(0), strict=True):
        place.addcmul_(factor, state)
        state = place
    return added


def _factors(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, span: slice) -> tuple[Tensor, Tensor]:
    """(exp(dt A), dt x B^T) of a span of tokens, tokens first."""
    step = dt[:, span].transpose(0, 1)
    decay = (step[..., None] * A).exp_()
    added = (step * x[:, span].transpose(0, 1).to(dt.dtype))[..., None] * B[:, span].transpose(0, 1)[:, :, None].to(dt.dtype)
    return decay, added


def _spans(length: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, length)) for first in range(0, length, CHUNK)]


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
            initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `naive.scan`."""
    A = A.to(dt.dtype)
    state = dt.new_zeros(x.shape[0], *A.shape) if initial is None else initial.to(dt.dtype)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for span in _spans(x.shape[1]):
        states = _states(state, *_factors(x, dt, A, B, span))
        found = (states @ C[:, span].transpose(0, 1)[..., None].to(dt.dtype))[..., 0].transpose(0, 1)
        y[:, span] = found if D is None else found + D.to(dt.dtype) * x[:, span]
        state = states[-1]
    return y, state.clone()


def backward(by_y: Tensor, by_final: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
             initial: Tensor | None) -> Gradients:
    """Gradients by the outputs' own; only the states at the starts of chunks are kept, the others computed anew."""
    kind, a = dt.dtype, A.to(dt.dtype)
    spans = _spans(x.shape[1])
    starts = [dt.new_zeros(x.shape[0], *A.shape) if initial is None else initial.to(kind)]
    for span in spans[:-1]:
        starts.append(_states(starts[-1], *_factors(x, dt, a, B, span))[-1].clone())
    dx, ddt, dB, dC = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, B, C))
    dA, dD = torch.zeros_like(a), torch.zeros(x.shape[2], dtype=kind, device=x.device)
    dstate = by_final.to(kind)
    for span, start in zip(reversed(spans), reversed(starts[: len(spans)]), strict=True):
        decay, added = _factors(x, dt, a, B, span)
        states = _states(start, decay, added)
        before = torch.cat([start[None], states[:-1]])
        dy, tile, step = (v[:, span].transpose(0, 1).to(kind) for v in (by_y, x, dt))
        b, c = (v[:, span].transpose(0, 1).to(kind) for v in (B, C))
        back = dy[..., None] * c[:, :, None]  # becomes dh_t, all that comes from later tokens included
        for t in range(len(back) - 1, -1, -1):
            back[t] += dstate
            dstate = decay[t] * back[t]
        dlog = back * before * decay  # by dt A
        du = (back @ b[..., None])[..., 0]
        dA += (dlog * step[..., None]).sum((0, 1))
        dD += (dy * tile).sum((0, 1))
        ddt[:, span] = ((dlog * a).sum(-1) + du * tile).transpose(0, 1)
        found = du * step
        dx[:, span] = (found if D is None else found + dy * D.to(kind)).transpose(0, 1)
        dB[:, span] = ((step * tile)[..., None] * back).sum(2).transpose(0, 1)
        dC[:, span] = (dy[..., None] * states).sum(2).transpose(0, 1)
    return dx, ddt, dA, dB, dC, dD, dstate
