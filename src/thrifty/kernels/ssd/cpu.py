"""The state-space dual on a CPU: chunk after chunk, so that the state and a chunk's scores stay in the cache.

All heads of a group are columns of one product with C, and of one with B; C B^T is computed once a group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

CHUNK = 64

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of x, dt, A, B, C, D and the initial states."""


@final
@dataclass(frozen=True)
class _Chunk:
    """What both directions need of a chunk: q tokens, r heads in each of g groups.

    Args:
        u: dt x, [batch, g, q, r, p]; heads stand beside each other, as the columns of a product.
        total: running sums of dt A, [batch, g, r, q].
        decay: exp(total_l - total_s) where l >= s, else 0: [batch, g, r, q, q].
        scores: C B^T, [batch, g, q, q].
        B, C: [batch, g, q, n].
    """

    u: Tensor
    total: Tensor
    decay: Tensor
    scores: Tensor
    B: Tensor
    C: Tensor

    @property
    def left(self) -> Tensor:
        """exp(total_Q - total_s), as factors of u."""
        return (self.total[..., -1:] - self.total).exp().mT[..., None]

    @property
    def carried(self) -> Tensor:
        """exp(total_Q) as factors of states [batch, g, n, r, p]."""
        return self.total[..., -1].exp()[:, :, None, :, None]

    def after(self, state: Tensor) -> Tensor:
        """The state behind the chunk, [batch, g, n, r, p]."""
        added = self.B.mT @ (self.left * self.u).flatten(3)
        return torch.addcmul(added.unflatten(-1, state.shape[3:]), state, self.carried)


def _chunk(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Chunk:
    """The products within a chunk, of x [batch, q, heads, p] and the rest beside it."""
    groups = B.shape[2]
    grouped = dt.unflatten(2, (groups, -1)).transpose(1, 2)  # [batch, g, q, r]
    u = x.unflatten(2, (groups, -1)).transpose(1, 2) * grouped[..., None]
    total = (grouped * A.view(groups, 1, -1)).mT.cumsum(-1)
    between = (total[..., :, None] - total[..., None, :]).clamp_(max=0)
    b, c = (v.transpose(1, 2).to(dt.dtype) for v in (B, C))
    return _Chunk(u, total, between.exp_().tril_(), c @ b.mT, b, c)


def _weighted(chunk: _Chunk, matrix: Tensor, columns: Tensor) -> Tensor:
    """Each head's matrix [batch, g, r, q, q] times its columns [batch, g, q, r, p]."""
    return (matrix @ columns.transpose(2, 3)).transpose(2, 3)


def _spans(length: int) -> Iterator[slice]:
    return (slice(first, min(first + CHUNK, length)) for first in range(0, length, CHUNK))


def _sequences(x: Tensor, offsets: Tensor | None) -> list[tuple[slice, slice]]:
    """(rows, tokens) of each run of tokens that is worked through at once."""
    if offsets is None:
        return [(slice(None), slice(0, x.shape[1]))]
    bounds = offsets.tolist()
    return [(slice(i, i + 1), slice(first, last)) for i, (first, last) in enumerate(itertools.pairwise(bounds))]


def _inner(states: Tensor, groups: int) -> Tensor:
    """[batch, heads, p, n] -> [batch, g, n, r, p]."""
    return states.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3)


