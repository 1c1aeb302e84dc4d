"""Weights of convolutions, recurrent layers and experts in few bits beside float activations, each rounded to nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from thrifty.architectures.moe.stacks import hold, stacks
from thrifty.numerics import graph as graphs
from thrifty.numerics.experts import PackedExperts
from thrifty.numerics.grouped import rtn
from thrifty.numerics.packed import PackedConv, PackedRecurrent
from thrifty.numerics.plain import is_one_of
from thrifty.numerics.schemes import Scheme
from thrifty.recipes.transform import Plan

RECURRENT = (nn.LSTM, nn.GRU)
Grids = Mapping[str, tuple[int, int]]
"""{parameter: (bits of a weight, weights a scale)} of a layer."""


def is_recurrent(module: nn.Module) -> bool:
    return is_one_of(module, RECURRENT)


def grids(module: nn.Module, scheme: Scheme, group: int) -> Grids:
    """For every matrix of a layer, or a convolution's weight as [out, in / groups * kernel]; of experts for every stack.

    In schemes of groups, a matrix whose columns the group does not divide has eight bits and a scale per row.
    """
    found = {}
    for name, matrix in _matrices(module).items():
        columns = matrix.shape[1]
        found[name] = (scheme.bits, group) if scheme.grouped and columns % group == 0 else (8, columns)
    return found


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    """{parameter: its rows and columns}."""
    if names := stacks(module):
        return {name: module.get_parameter(name).flatten(0, 1) for name in names}
    return {name: p.flatten(1) for name, p in module.named_parameters(recurse=False) if p.dim() > 1}


def grow(module: nn.Module, grids: Grids) -> bool:
    """Whether the integers with their scales and zeros take as many bytes as the float weights did."""
    weights = {name: module.get_parameter(name) for name in grids}
    held = sum(weights[name].numel() * (bits / 8 + 5 / group) for name, (bits, group) in grids.items())
    return held >= sum(x.numel() * x.element_size() for x in weights.values())


def planned(rounded: Mapping[str, Grids]) -> Plan:
    """What `build` needs: it rounds by itself, what batch norms were folded into too."""
    return Plan({"rounded": {layer: {name: list(grid) for name, grid in found.items()} for layer, found in rounded.items()}})


def build(model: nn.Module, plan: Plan) -> nn.Module:
    """Put integer weights where the plan says."""
    for layer, found in plan.values.get("rounded", {}).items():
        module: Any = model.get_submodule(layer)
        matrices = _matrices(module)
        weights = {name: rtn(matrices[name].detach(), *grid) for name, grid in found.items()}
        if stacks(module):
            hold(module, {name: PackedExperts(each, len(module.get_parameter(name))) for name, each in weights.items()})
            continue
        graphs.replace(model, layer, (PackedRecurrent if is_recurrent(module) else PackedConv)(module, weights))
    return model
