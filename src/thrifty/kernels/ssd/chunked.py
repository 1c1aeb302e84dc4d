"""The state-space dual as products of matrices, all chunks at once, in operations that every exporter and compiler knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn import functional as F

CHUNK = 64


def decays(a: Tensor) -> Tensor:
    """exp(a_{s+1} + ... + a_l) where l >= s, else 0: [..., q] -> [..., q, q].

    What lies above the diagonal is masked before `exp`, where it could overflow and leave NaN in the gradient.
    """
    total = a.cumsum(-1)
    between = total[..., :, None] - total[..., None, :]
    below = torch.ones(a.shape[-1], a.shape[-1], dtype=torch.bool, device=a.device).tril()
    return between.masked_fill(~below, -torch.inf).clamp(max=0).exp()


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, initial: Tensor | None = None,
        chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """As `naive.ssd` of whole rows. In a chunk with running sums cs of dt A, and h its state at the start,

        Y = ((C B^T) * exp(cs_l - cs_s) * [l >= s]) (dt X) + exp(cs) C h + D X
        h' = exp(cs_Q) h + sum_s exp(cs_Q - cs_s) dt_s x_s B_s^T

    C B^T is computed once a group, for all of its heads. The last chunk is filled up with dt = 0, which changes no state. A
    length that a program leaves free is one chunk: how many there are would be a number that the program must know.
    """
    batch, length, heads, width = x.shape
    groups, size = B.shape[2:]
    each = heads // groups

    def chunks(v: Tensor) -> Tensor:
        """[batch, chunks, tokens, ...]"""
        if not is_concrete_int(length):
            return v[:, None]
        return F.pad(v, (*(0, 0) * (v.dim() - 2), 0, -length % chunk)).unflatten(1, (-1, chunk))

    # [batch, chunks, groups, (heads of one,) tokens, ...]
    u = chunks(dt[..., None] * x.to(dt.dtype)).unflatten(3, (groups, each)).movedim(2, 4)
    a = chunks(dt * A.to(dt.dtype)).unflatten(3, (groups, each)).movedim(2, 4)
    b, c = (chunks(v.to(dt.dtype)).transpose(2, 3) for v in (B, C))
    total = a.cumsum(-1)
    scores = (c @ b.mT)[:, :, :, None] * decays(a)
    left = (total[..., -1:] - total).exp()[..., None] * u
    made = left.mT @ b[:, :, :, None]  # what a chunk adds to the state: [batch, chunks, groups, each, p, n]
    start = made.new_zeros(batch, 1, groups, each, width, size) if initial is None else (
        initial.to(dt.dtype).unflatten(1, (groups, each))[:, None])
    between = decays(F.pad(total[..., -1].movedim(1, -1), (1, 0)))  # [batch, groups, each, chunks + 1, chunks + 1]
    states = torch.einsum("bgrcz,bzgrpn->bcgrpn", between, torch.cat([start, made], 1))
    y = scores @ u + total.exp()[..., None] * (c[:, :, :, None] @ states[:, :-1].mT)
    y = y.movedim(4, 2).flatten(3, 4).flatten(1, 2)[:, :length]
    y = y if D is None else y + D.to(dt.dtype)[:, None] * x.to(dt.dtype)
    return y.to(x.dtype), states[:, -1].flatten(1, 2)
