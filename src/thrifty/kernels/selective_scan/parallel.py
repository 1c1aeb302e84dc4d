"""The selective scan without a loop over tokens, in operations that every exporter knows."""

from __future__ import annotations

from torch import Tensor

from thrifty.kernels.ssd.chunked import decays


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
         initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `naive.scan`, at a cost that grows with the square of the length.

        y_l = sum_s (C_l * exp(cs_l - cs_s)) . B_s dt_s x_s + (C_l * exp(cs_l)) . h        cs: running sums of dt A
    """
    a = dt[..., None] * A.to(dt.dtype)  # [batch, tokens, d, n]
    u = dt * x.to(dt.dtype)
    fall = decays(a.movedim(1, -1))  # [batch, d, n, l, s]
    added = (u[..., None] * B.to(dt.dtype)[:, :, None]).movedim(1, -1)
    states = (fall @ added[..., None])[..., 0].movedim(-1, 1)
    if initial is not None:
        states = states + a.cumsum(1).exp() * initial.to(dt.dtype)[:, None]
    y = (states * C.to(dt.dtype)[:, :, None]).sum(-1)
    return (y if D is None else y + D.to(dt.dtype) * x.to(dt.dtype)).to(x.dtype), states[:, -1]
