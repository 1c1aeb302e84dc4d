"""Sensitivity: how far a model's outputs move when one layer alone is quantized, and what bytes that saves."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from thrifty.numerics import graph as graphs
from thrifty.numerics.modules import GroupedLinear, QuantConv, QuantLinear
from thrifty.numerics.surroundings import slow
from thrifty.posttraining.quantization.outputs import Outputs

LAYERS = (QuantConv, QuantLinear, GroupedLinear)


@final
@dataclass(frozen=True)
class Option:
    """What a layer can be.

    Args:
        scheme: its name, or ``fp32``.
        bytes: that the layer holds, scales counted.
        error: of the model's outputs when this layer alone is so; see `Outputs.error`.
    """

    scheme: str
    bytes: int
    error: float


Table = Mapping[str, tuple[Option, ...]]
"""{layer: its options, the float one first}."""


def alternatives(rounded: nn.Module) -> dict[str, nn.Module]:
    """{layer: its integer module, which rounds its own input} of a quantized model."""
    found: dict[str, nn.Module] = {}
    for name, module in rounded.named_modules():
        if isinstance(module, QuantConv):
            alone = copy.copy(module)
            alone.rounds = True
            # A convolution off the graph's edges stands before an edge of its own.
            found[name.removesuffix(".0") if module.rounds else name] = alone
        elif isinstance(module, LAYERS):
            found[name] = module
    return found


@contextlib.contextmanager
def exchanged(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """The model with other modules in those places, as long as the context lasts."""
    own = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            graphs.replace(model, name, module)
        slow(model)  # and stays so, which changes no answer
        yield model
    finally:
        for name, module in own.items():
            graphs.replace(model, name, module)


def sensitivity(exact: nn.Module, schemes: Mapping[str, Mapping[str, nn.Module]], inputs: tuple[Tensor, ...]) -> Table:
    """Exchange one layer at a time and look at the outputs.

    Args:
        exact: float, batch norms folded.
        schemes: {scheme: `alternatives` of the model that is so throughout}.
        inputs: of one batch, that no grid was found on.
    """
    outputs = Outputs(exact, inputs)
    names = dict.fromkeys(name for modules in schemes.values() for name in modules)
    table: dict[str, tuple[Option, ...]] = {}
    for name in names:
        options = [Option("fp32", held(exact.get_submodule(name)), 0.0)]
        for scheme, modules in schemes.items():
            if name in modules:
                with exchanged(exact, {name: modules[name]}):
                    options.append(Option(scheme, held(modules[name]), outputs.error(exact)))
        table[name] = tuple(options)
    return table


def held(module: nn.Module) -> int:
    """Bytes of the module's own tensors."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return sum(x.numel() * x.element_size() for x in tensors)


def to_json(table: Table) -> dict[str, list[list[Any]]]:
    return {name: [[option.scheme, option.bytes, option.error] for option in options] for name, options in table.items()}


def from_json(values: Mapping[str, Any]) -> Table:
    return {name: tuple(Option(*option) for option in options) for name, options in values.items()}
