"""One token through a Mamba-2 layer, between its projections: convolution, state, gate and norm."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.kernels.mamba2_step import naive
from thrifty.kernels.ssd import Limits


def mamba2_step(zxbcdt: Tensor, conv: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, dt_bias: Tensor, A: Tensor,
                D: Tensor, norm: Tensor, *, groups: int = 1, limits: Limits = (0.0, float("inf")), eps: float = 1e-5) -> Tensor:
    """What the output projection reads; ``conv`` and ``state`` are changed in place, so nothing here has a gradient.

        x, B, C <- silu(convolution of the last taps)      h <- exp(dt A) h + dt x B^T      y = RMSNorm((h C + D x) silu(z))

    Args:
        zxbcdt: the input projection's output [batch, 2 d + 2 groups n + heads], d = heads p.
        conv: the convolution's last inputs [batch, taps - 1, d + 2 groups n], the newest last.
        state: h [batch, heads, p, n], float32 as a rule.
        weight, bias: of the convolution, [channels, taps] and [channels].
        dt_bias, A, D: [heads].
        norm: weight of the norm, [d]; each group has its own mean square.
        limits: of dt.

    Returns:
        y [batch, d].

    Raises:
        ThriftyError: sizes that do not fit each other.

    >>> conv, state = torch.zeros(1, 3, 8 + 2 * 4), torch.zeros(1, 2, 4, 4)
    >>> y = mamba2_step(torch.randn(1, 8 + 16 + 2), conv, state, torch.randn(16, 4), None, torch.zeros(2), -torch.ones(2),
    ...                 torch.ones(2), torch.ones(8))
    >>> y.shape, bool(conv[:, -1].any()), bool(state.any())
    (torch.Size([1, 8]), True, True)

    Source: "Transformers are SSMs", Dao and Gu 2024, arXiv:2405.21060, section 7.
    """
    batch, heads, width, size = state.shape
    channels = heads * width + 2 * groups * size
    if zxbcdt.shape != (batch, channels + heads * width + heads) or conv.shape != (batch, weight.shape[1] - 1, channels):
        raise ThriftyError(f"a state {tuple(state.shape)} of {groups} groups needs an input [{batch}, "
                           f"{channels + heads * width + heads}] and a convolution's state [{batch}, {weight.shape[1] - 1}, "
                           f"{channels}], but got {tuple(zxbcdt.shape)} and {tuple(conv.shape)}")
    found: Tensor = _step(zxbcdt, conv, state, weight, bias, dt_bias, A, D, norm, groups, *limits, eps)
    return found


@torch.library.custom_op("thrifty::mamba2_step", mutates_args=("conv", "state"))
def _step(zxbcdt: Tensor, conv: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, dt_bias: Tensor, A: Tensor,
          D: Tensor, norm: Tensor, groups: int, low: float, high: float, eps: float) -> Tensor:
    if zxbcdt.device.type == "cuda" and zxbcdt.dtype != torch.float64:
        from thrifty.kernels.mamba2_step import triton  # Triton comes with torch for CUDA alone

        return triton.step(zxbcdt, conv, state, weight, bias, dt_bias, A, D, norm, groups, (low, high), eps)
    y, after_conv, after = naive.step(zxbcdt, conv, state, weight, bias, dt_bias, A, D, norm, groups, (low, high), eps)
    conv.copy_(after_conv)
    state.copy_(after)
    return y


@_step.register_fake
def _(zxbcdt: Tensor, conv: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, dt_bias: Tensor, A: Tensor,
      D: Tensor, norm: Tensor, groups: int, low: float, high: float, eps: float) -> Tensor:
    return zxbcdt.new_empty(state.shape[0], norm.shape[0])
