"""Mamba-2 as a layer: one projection in, a convolution, the state-space dual, a gated norm, one projection out."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from thrifty.architectures.convolution import causal
from thrifty.architectures.mixer import Compaction
from thrifty.architectures.recurrent import Recurrence, Recurrent, random_steps
from thrifty.errors import ThriftyError
from thrifty.kernels.mamba2_step import mamba2_step
from thrifty.kernels.mamba2_step.naive import norm_gated
from thrifty.kernels.ssd import Limits, ssd, time_steps

FREE: Limits = (0.0, float("inf"))


@final
class Mamba2(Recurrent):
    """y = W_out RMSNorm(ssd(silu(conv(x, B, C)), dt) * silu(z)) with [z, x, B, C, dt] = W_in u.

    Args:
        width: of its input and output.
        state: n, numbers that a channel's state has.
        head: p, channels of a head; divides expand * width.
        expand: inner channels for one of width.
        groups: of heads that share B and C.
        taps: of the convolution.
        limits: of dt, kept in training, over a prompt and token by token alike.
        bias, conv_bias: whether projections and the convolution have one.
        eps: of the norm.

    Raises:
        ThriftyError: sizes that do not divide.

    >>> layer = Mamba2(32, state=16, head=8).eval()
    >>> x, cache = torch.randn(1, 6, 32), layer.cache(1, 6)
    >>> parts = torch.cat([layer(x[:, :4], cache), layer(x[:, 4:5], cache), layer(x[:, 5:], cache)], 1)
    >>> torch.allclose(parts, layer(x), atol=1e-5)
    True

    Source: "Transformers are SSMs", Dao and Gu 2024, arXiv:2405.21060, section 7.
    """

    def __init__(self, width: int, *, state: int = 128, head: int = 64, expand: float = 2, groups: int = 1, taps: int = 4,
                 limits: Limits = FREE, bias: bool = False, conv_bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        inner = round(expand * width)
        if inner % head or (inner // head) % groups:
            raise ThriftyError(f"a Mamba-2 of width {width} has {inner} inner channels, which heads of {head} in {groups} groups "
                               "do not divide: change expand, head or groups")
        self.inner, self.heads, self.head, self.groups, self.state = inner, inner // head, head, groups, state
        self.limits, self.eps = (float(limits[0]), float(limits[1])), eps
        channels = inner + 2 * groups * state
        self.in_proj = nn.Linear(width, inner + channels + self.heads, bias=bias)
        self.conv_weight = nn.Parameter(torch.empty(channels, 1, taps).uniform_(-(taps**-0.5), taps**-0.5))
        self.conv_bias = nn.Parameter(torch.zeros(channels)) if conv_bias else None
        self.dt_bias = nn.Parameter(random_steps(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=bias)

    def cache(self, batch: int, tokens: int) -> Recurrence:
        weight = self.conv_weight
        return Recurrence(weight.new_zeros(batch, weight.shape[2] - 1, weight.shape[0]),
                          torch.zeros(batch, self.heads, self.head, self.state, dtype=self._wide, device=weight.device))

    @property
    def _wide(self) -> torch.dtype:
        return torch.float64 if self.A_log.dtype == torch.float64 else torch.float32

    def forward(self, x: Tensor, cache: Recurrence | None = None, mask: Tensor | None = None) -> Tensor:
        if cache is not None and x.shape[1] == 1 and mask is None and not torch.is_grad_enabled():
            A = -self.A_log.to(self._wide).exp()
            y = mamba2_step(self.in_proj(x)[:, 0], cache.conv, cache.state, self.conv_weight[:, 0], self.conv_bias, self.dt_bias,
                            A, self.D, self.norm_weight, groups=self.groups, limits=self.limits, eps=self.eps)
            return self.out_proj(y)[:, None]  # type: ignore[no-any-return]
        return self.pass_through(x, cache, mask)

    def mix(self, zxbcdt: Tensor, conv: Tensor | None, state: Tensor | None,
            rows: Compaction | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stands between the projections: (y, the convolution's last inputs, the last state); changes nothing in place.

        Args:
            zxbcdt: [batch, tokens, ...] of ``in_proj``.
            conv, state: of the tokens before; None for none.
            rows: says which are tokens.
        """
        inner, shared = self.inner, self.groups * self.state
        z, raw, dt = zxbcdt.split([inner, inner + 2 * shared, self.heads], dim=-1)
        mixed, conv = causal(raw, self.conv_weight, self.conv_bias, conv, None if rows is None else rows.lengths)
        x, B, C = mixed.split([inner, shared, shared], dim=-1)
        dt = time_steps(dt, self.dt_bias, self.limits, None if rows is None else rows.mask)
        y, state = ssd(x.unflatten(-1, (self.heads, self.head)), dt, -self.A_log.to(dt.dtype).exp(),
                       B.unflatten(-1, (self.groups, self.state)), C.unflatten(-1, (self.groups, self.state)), self.D,
                       initial=state)
        return norm_gated(y.flatten(2), z, self.norm_weight, self.groups, self.eps), conv, state
