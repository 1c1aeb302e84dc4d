"""The layers that a backbone's pattern may name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from thrifty.architectures.attention import Attention
from thrifty.architectures.mamba import Mamba
from thrifty.architectures.mamba2 import FREE, Mamba2
from thrifty.architectures.mixer import Mixer
from thrifty.architectures.mlp import GatedMlp, Mlp, SparseMlp
from thrifty.architectures.moe.router import Weighting
from thrifty.errors import ThriftyError
from thrifty.kernels.ssd import Limits


@final
@dataclass(frozen=True)
class Sizes:
    """Sizes of all layers of a backbone; each layer takes those that concern it.

    Args:
        width: width of what goes from layer to layer.
        heads, kv_heads, rotary: as the fields of `Attention`.
        hidden: hidden units of feed-forward layers, and of each of their experts.
        experts, top_k, weighting, rate: as the fields of `SparseMlp`.
        state, head, expand, groups, limits: as the fields of `Mamba2`.
        scan_state, rank, scan_eps: state, rank and eps of `Mamba`.
        taps, bias, conv_bias: as the fields of both state-space layers.
    """

    width: int
    heads: int = 6
    kv_heads: int = 0
    rotary: float = 10_000.0
    hidden: int = 1536
    state: int = 64
    head: int = 64
    expand: float = 2
    groups: int = 1
    limits: Limits = FREE
    scan_state: int = 16
    rank: int = 0
    scan_eps: float = 0
    taps: int = 4
    bias: bool = False
    conv_bias: bool = True
    experts: int = 8
    top_k: int = 2
    weighting: Weighting = "shares"
    rate: float = 1e-3


BLOCKS: Mapping[str, Callable[[Sizes], Mixer]] = {
    "attention": lambda s: Attention(s.width, s.heads, s.kv_heads, s.rotary),
    "mamba": lambda s: Mamba(s.width, state=s.scan_state, expand=s.expand, taps=s.taps, rank=s.rank, bias=s.bias,
                             conv_bias=s.conv_bias, eps=s.scan_eps),
    "mamba2": lambda s: Mamba2(s.width, state=s.state, head=s.head, expand=s.expand, groups=s.groups, taps=s.taps,
                               limits=s.limits, bias=s.bias, conv_bias=s.conv_bias),
    "mlp": lambda s: Mlp(s.width, s.hidden),
    "gated_mlp": lambda s: GatedMlp(s.width, s.hidden),
    "moe": lambda s: SparseMlp(s.width, s.hidden, s.experts, s.top_k, s.weighting, s.rate),
}
"""{word of a pattern: what makes its layer}."""


def layers(pattern: str, sizes: Sizes) -> list[Mixer]:
    """The layers that a pattern names, in order.

    Raises:
        ThriftyError: it is empty, or names a layer that there is not.

    >>> [type(layer).__name__ for layer in layers("mamba2 mlp attention mlp", Sizes(width=64, heads=4))]
    ['Mamba2', 'Mlp', 'Attention', 'Mlp']
    """
    words = pattern.split()
    if not words:
        raise ThriftyError(f"a pattern must name at least one layer, such as \"attention mlp\"; known: {', '.join(BLOCKS)}")
    for word in words:
        if word not in BLOCKS:
            near = difflib.get_close_matches(word, BLOCKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BLOCKS)}"
            raise ThriftyError(f"a pattern has {word!r}, which is not a layer; {hint}")
    return [BLOCKS[word](sizes) for word in words]
