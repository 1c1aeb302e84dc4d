"""A plan for channels, heads and the residual stream: what leaves, checked on the model itself, and what stays and why."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.posttraining.pruning import attributes
from thrifty.posttraining.pruning.attributes import Told
from thrifty.posttraining.pruning.criteria import ranked, scored
from thrifty.posttraining.pruning.cutting import Cut, agree, masked, named_tensors, rescaled, shrink, slices
from thrifty.posttraining.pruning.dependency import Dependencies, Kind, Place, dependencies
from thrifty.posttraining.pruning.widths import Goal, role, share, widths
from thrifty.recipes.context import Context

KINDS: Mapping[str, frozenset[Kind]] = {
    "channels": frozenset({"channels"}), "heads": frozenset({"heads"}), "residual": frozenset({"residual"}),
    "width": frozenset({"channels", "heads", "residual"}),
}
"""{structure: kinds of groups that it removes channels of}."""
FIXED = "the model's own code depends on its width"


@final
@dataclass(frozen=True)
class Cutting:
    """What leaves, and all that the smaller model needs.

    Args:
        stays: {dimension of a tensor: indices that stay}.
        scales: {norm's weight: factor}.
        told: numbers of modules.
        config: changes of each configuration.
        left: {layer: why nothing of it leaves}.
        removed: share of parameters, and of multiply-adds.
    """

    stays: Mapping[Place, list[int]]
    scales: Mapping[str, float]
    told: Told
    config: list[dict[str, Any]]
    left: Mapping[str, str]
    removed: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {"slices": [[p.tensor, p.dim, kept] for p, kept in self.stays.items()], "scales": dict(self.scales),
                "told": [[name, key, value] for (name, key), value in self.told.items()], "config": self.config,
                "left": dict(self.left), "removed": list(self.removed)}


def build(model: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """The smaller model, in place, from `Cutting.to_json`."""
    told = {(name, key): value for name, key, value in values.get("told", [])}
    modules = dict(model.named_modules())
    if missing := [name for name, _ in told if name not in modules]:
        raise ThriftyError(f"the plan changes {missing[0]}, which this model does not have: it was made for another model")
    shrink(model, {Place(name, dim): kept for name, dim, kept in values["slices"]}, values.get("scales", {}))
    attributes.tell(model, told)
    if any(values.get("config", ())):
        attributes.configure(model, values["config"])
    return model


def cutting(model: nn.Module, context: Context, structure: str, criterion: str, norm: str, goal: Goal,
            keep: Collection[str] = ()) -> Cutting:
    """Decide what leaves.

    Args:
        model: in eval mode; not changed.
        context: with the example, and the data that the criterion needs.
        structure: of `KINDS`.
        criterion, norm: by which channels are ranked.
        goal: how much is to leave.
        keep: names of layers that stay as they are.

    Raises:
        NoEffect, ThriftyError: nothing, or not so much, can be removed; the model cannot be exported.
    """
    shown = next(iter(context.calibration()), context.example)  # an example may be of zeros, which hide what differs
    found = dependencies(model, context.example)
    scores = scored(criterion, norm, model, found, context)
    kinds = KINDS[structure]
    usable = {i for i, group in enumerate(found.groups) if group.kind in kinds
              and not any(place.tensor.rpartition(".")[0] in keep for place in group.members)}
    fixed: set[int] = set()
    while True:
        if fixed and not usable:
            raise NoEffect(f"prune(structure={structure}) can remove nothing: {FIXED}, for each of "
                           + ", ".join(sorted({role(found, i) for i in fixed})[:6]))
        kept = widths(found, usable, scores, goal)
        cut = {i: ranked(scores[i], n) for i, n in kept.items()}
        verifier = Verifier(model, found, shown)
        told = verifier.settled(cut)
        if told is not None:
            break
        faulty = verifier.faulty(cut)
        usable -= faulty  # the others lose more
        fixed |= faulty
    left = _left(model, found, slices(model, found, cut), kinds, fixed, keep)
    return decided(model, found, cut, told, kinds, left)


def decided(model: nn.Module, found: Dependencies, cut: Cut, told: Told, kinds: Collection[Kind],
            left: Mapping[str, str]) -> Cutting:
    """All that the smaller model needs of a cut that a `Verifier` settled.

    Args:
        model: before it is cut.
        found: its groups.
        cut: what stays of those that lose channels.
        told: the numbers to change with it.
        kinds: of groups that could lose any.
        left: {layer: why nothing of it leaves}.
    """
    kept = {i: len(staying) for i, staying in cut.items()}
    stays = slices(model, found, cut)
    config = attributes.configured(model, _sizes(found, kept, kinds)) if attributes.configurations(model) else []
    return Cutting(stays, rescaled(model, found, stays), told, config, left,
                   (share(found, kept, "parameters"), share(found, kept, "macs")))


@final
class Verifier:
    """Nothing is trusted unseen: the smaller model must give what the original gives with the channels' readers zeroed."""

    def __init__(self, model: nn.Module, found: Dependencies, example: tuple[Tensor, ...]) -> None:
        self.model, self.found, self.example = model, found, example

    def settled(self, cut: Cut) -> Told | None:
        """The numbers to change with which this cut is right; None where there are none."""
        stays = slices(self.model, self.found, cut)
        scales = rescaled(self.model, self.found, stays)
        told = attributes.candidates(self.model, self.found, {i: len(kept) for i, kept in cut.items()})
        with torch.no_grad():
            whole = masked(self.model, self.found, stays)

            def works(chosen: Told) -> bool:
                trial = copy.deepcopy(self.model)
                shrink(trial, stays, scales)
                attributes.tell(trial, chosen)
                return agree(trial, whole, self.example)

            return attributes.settle(told, self.model, works)

    def faulty(self, cut: Cut) -> set[int]:
        """Groups that cannot be cut with the others: by role first, then one by one."""
        accepted: dict[int, Any] = {}
        roles: dict[str, list[int]] = defaultdict(list)
        for i in cut:
            roles[role(self.found, i)].append(i)
        for same in roles.values():
            if self.settled({**accepted, **{i: cut[i] for i in same}}) is not None:
                accepted |= {i: cut[i] for i in same}
            elif len(same) > 1:
                for i in same:
                    if self.settled({**accepted, i: cut[i]}) is not None:
                        accepted[i] = cut[i]
        return set(cut) - accepted.keys() or set(cut)


def _sizes(found: Dependencies, kept: Mapping[int, int], kinds: Collection[Kind]) -> dict[str, dict[int, set[int]]]:
    """{kind: {width before: widths after}} of all groups of the kinds that were cut, those that stay included."""
    sizes: dict[str, dict[int, set[int]]] = {}
    for i, group in enumerate(found.groups):
        if group.kind in kinds:
            sizes.setdefault(group.kind, {}).setdefault(group.size, set()).add(kept.get(i, group.size))
    return sizes


def _left(model: nn.Module, found: Dependencies, stays: Mapping[Place, list[int]], kinds: Collection[Kind], fixed: set[int],
          keep: Collection[str]) -> dict[str, str]:
    """{layer: why} of layers with a weight of two dimensions or more of which nothing leaves."""
    grouped = {place: i for i, group in enumerate(found.groups) for place in group.members}
    cut = {place.tensor for place in stays}
    left: dict[str, str] = {}
    for name, tensor in named_tensors(model):
        if tensor.ndim < 2 or name in cut or not isinstance(tensor, nn.Parameter):
            continue
        layer = name.rpartition(".")[0] or name
        if layer in keep:
            left[layer] = "it is kept by name"
            continue
        for dim in range(tensor.ndim):
            place = Place(name, dim)
            i = grouped.get(place)
            if i is None:
                why = found.kept.get(place)
            elif found.groups[i].kind not in kinds:
                why = f"it is removed with structure={found.groups[i].kind}"
            else:
                why = FIXED if i in fixed else "it is as narrow as it may be, or loses nothing at this ratio"
            if why:
                left.setdefault(layer, why)
    return left
