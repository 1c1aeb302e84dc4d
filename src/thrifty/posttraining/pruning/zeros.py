"""Weights at zero: counted, and held there by later trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from thrifty.numerics.modules import GroupedLinear
from thrifty.numerics.packed import PackedWeight

_HELD = "zeros_held"


def zero_share(model: nn.Module) -> float:
    """Share of zeros among the elements of all weights of two dimensions or more; of integer weights what they stand for."""
    zeros = count = 0
    for weight in _weights(model):
        zeros += int((weight == 0).sum())
        count += weight.numel()
    return zeros / max(count, 1)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    seen = set[int]()
    for module in model.modules():
        if isinstance(module, GroupedLinear | PackedWeight):
            yield (module() if isinstance(module, PackedWeight) else module.dequantized()).detach()
            continue
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.ndim > 1 and id(tensor) not in seen and tensor.dtype != torch.uint8:
                seen.add(id(tensor))
                yield tensor.detach()


def hold(layer: nn.Module) -> None:
    """Mark a layer: what is zero in its weight when a training begins is zero when it ends."""
    setattr(layer, _HELD, True)


def held_weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the marked layers."""
    layers = [module for module in model.modules() if getattr(module, _HELD, False)]
    return list({id(w): w for layer in layers if (w := layer._parameters.get("weight")) is not None}.values())


def still_held(model: nn.Module, before: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Weights that were held before a model changed and that it has still, and those that took others' place, as the parts of
    sharded weights do."""
    there = {id(p) for p in model.parameters()}
    return list({id(w): w for w in (*before, *held_weights(model)) if id(w) in there}.values())


@final
class Held:
    """The zeros of weights, as they are now.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.0, 1.0]])
    >>> hold(layer)
    >>> held = Held(held_weights(layer))
    >>> layer.weight.data += 1
    >>> held.restore()
    >>> layer.weight.tolist()
    [[0.0, 2.0]]
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._kept = [(weight, weight.detach() != 0) for weight in weights]

    @torch.no_grad()
    def restore(self) -> None:
        for weight, kept in self._kept:
            weight.mul_(kept)
