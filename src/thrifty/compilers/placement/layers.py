"""Integer layers exchanged for what a backend fuses, and what these have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.compilers.placement.groups import HalvedExperts, Halves, Rows
from thrifty.numerics.experts import PackedExperts
from thrifty.numerics.graph import exchange
from thrifty.numerics.grid import TINY
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantConv, QuantEdge, QuantLinear
from thrifty.numerics.packed import PackedWeight

Edges = Callable[[Tensor, Tensor], nn.Module]
"""Makes of a scale and a zero what rounds a tensor to their grid."""


def exchanged(model: nn.Module, *, edge: Edges, conv: Callable[[QuantConv], nn.Module],
              on_grid: Callable[[QuantLinear], nn.Module], by_token: Callable[[QuantLinear], nn.Module],
              grouped: Callable[[GroupedLinear], nn.Module],
              table: Callable[[GroupedEmbedding], nn.Module] = Rows) -> nn.Module:
    """Exchange integer modules, in place, for what a backend's patterns find.

    Args:
        model: in evaluation.
        edge: makes what rounds a tensor to the grid of a scale and a zero.
        conv: makes a convolution.
        on_grid: makes a product whose inputs have one grid.
        by_token: makes one whose tokens have a scale each.
        grouped: makes one with weights of few bits.
        table: makes the look-up in such weights.
    """
    def linear(layer: QuantLinear) -> nn.Module:
        return by_token(layer) if layer.x_scale is None else on_grid(layer)

    kinds: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        QuantConv: conv, QuantLinear: linear, QuantEdge: lambda given: edge(given.scale, given.zero),
        GroupedLinear: grouped, GroupedEmbedding: table, PackedWeight: Halves,
        PackedExperts: HalvedExperts,
    }
    return exchange(model, kinds)


def entry(conv: QuantConv, edge: Edges) -> nn.Module:
    """What a convolution's input goes through: rounded here, or as its producer rounded it."""
    return edge(conv.x_scale, conv.x_zero) if conv.rounds else nn.Identity()


@final
class Unsmoothed(nn.Module):
    """x / smooth, as a product; x itself where ``smooth`` is none or 1."""

    inverse: Tensor | None

    def __init__(self, smooth: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("inverse", None if smooth is None or bool((smooth == 1).all()) else 1 / smooth)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.inverse is None else x * self.inverse.to(x.dtype)


@final
class RowWeight(nn.Module):
    """s q, a scale per row, by a backend's own operator.

    Args:
        q: whole numbers [rows, ...].
        scale: s, float32 [rows].
        operator: of q, s and, where it takes zeros, one for each row.
        zeros: their type.
    """

    q: Tensor
    scale: Tensor
    zeros: Tensor | None

    def __init__(self, q: Tensor, scale: Tensor, operator: Callable[..., Tensor], zeros: torch.dtype | None = None) -> None:
        super().__init__()
        self.operator = operator
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", None if zeros is None else torch.zeros(len(q), dtype=zeros))

    def forward(self) -> Tensor:
        return self.operator(self.q, self.scale, *(() if self.zeros is None else (self.zeros,)))


def peaks(x: Tensor) -> Tensor:
    """The largest magnitude of each token [..., 1], above 0."""
    return x.abs().amax(-1, keepdim=True).clamp_min(TINY)
