from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.numerics.patches import Geometry, mean_patch, patches


def convolutions() -> list[tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    images, series = torch.randn(3, 6, 11, 9), torch.randn(3, 6, 23)
    return [
        (nn.Conv2d(6, 4, 1), images), (nn.Conv2d(6, 6, 3, padding=1, groups=6), images),
        (nn.Conv2d(6, 8, (5, 3), (2, 1), (2, 0), (1, 2), groups=2), images),
        (nn.Conv2d(6, 4, 4, 3), images),  # the last rows and columns are read by nothing
        (nn.Conv1d(6, 4, 5, 2, 2), series), (nn.Conv1d(6, 12, 3, dilation=3, groups=3), series),
    ]


@pytest.mark.parametrize(("conv", "x"), convolutions())
def test_products_with_patches_are_the_convolution(conv, x):
    geometry = Geometry.of(conv)
    with torch.no_grad():
        y = conv(x)
        flat = y.movedim(1, -1).flatten(0, -2)
        where = torch.randperm(len(flat))[:50]
        weight = conv.weight.flatten(1).unflatten(0, (geometry.groups, -1))
        got = torch.einsum("gri,goi->rgo", patches(x, geometry, where), weight).flatten(1) + conv.bias
        torch.testing.assert_close(got, flat[where], rtol=1e-4, atol=1e-5)
        mean = torch.einsum("gi,goi->go", mean_patch(x, geometry), weight).flatten() + conv.bias
        torch.testing.assert_close(mean, flat.mean(0), rtol=1e-4, atol=1e-5)


def test_patches_are_torchs_unfold():
    x, conv = torch.randn(2, 3, 8, 7), nn.Conv2d(3, 5, 3, 2, 1)
    unfolded = nn.functional.unfold(x, 3, 1, 1, 2)  # [n, inputs, places]
    want = unfolded.movedim(1, 2).flatten(0, 1)
    torch.testing.assert_close(patches(x, Geometry.of(conv), torch.arange(len(want)))[0], want)
