"""Mixed schemes: each layer gets the fewest bytes that the model's quality can bear."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from torch import nn

from thrifty.errors import NoEffect
from thrifty.numerics import graph as graphs
from thrifty.numerics.linears import ready
from thrifty.numerics.schemes import SCHEMES
from thrifty.posttraining.quantization import integers
from thrifty.posttraining.quantization.assign import FLOAT
from thrifty.posttraining.quantization.outputs import split
from thrifty.posttraining.quantization.sensitivity import (
    Table,
    alternatives,
    exchanged,
    from_json,
    sensitivity,
    to_json,
)
from thrifty.posttraining.ranks import Choices, allocate
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import matches
from thrifty.recipes.transform import Plan, Transform

CANDIDATES = ("w8a8", "w4a16", "w3a16")
"""What a layer may be beside ``fp32``: each has something that the others lack, speed or fewer bytes. Four bits with
integer activations are held in eight, so they would only lose."""
BUDGETS = 24
"""Totals of bytes that are looked at, evenly spaced in their logarithm."""


def mixtures(table: Table) -> list[dict[str, str]]:
    """Schemes of all layers under ever smaller budgets of bytes, the largest first.

    Each is the one with (nearly) the least sum of errors under its budget: errors of layers are taken to add up.

    Returns:
        {layer: scheme} each; no two are equal.
    """
    layers = list(table)
    worst = max((option.error for options in table.values() for option in options), default=0.0) or 1.0
    choices = [Choices(np.array([option.bytes for option in table[name]]),
                       np.array([1 - option.error / worst for option in table[name]])) for name in layers]
    least, most = (sum(int(pick(choice.parameters)) for choice in choices) for pick in (np.min, np.max))
    found: list[dict[str, str]] = []
    for budget in np.geomspace(most, max(1, least), BUDGETS):
        chosen = allocate(choices, max(least, int(budget)))
        mixture = {name: table[name][i].scheme for name, i in zip(layers, chosen, strict=True)}
        if mixture not in found:
            found.append(mixture)
    return found


def harshest(found: list[dict[str, str]], bears: Callable[[Mapping[str, str]], bool]) -> int:
    """The position of the last mixture that quality bears, by bisection; -1 where it bears none.

    Quality is taken to fall from one to the next.
    """
    low, high = -1, len(found) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bears(found[middle]) else (low, middle - 1)
    return low


class Uniform(Protocol):
    """The part of ``quantize`` that mixtures are made of."""

    @property
    def layers(self) -> Mapping[str, str]: ...

    @property
    def group(self) -> int: ...

    @property
    def version(self) -> int: ...

    def of(self, scheme: str, layers: Mapping[str, str], **changes: Any) -> Transform: ...


def decide(model: nn.Module, quantize: Uniform, max_drop: float, context: Context) -> Plan:
    """Choose schemes by the layers' sensitivities, the fewest bytes that keep to ``max_drop`` on validation.

    Args:
        model: float.
        quantize: layers that its own patterns match are not chosen.
        max_drop: of quality, in its own unit.
        context: with a score.

    Returns:
        the plan, with "mixed" {layer: scheme} and "sensitivity" in its values.

    Raises:
        NoEffect: quality bears no layer's quantization, or there is no layer to choose for.
    """
    assert context.score is not None
    exact = folded(model, context)
    schemes = _alternatives(model, quantize, context)
    if not any(schemes.values()):
        raise NoEffect("quantize(mixed) found nothing to choose a scheme for: the model has no float nn.Linear, nn.Conv1d "
                       "or nn.Conv2d that it supports, besides those named in layers={...}")
    key = f"sensitivity of {CANDIDATES} beside {dict(quantize.layers)}, group {quantize.group}"
    context.progress(f"sensitivities of {len(set().union(*schemes.values()))} layers")
    table = from_json(context.recall(key, lambda: to_json(sensitivity(exact, schemes, split(context)[1]))))
    found, score = mixtures(table), context.score
    floor = score(model) - max_drop

    def bears(mixture: Mapping[str, str]) -> bool:
        with exchanged(exact, {name: schemes[scheme][name] for name, scheme in mixture.items() if scheme != FLOAT}):
            return score(exact) >= floor

    for position in range(harshest(found, bears), -1, -1):
        mixture = found[position]
        if all(scheme == FLOAT for scheme in mixture.values()):
            break
        method = quantize.of(CANDIDATES[0], {**quantize.layers, **patterns(mixture)})
        plan = method.plan(model, context)
        # What is built at last is not quite what was exchanged layer by layer: edges between layers are rounded too.
        if score(method.build(copy.deepcopy(model), plan)) >= floor:
            context.progress("mixed: " + ", ".join(f"{name} {scheme}" for name, scheme in mixture.items()))
            return Plan({**plan.values, "mixed": mixture, "sensitivity": to_json(table)}, plan.tensors)
    raise NoEffect(f"quantize(mixed, max_drop={max_drop:g}): no layer can be quantized without losing more on validation; allow "
                   "more, or remove quantize")


def folded(model: nn.Module, context: Context) -> nn.Module:
    """A copy to exchange layers of: its graph with batch norms folded where it has convolutions and can be traced."""
    model = ready(copy.deepcopy(model).eval())
    graph = integers.folded(model, context) if any(graphs.is_convolution(module) for module in model.modules()) else None
    return model if graph is None else graph


def patterns(mixture: Mapping[str, str]) -> dict[str, str]:
    """{pattern: scheme} that matches each layer by its whole name; a longer name comes before one that it ends with."""
    return {re.escape(name): mixture[name] for name in sorted(mixture, key=len, reverse=True)}


def _alternatives(model: nn.Module, quantize: Uniform, context: Context) -> dict[str, dict[str, nn.Module]]:
    """{scheme: {layer: its module}} of what may be chosen, rounded in the plainest way."""
    odd = {name: FLOAT for name, module in ready(copy.deepcopy(model)).named_modules()
           if isinstance(module, nn.Linear) and module.in_features % quantize.group}
    tied = _tied(model)
    found: dict[str, dict[str, nn.Module]] = {}
    for scheme in CANDIDATES:
        layers = {**quantize.layers, **(patterns(odd) if SCHEMES[scheme].grouped else {})}
        method = quantize.of(scheme, layers, rest="fp32", algorithm="auto", equalize=False, correct=False)
        try:
            rounded = method.build(copy.deepcopy(model), method.plan(model, context))
        except NoEffect:
            found[scheme] = {}
            continue
        found[scheme] = {name: module for name, module in alternatives(rounded).items()
                         if name not in tied and not any(matches(pattern, name) for pattern in quantize.layers)}
    return found


def _tied(model: nn.Module) -> set[str]:
    """Linear layers whose weight an embedding shares: the two are decided together, elsewhere."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module.weight) in tables}
