"""Ranks over the whole model: what each option of each layer costs and keeps, by energy, by the loss, or by the clock."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.flat import distance
from thrifty.posttraining.elements import parameters
from thrifty.posttraining.low_rank.calibration import Seen
from thrifty.posttraining.low_rank.factored import absorb, factored, parts
from thrifty.posttraining.low_rank.factors import Ranks, Shape
from thrifty.posttraining.ranks import Choices, allocate
from thrifty.recipes.context import Context, Reference

BATCHES = 4
"""On which the loss of a truncated layer is measured."""
TIMED = 6
"""Ranks of a layer that are timed."""
Factors = Callable[[str, Ranks], list[Tensor]]


@final
@dataclass(frozen=True)
class Layers:
    """What could be factored.

    Args:
        model: all of it, in eval mode.
        modules: {layer: itself}.
        seen: {layer: what it read}.
        shapes: {layer: what its weight can become}.
        options: {layer: ranks below its break-even}; layers that have any.
        factors: (layer, ranks) -> its factors.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    seen: Mapping[str, Seen]
    shapes: Mapping[str, Shape]
    options: Mapping[str, list[Ranks]]
    factors: Factors

    def elements(self, name: str) -> int:
        return sum(part.weight.numel() for part in parts(self.modules[name]))


def options(shape: Shape, seen: Seen, now: int, step: int) -> list[Ranks]:
    """Ranks that need fewer parameters and fewer multiply-adds than the layer has: below its break-even rank."""
    return [r for r in shape.ranks(step) if shape.parameters(r) < now
            and shape.operations(r, seen.reads, seen.writes) < seen.operations]


def choose(layers: Layers, context: Context, ratio: float, by: str, step: int) -> dict[str, Ranks]:
    """{layer: its ranks} of those that are factored.

    Args:
        layers: the model's.
        context: with a clock for "latency"; with labels, where there are any, for "loss".
        ratio: share of the model's parameters to remove; of its seconds, for "latency".
        by: "energy": the sum of the shares of output energy that layers keep is to be large; "loss": shares that are lost weigh
            as much as the loss grew, or the outputs moved, when the layer alone was truncated; "latency": as energy, within
            measured seconds.
        step: ranks are multiples of it.

    Raises:
        NoEffect: no layer gains by a rank of that step.
        ThriftyError: so much cannot be removed.
    """
    if not layers.options:
        raise NoEffect("low_rank finds nothing to factorize: no nn.Linear or nn.Conv2d with a weight of its own "
                       f"becomes smaller by a rank of {step} or a multiple of it; lower round_to, or "
                       "remove low_rank")
    if by == "latency":
        return _by_latency(layers, context, ratio)
    lost = _losses(layers, context) if by == "loss" else {}
    choices = []
    for name, found in layers.options.items():
        shape, weight = layers.shapes[name], lost.get(name, 1.0)
        kept = np.array([1.0, *map(shape.kept, found)])
        choices.append(Choices(np.array([layers.elements(name), *map(shape.parameters, found)]), 1 - weight * (1 - kept)))
    total = int(parameters(layers.model))
    held = sum(int(c.parameters[0]) for c in choices)
    most, goal = held - sum(int(c.parameters.min()) for c in choices), int(np.ceil(ratio * total - 1e-6))
    if most < goal:
        raise ThriftyError(f"low_rank(ratio={ratio:g}): at most {most / total:.3f} of this model's parameters "
                           f"can be removed with ranks of {step} (the rest belongs to embeddings, norms, tied "
                           "weights, or to layers that no rank makes smaller); choose a ratio up to "
                           f"{np.floor(100 * most / total) / 100:g}, or lower round_to")
    return _chosen(layers.options, allocate(choices, held - goal))


def _chosen(found: Mapping[str, Sequence[Ranks]], positions: Sequence[int]) -> dict[str, Ranks]:
    return {name: found[name][i - 1] for name, i in zip(found, positions, strict=True) if i > 0}


# -- by the loss ------------------------------------------------------------------------------------------------


