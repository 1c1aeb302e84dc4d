"""What mixes tokens, and what it remembers of those before."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

Cache = Any
"""Of one layer, made by `Mixer.cache`; changed in place by each call that is given it."""


class Mixer(nn.Module, abc.ABC):
    """A layer of a backbone, without its norm and residual sum: [batch, tokens, width] -> the same."""

    @abc.abstractmethod
    def cache(self, batch: int, tokens: int) -> Cache:
        """What it remembers of no token yet, for at most so many."""

    @abc.abstractmethod
    def forward(self, x: Tensor, cache: Cache = None, mask: Tensor | None = None) -> Tensor:
        """Mix.

        Args:
            x: [batch, tokens, width].
            cache: of the tokens before these; left as of these too. One call may bring one token or many.
            mask: [batch, tokens] bool, False where a row has no token, at either end of it or within; None where all have.

        Returns:
            [batch, tokens, width]; what it is where there is no token is not to be used.
        """


@final
@dataclass(frozen=True)
class Compaction:
    """Rows whose tokens stand first and whose padding stands last, whichever way they were padded.

    Args:
        order: [batch, tokens], where each came from.
        lengths: tokens of each row.
    """

    order: Tensor
    lengths: Tensor

    @staticmethod
    def of(mask: Tensor) -> Compaction:
        """
        >>> Compaction.of(torch.tensor([[False, True, True], [True, False, False]])).order.tolist()
        [[1, 2, 0], [0, 1, 2]]
        """
        lengths = mask.sum(1)
        place = torch.where(mask, mask.cumsum(1), lengths[:, None] + (~mask).cumsum(1)) - 1  # no sort, which ONNX lacks
        came = torch.arange(mask.shape[1], device=mask.device).expand_as(place)
        return Compaction(torch.zeros_like(place).scatter(1, place, came), lengths)

    @property
    def mask(self) -> Tensor:
        """[batch, tokens] of the rows as they now are."""
        return torch.arange(self.order.shape[1], device=self.order.device) < self.lengths[:, None]

    def apply(self, x: Tensor) -> Tensor:
        return x.gather(1, self.order[..., None].expand_as(x))

    def undo(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter(1, self.order[..., None].expand_as(x), x)
