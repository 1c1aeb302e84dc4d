"""Integer layers, improved step by step as long as the model's outputs come closer to the float ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, fx, nn

from thrifty.numerics import graph as graphs
from thrifty.numerics.equalize import equalize
from thrifty.posttraining.quantization import integers
from thrifty.posttraining.quantization.assign import Assigned
from thrifty.posttraining.quantization.outputs import Outputs, split
from thrifty.posttraining.quantization.reconstruction import reconstruct
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan

STEPS = 500
"""Of AdaRound, a layer."""
STEPS_AN_EXAMPLE = 8
"""At most: few examples would be learned by heart."""


@final
@dataclass(frozen=True)
class Refinement:
    """What is tried beyond rounding to nearest, in this order.

    Args:
        equalize: even out the channels between convolutions.
        adaround: learn how weights are rounded.
        correct: have biases make up for shifts of the mean.
    """

    equalize: bool
    adaround: bool
    correct: bool


def refined(model: nn.Module, work: nn.Module, marked: list[str], assigned: Assigned, way: integers.Way, wanted: Refinement,
            context: Context) -> Plan:
    """The plan of integer layers with every step that brings the outputs closer, on calibration data it did not see.

    Args:
        model: float; what the plan is built on.
        work: its graph with batch norms folded, or itself.
        marked: edges of the graph.
        assigned: what becomes of which layer.
        way: how linear layers round what they read.
        wanted: which steps.
        context: with calibration data.
    """
    plan = integers.decide(copy.deepcopy(work), marked, assigned, way, context)
    pairs = _pairs(work, assigned) if wanted.equalize and marked else []
    if not (pairs or wanted.adaround or (wanted.correct and assigned.convolutions)):
        return plan
    seen, unseen = split(context)
    outputs = Outputs(model, unseen)

    def error_of(tried: Plan) -> float:
        return outputs.error(integers.build(copy.deepcopy(model), tried))

    best, error = plan, error_of(plan)

    def step(tried: Plan, what: str) -> bool:
        nonlocal best, error
        now = error_of(tried)
        context.progress(f"{what}: error of the outputs {error:.3g} -> {now:.3g}{'' if now < error else ', left out'}")
        better = now < error
        if better:
            best, error = tried, now
        return better

    if pairs:
        even = copy.deepcopy(work)
        found = equalize(even, pairs)
        tried = integers.decide(copy.deepcopy(even), marked, assigned, way, context)
        tried = _with(tried, {f"equalize.{first}": scale for (first, _), scale in found.items()},
                      equalized=[list(pair) for pair in pairs])
        if step(tried, "equalization"):
            work = even
    if wanted.adaround:
        step(_reconstructed(model, work, best, assigned, seen, context, adaround=True, correct=False), "adaround")
    if wanted.correct:
        step(_reconstructed(model, work, best, assigned, seen, context, adaround=False, correct=True), "bias correction")
    return best


def _pairs(work: Any, assigned: Assigned) -> list[tuple[str, str]]:
    return [pair for pair in graphs.pairs(work) if all(name in assigned.convolutions for name in pair)]


def _reconstructed(model: nn.Module, exact: nn.Module, plan: Plan, assigned: Assigned, inputs: tuple[Tensor, ...],
                   context: Context, adaround: bool, correct: bool) -> Plan:
    rounded = integers.build(copy.deepcopy(model), plan)
    tables = {id(exact.get_submodule(name).weight) for name in assigned.embeddings}
    bits = {name: number for name, number in {**assigned.convolutions, **assigned.linears}.items()
            if id(exact.get_submodule(name).weight) not in tables}
    activations = {name: graphs.activation(exact, name) for name in bits} if isinstance(exact, fx.GraphModule) else {}
    found = reconstruct(exact, rounded, {name: integers.place(rounded, name) for name in bits}, inputs, activations,
                        bits=bits if adaround else {}, steps=min(STEPS, STEPS_AN_EXAMPLE * len(inputs[0])),
                        correct=correct, seed=context.seed, progress=context.progress)
    return _with(plan, found)


def _with(plan: Plan, tensors: Mapping[str, Tensor], **values: Any) -> Plan:
    return Plan({**plan.values, **values}, {**plan.tensors, **tensors})