def _losses(layers: Layers, context: Context) -> dict[str, float]:
    """{layer: what the model loses for a share of the layer's energy}, the largest being 1.

    Each layer alone is cut to the middle of its ranks, in place and back. Without labels it counts how far outputs move, squared:
    as energy does, it grows with the square of what is cut.
    """
    batches = [b for _, b in zip(range(BATCHES), context.calibration(), strict=False)]
    labelled = [b for _, b in zip(range(BATCHES), context.labelled(), strict=False)] if (
        context.labelled is not None and context.loss is not None) else []

    def measured(dense: Sequence[Any]) -> float:
        if labelled and context.loss is not None:
            return float(np.mean([float(context.loss(layers.model, batch)) for batch in labelled]))
        return float(np.mean([distance(layers.model(*batch), want) ** 2 for batch, want in zip(batches, dense, strict=True)]))

    found: dict[str, float] = {}
    with torch.no_grad():
        dense = [copy.deepcopy(layers.model(*batch)) for batch in batches] if not labelled else []
        before = measured(dense)
        for name, choices in layers.options.items():
            ranks = choices[len(choices) // 2]
            context.progress(f"truncating {name}")
            weights = [part.weight.clone() for part in parts(layers.modules[name])]
            absorb(layers.modules[name], layers.factors(name, ranks))
            grown = measured(dense) - before
            for part, weight in zip(parts(layers.modules[name]), weights, strict=True):
                part.weight.copy_(weight)
            found[name] = max(grown, 0.0) / max(1 - layers.shapes[name].kept(ranks), 1e-9)
    largest = max(found.values()) or 1.0
    return {name: max(value / largest, 1e-6) for name, value in found.items()}


# -- by the clock -------------------------------------------------------------------------------------------------


def _by_latency(layers: Layers, context: Context, ratio: float) -> dict[str, Ranks]:
    """Ranks that bring the model's measured seconds down by the ratio; layers of one geometry are timed once."""
    if context.time is None:
        raise ThriftyError("low_rank(ranks=latency) needs timing, which a method on its own does not have: use it in a recipe, "
                           "or choose ranks=energy or loss")
    inputs = _inputs(layers, context)
    dense = Reference(layers.model, context.example, context.time(layers.model))
    timed: dict[Any, float] = {}

    def seconds(name: str, ranks: Ranks | None) -> float:
        layer, x = layers.modules[name], inputs[name]
        key = (str(layer), tuple(x.shape), ranks)
        if key not in timed:
            module = copy.deepcopy(layer) if ranks is None else factored(layer, layers.factors(name, ranks))
            assert context.time is not None
            timed[key] = context.time(module, (x,), reference=dense)
        return timed[key]

    found: dict[str, list[Ranks]] = {}
    choices: list[Choices] = []
    for name, every in layers.options.items():
        if name not in inputs:
            continue
        few = [every[round(i)] for i in np.linspace(0, len(every) - 1, min(TIMED, len(every)))]
        now = seconds(name, None)
        faster = [r for r in dict.fromkeys(few) if seconds(name, r) < now]
        if faster:
            found[name] = faster
            kept = [layers.shapes[name].kept(r) for r in faster]
            costs = [now, *(seconds(name, r) for r in faster)]
            choices.append(Choices(np.array([round(1e9 * cost) for cost in costs]), np.array([1.0, *kept])))
    whole = round(1e9 * dense.seconds)
    held = sum(int(c.parameters[0]) for c in choices)
    most, goal = held - sum(int(c.parameters.min()) for c in choices), int(np.ceil(ratio * whole))
    if most < goal:
        raise ThriftyError(f"low_rank(ratio={ratio:g}, ranks=latency): factoring saves at most {max(most, 0) / whole:.3f} of "
                           "this model's time here (layers that no rank makes faster stay); choose a smaller ratio, or "
                           "remove low_rank")
    return _chosen(found, allocate(choices, held - goal))


def _inputs(layers: Layers, context: Context) -> dict[str, Tensor]:
    """{layer: what it reads of one request}."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.setdefault(name, inputs[0].detach().clone())
        return see

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.modules.items()]
    try:
        with torch.no_grad():
            layers.model(*context.example)
    finally:
        for handle in handles:
            handle.remove()
    return found
