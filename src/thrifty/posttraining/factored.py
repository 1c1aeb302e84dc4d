"""A layer in thinner parts: what stands in for a linear layer or a convolution, and which layers it can stand in for."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.graph import replace


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
        # On "meta" nothing is drawn at random that the factors then replace.
        part: Any = (nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta") if weight.ndim == 2 else
                     nn.Conv2d(weight.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3]), bias=False,
                               device="meta", **settings))
        part.weight = nn.Parameter(weight.to(place.weight), requires_grad=place.weight.requires_grad)
        made.append(part)
    made[-1].bias = last.bias
    return Factored(*made).train(layer.training)


def _settings(place: Any) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "padding_mode") if isinstance(place, nn.Conv2d) else ()
    return {name: getattr(place, name) for name in names}


def fits(layer: nn.Module, factors: Sequence[Tensor]) -> bool:
    """Whether factors multiply to the shape of the layer's weight."""
    found = parts(layer)
    if type(found[0]) not in (nn.Linear, nn.Conv2d) or found[0].weight.ndim != factors[0].ndim:
        return False
    kernel = factors[(len(factors) - 1) // 2].shape[2:]
    return (found[0].weight.shape[1] == factors[0].shape[1] and found[-1].weight.shape[0] == factors[-1].shape[0]
            and geometry(layer).weight.shape[2:] == kernel)


def swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module wherever another stands: one that stands in two places stays one."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        replace(model, name, new)


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that could be factored, by name: of exact types, ungrouped, without hooks, their weight their own."""
    owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    inner = {id(part) for module in model.modules() if isinstance(module, Factored) for part in module}
    return {name: module for name, module in model.named_modules()
            if name and id(module) not in inner and all(_plain(part, owners) for part in parts(module))}


def _plain(part: nn.Module, owners: Mapping[int, int]) -> bool:
    weight = part._parameters.get("weight")
    return (type(part) in (nn.Linear, nn.Conv2d) and getattr(part, "groups", 1) == 1 and weight is not None
            and weight.is_floating_point() and owners[id(weight)] == 1
            and not part._forward_hooks and not part._forward_pre_hooks)


def unread(model: nn.Module, layers: Mapping[str, nn.Module], example: tuple[Tensor, ...]) -> dict[str, nn.Module]:
    """The layers that can be replaced: whose weight no other code asks for (a fused transformer layer does)."""
    def works(names: Iterable[str]) -> bool:
        trial = copy.deepcopy(model)
        for name in names:
            layer = trial.get_submodule(name)
            swap(trial, layer, factored(layer, _nothing(layer)))
        try:
            trial(*example)
        except (AttributeError, TypeError, RuntimeError):
            return False
        return True

    model(*example)  # what it raises by itself is no layer's fault
    return dict(layers) if works(layers) else {name: layer for name, layer in layers.items() if works([name])}


def _nothing(layer: nn.Module) -> list[Tensor]:
    """Factors of rank 1, all zero."""
    place = geometry(layer)
    m, n, kernel = parts(layer)[-1].weight.shape[0], parts(layer)[0].weight.shape[1], place.weight.shape[2:]
    one = kernel.numel() == 1
    shapes = [(1, n, *kernel), (m, 1, *kernel)] if one else [(1, n, 1, 1), (1, 1, *kernel), (m, 1, 1, 1)]
    return [place.weight.new_zeros(shape) for shape in shapes]
