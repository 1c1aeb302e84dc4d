"""Two linear layers and their divergence against the math in float64; the kernel run by Triton's interpreter without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.kernels.linear_divergence import Kind, fused, linear_divergence, naive
from thrifty.training.distillation import losses

KINDS: tuple[Kind, ...] = get_args(Kind)
INTERPRETED = """
import torch
from tests.kernels.test_linear_divergence import KINDS, check_kernels
from thrifty.kernels.linear_divergence import triton
triton.BLOCK = 64
for kind in KINDS:
    for n, v, dtype in [(3, 7, torch.float32), (5, 200, torch.bfloat16), (4, 129, torch.float32)]:
        check_kernels(triton, n, v, dtype, "cpu", kind)
"""


def drawn(n: int, h: int, k: int, v: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, ...]:
    """hidden, weight, taught, teaching, and valid, a tenth of it false."""
    x, w, t, head = (torch.randn(*size, device=device) for size in ((n, h), (v, h), (n, k), (v, k)))
    return (x.to(dtype).requires_grad_(), (w / h**0.5).to(dtype).requires_grad_(), t.to(dtype), (head / k**0.5).to(dtype),
            torch.rand(n, device=device) > 0.1)


def reference(x: Tensor, w: Tensor, t: Tensor, head: Tensor, valid: Tensor, kind: Kind, temperature: float,
              beta: float) -> tuple[Tensor, ...]:
    """Loss and both gradients in float64, by the definitions of the losses."""
    x64, w64 = (each.detach().double().cpu().requires_grad_() for each in (x, w))
    student, teacher = x64 @ w64.t(), t.double().cpu() @ head.double().cpu().t()
    student, teacher = student[valid.cpu()], teacher[valid.cpu()]
    options = {"beta": beta} if kind == "jsd" else {}
    total = getattr(losses, kind)(student, teacher, temperature, **options)
    return (total.detach(), *torch.autograd.grad(total, (x64, w64)))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double().cpu() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def found_of(made: tuple[Tensor, ...], **options: object) -> tuple[Tensor, Tensor, Tensor]:
    x, w, t, head, valid = made
    total = linear_divergence(x, w, t, head, valid=valid, **options)
    return (total, *torch.autograd.grad(total, (x, w)))


@given(st.sampled_from(KINDS), st.integers(1, 300), st.integers(1, 20), st.integers(1, 12), st.integers(2, 200),
       st.sampled_from([1, 2**30]), st.floats(0.5, 4), st.floats(0.05, 0.95))
def test_loss_and_gradients_are_the_maths_at_any_size(kind, n, h, k, v, logits_bytes, temperature, beta) -> None:
    made = drawn(n, h, k, v)
    wanted = reference(*made, kind, temperature, beta)
    found = found_of(made, kind=kind, temperature=temperature, beta=beta, logits_bytes=logits_bytes)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.detach().double(), b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_precision(kind: Kind, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = drawn(300, 24, 40, 130, dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}.get(dtype, 2e-2)
    found = found_of(made, kind=kind, logits_bytes=1)
    for a, b in zip(found, reference(*made, kind, 1.0, 0.5), strict=True):
        assert error(a, b) < tolerance
    assert [g.dtype for g in found[1:]] == [dtype, dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_the_maths_written_out_is_that_of_the_losses(kind: Kind) -> None:
    x, w, t, head, valid = drawn(40, 8, 12, 30, torch.float64)
    total = naive.linear_divergence(x, w, t, head, valid, kind, 1.7, 0.3)
    wanted = reference(x, w, t, head, valid, kind, 1.7, 0.3)
    torch.testing.assert_close(total.detach(), wanted[0])


def test_dimensions_are_kept_what_comes_from_above_is_multiplied_in_and_only_what_is_wanted_is_made() -> None:
    x, w, t, head, valid = drawn(60, 8, 6, 20)
    shaped = x.detach().reshape(3, 20, 8).requires_grad_()
    (linear_divergence(shaped, w.detach(), t.view(3, 20, 6), head, valid=valid.view(3, 20)) * 0.25).backward()
    _, by_x, _ = reference(x, w, t, head, valid, "forward_kl", 1.0, 0.5)
    torch.testing.assert_close(shaped.grad.view(60, 8), by_x.float() / 4, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert float(linear_divergence(x, w, t, head)) > 0


def test_a_second_pass_back_is_refused_since_gradients_are_scaled_in_place() -> None:
    x, w, t, head, _ = drawn(10, 8, 6, 20)
    total = linear_divergence(x, w, t, head)
    total.backward(retain_graph=True)
    with pytest.raises(ThriftyError, match="in the first backward pass"):
        total.backward()


def test_a_compiler_takes_it_whole_and_the_operator_keeps_torchs_contract() -> None:
    x, w, t, head, valid = drawn(300, 24, 16, 130)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return linear_divergence(x * 2, w, t, head, valid=valid, kind="jsd", logits_bytes=1) / 10

    wanted = torch.autograd.grad(loss(x, w), (x, w))
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, w), (x, w))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch.library.opcheck(fused.linear_divergence, (x.detach(), w.detach(), t, head, valid, "jsd", 2.0, 0.5, 128, True, True,
                                                    True))


@pytest.mark.parametrize("change, says", [
    ({"taught": torch.randn(7, 6)}, "same positions"), ({"teaching": torch.randn(21, 6)}, "one vocabulary"),
    ({"weight": torch.randn(20, 9)}, "8 columns"), ({"kind": "kl"}, "one of forward_kl"), ({"temperature": 0.0}, "above 0"),
    ({"beta": 1.0}, "in \\(0, 1\\)"), ({"valid": torch.ones(3)}, "3 positions")])
def test_what_does_not_fit_says_so(change, says) -> None:
    x, w, t, head, _ = drawn(10, 8, 6, 20)
    given_ = {"hidden": x, "weight": w, "taught": t, "teaching": head, **change}
    with pytest.raises(ThriftyError, match=says):
        linear_divergence(**given_)


def test_rows_that_are_all_masked_cost_nothing_and_none_is_no_error() -> None:
    x, w, t, head, valid = drawn(20, 8, 6, 10)
    assert all(float(g.detach().abs().sum()) == 0 for g in found_of((x, w, t, head, valid & False)))
    assert all(float(g.detach().abs().sum()) == 0 for g in found_of((x[:0], w, t[:0], head, valid[:0])))


def check_kernels(kernels: ModuleType, n: int, v: int, dtype: torch.dtype, device: str, kind: Kind) -> None:
    student, teacher = ((3 * torch.randn(n, v, device=device)).to(dtype) for _ in range(2))
    student[0, 0], teacher[0, 1] = 500.0, 500.0  # a certain student against a teacher that is certain of another
    valid = torch.arange(n, device=device) != 1
    exact = student.double().cpu().requires_grad_()
    options = {"beta": 0.3} if kind == "jsd" else {}
    rows = [getattr(losses, kind)(exact[i : i + 1], teacher[i : i + 1].double().cpu(), 2.0, **options) for i in range(n)]
    wanted, = torch.autograd.grad(torch.stack(rows)[valid.cpu()].sum(), exact)
    lost = kernels.divergences(student.clone(), teacher, valid, kind, 2.0, 0.3, False)
    torch.testing.assert_close(lost.double().cpu(), torch.stack(rows).detach().where(valid.cpu(), 0.0), rtol=1e-4, atol=1e-4)
    again = kernels.divergences(student, teacher, valid, kind, 2.0, 0.3, True)
    assert torch.equal(again, lost)
    bits = {torch.float32: 2e-4, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    torch.testing.assert_close(student.cpu().double(), wanted, rtol=bits, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n, v", [(3, 7), (130, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_passes_over_the_logits(kind: Kind, n: int, v: int, dtype: torch.dtype) -> None:
    check_kernels(naive, n, v, dtype, "cpu", kind)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter fails with numpy 2.4")
def test_the_kernel_is_the_maths_where_it_is_interpreted() -> None:
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])})
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n, v", [(3, 7), (130, 300), (257, 50_304)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gpus_passes_over_the_logits(kind: Kind, n: int, v: int, dtype: torch.dtype) -> None:
    from thrifty.kernels.linear_divergence import triton

    check_kernels(triton, n, v, dtype, "cuda", kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_is_right(kind: Kind) -> None:
    made = drawn(1040, 256, 320, 4112, torch.bfloat16, "cuda")
    for a, b in zip(found_of(made, kind=kind, logits_bytes=2**22), reference(*made, kind, 1.0, 0.5), strict=True):
        assert error(a, b) < 2e-2
