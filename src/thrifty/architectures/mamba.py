"""Mamba-1 as a layer: a gate, a convolution, a selective scan whose steps come through a bottleneck."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.architectures.convolution import causal
from thrifty.architectures.mixer import Compaction
from thrifty.architectures.recurrent import Recurrence, Recurrent, random_steps
from thrifty.kernels.selective_scan import selective_scan
from thrifty.kernels.ssd import time_steps


@final
class Mamba(Recurrent):
    """y = W_out (scan(x, dt) * silu(z)) with [x, z] = W_in u, x <- silu(conv(x)), [dt, B, C] = W_x x, dt <- W_dt dt + b.

    Args:
        width: of its input and output.
        state: n, numbers that a channel's state has.
        expand: inner channels for one of width.
        taps: of the convolution.
        rank: of the steps' bottleneck; width / 16, rounded up, where 0.
        bias, conv_bias: whether the outer projections and the convolution have one.
        eps: of root-mean-square norms on dt (within its bottleneck), B and C, which keep large models stable; 0 for none.

    >>> layer = Mamba(32).eval()
    >>> x, cache = torch.randn(1, 6, 32), layer.cache(1, 6)
    >>> torch.allclose(torch.cat([layer(x[:, :4], cache), layer(x[:, 4:], cache)], 1), layer(x), atol=1e-5)
    True

    Source: "Mamba", Gu and Dao 2023, arXiv:2312.00752, section 3; norms: "Jamba", Lieber et al. 2024, arXiv:2403.19887,
    section 6.4.
    """

    def __init__(self, width: int, *, state: int = 16, expand: float = 2, taps: int = 4, rank: int = 0, bias: bool = False,
                 conv_bias: bool = True, eps: float = 0) -> None:
        super().__init__()
        inner = round(expand * width)
        rank = rank or math.ceil(width / 16)
        self.inner, self.state, self.rank = inner, state, rank
        self.in_proj = nn.Linear(width, 2 * inner, bias=bias)
        self.conv_weight = nn.Parameter(torch.empty(inner, 1, taps).uniform_(-(taps**-0.5), taps**-0.5))
        self.conv_bias = nn.Parameter(torch.zeros(inner)) if conv_bias else None
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_norm, self.b_norm, self.c_norm = (nn.RMSNorm(size, eps=eps) if eps else nn.Identity()
                                                  for size in (rank, state, state))
        self.dt_proj = nn.Linear(rank, inner)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        self.dt_proj.bias.data.copy_(random_steps(inner))
        # Flat: optimizers decay matrices, and treat them as products; this is neither.
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=bias)

    def cache(self, batch: int, tokens: int) -> Recurrence:
        weight = self.conv_weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return Recurrence(weight.new_zeros(batch, weight.shape[2] - 1, weight.shape[0]),
                          torch.zeros(batch, self.inner, self.state, dtype=wide, device=weight.device))

    def forward(self, x: Tensor, cache: Recurrence | None = None, mask: Tensor | None = None) -> Tensor:
        return self.pass_through(x, cache, mask)

    def mix(self, xz: Tensor, conv: Tensor | None, state: Tensor | None,
            rows: Compaction | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stands between the outer projections: (y, the convolution's last inputs, the last state)."""
        raw, z = xz.chunk(2, dim=-1)
        x, conv = causal(raw, self.conv_weight, self.conv_bias, conv, None if rows is None else rows.lengths)
        dt, B, C = self.x_proj(x).split([self.rank, self.state, self.state], dim=-1)
        dt, B, C = self.dt_norm(dt), self.b_norm(B), self.c_norm(C)
        dt = time_steps(self.dt_proj(dt), mask=None if rows is None else rows.mask)
        A = -self.A_log.to(dt.dtype).exp().unflatten(0, (self.inner, self.state))
        y, state = selective_scan(x, dt, A, B, C, self.D, initial=state)
        return y * F.silu(z), conv, state
