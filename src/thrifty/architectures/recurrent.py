"""What layers with a state share: how a sequence passes through them, and what they remember of it."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from thrifty.architectures.mixer import Compaction, Mixer


@final
@dataclass
class Recurrence:
    """The state of a state-space layer: of one size, however many tokens there were.

    Args:
        conv: the convolution's last inputs [batch, taps - 1, channels].
        state: float32.
    """

    conv: Tensor
    state: Tensor


def random_steps(count: int, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> Tensor:
    """A bias b with softplus(b) log-uniform in [low, high], at least floor."""
    dt = torch.exp(torch.rand(count) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


class Recurrent(Mixer):
    """A projection, a mixing of tokens by a convolution and a state, and a projection."""

    in_proj: nn.Linear
    out_proj: nn.Linear

    @abc.abstractmethod
    def mix(self, projected: Tensor, conv: Tensor | None, state: Tensor | None,
            rows: Compaction | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stands between the projections: (y, the convolution's last inputs, the last state)."""

    def pass_through(self, x: Tensor, cache: Recurrence | None, mask: Tensor | None) -> Tensor:
        """The whole layer over a sequence; the cache is left as of its last token."""
        rows = None if mask is None else Compaction.of(mask)
        conv, state = (None, None) if cache is None else (cache.conv, cache.state)
        y, conv, state = self.mix(self.in_proj(x if rows is None else rows.apply(x)), conv, state, rows)
        if cache is not None:
            cache.conv.copy_(conv.detach())
            cache.state.copy_(state.detach())
        y = self.out_proj(y)
        return y if rows is None else rows.undo(y)
