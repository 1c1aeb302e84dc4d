"""Smoothing: outliers that few activation channels have are moved into the weights, which bear them better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.grid import per_row, per_token, rows
from thrifty.numerics.observers import CalibrationError
from thrifty.numerics.sampling import scattered

STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
KEPT_ROWS = 256


@final
class Tokens:
    """What linear layers read during calibration: extremes a channel, some tokens, and who reads the same tensor."""

    def __init__(self) -> None:
        self.peak: dict[str, Tensor] = {}
        self.samples: dict[str, list[Tensor]] = {}
        self.group: dict[str, str] = {}
        self._readers: dict[int, tuple[Tensor, str]] = {}

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach()
            # The tensor is kept with its id: a freed tensor's id would be given to another.
            first = self._readers.setdefault(id(inputs[0]), (inputs[0], name))[1]
            if self.group.setdefault(name, first) != first:
                self.group[name] = name
            flat = x.float().reshape(-1, x.shape[-1])
            peak = flat.abs().amax(0)
            if not torch.isfinite(peak).all():
                raise CalibrationError(
                    f"layer {name!r} saw NaN or infinity in the calibration data: check the inputs and the model's "
                    "weights, then quantize again"
                )
            self.peak[name] = torch.maximum(self.peak[name], peak) if name in self.peak else peak
            kept = self.samples.setdefault(name, [])
            if sum(map(len, kept)) < KEPT_ROWS:
                kept.append(flat[scattered(len(flat), 64)])

        return see

    def forget_groups(self) -> None:
        """Between batches: tensors of the last one may be freed."""
        self._readers.clear()


def smoothing(tokens: Tokens, layers: Mapping[str, nn.Module], bits: Mapping[str, int] = MappingProxyType({}),
              strengths: Sequence[float] = STRENGTHS) -> dict[str, Tensor]:
    """A vector for each linear layer, the same for all that read one tensor (so that it is rounded once).

    s_j = max|x_j|^a / max|W_:j|^(1 - a), a the strength with the least squared error of the rounded products on
    the sampled tokens; a = 0 stands for no smoothing. Paper: "SmoothQuant", Xiao et al. 2022, arXiv:2211.10438.

    Args:
        tokens: after calibration.
        layers: {name: nn.Linear}.
        bits: {name: of a weight}; 8 where a name is not in it.
        strengths: tried.

    Returns:
        {name: [in] float32, above 0}.

    Raises:
        CalibrationError: a layer was never reached, or saw zeros only.
    """
    members: dict[str, list[str]] = {}
    for name in layers:
        if name not in tokens.peak:
            raise CalibrationError(
                f"layer {name!r} saw no calibration data: it is not reached by the model's forward, or the data is "
                "empty"
            )
        if not tokens.peak[name].any():
            raise CalibrationError(f"layer {name!r} saw the constant 0 only: calibrate with real inputs")
        members.setdefault(tokens.group[name], []).append(name)
    found: dict[str, Tensor] = {}
    for names in members.values():
        weights = [(layers[name].get_parameter("weight").detach().float(), bits.get(name, 8)) for name in names]
        vector = _best(torch.cat(tokens.samples[names[0]]), tokens.peak[names[0]], weights, strengths)
        found.update(dict.fromkeys(names, vector))
    return found


def _best(x: Tensor, peak: Tensor, weights: Sequence[tuple[Tensor, int]], strengths: Sequence[float]) -> Tensor:
    weight = torch.cat([part for part, _ in weights])
    exact = x @ weight.T
    heights = weight.abs().amax(0)
    best, least = torch.ones_like(peak), float("inf")
    for strength in strengths:
        vector = torch.ones_like(peak)
        if strength:
            vector = peak.clamp_min(1e-5) ** strength / heights.clamp_min(1e-5) ** (1 - strength)
            vector = torch.where((peak > 0) & (heights > 0), vector / vector.median(), 1.0).clamp(1e-3, 1e3)
        q, token = per_token(x / vector)
        rounded = torch.cat([rows(*per_row(part * vector, bits)) for part, bits in weights])
        error = float(((q * token) @ rounded.T - exact).square().mean())
        if error < least:
            best, least = vector, error
    return best
