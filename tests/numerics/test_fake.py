"""Rounding with gradients: the paper's formulas number by number, torch's own kernels, laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.numerics.fake import fake_quantize, first_step, learning_gain


def naive(x: list[float], step: float, low: int, high: int) -> tuple[list[float], list[float], list[float]]:
    """(y, dy/dx, dy/ds) of each number: Esser et al. 2019, equations 1 to 3, bounded after rounding."""
    y, to_x, to_step = [], [], []
    for value in x:
        v = value / step
        q = round(v)  # half to even, as torch's
        y.append(step * min(max(q, low), high))
        to_x.append(1.0 if low <= q <= high else 0.0)
        to_step.append(q - v if low <= q <= high else low if v < low else high)
    return y, to_x, to_step


@pytest.mark.parametrize(("low", "high"), [(-7, 7), (-127, 127), (0, 255), (-3, 12), (-15, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_the_papers(low, high, dtype):
    x = (torch.randn(37, generator=torch.Generator().manual_seed(low + high)) * 4).to(dtype).requires_grad_()
    step = torch.tensor(0.31, requires_grad=True)
    weights = torch.randn(37, generator=torch.Generator().manual_seed(1))
    y = fake_quantize(x, step, torch.tensor(float(low)), torch.tensor(float(high)), gain=0.25)
    assert y.dtype == dtype
    (y.float() * weights).sum().backward()
    want, to_x, to_step = naive(x.tolist(), float(step.detach()), low, high)
    torch.testing.assert_close(y.detach().float(), torch.tensor(want).to(dtype).float())
    torch.testing.assert_close(x.grad.float(), (torch.tensor(to_x) * weights).to(dtype).float())
    exact = 0.25 * float((torch.tensor(to_step) * weights.to(dtype).float()).sum())
    assert float(step.grad) == pytest.approx(exact, rel=1e-4, abs=1e-5)


def test_a_step_for_each_row():
    x = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    step = (torch.rand(5, 3, 1, generator=torch.Generator().manual_seed(1)) + 0.1).requires_grad_()
    low, high = -torch.arange(3.0).reshape(1, 3, 1), 7 - torch.arange(3.0).reshape(1, 3, 1)
    fake_quantize(x, step, low, high).sum().backward()
    for i in range(5):
        for j in range(3):
            _, to_x, to_step = naive(x[i, j].tolist(), float(step.detach()[i, j]), -j, 7 - j)
            assert x.grad[i, j].tolist() == to_x
            assert float(step.grad[i, j]) == pytest.approx(sum(to_step), abs=1e-4)


@pytest.mark.parametrize("zero", [0, 100, 255])
def test_torchs_learnable_kernel_agrees(zero):
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3
    step, gain = torch.tensor([2.0**-6]), 1 / (400 * 255) ** 0.5  # a power of two: torch multiplies by its inverse

    def gradients(rounding) -> tuple[Tensor, ...]:
        a, s = x.clone().requires_grad_(), step.clone().requires_grad_()
        y = rounding(a, s)
        y.square().sum().backward()
        return y.detach(), a.grad, s.grad

    ours = gradients(lambda a, s: fake_quantize(a, s, torch.tensor(-float(zero)), torch.tensor(255.0 - zero), gain))
    theirs = gradients(lambda a, s: torch._fake_quantize_learnable_per_tensor_affine(
        a, s, torch.tensor([float(zero)]), 0, 255, gain))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(2.0**-10, 10, width=32))
def test_what_is_on_the_grid_stays(values, step):
    s, low, high = torch.tensor(step), torch.tensor(-7.0), torch.tensor(7.0)
    once = fake_quantize(torch.tensor(values), s, low, high)
    torch.testing.assert_close(fake_quantize(once, s, low, high), once, rtol=1e-6, atol=0)
    assert (once.abs() <= 7 * s * (1 + 1e-6)).all()
    inside = torch.tensor(values).abs() <= 7 * s
    assert ((once - torch.tensor(values)).abs()[inside] <= s / 2 * (1 + 1e-4)).all()


def test_a_step_learns_the_grid_that_loses_least():
    """Descent on the squared error from a step far off comes to the best one of a search."""
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor(-7.0), torch.tensor(7.0)

    def error(step: Tensor) -> Tensor:
        return (fake_quantize(x, step, low, high) - x).square().mean()

    step = torch.tensor(1.5, requires_grad=True)
    optimizer = torch.optim.Adam([step], lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        error(step).backward()
        optimizer.step()
    best = min(float(error(torch.tensor(s))) for s in torch.linspace(0.1, 1.5, 200).tolist())
    assert float(error(step.detach())) < 1.03 * best


def test_a_first_step_where_calibration_gave_none():
    weight = torch.tensor([[2.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    assert first_step(weight, high=9.0).tolist() == pytest.approx([2 * 2.0 / 3, 2 * 1.0 / 3])
    assert (first_step(torch.zeros(3, 4), high=7.0) > 0).all()
    assert learning_gain(30, 0.0) == pytest.approx(30**-0.5)
