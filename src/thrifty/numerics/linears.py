"""Linear layers under other names."""

from __future__ import annotations

from typing import Any

from torch import nn

from thrifty.numerics import graph as graphs
from thrifty.numerics.plain import bake

TRANSPOSED = ("transformers.pytorch_utils", "Conv1D")
"""GPT-2's linear layer: y = x W + b, W [in, out]."""


def ready(model: nn.Module) -> nn.Module:
    """The model with layers that can be exchanged, in place: parametrized weights as they come out, linear layers by name."""
    bake(model)
    return as_linears(model)


def as_linears(model: nn.Module) -> nn.Module:
    """Put an nn.Linear in the place of every layer that is one but for its name, in place."""
    for name, module in list(model.named_modules()):
        if (type(module).__module__, type(module).__name__) == TRANSPOSED:
            graphs.replace(model, name, _transposed(module))
    return model


def _transposed(layer: Any) -> nn.Linear:
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=layer.weight.requires_grad)
    linear.bias = layer.bias
    return linear.train(layer.training)
