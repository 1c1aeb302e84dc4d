"""Kernels cropped to their centers: what the rest of the kernel being zero gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thrifty.errors import ThriftyError
from thrifty.posttraining.nas.kernels import crop, kernels

CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, 5, padding=2),
    "strided": nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False),
    "dilated": nn.Conv2d(3, 4, 5, padding=4, dilation=2),
    "grouped": nn.Conv2d(4, 4, 5, padding=2, groups=4),
    "reflecting": nn.Conv2d(3, 4, 5, padding=2, padding_mode="reflect"),
    "same, circular": nn.Conv2d(3, 4, 5, padding="same", padding_mode="circular"),
    "oblong": nn.Conv2d(3, 4, (1, 5), padding=(0, 2)),
    "of more padding": nn.Conv2d(3, 4, 5, padding=3),
    "of sequences": nn.Conv1d(3, 4, 5, padding=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("size", [3, 1])
def test_a_cropped_kernel_gives_what_zeros_around_its_center_give(name, size):
    torch.manual_seed(0)
    net = nn.Sequential(copy.deepcopy(CONVOLUTIONS[name]))
    x = torch.randn(2, net[0].in_channels, *([11] * (net[0].weight.ndim - 2)))
    masked = copy.deepcopy(net)
    with torch.no_grad():
        keep = torch.zeros_like(masked[0].weight)
        window = [slice(None), slice(None)]
        for k in masked[0].kernel_size:
            less = (k - min(k, size)) // 2
            window.append(slice(less, k - less))
        keep[tuple(window)] = 1
        masked[0].weight.mul_(keep)
        small = crop(copy.deepcopy(net), {"0": size})
        assert small[0].weight.numel() < net[0].weight.numel()
        torch.testing.assert_close(small(x), masked(x))
    assert size in kernels(net)["0"]


def test_a_cropped_kernel_holds_no_more_than_itself():
    """A view of the old one would be saved with all of it, or not at all."""
    weight = crop(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), {"0": 1})[0].weight
    assert weight.untyped_storage().nbytes() == 4


def test_what_cannot_be_cropped_is_left():
    tied = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.ModuleDict({"even": nn.Conv2d(3, 3, 4, padding=2), "bare": nn.Conv2d(3, 3, 3), "pointwise": nn.Conv2d(3, 3, 1),
                         "valid": nn.Conv2d(3, 3, 3, padding="valid"), "once": tied, "twice": nn.Sequential(nn.Conv2d(3, 3, 3))})
    net["twice"][0].weight = tied.weight
    assert kernels(net) == {}


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(ThriftyError, match="made for another model"):
        crop(nn.Sequential(nn.Linear(2, 2)), {"0": 1})
    with pytest.raises(ThriftyError, match="made for another model"):
        crop(nn.Sequential(nn.Linear(2, 2)), {"3": 1})
