"""The short causal convolution of state-space layers: each channel with its own taps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def causal(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None = None,
           lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """silu(bias + sum_k weight_k x_{t - taps + 1 + k}), and the inputs that the next token needs.

    Args:
        x: [batch, tokens, channels].
        weight: [channels, 1, taps].
        bias: [channels], or None.
        before: the last taps - 1 inputs, [batch, taps - 1, channels]; zeros where None.
        lengths: tokens of each row, [batch]; padding stands behind them. All where None.

    Returns:
        (y [batch, tokens, channels], the last taps - 1 inputs of each row's tokens, those of ``before`` among them).

    >>> y, last = causal(torch.ones(1, 2, 1), torch.ones(1, 1, 4), None)
    >>> last.flatten().tolist()
    [0.0, 1.0, 1.0]
    """
    taps = weight.shape[-1]
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    start = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if before is None else before.to(x.dtype)
    joined = torch.cat([start, x], 1)
    y = F.silu(F.conv1d(joined.mT, weight, bias, groups=x.shape[2])).mT
    if lengths is None:
        return y, joined[:, joined.shape[1] - (taps - 1):]
    rows = lengths[:, None] + torch.arange(taps - 1, device=x.device)
    return y, joined.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
