"""The feed-forward layers of a backbone: they mix channels, not tokens."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.architectures.mixer import Cache, Mixer
from thrifty.architectures.moe import MoE
from thrifty.architectures.moe.router import Weighting


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


@final
class GatedMlp(Mixer):
    """W_down (silu(W_gate x) * W_up x).

    Args:
        width: of its input and output.
        hidden: between.

    Source: "GLU Variants Improve Transformer", Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def cache(self, batch: int, tokens: int) -> None:
        return None

    def forward(self, x: Tensor, cache: Cache = None, mask: Tensor | None = None) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


@final
class SparseMlp(Mixer):
    """`MoE` in the place of `Mlp`: several experts, of which each token passes through few.

    Args:
        width: of its input and output.
        hidden: of each expert.
        experts, top_k: how many there are, and how many take a token.
        weighting, rate: as `Router` has them.
    """

    def __init__(self, width: int, hidden: int, experts: int, top_k: int, weighting: Weighting = "shares",
                 rate: float = 1e-3) -> None:
        super().__init__()
        self.experts = MoE(width, hidden, experts, top_k, weighting=weighting, rate=rate)

    def cache(self, batch: int, tokens: int) -> None:
        return None

    def forward(self, x: Tensor, cache: Cache = None, mask: Tensor | None = None) -> Tensor:
        return self.experts(x)  # type: ignore[no-any-return]
