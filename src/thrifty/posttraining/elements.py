"""How many numbers a model holds."""

from __future__ import annotations

from torch import nn


def weight_elements(model: nn.Module) -> float:
    """Elements of all weights of two dimensions or more, integer ones included: quantizing removes none."""
    kept = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values() if tensor.ndim > 1}
    return float(sum(kept.values()))


def parameters(model: nn.Module) -> float:
    """Elements of all parameters."""
    return float(sum(p.numel() for p in model.parameters()))
