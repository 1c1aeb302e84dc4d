"""Observers: what range of a tensor deserves the 256 values there are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics.grid import Affine, affine
from thrifty.numerics.sampling import scattered


class CalibrationError(ThriftyError):
    """Calibration data from which no range can be taken; the message names the layer."""


class Observer(nn.Module):
    """Passes a tensor through and remembers its extremes and a sample of it.

    Args:
        layer: named in errors.
        kept: sampled values, evenly spread, at most this many a call.
    """

    def __init__(self, layer: str, kept: int = 16384) -> None:
        super().__init__()
        self.layer, self.kept = layer, kept
        self.low, self.high = math.inf, -math.inf
        self.samples: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        flat = x.detach().float().reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                f"layer {self.layer!r} saw NaN or infinity in the calibration data: check the inputs and the "
                "model's weights, then quantize again"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.samples.append(flat[scattered(flat.numel(), self.kept)])
        return x

    def affine(self) -> Affine:
        """The grid with the least squared error on what was seen, among clipped extremes.

        argmin over r in {1, 0.97, ..., 0.4} of sum (x - Q_r(x))^2, Q_r being the grid over [r low, r high].
        Paper: "Loss aware post-training quantization", Nahshan et al. 2019, arXiv:1911.07190.

        Raises:
            CalibrationError: nothing was seen, or one single value.
        """
        if not self.samples:
            raise CalibrationError(
                f"layer {self.layer!r} saw no calibration data: it is not reached by the model's forward, or the "
                "data is empty"
            )
        if self.low == self.high:
            raise CalibrationError(
                f"layer {self.layer!r} saw the constant {self.low:g} only: calibrate with real inputs, or remove "
                "the layer if it is dead"
            )
        x = torch.cat(self.samples)
        best, least = Affine.of(self.low, self.high), math.inf
        for step in range(21):
            ratio = 1 - 0.03 * step
            grid = Affine.of(ratio * self.low, ratio * self.high)
            rounded = affine(x, torch.tensor(grid.scale), torch.tensor(float(grid.zero)))
            error = float((rounded - x).square().mean())
            if error < least:
                best, least = grid, error
        return best


