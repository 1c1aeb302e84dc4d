"""Masks: single weights become zero, layer by layer; each layer sees what the ones before it have become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect
from thrifty.numerics.lockstep import in_lockstep
from thrifty.numerics.observers import CalibrationError
from thrifty.numerics.plain import HOOKED, OWN_FORWARD, computes_as, hooked
from thrifty.numerics.sampling import scattered
from thrifty.posttraining.pruning.patterns import Pattern, lowest
from thrifty.posttraining.pruning.sparsegpt import NotDefinite, sparsegpt
from thrifty.recipes.context import Context

ROWS = 4096
"""Rows of a layer's input that are looked at, at most, of each batch."""
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@final
@dataclass(frozen=True)
class Masked:
    """Args:
        weights: {layer: its weight after}.
        left: {layer: why it stays dense}.
    """

    weights: dict[str, Tensor]
    left: dict[str, str]


def masking(model: nn.Module, context: Context, criterion: str, structure: str, ratio: float,
            keep: Collection[str] = ()) -> Masked:
    """Decide which weights become zero, and with SparseGPT what the others become.

    magnitude: |w|, over a layer; wanda: |w_ij| ||x_j||, within each row; sparsegpt: `sparsegpt`. In a layer that has zeros
    already the ratio is of what is left of it.

    Args:
        model: changed.
        context: with calibration data, where the criterion needs any.
        criterion: "magnitude", "wanda" or "sparsegpt".
        structure: "unstructured" or "n:m".
        ratio: share of the weights, for "unstructured".
        keep: names of layers that stay.

    Raises:
        NoEffect: no layer can be masked.
        CalibrationError: no data, or a layer that saw NaN, infinity or what no Cholesky factor exists of.
    """
    left: dict[str, str] = {}
    period = Pattern.of(structure, ratio).period
    layers = {name: layer for name, layer in _candidates(model, left, keep)
              if _divides(name, layer, period, left)}
    if not layers:
        raise NoEffect(f"prune(structure={structure}) finds no layer with a weight of its own that can be masked")
    weights: dict[str, Tensor] = {}

    def mask(name: str, inputs: Sequence[Tensor]) -> Sequence[str]:
        layer = layers[name]
        matrix = to_matrix(layer)
        share = ratio + (1 - ratio) * float((matrix == 0).double().mean()) if period == 1 else ratio
        pattern = Pattern.of(structure, share, rows=criterion == "wanda")
        new = _DECIDE[criterion](name, matrix, _rows(layer, inputs) if criterion != "magnitude" else matrix, pattern)
        weights[name] = from_matrix(layer, new)
        with torch.no_grad():
            layer._parameters["weight"].copy_(weights[name])  # type: ignore[union-attr]
        return ()

    if criterion == "magnitude":
        for name in layers:
            mask(name, ())
    else:
        in_lockstep(model, layers, list(context.calibration()), mask)
        if not weights:
            raise CalibrationError(f"criterion={criterion} had no calibration data: give batches of inputs, or use magnitude")
        left |= {name: "calibration does not reach it" for name in layers if name not in weights}
    return Masked(weights, left)


# -- criteria ---------------------------------------------------------------------------------------------------


def by_magnitude(name: str, matrix: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    return matrix.masked_fill(lowest(matrix.abs(), pattern), 0)


def by_wanda(name: str, matrix: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """Paper: "A Simple and Effective Pruning Approach for Large Language Models", Sun et al. 2023, arXiv:2306.11695."""
    return matrix.masked_fill(lowest(matrix.abs() * _finite(name, x).norm(dim=0), pattern), 0)


def by_sparsegpt(name: str, matrix: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    try:
        return sparsegpt(matrix, (x := _finite(name, x)).T @ x, pattern)
    except NotDefinite as error:
        raise CalibrationError(f"layer {name!r}: {error}; calibrate with more data, or use criterion=wanda") from error


_DECIDE: dict[str, Callable[[str, Tensor, Tensor, Pattern], Tensor]] = {
    "magnitude": by_magnitude, "wanda": by_wanda, "sparsegpt": by_sparsegpt}


def _finite(name: str, x: Tensor) -> Tensor:
    if not x.isfinite().all():
        raise CalibrationError(f"layer {name!r} saw NaN or infinity in the calibration data: check the inputs and the weights")
    return x


# -- layers as matrices -------------------------------------------------------------------------------------------


def _candidates(model: nn.Module, left: dict[str, str], keep: Collection[str]) -> list[tuple[str, nn.Module]]:
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    found = []
    for name, module in model.named_modules():
        weight: Any = module._parameters.get("weight")
        if not (isinstance(module, _LAYERS) or is_transposed(module)) or weight is None:
            continue
        if name in keep:
            left[name] = "it is kept by name"
        elif not is_transposed(module) and not any(computes_as(module, base) for base in _LAYERS):
            left[name] = OWN_FORWARD
        elif hooked(module):
            left[name] = HOOKED
        elif owners[id(weight)] > 1:
            left[name] = "its weight is another layer's too"
        elif getattr(module, "groups", 1) > 1 or getattr(module, "padding_mode", "zeros") != "zeros":
            left[name] = "its channels are grouped, or it pads with something other than zeros"
        else:
            found.append((name, module))
    return found


def is_transposed(module: nn.Module) -> bool:
    """transformers' Conv1D: a linear layer with its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _divides(name: str, layer: nn.Module, period: int, left: dict[str, str]) -> bool:
    width = to_matrix(layer).shape[1]
    if width % period or width < period:
        left[name] = f"{width} inputs are not a multiple of {period}"
    return width % period == 0


def to_matrix(layer: Any) -> Tensor:
    """[out, in] float64, a convolution's inputs being the channels of one offset after another."""
    weight: Tensor = layer.weight.detach().double()
    if is_transposed(layer):
        return weight.T
    return weight.movedim(1, -1).flatten(1) if weight.ndim > 2 else weight


def from_matrix(layer: Any, matrix: Tensor) -> Tensor:
    weight = layer.weight
    if is_transposed(layer):
        found = matrix.T
    elif weight.ndim > 2:
        found = matrix.reshape(len(weight), *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
    else:
        found = matrix
    return found.to(weight.dtype).contiguous()


def _rows(layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    """[rows, in] float64 of what the layer reads, in the order of `to_matrix`."""
    return torch.cat([_patches(layer, x.detach()) for x in inputs])


def _patches(layer: Any, x: Tensor) -> Tensor:
    if layer.weight.ndim == 2:
        rows = x.reshape(-1, x.shape[-1])
        return rows[scattered(len(rows), ROWS)].double()
    wide = layer.weight.ndim == 3
    x = x[None] if x.ndim < layer.weight.ndim else x
    geometry = {key: _two(getattr(layer, key), wide) for key in ("stride", "dilation")}
    kernel = (1, *layer.kernel_size) if wide else layer.kernel_size
    left = layer._reversed_padding_repeated_twice
    x = nn.functional.pad(x, left)[:, :, None] if wide else nn.functional.pad(x, left)
    columns = nn.functional.unfold(x, kernel, **geometry)  # [images, in * kernel, places]
    rows = columns.movedim(1, -1).reshape(-1, columns.shape[1])
    rows = rows[scattered(len(rows), ROWS)].double()
    return rows.reshape(len(rows), layer.weight.shape[1], -1).transpose(1, 2).reshape(len(rows), -1)


def _two(value: tuple[int, ...], wide: bool) -> tuple[int, ...]:
    return (1, *value) if wide else value
