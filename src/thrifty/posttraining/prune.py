"""Structured pruning: whole channels leave, and tensors become smaller."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.flat import tensors_of
from thrifty.numerics.plain import bake
from thrifty.posttraining.dependency import Dependencies, Group, Place, dependencies
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import choice, number
from thrifty.recipes.transform import Plan, Transform

Cut = Mapping[int, Sequence[int]]
"""{group's position: the channels that stay, ascending}."""


@final
@dataclass(frozen=True)
class Prune(Transform):
    """Remove the least important channels of convolutions and the least important units of linear layers.

    Channels that are tied together (by a residual sum, a batch norm, a depthwise convolution, a flattening) leave
    together. Every group of n such channels loses the same share, to a multiple of ``round_to``, the share being the
    one that brings the parameters of the whole model nearest to (1 - ratio) of what they were. Within a group, the
    channels of least importance leave:

        importance(c) = sum over tied tensors W of ||W[c]|| / mean over c' of ||W[c']||

    Inputs, outputs, and what passes a layer norm or an attention stay as they are: of a transformer, the hidden units
    of its feed-forward layers leave. Nothing is trusted unseen: on the example, the smaller model must give what the
    original gives with the channels' readers zeroed, or the group at fault stays whole.

    Args:
        ratio: share of the model's parameters to remove.
        importance: the norm, "l2" or "l1".
        round_to: every pruned width is a multiple of it, and at least it.

    >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> Prune(ratio=0.5)(net, [torch.randn(16, 8)])[0]
    Linear(in_features=8, out_features=32, bias=True)
    """

    ratio: float = number(0.5, 0, 1, open_low=True, open_high=True, search=(0.25, 0.5, 0.75, 0.875))
    importance: str = choice("l2", "l2", "l1")
    round_to: int = number(8, 1)

    name: ClassVar[str] = "prune"
    card: ClassVar[Card] = Card(
        family="pruning",
        benefit="inference time",
        trade_off="quality, in part won back by training again",
        paper='"Pruning Filters for Efficient ConvNets", Li et al. 2016, arXiv:1608.08710; "DepGraph: Towards Any '
              'Structural Pruning", Fang et al. 2023, arXiv:2301.12900',
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"pruned"}),
        refuses=frozenset({"mixture"}),  # units of experts are in no layer that it knows
    )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide which channels stay.

        Raises:
            NoEffect: no channel can be removed, or the ratio is below half the smallest cut.
            ThriftyError: the ratio is above what can be removed, or the model cannot be exported.
        """
        model = copy.deepcopy(model).eval()
        bake(model)
        shown = next(iter(context.calibration()), context.example)  # an example may be of zeros, which hide what differs
        with torch.no_grad():
            found = dependencies(model, context.example)
            scores = {i: importance(model, group, found, self.importance) for i, group in enumerate(found.groups)}
            usable = set(scores)
            while True:
                cut = {i: _best(scores[i], kept) for i, kept in self.widths(model, found, usable).items()}
                faulty = unsound(model, found, cut, shown)
                if not faulty:
                    break
                usable -= faulty  # the model's code takes these widths for granted: the others lose more
                context.progress("left whole, since the model's code counts on their width: "
                                 + ", ".join(sorted(p.tensor for i in faulty for p in found.groups[i].members)[:8]))
        return Plan({"slices": [[p.tensor, p.dim, kept] for p, kept in slices(model, found, cut).items()]})

    def widths(self, model: nn.Module, found: Dependencies, usable: set[int]) -> dict[int, int]:
        """{group: channels that stay}, of the groups that lose any.

        Widths fall one multiple at a time, the group that has lost the smallest share first; the parameters fall
        with them, so the step that comes nearest to the ratio is found by bisection.
        """
        steps = sorted((1 - kept / n, i, kept) for i in usable for n in [found.groups[i].size]
                       for kept in range((n - 1) // self.round_to * self.round_to, 0, -self.round_to))
        if not steps:
            raise NoEffect(f"prune finds nothing to remove: no width that can change is above {self.round_to}")
        sizes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
        total = sum(int(np.prod(shape)) for shape in sizes.values())

        def removed(count: int) -> float:
            return 1 - _parameters(sizes, found, {i: kept for _, i, kept in steps[:count]}) / total

        low, high = 0, len(steps)
        most = removed(high)
        if most < self.ratio and round(most, 3) < self.ratio:
            raise ThriftyError(f"prune(ratio={self.ratio:g}): at most {most:.3f} of this model's parameters can be "
                               f"removed (the rest belongs to inputs, outputs, embeddings, attention or norms, or to "
                               f"widths of {self.round_to} and less); choose a ratio up to {np.floor(most * 100) / 100:g}")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if removed(middle) <= self.ratio else (low, middle)
        count = min((low, high), key=lambda k: abs(removed(k) - self.ratio))
        if count == 0:
            raise NoEffect(f"prune(ratio={self.ratio:g}) removes nothing: with widths in multiples of {self.round_to} "
                           f"the smallest cut is {removed(1):.3f} of the parameters; raise ratio or lower round_to")
        return {i: kept for _, i, kept in steps[:count]}

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        bake(model)
        return shrink(model, {Place(name, dim): kept for name, dim, kept in plan.values["slices"]})

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        had, has = weight_elements(before), weight_elements(after)
        return (Claim("elements of weights", had, has, minimum=max(1.0, 0.5 * (had - has)), probe=weight_elements),)


def weight_elements(model: nn.Module) -> float:
    """Elements of all weights of two dimensions or more, integer ones included: quantizing removes none."""
    kept = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values() if tensor.ndim > 1}
    return float(sum(kept.values()))


def parameters(model: nn.Module) -> float:
    """Elements of all parameters."""
    return float(sum(p.numel() for p in model.parameters()))


# -- deciding ---------------------------------------------------------------------------------------------------


def importance(model: nn.Module, group: Group, found: Dependencies, norm: str) -> np.ndarray:
    """[channels] sum over the group's weights of the norms of each channel's slices, each weight's mean being 1.

    Biases are left out: what they add is the same for every input.
    """
    weights = dict(model.named_parameters())
    total = np.zeros(group.size)
    for place, indices in group.members.items():
        weight = weights.get(place.tensor)
        if weight is None or (weight.ndim < 2 and place.tensor not in found.scales):
            continue
        size = weight.detach().abs().double()
        rows = size.movedim(place.dim, 0).flatten(1) if weight.ndim > 1 else size[:, None]
        sums = (rows if norm == "l1" else rows.square()).sum(1).cpu().numpy()[indices].sum(1)
        norms = sums if norm == "l1" else np.sqrt(sums)
        total += norms / max(norms.mean(), 1e-30)
    return total


def _best(scores: np.ndarray, kept: int) -> list[int]:
    """The ``kept`` highest, in ascending order; of equals the earlier."""
    return sorted(np.argsort(-scores, kind="stable")[:kept].tolist())


def _parameters(sizes: Mapping[str, tuple[int, ...]], found: Dependencies, widths: Mapping[int, int]) -> int:
    """Parameters of the model when groups have these widths."""
    shapes = {name: list(shape) for name, shape in sizes.items()}
    for i, kept in widths.items():
        for place, indices in found.groups[i].members.items():
            if place.tensor in shapes:
                shapes[place.tensor][place.dim] -= (len(indices) - kept) * indices.shape[1]
    return sum(int(np.prod(shape)) for shape in shapes.values())


def slices(model: nn.Module, found: Dependencies, cut: Cut) -> dict[Place, list[int]]:
    """{place: indices that stay, ascending} of every dimension that shrinks."""
    gone: dict[Place, set[int]] = defaultdict(set)
    for i, kept in cut.items():
        staying = set(kept)
        leaving = [c for c in range(found.groups[i].size) if c not in staying]
        for place, indices in found.groups[i].members.items():
            gone[place].update(indices[leaving].reshape(-1).tolist())
    shapes = {name: tensor.shape for name, tensor in _tensors(model)}
    return {place: [k for k in range(shapes[place.tensor][place.dim]) if k not in lost]
            for place, lost in gone.items()}


def unsound(model: nn.Module, found: Dependencies, cut: Cut, example: tuple[Tensor, ...]) -> set[int]:
    """The groups that cannot be cut with the others; most often none, which one look at them all tells."""
    if sound(model, found, cut, example):
        return set()
    accepted: dict[int, Sequence[int]] = {}
    for i, kept in cut.items():
        if sound(model, found, {**accepted, i: kept}, example):
            accepted[i] = kept
    return set(cut) - set(accepted)


def sound(model: nn.Module, found: Dependencies, cut: Cut, example: tuple[Tensor, ...]) -> bool:
    """Whether the smaller model runs, and gives what the original gives when nothing reads the removed channels."""
    kept = slices(model, found, cut)
    try:
        smaller = tensors_of(shrink(copy.deepcopy(model), kept)(*example))
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError):
        return False
    expected = tensors_of(masked(model, found, kept)(*example))
    return len(smaller) == len(expected) and all(a.shape == b.shape and _close(a, b)
                                                 for a, b in zip(smaller, expected, strict=True) if b.numel())


def _close(a: Tensor, b: Tensor) -> bool:
    if a.is_complex() != b.is_complex():
        return False
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a, b))
    return torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-3 * float(b.abs().max()), equal_nan=True)


def masked(model: nn.Module, found: Dependencies, kept: Mapping[Place, Sequence[int]]) -> nn.Module:
    """A copy of the model, of the same size, with zeros wherever a removed channel would be read."""
    model = copy.deepcopy(model)
    tensors = dict(_tensors(model))
    with torch.no_grad():
        for place, staying in kept.items():
            if place in found.reads:
                lost = torch.ones(tensors[place.tensor].shape[place.dim], dtype=torch.bool)
                lost[list(staying)] = False
                tensors[place.tensor].index_fill_(place.dim, lost.nonzero()[:, 0].to(tensors[place.tensor].device), 0)
    return model


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


# -- building ---------------------------------------------------------------------------------------------------


def shrink(model: nn.Module, stays: Mapping[Place, Sequence[int]]) -> nn.Module:
    """Slice tensors of a model in place, wherever they stand, and tell modules of their new widths.

    Args:
        stays: {dimension of a parameter or buffer: indices that stay}.

    Raises:
        ThriftyError: the model does not have such a tensor.
    """
    cuts: dict[str, list[tuple[int, Sequence[int]]]] = defaultdict(list)
    for place, kept in stays.items():
        cuts[place.tensor].append((place.dim, kept))
    smaller: dict[int, Tensor] = {}
    before = dict(_tensors(model))
    for name, parts in cuts.items():
        if name not in before:
            raise ThriftyError(f"the plan prunes {name}, which this model does not have: it was made for another model")
        tensor = before[name].detach()
        for dim, kept in parts:
            if kept and (dim >= tensor.ndim or max(kept) >= tensor.shape[dim]):
                raise ThriftyError(f"the plan does not fit {name} of shape {tuple(before[name].shape)}: it was made "
                                   "for another model")
            tensor = tensor.index_select(dim, torch.tensor(list(kept), device=tensor.device))
        smaller[id(before[name])] = (nn.Parameter(tensor, requires_grad=before[name].requires_grad)
                                     if isinstance(before[name], nn.Parameter) else tensor)
    for module in model.modules():  # a tied tensor is replaced in every place by the same new one
        changed = False
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in own:
            for key, value in store.items():
                if id(value) in smaller:
                    store[key] = smaller[id(value)]
                    changed = True
        if changed:
            _tell(module)
    return model


def _tell(module: nn.Module) -> None:
    """Bring a module's own record of its widths up to date: printing, exporting and depthwise groups depend on it."""
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            if module.groups > 1:  # depthwise, the only one that is pruned
                module.groups = module.weight.shape[0]
            module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
        case nn.Embedding():
            module.embedding_dim = module.weight.shape[1]
        case nn.modules.batchnorm._BatchNorm():
            width = module.weight if module.weight is not None else module.running_mean
            module.num_features = len(width) if width is not None else module.num_features
