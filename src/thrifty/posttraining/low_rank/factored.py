"""A layer in thinner parts: what stands in for a linear layer or a convolution, and which layers it can stand in for."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.graph import replace
from thrifty.numerics.plain import is_one_of, why_kept
from thrifty.numerics.surroundings import FUSED, READ, look, slow

FACTORED = (nn.Linear, nn.Conv2d)


@final
class Factored(nn.Sequential):
    """Two linear layers, or two or three convolutions, in place of one; nothing else stands in it."""


def parts(layer: nn.Module) -> list[Any]:
    """What a layer multiplies by, one after the other."""
    return list(layer) if isinstance(layer, Factored) else [layer]


def geometry(layer: nn.Module) -> Any:
    """The part that strides and pads."""
    found = parts(layer)
    return found[(len(found) - 1) // 2]


def product(layer: nn.Module) -> Tensor:
    """The layer's weight as one tensor, in float64."""
    weight, *rest = (part.weight.detach().double() for part in parts(layer))
    for later in rest:
        if later.ndim == 2:
            weight = later @ weight
        elif later.shape[1] == 1 < len(weight):  # depthwise
            weight = weight * later
        else:  # of each pair of kernel widths at most one is above 1
            sizes = [x * y for x, y in zip(later.shape[2:], weight.shape[2:], strict=True)]
            weight = torch.einsum("orhw,rnxy->onhxwy", later, weight).reshape(len(later), -1, *sizes)
    return weight  # type: ignore[no-any-return]


def factored(layer: nn.Module, factors: Sequence[Tensor]) -> Factored:
    """The layer with these weights, in the order of application; its bias goes to the last."""
    last, place = parts(layer)[-1], geometry(layer)
    made: list[Any] = []
    for i, weight in enumerate(factors):
        settings = _settings(place) if i == (len(factors) - 1) // 2 else {}
        groups = weight.shape[0] if _is_depthwise(factors, i) else 1
        # On "meta" nothing is drawn at random that the factors then replace.
        part: Any = (nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta") if weight.ndim == 2 else
                     nn.Conv2d(groups * weight.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3]), bias=False,
                               device="meta", groups=groups, **settings))
        part.weight = nn.Parameter(weight.to(place.weight), requires_grad=place.weight.requires_grad)
        made.append(part)
    made[-1].bias = last.bias
    return Factored(*made).train(layer.training)


def _is_depthwise(factors: Sequence[Tensor], i: int) -> bool:
    """Whether a factor multiplies each of the channels before it by itself, as the middle one of a CP decomposition."""
    return i == 1 and len(factors) == 3 and factors[1].shape[1] == 1 < factors[0].shape[0]


@torch.no_grad()
def absorb(layer: nn.Module, factors: Sequence[Tensor]) -> None:
    """Have a layer compute as its factors would, in place and in its own shapes: no rank is above what it has.

    Factors of a layer that is in parts already are written into these, with zeros around them.
    """
    found = parts(layer)
    if len(found) == 1:
        found[0].weight.copy_(product(factored(layer, factors)))
        return
    for part, factor in zip(found, factors, strict=True):
        part.weight.zero_()
        part.weight[tuple(slice(n) for n in factor.shape)] = factor.to(part.weight)


def _settings(place: Any) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "padding_mode") if isinstance(place, nn.Conv2d) else ()
    return {name: getattr(place, name) for name in names}


def fits(layer: nn.Module, factors: Sequence[Tensor]) -> bool:
    """Whether factors multiply to the shape of the layer's weight."""
    found = parts(layer)
    if not is_one_of(found[0], FACTORED) or found[0].weight.ndim != factors[0].ndim:
        return False
    kernel = factors[(len(factors) - 1) // 2].shape[2:]
    return (found[0].weight.shape[1] == factors[0].shape[1] and found[-1].weight.shape[0] == factors[-1].shape[0]
            and geometry(layer).weight.shape[2:] == kernel)


def candidates(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Layers that could be factored, by name: plain ones, ungrouped, without hooks, their weight their own.

    Returns:
        them, and {layer: why not} of other linear layers and convolutions.
    """
    owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    inner = {id(part) for module in model.modules() if isinstance(module, Factored) for part in module}
    found, left = {}, {}
    for name, module in model.named_modules():
        if id(module) in inner or not isinstance(parts(module)[0] if len(parts(module)) else None, FACTORED):
            continue
        reasons = [reason for part in parts(module) if (reason := _kept(part, owners))]
        if reasons:
            left[name] = reasons[0]
        elif name:
            found[name] = module
    return found, left


def _kept(part: nn.Module, owners: Mapping[int, int]) -> str | None:
    """Why a layer, or a part of one, stays as it is."""
    weight = part._parameters.get("weight")
    if reason := why_kept(part):
        return reason
    if weight is None or not weight.is_floating_point():
        return "it has no float weight"
    if owners[id(weight)] > 1:
        return "its weight is another layer's too"
    if type(part).__name__ == "NonDynamicallyQuantizableLinear":
        return FUSED
    return "its channels are grouped" if getattr(part, "groups", 1) > 1 else None


def unread(model: nn.Module, layers: Mapping[str, nn.Module], left: dict[str, str],
           example: tuple[Tensor, ...]) -> dict[str, nn.Module]:
    """The layers that can be replaced: whose weight no other code asks for. The others go to ``left``."""
    def works(names: Iterable[str]) -> bool:
        trial = copy.deepcopy(model)
        for name in names:
            layer = trial.get_submodule(name)
            replace(trial, name, factored(layer, _nothing(layer)))
        slow(trial)
        try:
            trial(*example)
        except (AttributeError, TypeError, RuntimeError):
            return False
        return True

    model(*example)  # what it raises by itself is no layer's fault
    seen = look(model, [example]).read
    free = {name: layer for name, layer in layers.items() if not seen.intersection((name, f"{name}.0", f"{name}.1", f"{name}.2"))}
    found = free if works(free) else {name: layer for name, layer in free.items() if works([name])}
    left.update({name: READ for name in layers if name not in found})
    return found


def _nothing(layer: nn.Module) -> list[Tensor]:
    """Factors of rank 1, all zero."""
    place = geometry(layer)
    m, n, kernel = parts(layer)[-1].weight.shape[0], parts(layer)[0].weight.shape[1], place.weight.shape[2:]
    one = kernel.numel() == 1
    shapes = [(1, n, *kernel), (m, 1, *kernel)] if one else [(1, n, 1, 1), (1, 1, *kernel), (m, 1, 1, 1)]
    return [place.weight.new_zeros(shape) for shape in shapes]
