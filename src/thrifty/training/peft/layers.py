"""Which layers of a model get an adapter, and why some cannot."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping

from torch import nn
from torch.nn.utils import parametrize

from thrifty.errors import ThriftyError
from thrifty.recipes.hyperparameters import matches

ALL_LINEAR = "all-linear"


def chosen(model: nn.Module, targets: str, kinds: tuple[type[nn.Module], ...], linear: tuple[type[nn.Module], ...],
           method: str) -> dict[str, nn.Module]:
    """Name -> layer of what is adapted.

    Args:
        model: whose layers are looked at.
        targets: "all-linear", every linear layer whose weight nothing else reads; or a regular expression that
            matches a whole name or its end after a dot: "query|value" is "blocks.0.query" too.
        kinds: of layers that the method can adapt.
        linear: those of them that "all-linear" means.
        method: its name, for the errors.

    Raises:
        ThriftyError: nothing is left to adapt, or the pattern names a layer that cannot be.
    """
    if isinstance(model, kinds):
        raise ThriftyError(f"{method} replaces layers inside a model, but the model is itself a single "
                           f"{type(model).__name__}: give nn.Sequential(model)")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    hindered = hindrances(model, layers)
    if targets == ALL_LINEAR:
        found = {name: layer for name, layer in layers.items() if isinstance(layer, linear) and name not in hindered}
        if not found:
            raise ThriftyError(f"{method} adapts linear layers, but the model has none that it can adapt: "
                               + _alternatives(layers, hindered))
        return found
    found = {name: layer for name, layer in layers.items() if matches(targets, name)}
    if not found:
        raise ThriftyError(_unmatched(model, targets, layers, kinds, method))
    for name in found.keys() & hindered.keys():
        raise ThriftyError(f"{method}(targets={targets!r}) matches {name}, which cannot be adapted: {hindered[name]}")
    return found


def hindrances(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Name -> why the layer cannot be adapted: its weight is read where no adapter stands."""
    # A weight with two readers would be merged into both though only one of them was trained.
    readers = Counter(id(weight) for _, module in model.named_modules(remove_duplicate=False)
                      for weight in module._parameters.values() if weight is not None)
    attention = tuple(f"{name}." if name else "" for name, module in model.named_modules()
                      if isinstance(module, nn.MultiheadAttention))
    found = {}
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            found[name] = "its weight is computed by a parametrization; remove that first"
        elif readers[id(layer.weight)] > 1:
            found[name] = "another layer reads the same weight, which merging would change too"
        elif attention and name.startswith(attention):
            found[name] = "nn.MultiheadAttention reads its weight itself and would bypass the adapter"
    return found


def _alternatives(layers: Mapping[str, nn.Module], hindered: Mapping[str, str]) -> str:
    others = [name for name in layers if name not in hindered]
    if others:
        return f"name others with targets=..., such as {', '.join(map(repr, others[:3]))}"
    if hindered:
        name, why = next(iter(hindered.items()))
        return f"{name}: {why}"
    return "train it in full, or with fewer layers"


def _unmatched(model: nn.Module, targets: str, layers: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...],
               method: str) -> str:
    says = f"{method}(targets={targets!r}) matches no layer"
    other = next(((name, type(module).__name__) for name, module in model.named_modules()
                  if name and matches(targets, name) and not isinstance(module, kinds)), None)
    if other is not None:
        return (f"{says} that it adapts: {other[0]} is {other[1]}, and it adapts "
                f"{', '.join(kind.__name__ for kind in kinds)}")
    ends = {name.rpartition(".")[2]: name for name in layers}
    near = [ends[end] for word in re.findall(r"\w+", targets) for end in difflib.get_close_matches(word, ends, n=2)]
    near = near or difflib.get_close_matches(targets, layers, n=3, cutoff=0) or list(layers)[:3]
    return f"{says}; nearest: {', '.join(dict.fromkeys(near))}" if near else f"{says}, and the model has none to match"
