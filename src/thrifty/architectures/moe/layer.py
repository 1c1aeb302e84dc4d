"""The feed-forward layer of a mixture-of-experts transformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.architectures.moe.router import Router, Routing, Score, Weighting
from thrifty.kernels.exporting import exporting
from thrifty.kernels.grouped_linear import by_group
from thrifty.kernels.grouped_linear.held import Stack, matrices
from thrifty.kernels.moe import fits, moe

Mix = Callable[[Tensor, Routing, Stack, Stack], Tensor]
"""(tokens, where they go, gate_up, down) -> what the experts give."""


@final
class MoE(nn.Module):
    """Gated feed-forward experts; each token passes through only a few.

        y = sum over chosen e of weight_e W_down,e (silu(W_gate,e x) * W_up,e x)    + the shared expert's

    No expert has a capacity, so no token is dropped. Weights are laid out as in transformers: gate above up.

    Args:
        width: width of a token.
        hidden: hidden units of an expert.
        experts, top_k, score, weighting, scale, rate, auxiliary, z: as `Router` has them.
        shared: hidden units of an expert that every token passes through; 0 for none.

    Raises:
        ThriftyError: ``top_k`` is below 1 or above ``experts``.

    >>> layer = MoE(8, hidden=16, experts=4, top_k=2)
    >>> layer(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 8])

    Source: "Mixtral of Experts", Jiang et al. 2024, arXiv:2401.04088, section 2.1; shared experts: "DeepSeekMoE", Dai et al.
    2024, arXiv:2401.06066.
    """

    def __init__(self, width: int, hidden: int, experts: int, top_k: int = 2, *, score: Score = "softmax",
                 weighting: Weighting = "shares", scale: float = 1.0, rate: float = 1e-3, auxiliary: float = 0.0,
                 z: float = 0.0, shared: int = 0) -> None:
        super().__init__()
        self.router = Router(width, experts, top_k, score=score, weighting=weighting, scale=scale, rate=rate, auxiliary=auxiliary,
                             z=z)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        nn.init.normal_(self.gate_up, std=1 / math.sqrt(width))
        nn.init.normal_(self.down, std=1 / math.sqrt(hidden))
        self.shared_up = nn.Linear(width, 2 * shared, bias=False) if shared else None
        self.shared_down = nn.Linear(shared, width, bias=False) if shared else None
        self.mix: Mix = mixed  # ranks that share out the experts put another in its place

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        tokens = x.reshape(-1, x.shape[-1])
        routing: Routing = self.router(tokens)
        if exporting():
            y = exported(tokens, routing.chosen, routing.weights, self.gate_up, self.down)
        else:
            y = self.mix(tokens, routing, self.gate_up, self.down)
        if self.shared_up is not None and self.shared_down is not None:
            y = y + self.shared_down(gated(self.shared_up(tokens)))
        return y.reshape(x.shape)


def gated(x: Tensor) -> Tensor:
    """silu(gate) * up of [..., gate then up]."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def mixed(x: Tensor, routing: Routing, gate_up: Stack, down: Stack) -> Tensor:
    """[tokens, width]: each token through the experts that it goes to."""
    x = lowered(x)
    if fits(x) and isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        return moe(x, gate_up.to(x.dtype), down.to(x.dtype), routing.weights, routing.order, routing.ends)
    rows = sent(x, routing)
    return collected(by_group(gated(by_group(rows, gate_up, routing.ends)), down, routing.ends), routing)


def exported(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Stack, down: Stack) -> Tensor:
    """The same in products of fixed sizes, of which an artifact needs no more than torch.

    Each token passes through all experts; where there are no more choices than experts, as where a token is generated, only
    the matrices of those chosen are read.

    Args:
        x: [tokens, width].
        chosen, weights: [tokens, top_k], experts and the weights of their outputs.
        gate_up, down: of all experts.
    """
    if isinstance(x.shape[0], int) and chosen.numel() <= len(gate_up):
        hidden = gated(torch.einsum("td,tkhd->tkh", x, matrices(gate_up, x.dtype, chosen)))
        return torch.einsum("tkh,tkdh->td", hidden * weights.to(x.dtype)[..., None], matrices(down, x.dtype, chosen))
    shares = spread(chosen, weights, len(gate_up)).to(x.dtype)[..., None]
    hidden = gated(torch.einsum("td,ehd->teh", x, matrices(gate_up, x.dtype))) * shares
    return torch.einsum("teh,edh->td", hidden, matrices(down, x.dtype))


def lowered(x: Tensor) -> Tensor:
    """In the precision of products, which autocast may have set."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x


def sent(x: Tensor, routing: Routing) -> Tensor:
    """[tokens * top_k, width]: tokens once for each expert that they go to, sorted by expert, in the precision of products."""
    return lowered(x)[routing.order // routing.chosen.shape[1]]


def collected(y: Tensor, routing: Routing) -> Tensor:
    """[tokens, width]: weighted sums of what experts gave, added in the order of choice: the same each time."""
    parts = y[routing.back].unflatten(0, routing.chosen.shape)
    return (parts * routing.weights.to(y.dtype)[..., None]).sum(1)


def spread(chosen: Tensor, weights: Tensor, experts: int) -> Tensor:
    """[tokens, experts]: weights, 0 where a token does not go."""
    return torch.zeros(len(chosen), experts, dtype=weights.dtype, device=weights.device).scatter(1, chosen, weights)
