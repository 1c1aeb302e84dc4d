"""Depth: whole blocks leave, chosen by what they change and by what the model is without them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.flat import distance
from thrifty.posttraining.pruning import attributes
from thrifty.posttraining.pruning.cutting import agree
from thrifty.recipes.context import Context

BATCHES = 4
"""Of calibration, on which blocks are compared."""
NUMBERED = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")
"""Attributes under which blocks keep their place."""


@final
@dataclass(frozen=True)
class Block:
    """One of a container's children, which returns what it is given in the same shape.

    Args:
        name: its own.
        container: the name of what it stands in.
        position: there.
        parameters: elements of its parameters.
    """

    name: str
    container: str
    position: int
    parameters: int


def blocks(model: nn.Module, example: tuple[Tensor, ...]) -> list[Block]:
    """The outermost blocks that could be left out, in the order of the model.

    A block is a child of a `ModuleList` or `Sequential`, one of several of its class there, that has layers of its own, two
    weights or more, and answers with a float tensor of the shape of its first input.
    """
    same: dict[str, bool] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            x, y = _first(inputs), _first(output)
            fits = (isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.is_floating_point()
                    and x.dtype == y.dtype)
            same[name] = fits and name not in same  # what is called twice has two places
        return see

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    found: list[Block] = []
    for name, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential) or len(container) < 2:
            continue
        if any(name.startswith(f"{block.name}.") for block in found):
            continue
        for position, child in enumerate(container):
            path = f"{name}.{position}" if name else str(position)
            weights = [p for p in child.parameters() if p.ndim > 1]
            alike = sum(type(other) is type(child) for other in container)
            if (list(container._modules)[position] == str(position) and same.get(path) and alike > 1 and len(weights) > 1
                    and any(True for _ in child.children())):
                found.append(Block(path, name, position, sum(p.numel() for p in child.parameters())))
    return found


def _first(value: Any) -> Any:
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return value


@contextlib.contextmanager
def skipped(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Within it those blocks give back what they are given."""
    def skip(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return (_first(inputs), *output[1:]) if isinstance(output, tuple) else _first(inputs)

    handles = [model.get_submodule(name).register_forward_hook(skip) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def influences(model: nn.Module, found: Sequence[Block], batches: Sequence[tuple[Tensor, ...]],
               gone: Collection[str]) -> dict[str, float]:
    """{block: 1 - mean cos(x, y)} over positions, x what it reads and y what it gives; of those that are not gone.

    Paper: "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", Men et al. 2024, arXiv:2403.03853.
    """
    sums: dict[str, list[float]] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            x, y = _first(inputs).double(), _first(output).double()
            cos = nn.functional.cosine_similarity(x, y, dim=1 if x.ndim == 4 else -1)
            sums.setdefault(name, []).append(float(cos.mean()))
        return see

    left = [block for block in found if block.name not in gone]
    handles = [model.get_submodule(block.name).register_forward_hook(hook(block.name)) for block in left]
    try:
        with torch.no_grad(), skipped(model, gone):
            for batch in batches:
                model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: 1 - float(np.mean(values)) for name, values in sums.items()}


def choose(model: nn.Module, context: Context, ratio: float) -> tuple[list[Block], list[Block], dict[str, Any]]:
    """Which blocks leave, one after the other, each the least missed of those that are left.

    Blocks are ranked by two measures, or three, and the sum of ranks decides, since one alone hides a collapse: the block's
    influence; how far the model's outputs move without it; and, where there are labels, how much its loss grows.

    Args:
        model: in eval mode.
        context: with calibration data.
        ratio: share of the model's parameters to remove; blocks are whole, so the nearest is taken.

    Returns:
        (blocks that leave, all blocks, {block: its measures when it left}).

    Raises:
        NoEffect: there is no block that can leave, or the smallest is more than twice the ratio.
    """
    found = blocks(model, context.example)
    total = sum(p.numel() for p in model.parameters())
    if len(found) < 2:
        raise NoEffect("prune(structure=blocks) finds nothing to remove: no ModuleList or Sequential holds blocks that give "
                       "back the shape they are given")
    batches = [batch for _, batch in zip(range(BATCHES), context.calibration(), strict=False)] or [context.example]
    labelled = [b for _, b in zip(range(BATCHES), context.labelled(), strict=False)] if (
        context.labelled is not None and context.loss is not None) else []
    with torch.no_grad():
        dense = [copy.deepcopy(model(*batch)) for batch in batches]
    gone: list[Block] = []
    measures: dict[str, Any] = {}

    def removed(extra: int = 0) -> float:
        return (sum(block.parameters for block in gone) + extra) / total

    while len(gone) < len(found) - 1:
        left = [block for block in found if block not in gone]
        rows = _measure(model, context, left, [b.name for b in gone], batches, dense, labelled)
        order = np.sum([np.argsort(np.argsort(row, kind="stable"), kind="stable") for row in rows], axis=0)
        best = left[int(np.argmin(order))]
        if abs(removed(best.parameters) - ratio) >= abs(removed() - ratio):
            break
        gone.append(best)
        measures[best.name] = [round(row[left.index(best)], 6) for row in rows]
    if not gone:
        least = min(block.parameters for block in found) / total
        raise NoEffect(f"prune(ratio={ratio:g}, structure=blocks) removes nothing: the smallest block holds {least:.3f} of the "
                       "parameters; raise ratio, or choose another structure")
    return gone, found, measures


def _measure(model: nn.Module, context: Context, left: Sequence[Block], gone: list[str], batches: Sequence[tuple[Tensor, ...]],
             dense: Sequence[Any], labelled: Sequence[Any]) -> list[list[float]]:
    """[measures][blocks]: small where a block is not missed."""
    first = influences(model, left, batches, gone)
    rows = [[first.get(block.name, np.inf) for block in left]]
    moved, lost = [], []
    for block in left:
        with torch.no_grad(), skipped(model, [*gone, block.name]):
            moved.append(float(np.mean([distance(model(*batch), want) for batch, want in zip(batches, dense, strict=True)])))
            if labelled and context.loss is not None:
                lost.append(float(np.mean([float(context.loss(model, batch)) for batch in labelled])))
    return [*rows, moved, *([lost] if lost else [])]


# -- removing ---------------------------------------------------------------------------------------------------


def depth(model: nn.Module, context: Context, ratio: float) -> dict[str, Any]:
    """A plan's values: which children of which containers stay.

    Raises:
        NoEffect: nothing can leave.
        ThriftyError: the model's code counts on its blocks.
    """
    gone, found, measures = choose(model, context, ratio)
    stays = {container: [i for i in range(len(model.get_submodule(container))) if i not in  # type: ignore[arg-type]
                         {block.position for block in gone if block.container == container}]
             for container in dict.fromkeys(block.container for block in gone)}
    sizes: dict[int, set[int]] = {}
    for container, kept in stays.items():
        sizes.setdefault(len(model.get_submodule(container)), set()).add(len(kept))  # type: ignore[arg-type]
    config: list[dict[str, Any]] = list(attributes.configured(model, {"blocks": sizes}))
    for old, change in zip(attributes.configurations(model), config, strict=True):
        kinds, kept = getattr(old, "layer_types", None), next(iter(stays.values()))
        if change and isinstance(kinds, list) and len(kinds) > max(kept):
            change["layer_types"] = [kinds[i] for i in kept]
    values = {"blocks": stays, "config": config, "measures": measures,
              "left": {block.name: "removing it would cost more than removing others" for block in found if block not in gone}}
    shown = next(iter(context.calibration()), context.example)
    with torch.no_grad():
        small = build(copy.deepcopy(model), values)
        with skipped(model, [block.name for block in gone]):
            if not agree(small, model, shown):
                raise ThriftyError("prune(structure=blocks): the model's code depends on all of its blocks, so none can be "
                                   "removed; use structure=channels, heads or width")
    return values


def build(model: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """The model with those blocks alone, in place."""
    for name, kept in values["blocks"].items():
        try:
            container: Any = model.get_submodule(name)
            children = [container[i] for i in kept]
        except (AttributeError, IndexError, TypeError) as error:
            raise ThriftyError(f"the plan keeps blocks {kept} of {name}, which this model does not have: it was made for "
                               "another model") from error
        container._modules.clear()
        for new, (old, child) in enumerate(zip(kept, children, strict=True)):
            container._modules[str(new)] = child
            for module in child.modules():
                for key in NUMBERED:
                    if vars(module).get(key) == old:
                        setattr(module, key, new)
    if any(values.get("config", ())):
        attributes.configure(model, values["config"])
    return model
