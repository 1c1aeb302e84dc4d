"""One token through a Mamba-2 layer: the operator against the math, the kernels by Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.interpreter import interpret, interpreted
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.kernels.mamba2_step import mamba2_step, naive

SIZES = [(2, 4, 8, 16, 2, 4), (3, 6, 20, 24, 3, 3), (1, 2, 64, 128, 1, 2)]
"""(batch, heads, p, n, groups, taps)"""
LIMITS = [(0.0, float("inf")), (0.3, 0.8)]
INTERPRETED = """
from tests.kernels.test_mamba2_step import LIMITS, SIZES, compare
from tests.kernels.interpreter import poison
from thrifty.kernels.mamba2_step.triton import Step
poison()
for size in SIZES:
    for how in (Step(16, 4, 4), Step(32, 2, 8), Step(64, 2, 8)):
        for limits in LIMITS:
            compare(size, limits, how, "cpu")
"""


def drawn(batch: int, heads: int, width: int, size: int, groups: int, taps: int, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    channels = heads * width + 2 * groups * size
    shapes = [(batch, channels + heads * width + heads), (batch, taps - 1, channels), (batch, heads, width, size),
              (channels, taps), (channels,), (heads,), (heads,), (heads,), (heads * width,)]
    made = [torch.randn(*shape).to(device) for shape in shapes]
    made[6] = -made[6].abs()
    return made


def compare(size: tuple[int, ...], limits: tuple[float, float], how: object, device: str) -> None:
    from thrifty.kernels.mamba2_step import triton

    case, groups = drawn(*size, device=device), size[4]
    wanted = naive.step(*case, groups, limits, 1e-5)
    conv, state = case[1].clone(), case[2].clone()
    y = triton.step(case[0], conv, state, *case[3:], groups, limits, 1e-5, how)
    for got, want in zip((y, conv, state), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_operator_changes_its_states_in_place(size: tuple[int, ...]) -> None:
    case, groups = drawn(*size), size[4]
    wanted = naive.step(*case, groups, LIMITS[1], 1e-5)
    y = mamba2_step(*case, groups=groups, limits=LIMITS[1])
    torch.testing.assert_close((y, case[1], case[2]), wanted)
    assert float(case[1][:, -1].abs().max()) > 0


def test_the_operator_keeps_pytorchs_rules() -> None:
    torch.library.opcheck(torch.ops.thrifty.mamba2_step.default, (*drawn(*SIZES[0]), 2, 0.0, 1.0, 1e-5))


def test_sizes_that_do_not_fit_are_named() -> None:
    case = drawn(*SIZES[0])
    with pytest.raises(ThriftyError, match=r"needs an input \[2, 132\] and .* state \[2, 3, 96\], but got \(2, 131\)"):
        mamba2_step(case[0][:, :-1], *case[1:], groups=2)


@interpreted
def test_the_kernels_are_the_maths_where_they_are_interpreted() -> None:
    interpret(INTERPRETED)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (5, 8, 64, 128, 1, 4)], ids=str)
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_gpus_kernels_are_the_maths(size: tuple[int, ...], limits: tuple[float, float]) -> None:
    compare(size, limits, None, "cuda")
