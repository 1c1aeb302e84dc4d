"""What is left of a quantized model in bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from thrifty.numerics.modules import (
    Float8Linear,
    GroupedEmbedding,
    GroupedLinear,
    InBfloat16,
    QuantConv,
    QuantEdge,
    QuantEmbedding,
    QuantLinear,
)
from thrifty.numerics.packed import PackedWeight

FEW_BITS = (QuantConv, QuantLinear, QuantEdge, GroupedLinear, PackedWeight, Float8Linear)
LOOKED_UP = (QuantEmbedding, GroupedEmbedding)


def in_bf16(model: nn.Module) -> nn.Module:
    """Everything but the quantized layers, in place; inputs and outputs stay float32."""
    for module in model.modules():
        if isinstance(module, LOOKED_UP):
            module.dtype = torch.bfloat16
        elif not isinstance(module, FEW_BITS):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(module, name, buffer.to(torch.bfloat16))
    return InBfloat16(model)
