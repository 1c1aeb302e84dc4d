"""The steps of Sophia against the math written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.kernels import native
from thrifty.kernels.sophia_step import Constants, Step, cpu, naive, step_for

CONSTANTS = Constants(lr=0.01, beta1=0.9, gamma=0.5, eps=1e-12, weight_decay=0.1)


def tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[list[Tensor]]:
    """[weights, gradients, m, h]; h has negative and zero elements, and m / h lies on both sides of the bound."""
    def drawn(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.float32).to(kind)

    made = [[drawn(shape, kind) for shape in shapes] for kind in (dtype, dtype, torch.float32, torch.float32)]
    for h in made[3]:
        h.mul_(torch.rand_like(h) * 4).masked_fill_(torch.rand_like(h) < 0.1, 0.0)
    return made


def reference(made: list[list[Tensor]], c: Constants) -> tuple[list[Tensor], list[Tensor], int]:
    """Weights and m after a step, and how many were within the bound, element by element in float64."""
    weights, means, within = [], [], 0
    for p, g, m, h in zip(*made, strict=True):
        p64, g64, m64, h64 = (x.detach().cpu().double().flatten().tolist() for x in (p, g, m, h))
        mean = [c.beta1 * a + (1 - c.beta1) * b for a, b in zip(m64, g64, strict=True)]
        ratio = [a / max(c.gamma * b, c.eps) for a, b in zip(mean, h64, strict=True)]
        within += sum(abs(r) < 1 for r in ratio)
        new = [(1 - c.lr * c.weight_decay) * a - c.lr * max(-1.0, min(1.0, r)) for a, r in zip(p64, ratio, strict=True)]
        weights.append(torch.tensor(new, dtype=torch.float64).view(p.shape))
        means.append(torch.tensor(mean, dtype=torch.float64).view(p.shape))
    return weights, means, within


def compare(step: Step, made: list[list[Tensor]], tolerance: float = 1e-6) -> None:
    weights, means, within = reference(made, CONSTANTS)
    found = int(step(*made, CONSTANTS))
    assert abs(found - within) <= 1e-5 * sum(w.numel() for w in weights)  # a ratio of 1 to the last bit falls either way
    for p, m, wanted, mean in zip(made[0], made[2], weights, means, strict=True):
        torch.testing.assert_close(p.cpu().double(), wanted, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(m.cpu().double(), mean, rtol=1e-5, atol=1e-6)


SHAPES = [(3,), (17, 33), (), (70_001,), (1, 1), (5, 0), (128, 129)]


@pytest.mark.parametrize("step", [naive.step, cpu.step], ids=["naive", "cpu"])
def test_a_step_is_the_papers(step: Step) -> None:
    compare(step, tensors(SHAPES))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=6), st.integers(1, 2))
def test_the_cpus_step_is_the_papers_at_any_size(shapes: list[tuple[int, ...]], threads: int) -> None:
    torch.set_num_threads(threads)
    compare(cpu.step, tensors(shapes))


def test_naive_in_float64_is_exact() -> None:
    made = [[x.double() for x in row] for row in tensors([(9, 11)])]
    (weight,), (mean,), within = reference(made, CONSTANTS)
    assert int(naive.step(*made, CONSTANTS)) == within
    torch.testing.assert_close(made[0][0], weight, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(made[2][0], mean, rtol=1e-14, atol=1e-15)


def test_one_thread_or_two_give_the_same_bits() -> None:
    first, second = tensors(SHAPES), None
    second = [[x.clone() for x in row] for row in first]
    for made, threads in ((first, 1), (second, 2)):
        torch.set_num_threads(threads)
        cpu.step(*made, CONSTANTS)
    assert all(torch.equal(a, b) for row, other in zip(first, second, strict=True) for a, b in zip(row, other, strict=True))


@pytest.mark.parametrize("step", [naive.step, cpu.step], ids=["naive", "cpu"])
@pytest.mark.parametrize("where", [1, 3], ids=["gradient", "curvature"])
def test_nan_stays_nan(step: Step, where: int) -> None:
    made = tensors([(40,)])
    made[where][0][7] = math.nan
    step(*made, CONSTANTS)
    assert made[0][0].isnan().nonzero().tolist() == [[7]]


def test_a_gradient_of_another_layout_is_read_right() -> None:
    made = tensors([(6, 10)])
    transposed = made[1][0].t().contiguous().t()
    assert transposed.stride() != made[0][0].stride()
    compare(cpu.step, [made[0], [transposed], *made[2:]])


def test_weights_in_channels_last_are_read_right() -> None:
    made = [[x.to(memory_format=torch.channels_last) for x in row] for row in tensors([(4, 3, 5, 5)])]
    assert step_for(made[0]) is cpu.step
    compare(cpu.step, made)


def test_what_the_kernel_cannot_read_takes_the_maths(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_for([torch.ones(4, 4)[:, ::2]]) is naive.step
    assert step_for([torch.ones(4, dtype=torch.bfloat16)]) is naive.step
    assert step_for([torch.ones(4)]) is cpu.step
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    cpu.kernel.cache_clear()
    assert step_for([torch.ones(4)]) is naive.step
    monkeypatch.undo()
    native.library.cache_clear()
    cpu.kernel.cache_clear()


def test_stochastic_rounding_is_right_in_the_mean_and_keeps_small_updates() -> None:
    x = torch.full((100_000,), 1.0 + 1 / 1024)  # an eighth of the way from 1 to the next bfloat16
    rounded = naive.stochastic(x, 3).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0078125}
    assert float(rounded.mean()) == pytest.approx(1 + 1 / 1024, abs=4 * 0.0078125 * 0.331 / math.sqrt(100_000))
    strange = torch.tensor([math.inf, -math.inf, math.nan, 0.0])
    torch.testing.assert_close(naive.stochastic(strange, 0).float(), strange, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [SHAPES, [(4096, 1024), (2048,), (2049,), (1,)]], ids=["odd", "large"])
def test_the_gpus_step_is_the_papers(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> None:
    made = tensors(shapes, dtype, "cuda")
    assert step_for(made[0]) is not naive.step
    compare(step_for(made[0]), made, 1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.gpu
def test_the_gpu_reads_pointers_that_are_not_aligned_and_keeps_nan() -> None:
    made = [[torch.randn(5001, device="cuda")[1:]] for _ in range(4)]
    compare(step_for(made[0]), made)
    made[1][0][9] = math.nan
    step_for(made[0])(*made, CONSTANTS)
    assert made[0][0].isnan().nonzero().tolist() == [[9]]


@pytest.mark.gpu
def test_the_gpu_rounds_bfloat16_right_in_the_mean() -> None:
    count = 1 << 20
    weight = torch.ones(count, device="cuda", dtype=torch.bfloat16)
    zeros, ones = torch.zeros(count, device="cuda"), torch.ones(count, device="cuda")
    constants = Constants(lr=1 / 2048, beta1=0.0, gamma=1.0, eps=1e-12, weight_decay=0.0, rounding=5)
    step_for([weight])([weight], [-ones.bfloat16()], [zeros], [ones], constants)
    assert float(weight.float().mean()) == pytest.approx(1 + 1 / 2048, abs=4 * 0.0078125 * 0.25 / math.sqrt(count))
