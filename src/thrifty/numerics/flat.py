"""The tensors in whatever a model gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in a tensor, or in mappings, sequences and dataclasses of them, in their order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = [getattr(outputs, field.name) for field in dataclasses.fields(outputs)]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def distance(got: Any, want: Any) -> float:
    """|got - want| / |want| over all tensors in both; infinite where their shapes differ or one alone is not finite.

    >>> distance({"a": torch.tensor([3.0, 4.5])}, (torch.tensor([3.0, 4.0]),))
    0.1
    """
    found, wanted = tensors_of(got), tensors_of(want)
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return float("inf")
    off = size = 0.0
    for a, b in zip(found, wanted, strict=True):
        a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a, b))
        a, b = a.detach().double(), b.detach().double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        off += float((a - b)[b.isfinite()].square().sum())
        size += float(b[b.isfinite()].square().sum())
    return (off / size) ** 0.5 if size > 0 else (0.0 if off == 0 else float("inf"))
