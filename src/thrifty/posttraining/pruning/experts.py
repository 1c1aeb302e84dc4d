"""Experts: of each mixture those that its router sends the least to leave."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.pruning import attributes
from thrifty.posttraining.pruning.cutting import agree, shrink
from thrifty.posttraining.pruning.dependency import Place
from thrifty.recipes.context import Context


@final
@dataclass(frozen=True)
class Mixture:
    """Experts in one place, and the router before them.

    Args:
        name: of the module that holds both.
        router: the name of the router's weight, [experts, width].
        tensors: of which the first dimension is the experts', the router's among them.
        experts: how many there are.
        least: how many a token is sent to.
    """

    name: str
    router: str
    tensors: tuple[str, ...]
    experts: int
    least: int


def mixtures(model: nn.Module) -> list[Mixture]:
    """The mixtures of a model: the innermost modules with one matrix of as many rows as tensors of three dimensions have
    matrices."""
    found: list[Mixture] = []
    for name, module in reversed(list(model.named_modules())):
        own = dict(module.named_parameters(prefix=name))
        stacked = {p.shape[0] for p in own.values() if p.ndim == 3}
        if len(stacked) != 1 or any(one.name.startswith(f"{name}.") for one in found):
            continue
        (count,) = stacked
        routers = [tensor for tensor, p in own.items() if p.ndim == 2 and p.shape[0] == count]
        counters = [tensor for tensor, b in module.named_buffers(prefix=name) if b.ndim == 1 and b.shape[0] == count]
        alike = [tensor for tensor, p in own.items() if p.ndim != 2 and p.shape[0] == count] + counters + routers
        nested = [child for child, _ in module.named_children() if isinstance(getattr(module, child), nn.ModuleList)]
        if len(routers) == 1 and not nested:
            least = max((value for part in module.modules() for key, value in vars(part).items()
                         if type(value) is int and key in ("top_k", "num_experts_per_tok")), default=1)
            found.append(Mixture(name, routers[0], tuple(alike), count, least))
    return found[::-1]


def shares(model: nn.Module, found: Sequence[Mixture], context: Context) -> list[Tensor]:
    """[experts] for each mixture: the mean over tokens of what its router gives each.

    Raises:
        CalibrationError: there is no data, or what a router reads is not finite.
    """
    totals = [torch.zeros(one.experts, dtype=torch.float64) for one in found]
    weights = dict(model.named_parameters())

    def hook(i: int) -> Any:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            weight = weights[found[i].router]
            tokens = inputs[0].detach().reshape(-1, weight.shape[1])
            totals[i] += (tokens.double() @ weight.detach().double().T).softmax(-1).mean(0).cpu()
        return see

    handles = [model.get_submodule(one.router.rpartition(".")[0]).register_forward_pre_hook(hook(i))
               for i, one in enumerate(found)]
    try:
        with torch.no_grad():
            for batch in context.calibration():
                model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    if not all(total.isfinite().all() and total.any() for total in totals):
        raise CalibrationError("structure=experts had no calibration data, or routers read NaN or infinity: check the inputs")
    return totals


def experts(model: nn.Module, context: Context, ratio: float) -> dict[str, Any]:
    """A plan's values: which experts stay, as many in each mixture, so that the share of the model's parameters that leaves is
    the nearest to the ratio.

    Raises:
        NoEffect: there are no mixtures, or none can leave.
        ThriftyError: the model's code counts on its experts.
    """
    found = mixtures(model)
    if not found:
        raise NoEffect("prune(structure=experts) finds nothing to remove: no module holds experts in three-dimensional "
                       "tensors, with one router")
    sizes = {name: p.numel() for name, p in (*model.named_buffers(), *model.named_parameters())}
    each = [sum(sizes[name] for name in one.tensors) / one.experts for one in found]
    total, most = sum(p.numel() for p in model.parameters()), max(one.experts for one in found)

    def removed(share: float) -> float:
        return sum(size * (one.experts - _left(one, share)) for one, size in zip(found, each, strict=True)) / total

    share = min((i / most for i in range(most)), key=lambda s: abs(removed(s) - ratio))
    if not removed(share):
        raise NoEffect(f"prune(ratio={ratio:g}, structure=experts) removes nothing: one expert of each mixture is "
                       f"{removed(1 / most):.3f} of the parameters, and a token is sent to {found[0].least}; raise ratio")
    kept = [sorted(total.argsort(descending=True, stable=True)[:_left(one, share)].tolist())
            for one, total in zip(found, shares(model, found, context), strict=True)]
    counts: dict[int, set[int]] = {}
    for one, stays in zip(found, kept, strict=True):
        counts.setdefault(one.experts, set()).add(len(stays))
    values = {
        "slices": [[name, 0, stays] for one, stays in zip(found, kept, strict=True) for name in one.tensors],
        "told": [[name, key, len(stays)] for one, stays in zip(found, kept, strict=True)
                 for name, module in model.get_submodule(one.name).named_modules(prefix=one.name)
                 for key, value in vars(module).items() if type(value) is int and value == one.experts and "expert" in key],
        "config": attributes.configured(model, {"experts": counts}), "left": {},
    }
    _check(model, context, found, kept, values)
    return values


def _left(one: Mixture, share: float) -> int:
    return max(one.least, one.experts - round(share * one.experts))


def _check(model: nn.Module, context: Context, found: Sequence[Mixture], kept: Sequence[list[int]],
           values: Mapping[str, Any]) -> None:
    shown = next(iter(context.calibration()), context.example)
    small = copy.deepcopy(model)
    shrink(small, {Place(name, dim): stays for name, dim, stays in values["slices"]})
    attributes.tell(small, {(name, key): value for name, key, value in values["told"]})
    with torch.no_grad():
        if not agree(small, Closed(model, found, kept), shown):
            raise ThriftyError("prune(structure=experts): the model's own code depends on the number of its experts, or its "
                               "router is not a plain matrix multiplication; use structure=channels, which narrows every expert")


@final
class Closed(nn.Module):
    """A model of full size whose routers send nothing to the experts that leave.

    Args:
        model: shared, not copied.
        found: its mixtures.
        kept: experts that stay, of each.
    """

    def __init__(self, model: nn.Module, found: Sequence[Mixture], kept: Sequence[list[int]]) -> None:
        super().__init__()
        weights = dict(model.named_parameters())
        self.model = model
        self.open = {id(weights[one.router]): stays for one, stays in zip(found, kept, strict=True)}

    def forward(self, *inputs: Tensor) -> Any:
        with _Closing(self.open):
            return self.model(*inputs)


class _Closing(TorchFunctionMode):
    def __init__(self, kept: Mapping[int, list[int]]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is nn.functional.linear and len(args) > 1 and id(args[1]) in self.kept:
            shut = torch.ones(out.shape[-1], dtype=torch.bool)
            shut[self.kept[id(args[1])]] = False
            out = out.masked_fill(shut, -torch.inf)
        return out
