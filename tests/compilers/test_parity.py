from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty.compilers.parity import ParityError, check_parity
from thrifty.engines.parity import PARITY, relative_error, tolerance

REQUESTS = [(torch.randn(1, 6, generator=torch.Generator().manual_seed(i)),) for i in range(3)]


def module(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x * 2, x + 1)


@given(st.floats(1e-6, 1e6), st.floats(-0.9, 3))
def test_the_error_is_relative(scale, change):
    x = np.array([3.0, -4.0]) * scale
    assert relative_error(x, x * (1 + change)) == pytest.approx(abs(change), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("precision", PARITY)
def test_an_engine_within_its_precision_passes_and_one_outside_does_not(precision):
    bound = tolerance(precision)
    check_parity(module, lambda x: tuple(y * (1 + bound / 2) for y in module(x)), REQUESTS, precision)
    with pytest.raises(ParityError, match=precision):
        check_parity(module, lambda x: tuple(y * (1 + bound * 2) for y in module(x)), REQUESTS, precision)


def test_the_coarsest_part_of_a_precision_decides():
    assert tolerance("int8+bf16") == PARITY["int8"] and tolerance("bf16") == PARITY["bf16"]


def test_one_output_stands_bare():
    check_parity(lambda x: (x,), lambda x: x, REQUESTS, "fp32")


def test_nothing_that_is_not_finite_passes():
    assert math.isnan(relative_error(np.ones(2), np.array([1.0, float("nan")])))
    with pytest.raises(ParityError):
        check_parity(lambda x: (x,), lambda x: x * float("nan"), REQUESTS, "int8")


def test_a_number_of_outputs_that_differs_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        check_parity(module, lambda x: module(x)[:1], REQUESTS, "fp32")


def test_a_wrong_layer_is_found():
    torch.manual_seed(0)
    right, wrong = nn.Linear(6, 4), nn.Linear(6, 4)
    with pytest.raises(ParityError, match="nothing is kept"):
        check_parity(lambda x: (right(x),), wrong, REQUESTS, "fp32")
