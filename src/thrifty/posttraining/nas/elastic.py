"""The subnets of a trained model: fewer blocks, fewer channels, smaller kernels; which there are, and how each is made."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics import graph as graphs
from thrifty.posttraining.nas.blocks import LeftOut, blocks, names
from thrifty.posttraining.nas.kernels import crop, kernels
from thrifty.posttraining.pruning import attributes, structures
from thrifty.posttraining.pruning.criteria import ranked, scored
from thrifty.posttraining.pruning.cutting import named_tensors
from thrifty.posttraining.pruning.dependency import Dependencies, Place, dependencies
from thrifty.posttraining.pruning.structures import FIXED, KINDS, Verifier
from thrifty.posttraining.pruning.widths import alike, role
from thrifty.posttraining.quantization.outputs import Outputs
from thrifty.recipes.context import Context

DEPTH, WIDTH, KERNEL = "depth", "width", "kernel"
SHOWN = 16
"""Requests on which a smaller model must give what the masked one gives, and blocks are ranked."""


@final
@dataclass(frozen=True)
class Elastic:
    """What may differ between subnets.

    Args:
        widths: shares of channels that a group may keep, below 1.
        depth: whether blocks may be left out.
        kernel: whether kernels may be cropped.
        structure: of `KINDS`, the channels that leave.
        criterion: by which channels are ranked.
        round_to: widths are multiples of it; heads leave one by one.
    """

    widths: tuple[float, ...]
    depth: bool
    kernel: bool
    structure: str
    criterion: str
    round_to: int


@final
@dataclass(frozen=True)
class Variable:
    """One decision.

    Args:
        kind: DEPTH, WIDTH or KERNEL.
        name: the container of blocks, the first tensor of a group (or its role, where groups are tied), the convolution.
        options: blocks left out, channels kept, or the kernel's size; as it is first, then ever smaller.
    """

    kind: str
    name: str
    options: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    def at(self, share: float) -> int:
        """The option of a width nearest to a share."""
        return min(self.options, key=lambda option: abs(option - share * self.options[0]))


Subnet = Mapping[str, int]
"""{variable's key: option} of all variables of a space."""


@final
@dataclass(frozen=True)
class _Shallow:
    """The model without some of its blocks: its groups, and how much their channels matter."""

    model: nn.Module
    found: Dependencies
    scores: list[np.ndarray]


@final
class Space:
    """All subnets of a model.

    Blocks are left out first, the least missed of each container before the others; groups of channels are found on what is
    left, of which the most important stay; kernels are cropped last.

    Args:
        model: in eval mode; not changed.
        elastic: what may differ.
        context: with the example, and the data that the criterion needs.

    Raises:
        ThriftyError: the model cannot be exported, and channels are to leave.
    """

    def __init__(self, model: nn.Module, elastic: Elastic, context: Context) -> None:
        self.model, self.elastic, self._context = model.eval(), elastic, context
        self.left: dict[str, str] = {}
        """{block or layer: why it stays as it is}."""
        self._shown = tuple(x[:SHOWN] for x in next(iter(context.calibration()), context.example))
        self._wrapped: dict[str, bool] = {}
        self._stages = self._ordered() if elastic.depth else {}
        self._sizes = kernels(model) if elastic.kernel else {}
        self._tied = bool(attributes.configurations(model))
        self._owners: dict[Place, str] = {}
        self._shallow = functools.cache(self._without)
        depths = [Variable(DEPTH, name, tuple(range(len(found) + 1))) for name, found in self._stages.items()]
        crops = [Variable(KERNEL, name, sizes) for name, sizes in self._sizes.items()]
        self.variables = (*depths, *(self._widths() if elastic.widths else ()), *crops)

    # -- which there are ------------------------------------------------------------------------------------------

    def _ordered(self) -> dict[str, list[str]]:
        """{container: blocks that can be left out, the least missed first}, by how far the outputs move without each."""
        found, self.left = blocks(self.model, names(self.model), self._context.example)
        self._wrapped = {one.name: one.wrapped for one in found if one.skippable}
        moved: dict[str, list[tuple[float, str]]] = {}
        with torch.no_grad():
            outputs = Outputs(self.model, self._shown)
            for name, wrapped in self._wrapped.items():
                error = outputs.error(without(self.model, {name: wrapped}))
                moved.setdefault(name.rpartition(".")[0], []).append((error, name))
        return {container: [name for _, name in sorted(each)] for container, each in moved.items()}

    def _widths(self) -> list[Variable]:
        whole = self._shallow(())
        usable = {i for i, group in enumerate(whole.found.groups) if group.kind in KINDS[self.elastic.structure]}
        units = {role(whole.found, groups[0]) if self._tied else next(iter(whole.found.groups[groups[0]].members)).tensor: groups
                 for groups in alike(whole.found, usable, self._tied).values()}
        options = {name: self._options(whole.found, groups[0]) for name, groups in units.items()}
        least = {i: ranked(whole.scores[i], options[name][-1]) for name, groups in units.items() for i in groups
                 if len(options[name]) > 1}
        verifier = Verifier(whole.model, whole.found, self._shown)
        fixed = verifier.faulty(least) if least and verifier.settled(least) is None else set()
        made = []
        for name, groups in units.items():
            if fixed.intersection(groups):
                self.left[name.rpartition(".")[0]] = FIXED
            elif len(options[name]) > 1:
                made.append(Variable(WIDTH, name, options[name]))
                self._owners |= {place: made[-1].key for i in groups for place in whole.found.groups[i].members}
        return made

    def _options(self, found: Dependencies, i: int) -> tuple[int, ...]:
        group = found.groups[i]
        step = 1 if group.kind == "heads" else self.elastic.round_to
        wanted = {max(step, round(share * group.size / step) * step) for share in self.elastic.widths}
        return (group.size, *sorted((n for n in wanted if n < group.size), reverse=True))

    @property
    def size(self) -> int:
        """How many subnets there are, the model as it is among them."""
        return math.prod(len(variable.options) for variable in self.variables)

    @property
    def whole(self) -> Subnet:
        """The model as it is."""
        return {variable.key: variable.options[0] for variable in self.variables}

    def uniform(self) -> Iterator[Subnet]:
        """Subnets that treat all alike: every share in all groups, the smallest kernels everywhere, the smallest of all."""
        for share in sorted(self.elastic.widths, reverse=True):
            yield {v.key: v.at(share) if v.kind == WIDTH else v.options[0] for v in self.variables}
        yield {v.key: v.options[-1] if v.kind == KERNEL else v.options[0] for v in self.variables}
        yield {v.key: v.options[-1] for v in self.variables}

    def every(self) -> Iterator[Subnet]:
        """All of them."""
        for options in itertools.product(*(variable.options for variable in self.variables)):
            yield dict(zip((variable.key for variable in self.variables), options, strict=True))

    def told(self, subnet: Subnet) -> tuple[str, ...]:
        """What differs from the model as it is, in words: of two subnets the same where they are the same."""
        gone = self._gone(subnet)
        less = [v for v in self.variables if v.kind != DEPTH and subnet[v.key] < v.options[0] and not _within(v.name, gone)]
        return (*(f"{name} left out" for name in gone), *(f"{v.key} {subnet[v.key]} of {v.options[0]}" for v in less))

    def _gone(self, subnet: Subnet) -> tuple[str, ...]:
        return tuple(name for v in self.variables if v.kind == DEPTH for name in self._stages[v.name][:subnet[v.key]])

    # -- one of them ----------------------------------------------------------------------------------------------

    def decide(self, subnet: Subnet) -> dict[str, Any]:
        """How a subnet is made: JSON values, from which `build` makes it of a fresh model.

        Raises:
            ThriftyError: the model's own code counts on what would leave.
        """
        gone = self._gone(subnet)
        less = {v: subnet[v.key] for v in self.variables if v.kind != DEPTH and subnet[v.key] < v.options[0]}
        sizes = {v.name: size for v, size in less.items() if v.kind == KERNEL and not _within(v.name, gone)}
        cutting = self._cutting({v.key: kept for v, kept in less.items() if v.kind == WIDTH}, gone)
        return {"left_out": {name: self._wrapped[name] for name in gone}, "cutting": cutting, "kernels": sizes}

    def _cutting(self, kept: Mapping[str, int], gone: tuple[str, ...]) -> dict[str, Any] | None:
        if not kept:
            return None
        shallow = self._shallow(gone)
        cut = {}
        for i, group in enumerate(shallow.found.groups):
            key = next((self._owners[place] for place in group.members if place in self._owners), "")
            if key in kept and kept[key] < group.size:
                cut[i] = ranked(shallow.scores[i], kept[key])
        if not cut:
            return None
        told = Verifier(shallow.model, shallow.found, self._shown).settled(cut)
        if told is None:
            raise ThriftyError(f"{FIXED}, of these widths together")
        kinds = KINDS[self.elastic.structure]
        return structures.decided(shallow.model, shallow.found, cut, told, kinds, {}).to_json()

    def _without(self, gone: tuple[str, ...]) -> _Shallow:
        model = without(self.model, {name: self._wrapped[name] for name in gone})
        found = dependencies(model, self._context.example)
        return _Shallow(model, found, scored(self.elastic.criterion, "l2", model, found, self._context))


def without(model: nn.Module, gone: Mapping[str, bool]) -> nn.Module:
    """A copy of the model without those blocks.

    Args:
        model: not changed.
        gone: {block: whether it gives a tuple}.
    """
    return _left_out(copy.deepcopy(model), gone)


def _left_out(model: nn.Module, gone: Mapping[str, bool]) -> nn.Module:
    for name, wrapped in gone.items():
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise ThriftyError(f"the plan leaves out {name}, which this model does not have: it was made for another "
                               "model") from error
        graphs.replace(model, name, LeftOut(wrapped))
    return model


def build(model: nn.Module, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A subnet, in place.

    Args:
        model: as the space was made of; changed.
        values: of `Space.decide`.
        tensors: statistics and weights by name.
    """
    _left_out(model, values["left_out"])
    if values["cutting"]:
        structures.build(model, values["cutting"])
    crop(model, values["kernels"])
    held = dict(named_tensors(model))
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in held or held[name].shape != value.shape:
                raise ThriftyError(f"the plan sets {name}, which this model does not have in that shape: it was made for another "
                                   "model")
            held[name].copy_(value)
    return model.eval()


def changes(values: Mapping[str, Any]) -> dict[str, str]:
    """{layer: what became of it} of a subnet, by its values."""
    found: dict[str, list[str]] = {name: ["left out"] for name in values["left_out"]}
    for tensor, dim, kept in (values["cutting"] or {}).get("slices", []):
        if not tensor.endswith(("bias", "running_mean", "running_var")):
            found.setdefault(tensor.rpartition(".")[0], []).append(f"{len(kept)} along {dim}")
    for name, size in values["kernels"].items():
        found.setdefault(name, []).append(f"kernel {size}")
    return {name: ", ".join(made) for name, made in found.items()}


def _within(name: str, gone: Collection[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in gone)
