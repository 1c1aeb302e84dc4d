"""Integer layers, improved step by step as long as the model's outputs come closer to the float ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.method import Context, Plan
from thrifty.numerics import graph as graphs
from thrifty.numerics.equalize import equalize
from thrifty.posttraining.quantization import integers
from thrifty.posttraining.quantization.assign import Assigned
from thrifty.posttraining.quantization.reconstruction import reconstruct

STEPS = 1000
"""Of AdaRound, a layer."""
HELD_OUT = 0.25
"""Share of the calibration data that steps are judged on and do not see."""
HELD_VALUES = 2**24
"""Numbers in the inputs of the one batch that layers are reconstructed on: the activations of one layer of it are held."""


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


def refined(model: nn.Module, work: nn.Module, marked: list[str], assigned: Assigned, smooths: bool, wanted: Refinement,
            context: Context) -> Plan:
    """The plan of integer layers with every step that brings the outputs closer, on calibration data it did not see.

    Args:
        model: float; what the plan is built on.
        work: its graph with batch norms folded, or itself.
        marked: edges of the graph.
        assigned: what becomes of which layer.
        smooths: whether linear layers are smoothed.
        wanted: which steps.
        context: with calibration data.
    """
    plan = integers.decide(copy.deepcopy(work), marked, assigned, smooths, context)
    pairs = _pairs(work, assigned) if wanted.equalize and marked else []
    if not (pairs or wanted.adaround or (wanted.correct and assigned.convolutions)):
        return plan
    seen, unseen = _split(context)
    judge = _Judge(model, unseen)
    best, error = plan, judge.error(plan)

    def step(tried: Plan, what: str) -> bool:
        nonlocal best, error
        now = judge.error(tried)
        context.progress(f"{what}: error of the outputs {error:.3g} -> {now:.3g}{'' if now < error else ', left out'}")
        better = now < error
        if better:
            best, error = tried, now
        return better

    if pairs:
        even = copy.deepcopy(work)
        found = equalize(even, pairs)
        tried = integers.decide(copy.deepcopy(even), marked, assigned, smooths, context)
        tried = _with(tried, {f"equalize.{first}": scale for (first, _), scale in found.items()},
                      equalized=[list(pair) for pair in pairs])
        if step(tried, "equalisation"):
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
    activations = {name: graphs.activation(exact, name) for name in bits} if isinstance(exact, torch.fx.GraphModule) else {}
    found = reconstruct(exact, rounded, {name: integers.place(rounded, name) for name in bits}, inputs, activations,
                        bits=bits if adaround else {}, steps=STEPS, correct=correct, seed=context.seed,
                        progress=context.progress)
    return _with(plan, found)


def _with(plan: Plan, tensors: Mapping[str, Tensor], **values: Any) -> Plan:
    return Plan({**plan.values, **values}, {**plan.tensors, **tensors})


def _split(context: Context) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Calibration inputs to learn from and to judge on, each as one batch."""
    batches: list[tuple[Tensor, ...]] = []
    for batch in context.calibration():
        if batches and [x.shape[1:] for x in batch] != [x.shape[1:] for x in batches[0]]:
            continue
        batches.append(batch)
        if sum(x.numel() for held in batches for x in held) >= HELD_VALUES:
            break
    joined = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    cut = max(1, round((1 - HELD_OUT) * len(joined[0])))
    return tuple(x[:cut] for x in joined), tuple(x[cut:] if cut < len(x) else x for x in joined)


class _Judge:
    """How far a plan's outputs are from the float model's: |y - y_float|^2 / |y_float - mean|^2."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.model, self.inputs = model, inputs
        self.exact = _flat(model(*inputs))

    def error(self, plan: Plan) -> float:
        got = _flat(integers.build(copy.deepcopy(self.model), plan)(*self.inputs))
        return sum(float((a - b).square().sum() / (b - b.mean(0)).square().sum().clamp_min(1e-12))
                   for a, b in zip(got, self.exact, strict=True)) / max(1, len(got))


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs.float()] if outputs.is_floating_point() else []
    parts: Sequence[Any] = (list(outputs.values()) if isinstance(outputs, Mapping)
                            else outputs if isinstance(outputs, list | tuple) else [])
    return [tensor for part in parts for tensor in _flat(part)]
