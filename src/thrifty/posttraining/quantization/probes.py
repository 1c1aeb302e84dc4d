"""What is counted on a quantized model."""

from __future__ import annotations

from torch import Tensor, nn

from thrifty.numerics.modules import Float8Linear, GroupedLinear, QuantConv, QuantLinear


def bytes_a_weight(model: nn.Module) -> float:
    """Mean bytes of what multiplies: the weights of linear layers, convolutions and embeddings, scales of groups counted."""
    tensors = [m.weight for m in model.modules() if hasattr(m, "weight") and isinstance(m.weight, Tensor)
               and m.weight.dim() > 1 and not m.weight.is_meta]
    grouped = [m for m in model.modules() if isinstance(m, GroupedLinear)]
    count = sum(x.numel() for x in tensors) + sum(m.in_features * m.out_features for m in grouped)
    tensors += [x for m in grouped for x in (m.packed, m.scale, m.zero)]
    return sum(x.numel() * x.element_size() for x in tensors) / count if count else 4.0


def integer_layers(model: nn.Module) -> float:
    """Linear layers and convolutions that multiply integers."""
    return float(sum(isinstance(m, QuantConv | QuantLinear) for m in model.modules()))


def float8_layers(model: nn.Module) -> float:
    """Linear layers that multiply float8."""
    return float(sum(isinstance(m, Float8Linear) for m in model.modules()))


def grouped_layers(model: nn.Module) -> float:
    """Linear layers whose weights alone are integers."""
    return float(sum(isinstance(m, GroupedLinear) for m in model.modules()))
