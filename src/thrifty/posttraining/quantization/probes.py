"""What is counted on a quantized model."""

from __future__ import annotations

from torch import Tensor, nn

from thrifty.architectures.moe.stacks import stacks
from thrifty.numerics.experts import PackedExperts
from thrifty.numerics.modules import Float8Linear, GroupedLinear, QuantConv, QuantLinear, WithEdge
from thrifty.numerics.packed import PackedConv, PackedRecurrent, PackedWeight

STANDING_IN = (WithEdge, PackedConv)
"""Layers whose weight is there to be looked at."""


def bytes_a_weight(model: nn.Module) -> float:
    """Mean bytes of what multiplies: the weights of linear, recurrent and other layers and of embeddings, scales of groups
    counted."""
    tensors: list[Tensor] = [weight for m in model.modules() if not isinstance(m, STANDING_IN)
                             and isinstance(weight := getattr(m, "weight", None), Tensor) and weight.dim() > 1]
    tensors += [p for m in model.modules() if isinstance(m, nn.RNNBase) for p in m.parameters() if p.dim() > 1]
    tensors += [p for m in model.modules() for name in stacks(m)
                if name != "weight" and (p := m._parameters.get(name)) is not None]
    grouped = [m for m in model.modules() if isinstance(m, GroupedLinear)]
    rounded = [m for m in model.modules() if isinstance(m, PackedWeight | PackedExperts)]
    count = (sum(x.numel() for x in tensors) + sum(m.in_features * m.out_features for m in grouped)
             + sum(m.numbers for m in rounded))
    packed: list[GroupedLinear | PackedWeight | PackedExperts] = [*grouped, *rounded]
    tensors += [x for m in packed for x in (m.packed, m.scale, m.zero)]
    return sum(x.numel() * x.element_size() for x in tensors) / count if count else 4.0


def integer_layers(model: nn.Module) -> float:
    """Linear layers and convolutions that multiply integers."""
    return float(sum(isinstance(m, QuantConv | QuantLinear) for m in model.modules()))


def float8_layers(model: nn.Module) -> float:
    """Linear layers that multiply float8."""
    return float(sum(isinstance(m, Float8Linear) for m in model.modules()))


def grouped_layers(model: nn.Module) -> float:
    """Layers whose weights alone are integers."""
    return float(sum(isinstance(m, GroupedLinear | PackedConv | PackedRecurrent | PackedExperts) for m in model.modules()))
