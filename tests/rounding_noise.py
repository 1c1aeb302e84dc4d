"""How far rounding may move a model: what each scheme does to one layer's output, carried through the model as noise."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thrifty.numerics.flat import distance
from thrifty.numerics.plain import WEIGHED

ROUNDING: Mapping[str, float] = {
    "w8a8": 0.012, "w4a8": 0.1, "w8a16": 0.005, "w4a16": 0.08, "w3a16": 0.17, "fp8": 0.04, "bf16": 0.008, "mixed": 0.17,
    "w8a8, rest=bf16": 0.015, "w4a16, rest=bf16": 0.08,
}
"""What a scheme may move a layer's output by, relative to it. A number on a grid of step s is off by s / sqrt(12) in the mean.

- Weights of b bits over rows from -m to m: s = m / (2^(b-1) - 1) symmetric, 2 m / (2^b - 1) with a zero. Uniform weights, as
  they are drawn here, have an rms of m / sqrt(3), so they are off by 0.0039 (8 bits), 0.071 or 0.067 (4), 0.143 (3); baked
  norms and subtracted means make rows less even, a fifth more.
- Activations in 8 bits: tokens reach to 2.3 rms among 32 numbers, s = 2.3 / 127: 0.005; static grids span 8 rms and more
  with outliers, s = 8 / 255: 0.009, at both ends of a convolution. With the weights: sqrt(0.0039^2 + 2 x 0.008^2) = 0.012.
- e4m3: half a unit in the last of three bits is 2^-4, 0.026 in the mean, on both operands: 0.037.
- bfloat16: 2^-9, 0.0022 in the mean, on weights, inputs, sums and on every operation between layers: sqrt(12) of it. Beside
  integers: sqrt(0.012^2 + 0.008^2).
- mixed: its worst layer, of three bits.
"""
SLACK = 2.0
"""Of the error over that of noise. Rounding is not noise: its errors at one layer have a mean and are alike from row to row, and
few requests are asked."""

DRAWS = 10
"""Of the noise. Where a model saturates, a few answers that flip decide how far off it is: of 24 requests, one draw says 0.07 and
another 0.13."""


def noisy(model: nn.Module, size: float, requests: Any) -> float:
    """How far a model's answers move when noise of that size, relative to its output, is added behind each of its layers."""
    generator = torch.Generator().manual_seed(0)

    def add(layer: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (add(layer, inputs, output[0]), *output[1:])
        rms = output.square().mean(-1, keepdim=True).sqrt()
        return output + size * rms * torch.randn(output.shape, generator=generator)

    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, (*WEIGHED, nn.MultiheadAttention)):
            module.register_forward_hook(add)
    torch.backends.mha.set_fastpath_enabled(False)  # on ragged tensors, which nothing can be added to
    try:
        want = copy.deepcopy(model)(*requests)
        return sum(distance(copy.deepcopy(twin)(*requests), want) for _ in range(DRAWS)) / DRAWS
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
