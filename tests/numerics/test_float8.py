"""Rows of float8 against the numbers of the format written out, bit by bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.numerics.float8 import per_row


def numbers() -> list[float]:
    """The values of e4m3 at 0 and above, in the order of their bits: (m / 8) 2^-6 and (1 + m / 8) 2^(e - 7); the last is NaN."""
    return [m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:-1]


def nearest(value: float) -> float:
    """Of those, the nearest; halfway the one whose last bit is 0."""
    found = min(range(len(numbers())), key=lambda i: (abs(numbers()[i] - abs(value)), i % 2))
    return numbers()[found] * (-1.0 if value < 0 else 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 3, 5)], ids=str)
def test_each_number_becomes_the_nearest_under_its_rows_scale(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 30).to(dtype)
    q, scale = per_row(x)
    assert q.dtype == torch.float8_e4m3fn and q.shape == x.shape and scale.shape == (*shape[:-1], 1)
    for row, found, one in zip(x.reshape(-1, shape[-1]), q.reshape(-1, shape[-1]), scale.flatten(), strict=True):
        assert float(one) == pytest.approx(max(abs(value) for value in row.tolist()) / 448, rel=1e-6)
        assert found.float().tolist() == [nearest(value) for value in (row.float() / one).tolist()]


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9))
def test_no_number_moves_further_than_the_formats_step(values: list[float]) -> None:
    x = torch.tensor([values])
    q, scale = per_row(x)
    error: Tensor = (x.double() - scale.double() * q.double()).abs()
    assert bool((error <= torch.maximum(x.double().abs() / 16, scale.double() / 1024) * (1 + 1e-6)).all())


def test_a_row_of_zeros_stays_and_a_nan_shows() -> None:
    assert per_row(torch.zeros(2, 5))[0].float().tolist() == [[0.0] * 5] * 2
    assert bool(per_row(torch.tensor([[1.0, float("nan")]]))[0].float().isnan().any())
