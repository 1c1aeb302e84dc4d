"""Calibration: what each layer reads, how often it multiplies, and which of its outputs the loss feels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.low_rank.factored import geometry, parts
from thrifty.posttraining.low_rank.factors import square_root
from thrifty.recipes.context import Context

KEPT_ROWS = 2048
"""Rows of a layer's input that enter its second moment, drawn at random, at most this many a batch."""
KEPT_IMAGES = 4
"""Inputs of a convolution on which its whitened factorization is compared with the plain one."""


@final
class Seen:
    """What one layer read: its second moment, how often it multiplied, and a few inputs.

    Args:
        name: the layer's, for errors.
        layer: itself.
        whiten: whether to keep the second moment.
        seed: of the rows that are drawn for it.
    """

    def __init__(self, name: str, layer: nn.Module, whiten: bool, seed: int) -> None:
        self.name, self.whiten, self.place = name, whiten, geometry(layer)
        self.width = parts(layer)[0].weight.shape[1]
        self.weights = [part.weight for part in parts(layer)]
        if not all(weight.isfinite().all() for weight in self.weights):
            raise CalibrationError(f"layer {name!r} has NaN or infinity in its weight: it cannot be factorized")
        self.moment, self.rows = torch.zeros(()), 0
        self.reads = self.writes = 0
        self.images: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x: Tensor = inputs[0].detach()
        self.reads += x.numel() // self.width
        self.writes += output.numel() // output.shape[-3 if isinstance(self.place, nn.Conv2d) else -1]
        if self.whiten:
            self.look(x)

    def look(self, x: Tensor) -> None:
        """Add an input to the second moment."""
        if isinstance(self.place, nn.Conv2d):
            x = x if x.ndim == 4 else x[None]
            if self.place.weight.shape[2:].numel() > 1:
                self.images += [x[:KEPT_IMAGES].clone()] if not self.images else []
            else:
                x = x[..., ::self.place.stride[0], ::self.place.stride[1]]
            x = x.movedim(1, -1)
        rows = x.reshape(-1, self.width)
        rows = rows[torch.randperm(len(rows), generator=self.generator)[:KEPT_ROWS].to(rows.device)].double()
        self.moment = self.moment.to(rows.device) + rows.T @ rows
        self.rows += len(rows)
        if not self.moment.isfinite().all():
            raise CalibrationError(f"layer {self.name!r} saw NaN or infinity in the calibration data: check the inputs "
                                   "and the model's weights, then factorize again")

    @property
    def operations(self) -> int:
        """Multiply-adds of the layer as it is."""
        before = (len(self.weights) - 1) // 2  # what comes before the part that strides
        return sum(weight.numel() * (self.reads if i < before else self.writes) for i, weight in enumerate(self.weights))

    def root(self) -> tuple[Tensor, Tensor]:
        """S and S^-1 of what was read; the identity for both without whitening."""
        if not self.whiten:
            eye = torch.eye(self.width, dtype=torch.float64, device=self.weights[0].device)
            return eye, eye
        return square_root(self.second_moment())

    def second_moment(self) -> Tensor:
        """[width, width], the mean over rows.

        Raises:
            CalibrationError: it is zero.
        """
        if not self.moment.any():
            raise CalibrationError(f"layer {self.name!r} saw the constant 0 only: calibrate with real inputs, or "
                                   "factorize with whiten=False")
        return self.moment / self.rows


def observe(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[tuple[Tensor, ...]],
            whiten: bool, seed: int) -> dict[str, Seen]:
    """Run the model, and keep what its layers read; those that nothing reached are left out.

    Raises:
        CalibrationError: there is no batch, or a layer saw NaN or infinity.
    """
    seen = {name: Seen(name, layer, whiten, seed) for name, layer in layers.items()}
    handles = [layer.register_forward_hook(seen[name]) for name, layer in layers.items()]
    ran = 0
    try:
        for batch in batches:
            model(*batch)
            ran += 1
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise CalibrationError("low_rank had no calibration data: give batches of inputs, or factorize with whiten=False")
    return {name: one for name, one in seen.items() if one.reads}


def row_information(model: nn.Module, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
    """{layer: [outputs]}: roots of the Fisher information of each row of its weight, sum over the row of the mean of
    (dL/dw)^2 over batches, the layer's mean being 1; rows of none count a thousandth.

    Raises:
        CalibrationError: there is no loss to take gradients of, or they are not finite.
    """
    if context.labelled is None or context.loss is None:
        raise CalibrationError("whiten=fisher needs gradients of the loss, and there are no labels here: give the workload a "
                               "train set and a loss, or choose whiten=True")
    weights = {name: parts(layer)[-1].weight for name, layer in layers.items()}
    asked = {name: weight.requires_grad for name, weight in weights.items()}
    sums = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in context.labelled():
            with torch.enable_grad():
                gradients = torch.autograd.grad(context.loss(model, batch), list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.double().flatten(1).square().sum(1).cpu()
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(asked[name])
    if not all(total.isfinite().all() for total in sums.values()):
        raise CalibrationError("whiten=fisher found NaN or infinity in the gradients: check the data and the weights")
    return {name: ((total / total.mean()).sqrt() if total.any() else torch.ones_like(total)).clamp_min(1e-3).to(
        weights[name].device) for name, total in sums.items()}
