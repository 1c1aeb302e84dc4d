"""The feed-forward layer of a transformer."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.architectures.mixer import Cache, Mixer


@final
class Mlp(Mixer):
    """W_down gelu(W_up x): each token by itself, so that it remembers nothing.

    Args:
        width: of its input and output.
        hidden: between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def cache(self, batch: int, tokens: int) -> None:
        return None

    def forward(self, x: Tensor, cache: Cache = None, mask: Tensor | None = None) -> Tensor:
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]
