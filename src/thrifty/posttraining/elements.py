"""How many numbers a model holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def weight_elements(model: nn.Module) -> float:
    """Elements of all weights of two dimensions or more, integer ones included: quantizing removes none."""
    kept = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values() if tensor.ndim > 1}
    return float(sum(kept.values()))


def parameters(model: nn.Module) -> float:
    """Elements of all parameters."""
    return float(sum(p.numel() for p in model.parameters()))


def rows(model: nn.Module, made: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """What a transform made of layers, as `Transform.list_layers` gives it.

    Args:
        model: as it is now: later phases may have taken a layer away, which then holds 0 bytes.
        made: (layer, what became of it, why nothing did or "").
    """
    modules = dict(model.named_modules())
    return [{"layer": name, "scheme": scheme, "bytes": _bytes(modules.get(name)), "error": None,
             **({"reason": reason} if reason else {})} for name, scheme, reason in made]


def _bytes(module: nn.Module | None) -> int:
    return 0 if module is None else sum(x.numel() * x.element_size() for x in module.state_dict().values())