def _outer(states: Tensor) -> Tensor:
    return states.permute(0, 1, 3, 4, 2).flatten(1, 2)


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None,
            offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `naive.ssd`; sums in float32, in float64 where dt is."""
    groups, count = B.shape[2], x.shape[0] if offsets is None else len(offsets) - 1
    y, final = torch.empty_like(x, memory_format=torch.contiguous_format), dt.new_zeros(count, *x.shape[2:], B.shape[-1])
    if initial is not None:
        final.copy_(initial)
    A, D = A.to(dt.dtype), None if D is None else D.to(dt.dtype)
    for rows, tokens in _sequences(x, offsets):
        xs, dts, Bs, Cs, out = (v[:, tokens] for v in (x, dt, B, C, y))
        state = _inner(final[rows], groups)
        for span in _spans(xs.shape[1]):
            tile = xs[:, span].to(dt.dtype)
            chunk = _chunk(tile, dts[:, span], A, Bs[:, span], Cs[:, span])
            found = (chunk.C @ state.flatten(3)).unflatten(-1, state.shape[3:]) * chunk.total.exp().mT[..., None]
            found += _weighted(chunk, chunk.decay.mul_(chunk.scores[:, :, None]), chunk.u)
            found = found.transpose(1, 2).flatten(2, 3)
            out[:, span] = found if D is None else found.addcmul(tile, D[:, None])
            state = chunk.after(state)
        final[rows] = _outer(state)
    return y, final


def backward(by_y: Tensor, by_final: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
             initial: Tensor | None, offsets: Tensor | None) -> Gradients:
    """Gradients by the outputs' own; the states at the starts of chunks are computed anew.

    Those of the running sums come from the row and column sums of dM * M: y * dy - ddt * dt loses all digits.
    """
    kind, groups = dt.dtype, B.shape[2]
    dx, ddt, dB, dC = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, B, C))
    dA, dD = torch.zeros_like(A, dtype=kind), torch.zeros_like(A, dtype=kind)
    dinitial = torch.empty_like(by_final, dtype=kind)
    a = A.to(kind)
    for rows, tokens in _sequences(x, offsets):
        xs, dts, Bs, Cs, dys = (v[:, tokens] for v in (x, dt, B, C, by_y))
        spans = list(_spans(xs.shape[1]))
        states = [_inner(torch.zeros_like(by_final[rows], dtype=kind) if initial is None else initial[rows].to(kind), groups)]
        for span in spans[:-1]:
            states.append(_chunk(xs[:, span].to(kind), dts[:, span], a, Bs[:, span], Cs[:, span]).after(states[-1]))
        dstate = _inner(by_final[rows].to(kind), groups)
        for span, state in zip(reversed(spans), reversed(states[: len(spans)]), strict=True):
            tile, step = xs[:, span].to(kind), dts[:, span]
            chunk = _chunk(tile, step, a, Bs[:, span], Cs[:, span])
            dy = dys[:, span].to(kind).unflatten(2, (groups, -1)).transpose(1, 2)  # [batch, g, q, r, p]
            du, dtotal, db, dc, dstate = _chunk_backward(chunk, state, dy, dstate)
            da = dtotal.flip(-1).cumsum(-1).flip(-1).flatten(1, 2).mT  # [batch, q, heads]
            du = du.transpose(1, 2).flatten(2, 3)
            dy = dy.transpose(1, 2).flatten(2, 3)
            dA += (da * step).sum((0, 1))
            dD += (dy * tile).sum((0, 1, 3))
            ddt[:, tokens][:, span] = da * a + (du * tile).sum(-1)
            du = du * step[..., None]
            dx[:, tokens][:, span] = du if D is None else du.addcmul_(dy, D.to(kind)[:, None])
            dB[:, tokens][:, span], dC[:, tokens][:, span] = db.transpose(1, 2), dc.transpose(1, 2)
        dinitial[rows] = _outer(dstate)
    return dx, ddt, dA, dB, dC, dD, dinitial


def _chunk_backward(chunk: _Chunk, state: Tensor, dy: Tensor, dafter: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(du, dtotal, dB, dC, dstate) of one chunk; ``dafter`` is the gradient of the state behind it."""
    rose = chunk.total.exp().mT[..., None] * dy  # exp(total_l) dy_l
    dscores = (dy.transpose(2, 3) @ chunk.u.transpose(2, 3).mT) * chunk.decay  # (dy_l . u_s) exp(...), [batch, g, r, q, q]
    product = dscores * chunk.scores[:, :, None]
    summed = dscores.sum(2)
    dC = summed @ chunk.B + rose.flatten(3) @ state.flatten(3).mT
    lefts = chunk.left * chunk.u
    dB = summed.mT @ chunk.C + lefts.flatten(3) @ dafter.flatten(3).mT
    reached = chunk.left * (chunk.B @ dafter.flatten(3)).unflatten(-1, dafter.shape[3:])
    du = _weighted(chunk, (chunk.decay * chunk.scores[:, :, None]).mT, dy) + reached
    read = ((chunk.C @ state.flatten(3)).unflatten(-1, state.shape[3:]) * rose).sum(-1).mT  # exp(total_l) (C_l h) . dy_l
    wrote = (reached * chunk.u).sum(-1).mT
    dtotal = product.sum(-1) - product.sum(-2) + read - wrote
    kept = chunk.carried * dafter
    dtotal[..., -1] += wrote.sum(-1) + (kept * state).sum((2, 4))
    dstate = kept + (chunk.C.mT @ rose.flatten(3)).unflatten(-1, state.shape[3:])
    return du, dtotal, dB, dC, dstate
