"""Structured pruning: channels are removed, so that every tensor is really smaller."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.method import Card, Claim, Context, Plan, Transform, choice, number
from thrifty.posttraining.dependency import Group, groups

TOLERANCE = 1e-3
"""Largest relative difference between the pruned model and the original with the same channels masked."""


@final
@dataclass(frozen=True)
class Prune(Transform):
    """Remove the channels of least norm, with everything that depends on them.

    Layers are coupled by a dependency graph (residual sums, norms, flattening, gates); each group of coupled layers
    loses the same share s of its channels, the ones with the smallest

        ||w_c||_p = (sum over all weights' slices that belong to channel c of |w|^p)^(1/p),

    where s is found by bisection so that ``ratio`` of the model's parameters go. The channels that are kept are a
    multiple of ``round_to``, since odd widths are slower than the next multiple of 8.

    Args:
        ratio: share of the model's parameters to remove. (Removing a share s of every layer's channels removes about
            1 - (1 - s)^2 of the parameters: this is the share of parameters, what the user pays for.)
        importance: ``l2`` or ``l1``: the norm's p.
        round_to: kept channels of each layer are a multiple of this, and at least this many.

    >>> net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> Prune(ratio=0.5)(net, [torch.randn(8, 4)])[0].out_features
    32
    """

    ratio: float = number(0.5, 0, 1, open_low=True, open_high=True)
    importance: str = choice("l2", "l1", "l2")
    round_to: int = number(8, 1)

    name: ClassVar[str] = "prune"
    card: ClassVar[Card] = Card(
        family="pruning",
        benefit="inference time",
        trade_off="quality, which training afterwards wins back in part",
        paper='"Pruning Filters for Efficient ConvNets", Li et al. 2016, arXiv:1608.08710; "DepGraph: Towards Any '
              'Structural Pruning", Fang et al. 2023, arXiv:2301.12900',
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"pruned"}),
    )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        found = groups(model, context.example)
        if not found:
            raise NoEffect(
                "prune found no channels that can be removed: every layer's channels reach the model's outputs, or an "
                "operator that mixes them"
            )
        weights = {**dict(model.named_parameters(remove_duplicate=False)),
                   **dict(model.named_buffers(remove_duplicate=False))}
        keep = self._widths(found, {name: tuple(p.shape) for name, p in model.named_parameters()})
        ranked = [rank(group, weights, {"l1": 1.0, "l2": 2.0}[self.importance]) for group in found]
        removed: dict[tuple[str, int], set[int]] = defaultdict(set)
        for group, order, kept in zip(found, ranked, keep, strict=True):
            for channel in order[kept:]:
                for part in group.channels[channel]:
                    removed[part.name, part.dim].add(part.index)
        kept_indices = {
            f"{name}:{dim}": torch.tensor([i for i in range(weights[name].shape[dim]) if i not in gone])
            for (name, dim), gone in removed.items()
        }
        plan = Plan({"layers": {group.layers[0]: kept for group, kept in zip(found, keep, strict=True)}}, kept_indices)
        verify(model, self.build(copy.deepcopy(model), plan), plan, context.example)
        return plan

    def _widths(self, found: Sequence[Group], shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
        """Channels that each group keeps, by bisection on the share that all groups lose.

        Raises:
            NoEffect: rounding leaves everything as it is.
            ThriftyError: even the smallest widths do not remove ``ratio`` of the parameters.
        """
        sizes = [len(group.channels) for group in found]
        total = sum(_numel(shape) for shape in shapes.values())

        def widths(share: float) -> list[int]:
            return [min(n, max(self.round_to, round((1 - share) * n / self.round_to) * self.round_to)) for n in sizes]

        def gone(keep: Sequence[int]) -> float:
            return 1 - parameters(found, keep, shapes) / total

        most = gone(widths(1.0))
        if most < 0.9 * self.ratio:
            raise ThriftyError(
                f"prune(ratio={self.ratio}): at most {most:.3f} of the parameters can be removed here, since the rest "
                f"is in layers that cannot shrink or are at {self.round_to} channels; ask for at most {most:.2f}"
            )
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if gone(widths(middle)) < self.ratio else (low, middle)
        keep = min((widths(low), widths(high)), key=lambda each: abs(gone(each) - self.ratio))
        if keep == sizes:
            keep = widths(high)
        if keep == sizes:
            raise NoEffect(f"prune(ratio={self.ratio}) removes nothing once widths are rounded to {self.round_to}")
        return keep

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        for place, kept in plan.tensors.items():
            name, _, dim = place.rpartition(":")
            shrink(model, name, int(dim), kept)
        return model

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        old, new = count_parameters(before), count_parameters(after)
        return (Claim("parameters", old, new, minimum=max(1.0, 0.5 * self.ratio * old), probe=count_parameters),)


def count_parameters(model: nn.Module) -> float:
    """Elements of all weights, whatever their type: quantized ones are counted too."""
    seen = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values() if tensor.ndim > 1}
    return float(sum(seen.values()))


def rank(group: Group, weights: Mapping[str, Tensor], p: float) -> list[int]:
    """Channels of a group, the largest norm over all their slices of weights first; ties by position.

    Args:
        group: of coupled channels.
        weights: by name.
        p: of the norm.
    """
    norms: dict[tuple[str, int], Tensor] = {}
    for channel in group.channels:
        for part in channel:
            if (part.name, part.dim) not in norms and weights[part.name].ndim > 1:
                weight = weights[part.name].detach().double()
                norms[part.name, part.dim] = weight.abs().pow(p).movedim(part.dim, 0).flatten(1).sum(1)
    score = [sum(float(norms[x.name, x.dim][x.index]) for x in channel if (x.name, x.dim) in norms)
             for channel in group.channels]
    return sorted(range(len(score)), key=lambda i: (-score[i], i))


def parameters(found: Sequence[Group], keep: Sequence[int], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters that are left when each group keeps that many channels."""
    share: dict[tuple[str, int], float] = defaultdict(float)
    for group, kept in zip(found, keep, strict=True):
        for channel in group.channels[kept:]:
            for part in channel:
                share[part.name, part.dim] += 1
    return sum(_numel([n - share[name, dim] for dim, n in enumerate(shape)]) for name, shape in shapes.items())


