"""Kernels of convolutions, cropped to their centers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from thrifty.errors import ThriftyError
from thrifty.numerics.plain import is_one_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kernels(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{convolution: odd sizes that its kernel may have, its own first}, of those that can be cropped.

    A kernel can be cropped where its sizes are odd and its padding shrinks with it, so that the output keeps its size.

    >>> kernels(nn.Sequential(nn.Conv2d(3, 8, 7, padding=3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)))
    {'0': (7, 5, 3, 1)}
    """
    held = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if not is_one_of(module, CONVOLUTIONS) or any(held[id(p)] > 1 for p in module.parameters()):
            continue
        conv: Any = module
        largest = max(conv.kernel_size)
        if largest == 1 or any(k % 2 == 0 for k in conv.kernel_size):
            continue
        sizes = [size for size in range(largest - 2, 0, -2) if isinstance(conv.padding, str) or all(
            p >= d * (k - min(k, size)) // 2 for p, d, k in zip(conv.padding, conv.dilation, conv.kernel_size, strict=True))]
        if sizes and conv.padding != "valid":
            found[name] = (largest, *sizes)
    return found


def crop(model: nn.Module, sizes: Mapping[str, int]) -> nn.Module:
    """Crop kernels to their centers, in place; along dimensions in which a kernel is smaller it stays.

    Args:
        model: changed in place.
        sizes: {convolution: its new size}.

    Raises:
        ThriftyError: the model has no such convolution.
    """
    for name, size in sizes.items():
        try:
            conv: Any = model.get_submodule(name)
        except AttributeError:
            conv = None
        if not isinstance(conv, CONVOLUTIONS) or max(conv.kernel_size) < size:
            raise ThriftyError(f"the plan crops the kernel of {name}, which this model does not have: it was made for another "
                               "model")
        less = [(k - min(k, size)) // 2 for k in conv.kernel_size]
        window = (slice(None), slice(None), *(slice(c, k - c) for c, k in zip(less, conv.kernel_size, strict=True)))
        center = conv.weight.detach()[window].clone(memory_format=torch.contiguous_format)  # a view would keep all of it
        conv.weight = nn.Parameter(center, conv.weight.requires_grad)
        conv.kernel_size = tuple(conv.weight.shape[2:])
        if isinstance(conv.padding, str):
            sides = [d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        else:
            sides = [p - d * c for p, d, c in zip(conv.padding, conv.dilation, less, strict=True)]
            conv.padding = tuple(sides)
        # What padding other than by zeros reads, the last dimension first.
        conv._reversed_padding_repeated_twice = [side for side in reversed(sides) for _ in range(2)]
    return model
