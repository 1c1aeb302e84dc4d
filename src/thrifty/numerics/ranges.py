"""How far the integers of weights reach, and why it matters on processors without VNNI."""

from __future__ import annotations

from torch import nn

from thrifty.numerics.modules import QuantConv, QuantLinear

REDUCED_BITS = 7
"""Of a weight, where products saturate: |255 * 63 * 2| < 2^15, so that no sum of two products leaves 16 bits."""
REDUCED_MAX = 2 ** (REDUCED_BITS - 1) - 1


def full_range(model: nn.Module) -> bool:
    """Whether integer products read weights of eight bits, whose sums of two products may not fit 16 bits.

    x86 processors without VNNI multiply u8 by s8 that way (vpmaddubsw), and saturate.
    """
    return any(int(module.weight.abs().max()) > REDUCED_MAX for module in model.modules()
               if isinstance(module, QuantConv | QuantLinear))
