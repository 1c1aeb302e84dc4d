"""How far a changed model's outputs are from the float model's."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.flat import tensors_of
from thrifty.recipes.context import Context

HELD_OUT = 0.25
"""Share of the calibration data that is judged on and not learned from."""
HELD_VALUES = 2**24
"""Numbers in the inputs of one batch at most: the activations of one layer for it are held at once."""


@final
class Outputs:
    """The float model's outputs on one batch of inputs.

    Args:
        exact: the float model.
        inputs: of one batch.
    """

    def __init__(self, exact: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        self.exact = _flat(exact(*inputs))

    def error(self, model: nn.Module) -> float:
        """|y - y_float|^2 / |y_float - mean over examples|^2, its mean over the outputs where there are several."""
        got = _flat(model(*self.inputs))
        errors = [float((a - b).square().sum() / (b - b.mean(0)).square().sum().clamp_min(1e-12))
                  for a, b in zip(got, self.exact, strict=True)]
        return sum(errors) / max(1, len(errors))


def split(context: Context) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Calibration inputs to learn from and to judge on, each as one batch."""
    batches: list[tuple[Tensor, ...]] = []
    for batch in context.calibration():
        if batches and [x.shape[1:] for x in batch] != [x.shape[1:] for x in batches[0]]:
            continue
        batches.append(batch)
        if sum(x.numel() for held in batches for x in held) >= HELD_VALUES:
            break
    joined = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    cut = max(1, round((1 - HELD_OUT) * len(joined[0])))
    return tuple(x[:cut] for x in joined), tuple(x[cut:] if cut < len(x) else x for x in joined)


def _flat(outputs: Any) -> list[Tensor]:
    found = [torch.view_as_real(x) if x.is_complex() else x for x in tensors_of(outputs)]
    return [x.float() for x in found if x.is_floating_point()]
