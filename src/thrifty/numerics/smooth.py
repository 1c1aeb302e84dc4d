"""What linear layers read, rounded: outliers of few channels are moved into the weights, which bear them better."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.grid import Affine, affine, per_row, per_token, rows
from thrifty.numerics.observers import CalibrationError
from thrifty.numerics.sampling import scattered

STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
KEPT_ROWS = 256
CLIPPED = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the extremes that a grid for all tokens may reach to."""


@final
@dataclass(frozen=True)
class Entry:
    """How a linear layer rounds what it reads.

    Args:
        smooth: [in] float32, above 0; x is divided by it first.
        grid: for all tokens alike; None where each token has a scale of its own.
    """

    smooth: Tensor
    grid: Affine | None


@final
class Tokens:
    """What linear layers read during calibration: extremes a channel, some tokens, and who reads the same tensor."""

    def __init__(self) -> None:
        self.low: dict[str, Tensor] = {}
        self.high: dict[str, Tensor] = {}
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
            low, high = flat.amin(0), flat.amax(0)
            if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
                raise CalibrationError(
                    f"layer {name!r} saw NaN or infinity in the calibration data: check the inputs and the model's "
                    "weights, then quantize again"
                )
            self.low[name] = torch.minimum(self.low.get(name, low), low)
            self.high[name] = torch.maximum(self.high.get(name, high), high)
            kept = self.samples.setdefault(name, [])
            if sum(map(len, kept)) < KEPT_ROWS:
                kept.append(flat[scattered(len(flat), 64)])

        return see

    def forget_groups(self) -> None:
        """Between batches: tensors of the last one may be freed."""
        self._readers.clear()


def entries(tokens: Tokens, layers: Mapping[str, nn.Module], bits: Mapping[str, int] = MappingProxyType({}),
            strengths: Sequence[float] = STRENGTHS, static: bool = False, plain: Collection[str] = ()) -> dict[str, Entry]:
    """How each linear layer rounds its input; the same for all that read one tensor, so that it is rounded once.

    s_j = max|x_j|^a / max|W_:j|^(1 - a), a the strength with the least squared error of the rounded products on
    the sampled tokens; a = 0 stands for no smoothing. Paper: "SmoothQuant", Xiao et al. 2022, arXiv:2211.10438. A grid for
    all tokens reaches over the share of x / s's extremes with the least such error.

    Args:
        tokens: after calibration.
        layers: {name: nn.Linear}.
        bits: {name: of a weight}; 8 where a name is not in it.
        strengths: tried.
        static: one grid for all tokens, in place of a scale per token.
        plain: layers that are not smoothed, nor are those that read the same tensor.

    Raises:
        CalibrationError: a layer was never reached, or saw zeros only.
    """
    members: dict[str, list[str]] = {}
    for name in layers:
        if name not in tokens.low:
            raise CalibrationError(
                f"layer {name!r} saw no calibration data: it is not reached by the model's forward, or the data is "
                "empty"
            )
        if not (tokens.low[name].any() or tokens.high[name].any()):
            raise CalibrationError(f"layer {name!r} saw the constant 0 only: calibrate with real inputs")
        members.setdefault(tokens.group[name], []).append(name)
    found: dict[str, Entry] = {}
    for names in members.values():
        weights = [(layers[name].get_parameter("weight").detach().float(), bits.get(name, 8)) for name in names]
        tried = strengths if not set(names) & set(plain) else (0.0,)
        extremes = tokens.low[names[0]], tokens.high[names[0]]
        entry = _best(torch.cat(tokens.samples[names[0]]), extremes, weights, tried, static)
        found.update(dict.fromkeys(names, entry))
    return found


def _best(x: Tensor, extremes: tuple[Tensor, Tensor], weights: Sequence[tuple[Tensor, int]], strengths: Sequence[float],
          static: bool) -> Entry:
    weight = torch.cat([part for part, _ in weights])
    exact = x @ weight.T
    peak, heights = torch.maximum(-extremes[0], extremes[1]), weight.abs().amax(0)
    best, least = Entry(torch.ones_like(peak), None), float("inf")
    for strength in strengths:
        vector = torch.ones_like(peak)
        if strength:
            vector = peak.clamp_min(1e-5) ** strength / heights.clamp_min(1e-5) ** (1 - strength)
            vector = torch.where((peak > 0) & (heights > 0), vector / vector.median(), 1.0).clamp(1e-3, 1e3)
        rounded = torch.cat([rows(*per_row(part * vector, bits)) for part, bits in weights])
        for grid in _grids(extremes, vector) if static else (None,):
            error = float((_rounded(x / vector, grid) @ rounded.T - exact).square().mean())
            if error < least:
                best, least = Entry(vector, grid), error
    return best


def _grids(extremes: tuple[Tensor, Tensor], vector: Tensor) -> Iterator[Affine]:
    low, high = (float(extreme) for extreme in ((extremes[0] / vector).min(), (extremes[1] / vector).max()))
    for ratio in CLIPPED:
        yield Affine.of(ratio * low, ratio * high)


def _rounded(x: Tensor, grid: Affine | None) -> Tensor:
    if grid is None:
        q, token = per_token(x)
        return q * token
    return affine(x, torch.tensor(grid.scale), torch.tensor(float(grid.zero)))
