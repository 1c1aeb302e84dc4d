"""What a convolution multiplies at each place, so that it can be worked on as a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution over images; one over sequences is one over images of height 1."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @staticmethod
    def of(conv: Any) -> Geometry:
        """The geometry of nn.Conv1d, nn.Conv2d or QuantConv, padded with zeros."""

        def two(values: Sequence[int], filler: int) -> tuple[int, int]:
            return (filler, values[0]) if len(values) == 1 else (values[0], values[1])

        return Geometry(two(conv.weight.shape[2:], 1), two(conv.stride, 1), two(conv.padding, 0), two(conv.dilation, 1),
                        conv.groups)

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output."""
        high, wide = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(
            (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True))
        return high, wide


def _padded(x: Tensor, geometry: Geometry) -> tuple[Tensor, int, int]:
    images = x.unsqueeze(2) if x.dim() == 3 else x
    (down, right), places = geometry.padding, geometry.places(*images.shape[2:])
    return nn.functional.pad(images, (right, right, down, down)), *places


def patches(x: Tensor, geometry: Geometry, where: Tensor) -> Tensor:
    """What is multiplied at some places.

    Args:
        x: [n, channels, (height,) width].
        geometry: of the convolution.
        where: [rows] places, counted over examples, then rows, then columns of the output.

    Returns:
        [groups, rows, inputs]; inputs go as in a weight [out, channels / groups, ...] flattened.
    """
    padded, high, wide = _padded(x, geometry)
    example, place = where // (high * wide), where % (high * wide)
    down, right = place // wide * geometry.stride[0], place % wide * geometry.stride[1]
    found = torch.stack([
        padded[example, :, down + i * geometry.dilation[0], right + j * geometry.dilation[1]]
        for i in range(geometry.kernel[0]) for j in range(geometry.kernel[1])
    ], -1)  # [rows, channels, kernel]
    return found.reshape(len(where), geometry.groups, -1).movedim(1, 0)


def mean_patch(x: Tensor, geometry: Geometry) -> Tensor:
    """The mean of `patches` over all places [groups, inputs]: the mean output is W times it."""
    padded, high, wide = _padded(x, geometry)

    def seen(start: int, count: int, stride: int) -> slice:
        return slice(start, start + (count - 1) * stride + 1, stride)

    found = torch.stack([
        padded[:, :, seen(i * geometry.dilation[0], high, geometry.stride[0]),
               seen(j * geometry.dilation[1], wide, geometry.stride[1])].mean((0, 2, 3))
        for i in range(geometry.kernel[0]) for j in range(geometry.kernel[1])
    ], -1)  # [channels, kernel]
    return found.reshape(geometry.groups, -1)
