"""Reconstruction: integer layers are adjusted, one after another, to what the float model gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.adaround import Layer, adaround
from thrifty.numerics.bias import corrected
from thrifty.numerics.grid import affine, rows
from thrifty.numerics.modules import QuantConv, QuantLinear
from thrifty.numerics.patches import Geometry, mean_patch, patches

KEPT_ROWS = 2048
"""Places of a layer's output, over all examples, on which its weights are rounded."""

Activation = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class Target:
    """What a float layer gives where nothing is rounded.

    Args:
        where: [rows] places that were drawn.
        outputs: [rows, channels] there, after the activation.
        mean: [channels] over all places, before it.
    """

    where: Tensor
    outputs: Tensor
    mean: Tensor


@final
@dataclass(frozen=True)
class Read:
    """What an integer layer reads, as the rows of a matrix product.

    Args:
        rows: [groups, rows, inputs] at the target's places.
        mean: [groups, inputs] over all places.
    """

    rows: Tensor
    mean: Tensor


def reconstruct(exact: nn.Module, rounded: nn.Module, layers: Mapping[str, str], inputs: tuple[Tensor, ...],
                activations: Mapping[str, Activation], *, bits: Mapping[str, int], steps: int, correct: bool,
                seed: int, progress: Callable[[str], None] = lambda text: None) -> dict[str, Tensor]:
    """Adjust the integer layers of ``rounded``, in place and in the order in which they run.

    Each reads what the layers before it, adjusted already, make of the inputs.

    Args:
        exact: the float model, batch norms folded.
        rounded: the same with QuantConv and QuantLinear.
        layers: {layer's name in exact: in rounded}.
        inputs: of one large batch: the pass through the model is one, and activations of one layer are held at a time.
        activations: {name: the ReLU that follows}; the identity for those left out.
        bits: {name: of its weights}, where they are rounded by AdaRound.
        steps: of AdaRound a layer.
        correct: whether biases make up for the shift of their channel's mean.
        seed: of what is drawn.
        progress: told the layer at work.

    Returns:
        what was decided: {"weight.NAME": int8, "bias.NAME": float32}.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = _targets(exact, list(layers), inputs, activations, generator)
    decided: dict[str, Tensor] = {}

    def adjust(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(module: Any, given: tuple[Any, ...]) -> None:
            if f"bias.{name}" in decided or f"weight.{name}" in decided or name not in targets:
                return  # a module that is called twice is adjusted to its first call
            progress(f"reconstructing {name}")
            read, target = _read(module, given[0], targets[name].where), targets.pop(name)
            if name in bits:
                layer = _layer(exact.get_submodule(name), module, activations.get(name, _identity))
                q = adaround(layer, read.rows, _grouped(target.outputs, layer), bits[name], steps, generator)
                decided[f"weight.{name}"] = q.reshape(module.weight.shape)
                module.weight.copy_(decided[f"weight.{name}"])
            if correct:
                bias = torch.zeros(len(module.weight)) if module.bias is None else module.bias
                weight = rows(module.weight, module.scale).reshape(len(read.mean), -1, read.mean.shape[1])
                mean = torch.einsum("goi,gi->go", weight, read.mean).flatten() + bias
                decided[f"bias.{name}"] = module.bias = corrected(bias, target.mean, mean)

        return before

    handles = [rounded.get_submodule(place).register_forward_pre_hook(adjust(name)) for name, place in layers.items()]
    try:
        rounded(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return decided


def _identity(x: Tensor) -> Tensor:
    return x


def _targets(exact: nn.Module, names: list[str], inputs: tuple[Tensor, ...], activations: Mapping[str, Activation],
             generator: torch.Generator) -> dict[str, Target]:
    found: dict[str, Target] = {}

    def see(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def after(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            if name in found:
                return
            outputs = (output if isinstance(module, nn.Linear) else output.movedim(1, -1)).detach().float().flatten(0, -2)
            where = torch.randperm(len(outputs), generator=generator)[:KEPT_ROWS]
            found[name] = Target(where, activations.get(name, _identity)(outputs[where]), outputs.mean(0))

        return after

    handles = [exact.get_submodule(name).register_forward_hook(see(name)) for name in names]
    exact(*inputs)
    for handle in handles:
        handle.remove()
    return found


def _read(module: QuantConv | QuantLinear, x: Tensor, where: Tensor) -> Read:
    if isinstance(module, QuantConv):
        x = affine(x.float(), module.x_scale, module.x_zero) if module.rounds else x
        return Read(patches(x, Geometry.of(module), where), mean_patch(x, Geometry.of(module)))
    q, step = module.rounded(x)
    flat = (q * step).flatten(0, -2)
    return Read(flat[where].unsqueeze(0), flat.mean(0, keepdim=True))


def _layer(exact: Any, module: QuantConv | QuantLinear, activation: Activation) -> Layer:
    groups = module.groups if isinstance(module, QuantConv) else 1
    weight = exact.weight.detach().float()
    weight = weight * module.smooth if isinstance(module, QuantLinear) else weight
    bias = torch.zeros(len(weight)) if module.bias is None else module.bias
    outputs = len(weight) // groups
    return Layer(weight.reshape(groups, outputs, -1), module.scale.reshape(groups, outputs), bias.reshape(groups, outputs),
                 activation)


def _grouped(outputs: Tensor, layer: Layer) -> Tensor:
    """[groups, rows, outputs] of [rows, channels]."""
    return outputs.reshape(len(outputs), *layer.scale.shape).movedim(1, 0)
