"""Weights of few bits beside float activations: what each algorithm decides, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from thrifty.numerics import graph as graphs
from thrifty.numerics.awq import awq, awq_scales
from thrifty.numerics.clipping import clips
from thrifty.numerics.gptq import NotDefinite, gptq
from thrifty.numerics.grouped import Grouped, output_error, rtn
from thrifty.numerics.hqq import hqq
from thrifty.numerics.lockstep import in_lockstep
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear
from thrifty.numerics.observers import CalibrationError
from thrifty.numerics.packing import pack, unpack
from thrifty.posttraining.quantization.assign import Assigned, Grid
from thrifty.posttraining.quantization.reads import Reads, readers, unreached
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan

Weights = Mapping[str, Tensor]
Grids = Mapping[str, Grid]
BLIND: Mapping[str, Callable[[Tensor, int, int], Grouped]] = {"rtn": rtn, "hqq": hqq}
"""Algorithms that look at weights alone."""


def decide(model: nn.Module, assigned: Assigned, algorithm: str, context: Context) -> dict[str, Grouped]:
    """Find the integers of every layer's weight.

    What an embedding looks up too is rounded to nearest, in eight bits: its rows must stay what they are, whatever the
    product reads.

    Args:
        model: a copy; its weights are changed.
        assigned: what becomes of which layer.
        algorithm: of `BLIND`, or of `SEEING`, which need calibration data.
        context: calibration data, of which all is taken.

    Raises:
        CalibrationError: data is missing, too little or not finite where a layer reads it; names the layer.
    """
    grids, tied = assigned.grouped, assigned.tied.values()
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in grids}
    decided = {name: (rtn if name in tied else BLIND[algorithm])(layers[name].weight, grid.bits, grid.group)
               for name, grid in grids.items() if name in tied or algorithm in BLIND}
    if len(decided) == len(grids):
        return decided
    solve, sequential = SEEING[algorithm]
    batches = list(context.calibration())
    if not batches:
        raise unreached(grids)
    together = readers(model, layers, batches[0])

    def visit(name: str, inputs: Sequence[Tensor]) -> list[str]:
        names = [other for other in together[name] if other not in decided]
        decided.update(solve({other: layers[other].weight for other in names}, grids, Reads.of(name, inputs)))
        for other in names if sequential else ():
            layers[other].weight.data = decided[other].dequantized().to(layers[other].weight)
        context.progress(f"{algorithm}: {len(decided)} of {len(grids)} layers")
        return names

    in_lockstep(model, {name: layer for name, layer in layers.items() if name not in decided}, batches, visit)
    if missing := [name for name in grids if name not in decided]:
        raise unreached(missing)
    return decided


def _gptq(weights: Weights, grids: Grids, reads: Reads) -> dict[str, Grouped]:
    return {name: _solved(name, weight, grids[name], reads.moment) for name, weight in weights.items()}


def _solved(name: str, weight: Tensor, grid: Grid, moment: Tensor) -> Grouped:
    """By GPTQ, on grids to the extremes or on clipped ones, whichever costs the outputs less."""
    try:
        found = [gptq(weight, moment, grid.bits, grid.group, ratio=ratio)
                 for ratio in (1.0, clips(weight, moment, grid.bits, grid.group))]
    except NotDefinite as error:
        raise CalibrationError(
            f"layer {name!r}: {error}, so GPTQ cannot solve for its weight; calibrate with more and different examples, "
            "quantize with algorithm=awq or hqq, or exclude the layer with layers={...: fp32}") from error
    return min(found, key=lambda tried: output_error(weight, tried.dequantized(), moment))


def _scales(weights: Weights, grids: Grids, reads: Reads) -> Tensor:
    grid = min((grids[name] for name in weights), key=lambda grid: grid.bits)
    return awq_scales(list(weights.values()), reads.moment, reads.size, grid.bits, grid.group)


def _awq(weights: Weights, grids: Grids, reads: Reads) -> dict[str, Grouped]:
    scales = _scales(weights, grids, reads)
    return {name: awq(weight, reads.moment, scales, grids[name].bits, grids[name].group) for name, weight in weights.items()}


SEEING: Mapping[str, tuple[Callable[[Weights, Grids, Reads], dict[str, Grouped]], bool]] = {
    "awq": (_awq, False),
    "gptq": (_gptq, True),
}
"""{algorithm: (for layers that read the same, whether later layers read what earlier ones have become)}."""


# -- the plan -----------------------------------------------------------------------------------------------------


def planned(decided: Mapping[str, Grouped], assigned: Assigned) -> Plan:
    """What `build` needs, the integers packed."""
    tensors: dict[str, Tensor] = {}
    for name, found in decided.items():
        tensors |= {f"{name}.packed": pack(found.q, found.bits), f"{name}.scale": found.scale, f"{name}.zero": found.zero}
        if found.smooth is not None:
            tensors[f"{name}.smooth"] = found.smooth
    return Plan({"grouped": {name: found.bits for name, found in decided.items()}, "tied": dict(assigned.tied)}, tensors)


def build(model: nn.Module, plan: Plan) -> nn.Module:
    """Put weights of few bits where the plan says."""
    made: dict[str, GroupedLinear] = {}
    for name, bits in plan.values["grouped"].items():
        linear: Any = model.get_submodule(name)
        packed, scale, zero = (plan.tensors[f"{name}.{part}"] for part in ("packed", "scale", "zero"))
        made[name] = GroupedLinear(unpack(packed, bits), scale, zero, bits, linear.bias, plan.tensors.get(f"{name}.smooth"))
        graphs.replace(model, name, made[name])
    for table, name in plan.values["tied"].items():
        dtype = model.get_submodule(table).get_parameter("weight").dtype
        graphs.replace(model, table, GroupedEmbedding(made[name], dtype))
    return model
