"""The feed-forward networks of a model: layers between which nothing but single numbers is computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import Tensor, nn

from thrifty.numerics.plain import why_kept
from thrifty.posttraining.pruning.dependency import Group, dependencies


@final
@dataclass(frozen=True)
class Network:
    """Args:
        ups: names of the linear layers that enter it, the one that is called first in front; two where it is gated.
        down: name of the one that leaves it.
    """

    ups: tuple[str, ...]
    down: str


def networks(model: nn.Module, example: tuple[Tensor, ...]) -> list[Network]:
    """Find the feed-forward networks.

    Units of a hidden layer that plain linear layers make, that functions of single numbers change, and that one plain linear
    layer adds up: what happens to a unit does not depend on how many there are.

    Args:
        model: in eval mode.
        example: inputs that it takes.

    Raises:
        ThriftyError: the model cannot be exported.

    >>> net = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    >>> import torch
    >>> networks(net, (torch.zeros(1, 4),))
    [Network(ups=('0',), down='2')]
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear and why_kept(module) is None}
    calls = _calls(model, linears, example)
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found, taken = [], set[str]()
    for group in dependencies(model, example).groups:
        network = _network(group, linears, calls) if group.kind == "channels" else None  # heads and streams are no networks
        layers = () if network is None else (*network.ups, network.down)
        if network is not None and all(owners[id(linears[name].weight)] == 1 for name in layers) and taken.isdisjoint(layers):
            found.append(network)
            taken.update(layers)  # of three layers in a row, the first two
    return found


def _network(group: Group, linears: dict[str, nn.Linear], calls: list[str]) -> Network | None:
    ups: list[str] = []
    downs: list[str] = []
    for place, indices in group.members.items():
        layer, _, kind = place.tensor.rpartition(".")
        whole = indices.shape == (group.size, 1) and np.array_equal(indices[:, 0], np.arange(group.size))
        if layer not in linears or calls.count(layer) != 1 or not whole:
            return None
        if kind == "weight":
            (downs if place.dim else ups).append(layer)
    if not ups or len(downs) != 1 or downs[0] in ups or calls.index(downs[0]) < max(map(calls.index, ups)):
        return None
    inputs = {linears[name].in_features for name in ups}
    return Network(tuple(sorted(ups, key=calls.index)), downs[0]) if len(inputs) == 1 else None


def _calls(model: nn.Module, layers: dict[str, nn.Linear], example: tuple[Tensor, ...]) -> list[str]:
    """The layers in the order in which they are called."""
    calls: list[str] = []
    hooks = [layer.register_forward_pre_hook(lambda module, given, name=name: calls.append(name))
             for name, layer in layers.items()]
    try:
        model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