def _numel(shape: Sequence[float]) -> int:
    product = 1.0
    for n in shape:
        product *= n
    return int(product)


_WIDTHS: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "weight": {0: ("out_channels", "out_features", "num_features", "num_channels"), 1: ("in_channels", "in_features")},
}
"""Attributes by which torch's layers repeat their weights' shapes."""


def shrink(model: nn.Module, name: str, dim: int, kept: Tensor) -> None:
    """Keep some indices of one dimension of a parameter or buffer, and the layer's own account of its shape."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    old: Tensor = getattr(module, attribute)
    if kept.numel() == old.shape[dim]:
        return
    smaller = old.detach().index_select(dim, kept.to(old.device)).contiguous()
    if isinstance(old, nn.Parameter):
        setattr(module, attribute, nn.Parameter(smaller, requires_grad=old.requires_grad))
    else:
        setattr(module, attribute, smaller)
    for width in _WIDTHS.get(attribute, {}).get(dim, ()):
        if hasattr(module, width):
            setattr(module, width, len(kept))
    depthwise = getattr(module, "groups", 1) > 1
    if depthwise and attribute == "weight" and dim == 0:
        module.groups = module.in_channels = len(kept)  # type: ignore[assignment]


def verify(model: nn.Module, pruned: nn.Module, plan: Plan, example: tuple[Tensor, ...]) -> None:
    """Compare the pruned model with the original whose removed channels are cut off from what reads them.

    Raises:
        ThriftyError: they differ, or the pruned model does not run: the model's code depends on a width.
    """
    masked = copy.deepcopy(model)
    for place, kept in plan.tensors.items():
        name, _, dim = place.rpartition(":")
        if int(dim) == 1:
            weight = masked.get_submodule(name.rpartition(".")[0])
            gone = torch.ones(getattr(weight, name.rpartition(".")[2]).shape[1], dtype=torch.bool)
            gone[kept] = False
            with torch.no_grad():
                getattr(weight, name.rpartition(".")[2])[:, gone] = 0
    try:
        with torch.no_grad():
            want, got = _flat(masked.eval()(*example)), _flat(pruned.eval()(*example))
    except Exception as error:
        raise ThriftyError(
            f"the model's code depends on a width that prune would change: {type(error).__name__}: {error}. Write "
            "sizes from tensors' shapes, such as x.flatten(1), rather than as numbers"
        ) from error
    difference = float((want - got).norm() / want.norm().clamp_min(1e-12))
    if not difference <= TOLERANCE:
        raise ThriftyError(
            f"prune would change more than the channels that it removes (relative difference {difference:.3g}); the "
            "model's code depends on a width"
        )


def _flat(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs.double().flatten()
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return torch.cat([_flat(x) for x in values if isinstance(x, Tensor)])
