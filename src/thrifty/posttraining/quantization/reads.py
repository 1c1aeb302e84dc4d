"""What a layer reads during calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.observers import CalibrationError

LEAST_ROWS = 8


@final
@dataclass(frozen=True)
class Reads:
    """Sums over the rows x that a layer read.

    Args:
        moment: X X^T, float64 [in, in].
        size: mean |x_j|, float32 [in].
        rows: how many.
    """

    moment: Tensor
    size: Tensor
    rows: int

    @staticmethod
    def of(name: str, inputs: Sequence[Tensor]) -> Reads:
        """From a layer's inputs, [..., in] each.

        Raises:
            CalibrationError: they are too few, all 0, or not finite; names the layer.
        """
        width = inputs[0].shape[-1]
        moment, size, rows = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width), 0
        for tensor in inputs:
            x = tensor.detach().float().reshape(-1, width)
            moment += (x.T @ x).double().cpu()
            size += x.abs().sum(0).cpu()
            rows += len(x)
        if not moment.isfinite().all():
            raise CalibrationError(f"layer {name!r} saw NaN or infinity in the calibration data: check the inputs and the "
                                   "model's weights, then quantize again")
        if not moment.any():
            raise CalibrationError(f"layer {name!r} saw the constant 0 only: calibrate with real inputs, or quantize with "
                                   "algorithm=hqq, which needs none")
        if rows < LEAST_ROWS:
            raise CalibrationError(f"layer {name!r} saw {rows} rows of calibration data and needs {LEAST_ROWS} at the "
                                   "very least, hundreds to be useful: give more, or quantize with algorithm=hqq, which needs "
                                   "none")
        return Reads(moment, size / rows, rows)


def readers(model: nn.Module, layers: Mapping[str, nn.Module], batch: tuple[Tensor, ...]) -> dict[str, list[str]]:
    """{layer: all that read the same tensor as it, itself among them}, on one batch."""
    kept: list[Any] = []  # a freed tensor's id would be given to another
    seen: dict[int, list[str]] = {}
    found: dict[str, list[str]] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            kept.append(inputs[0])
            group = seen.setdefault(id(inputs[0]), [])
            if name not in found:
                group.append(name)
                found[name] = group
            elif found[name] is not group:  # it reads several: it stands for itself
                found[name].remove(name)
                found[name] = [name]

        return see

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model(*batch)
    for handle in handles:
        handle.remove()
    return {name: found.get(name, [name]) for name in layers}


def unreached(names: Iterable[str]) -> CalibrationError:
    """The error of layers that no calibration data came to."""
    name, *others = names
    return CalibrationError(f"layer {name!r}{f' and {len(others)} more' if others else ''} saw no calibration data: it is not "
                            "reached by the model's forward, or the data is empty; exclude it with layers={...: fp32}, or "
                            "quantize with algorithm=hqq, which needs none")
