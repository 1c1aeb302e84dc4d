"""Norms, under all their names."""

from __future__ import annotations

from torch import nn


def is_norm(module: nn.Module) -> bool:
    """Whether a layer is a norm with a scale: torch's, or a model's own whose class says so (LlamaRMSNorm).

    >>> is_norm(nn.LayerNorm(4)), is_norm(nn.LayerNorm(4, elementwise_affine=False)), is_norm(nn.Linear(4, 4))
    (True, False, False)
    """
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return "Norm" in type(module).__name__ and weight is not None and weight.dim() == 1
