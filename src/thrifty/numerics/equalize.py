"""Cross-layer equalization: the channels between two convolutions get even ranges, and the function stays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

SWEEPS = 20
ENOUGH = 1.01
"""Sweeps end when no channel is scaled by more than this."""


def channel_peaks(weight: Tensor, groups: int) -> Tensor:
    """The largest weight that reads each input channel: max |W[j, i]| over the outputs j of channel i's group.

    Args:
        weight: [out, in / groups, ...].

    Returns:
        [in].

    >>> channel_peaks(torch.tensor([[[1.0]], [[-3.0]]]), groups=2).tolist()  # depthwise: one row each
    [1.0, 3.0]
    """
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).abs().amax((1, 3)).flatten()


def scales(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """What each channel between two convolutions is divided by: s_i = sqrt(r1_i / r2_i).

    r1_i is the largest weight that writes channel i, r2_i the largest that reads it; afterwards both are
    sqrt(r1_i r2_i). A channel that nothing writes or reads stays: s_i = 1.

    Args:
        first: [channels, ...], second: [out, channels / groups, ...].
        groups: of the second.

    Returns:
        [channels], above 0.
    """
    writes, reads = first.flatten(1).abs().amax(1), channel_peaks(second, groups)
    return torch.where((writes > 0) & (reads > 0), (writes / reads).sqrt(), 1.0)


def rescale(first: Any, second: Any, scale: Tensor) -> None:
    """Divide what ``first`` writes by ``scale``, multiply what ``second`` reads by it, in place.

    W1[i] / s_i, b1_i / s_i, W2[:, i] s_i: with f(s x) = s f(x) in between the function is the same.

    Args:
        first, second: float convolutions.
        scale: [channels], above 0.
    """
    with torch.no_grad():
        first.weight.div_(scale.reshape(-1, *([1] * (first.weight.dim() - 1))))
        if first.bias is not None:
            first.bias.div_(scale)
        grouped = second.weight.reshape(second.groups, len(second.weight) // second.groups, second.weight.shape[1], -1)
        second.weight.copy_((grouped * scale.reshape(second.groups, 1, -1, 1)).reshape(second.weight.shape))


def equalize(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Tensor]:
    """Even out every pair, in place, again and again until all are even at once.

    Paper: "Data-free quantization through weight equalization and bias correction", Nagel et al. 2019,
    arXiv:1906.04721, equation 11.

    Args:
        model: float, in eval mode, batch norms folded.
        pairs: names of (first, second) convolutions, as `graph.pairs` finds them.

    Returns:
        {pair: [channels] what it was divided by in all}; `rescale` with it does the same to another copy.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
    >>> _ = nn.init.constant_(net[0].weight, 8.0), nn.init.constant_(net[2].weight, 2.0)
    >>> equalize(net, [("0", "2")])[("0", "2")].tolist(), net[0].weight.flatten().tolist()
    ([2.0, 2.0], [4.0, 4.0])
    """
    modules: list[tuple[tuple[str, str], Any, Any]] = [
        (pair, model.get_submodule(pair[0]), model.get_submodule(pair[1])) for pair in pairs]
    found = {pair: torch.ones(len(first.weight)) for pair, first, _ in modules}
    for _ in range(SWEEPS):
        largest = 0.0
        for pair, first, second in modules:
            scale = scales(first.weight.detach(), second.weight.detach(), second.groups)
            rescale(first, second, scale)
            found[pair] *= scale
            largest = max(largest, float(scale.log().abs().max()))
        if largest <= math.log(ENOUGH):
            break
    return found
