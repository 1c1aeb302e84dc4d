"""A linear layer and its cross entropy against the math written out in float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from thrifty.errors import ThriftyError
from thrifty.kernels.float8 import E5M2
from thrifty.kernels.linear_loss import fused, linear_cross_entropy, naive

IGNORED = -100


def drawn(n: int, h: int, v: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight and targets, a tenth of them ignored, the first and the last class among the others."""
    x, w = torch.randn(n, h, device=device), torch.randn(v, h, device=device)
    y = torch.randint(v, (n,), device=device)
    y[torch.rand(n, device=device) < 0.1] = IGNORED
    for place, value in enumerate((0, v - 1, IGNORED)[:n]):
        y[place] = value
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), y


def reference(x: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients in float64, row by row."""
    x64, w64 = x.detach().double().cpu(), w.detach().double().cpu()
    total, by_x, by_w = torch.zeros((), dtype=torch.float64), torch.zeros_like(x64), torch.zeros_like(w64)
    for i, label in enumerate(y.tolist()):
        if label == IGNORED:
            continue
        logits = w64 @ x64[i]
        chances = torch.exp(logits - logits.max())
        chances /= chances.sum()
        total -= torch.log(chances[label])
        chances[label] -= 1
        by_x[i] = chances @ w64
        by_w += chances[:, None] * x64[i]
    return total, by_x, by_w


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double().cpu() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def gradients(x: Tensor, w: Tensor, y: Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    total = linear_cross_entropy(x, w, y, **options)
    return (total, *torch.autograd.grad(total, (x, w)))


@given(st.integers(1, 400), st.integers(1, 20), st.integers(1, 300), st.sampled_from([1, 2**30]))
def test_loss_and_gradients_are_the_maths_at_any_size(n: int, h: int, v: int, logits_bytes: int) -> None:
    x, w, y = drawn(n, h, v)
    for found, wanted in zip(gradients(x, w, y, logits_bytes=logits_bytes), reference(x, w, y), strict=True):
        assert error(found, wanted) < 1e-5 or float(wanted.norm()) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_precision(dtype: torch.dtype) -> None:
    x, w, y = drawn(300, 24, 130, dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)
    for found, wanted in zip(gradients(x, w, y, logits_bytes=1), reference(x, w, y), strict=True):
        assert error(found, wanted) < tolerance
    assert [g.dtype for g in gradients(x, w, y)[1:]] == [dtype, dtype]


def test_it_is_torchs_own_in_float32() -> None:
    x, w, y = drawn(500, 32, 77)
    total = F.cross_entropy(x @ w.t(), y, reduction="sum")
    for found, wanted in zip(gradients(x, w, y, logits_bytes=1), (total, *torch.autograd.grad(total, (x, w))), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_autocast_decides_the_products_and_weights_of_32_bits_get_gradients_of_32() -> None:
    x, w, y = drawn(300, 24, 130)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(x, w, y)
    assert {g.dtype for g in found} == {torch.float32}
    assert all(1e-4 < error(a, b) < 1e-2 for a, b in zip(found[1:], reference(x, w, y)[1:], strict=True))


def test_what_comes_from_above_is_multiplied_in_and_dimensions_are_kept() -> None:
    x, w, y = drawn(60, 8, 20)
    shaped = x.detach().reshape(3, 20, 8).requires_grad_()
    (linear_cross_entropy(shaped, w, y.view(3, 20)) * 0.25).backward()
    _, by_x, by_w = reference(x, w, y)
    torch.testing.assert_close(shaped.grad.view(60, 8), by_x.float() / 4, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w.grad, by_w.float() / 4, rtol=1e-4, atol=1e-5)


def test_only_what_is_wanted_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(logits: Tensor, target: Tensor, ignore_index: int, gradient: bool) -> tuple[Tensor, Tensor]:
        asked.append(gradient)
        return naive_losses(logits, target, ignore_index, gradient)

    naive_losses = naive.losses
    monkeypatch.setattr(naive, "losses", spy)
    x, w, y = drawn(40, 8, 20)
    with torch.no_grad():
        alone = linear_cross_entropy(x, w, y)
    frozen = linear_cross_entropy(x, w.detach(), y)
    frozen.backward()
    assert asked == [False, True]
    assert float(alone) == float(frozen.detach()) and w.grad is None
    torch.testing.assert_close(x.grad, reference(x, w, y)[1].float(), rtol=1e-4, atol=1e-5)


def test_rows_that_are_all_ignored_cost_nothing_and_none_is_no_error() -> None:
    x, w, y = drawn(20, 8, 10)
    assert all(float(g.detach().abs().sum()) == 0 for g in gradients(x, w, torch.full_like(y, IGNORED)))
    assert all(float(g.detach().abs().sum()) == 0 for g in gradients(x[:0], w, y[:0]))


def test_a_logit_beyond_exps_range_is_no_overflow_and_nan_stays() -> None:
    x, w, y = drawn(4, 8, 10)
    x = (x.detach() * 1e4).requires_grad_()
    y[:] = (x @ w.t()).argmax(1)
    assert float(linear_cross_entropy(x, w, y).detach()) == 0.0
    x.data[2, 3] = float("nan")
    assert all(bool(g.isnan().any()) for g in gradients(x, w, y))


def test_a_compiler_takes_it_whole() -> None:
    x, w, y = drawn(300, 24, 130)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(x * 2, w, y, logits_bytes=1) / 10

    wanted = torch.autograd.grad(loss(x, w), (x, w))
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, w), (x, w))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_the_operator_keeps_torchs_contract() -> None:
    x, w, y = (t.detach() for t in drawn(150, 16, 48))
    for float8, flags in ((False, (True, True)), (False, (False, True)), (True, (False, False))):
        rows = 144 if float8 else 150
        torch.library.opcheck(fused.linear_loss, (x[:rows], w, y[:rows], IGNORED, 128, float8, *flags, True))


def test_sizes_that_do_not_fit_say_so() -> None:
    x, w, y = drawn(32, 16, 48)
    with pytest.raises(ThriftyError, match=r"needs targets \(32,\) and a weight of 16 columns, but got \(31,\)"):
        linear_cross_entropy(x, w, y[:31])
    with pytest.raises(ThriftyError, match=r"multiples of 16, but hidden is \(31, 16\)"):
        linear_cross_entropy(x[:31], w, y[:31], float8=True)


def test_parts_keep_to_the_bytes_that_logits_may_take() -> None:
    for rows in (1, 127, 128, 5000, 32_768):
        part = fused.part_rows(rows, 1000, 2, 500_000)
        assert part % 128 == 0 and (part * 2000 <= 500_000 or part == 128)


# -- 8 bits -----------------------------------------------------------------------------------------------------


def test_8_bits_are_near() -> None:
    x, w, y = drawn(512, 64, 320)
    x = (x.detach() * 0.3).requires_grad_()
    found, wanted = gradients(x, w, y, float8=True, logits_bytes=1), reference(x, w, y)
    assert error(found[0], wanted[0]) < 2e-2
    assert all(1e-3 < error(a, b) < 0.12 for a, b in zip(found[1:], wanted[1:], strict=True))


def test_the_errors_of_8_bits_lie_to_both_sides() -> None:
    """An update follows the gradient: what 8 bits add to it is far from parallel to it."""
    x, w, y = drawn(2048, 64, 320)
    (_, _, found), (_, _, wanted) = gradients(x, w, y, float8=True), reference(x, w, y)
    along = float((found.double() * wanted).sum() / wanted.pow(2).sum())
    assert along == pytest.approx(1, abs=0.02)


def values8(logits: Tensor, norm: Tensor, y: Tensor) -> Tensor:
    chances = (logits.double() - norm.double()[:, None]).exp()
    for i, label in enumerate(y.tolist()):
        chances[i] = 0 if label == IGNORED else chances[i] - F.one_hot(torch.tensor(label), logits.shape[1]).to(chances)
    return chances * naive.GRADIENT_SCALE


def check_kernels(kernels: ModuleType, n: int, v: int, dtype: torch.dtype, device: str) -> None:
    logits = (3 * torch.randn(n, v, device=device)).to(dtype)
    y = torch.randint(v, (n,), device=device)
    y[0] = IGNORED
    wanted = values8(logits.cpu(), logits.cpu().float().logsumexp(1), y.cpu()) / naive.GRADIENT_SCALE
    lost, norm = kernels.losses(logits, y, IGNORED, False)
    torch.testing.assert_close(norm.cpu(), logits.cpu().float().logsumexp(1), rtol=1e-5, atol=1e-5)
    straight, turned = kernels.gradient8(logits, norm, y, IGNORED)
    assert straight.dtype == E5M2 and torch.equal(straight.float().t(), turned.float()) and turned.is_contiguous()
    # the nearest of two numbers with two bits of mantissa is within an eighth of a number
    torch.testing.assert_close(straight.cpu().double() / naive.GRADIENT_SCALE, wanted, rtol=0.126, atol=2.0**-31)
    again, _ = kernels.losses(logits, y, IGNORED, True)
    assert torch.equal(again, lost)
    bits = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    torch.testing.assert_close(logits.cpu().double(), wanted, rtol=bits, atol=1e-6)


@pytest.mark.parametrize("n, v", [(3, 7), (130, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_passes_over_the_logits(n: int, v: int, dtype: torch.dtype) -> None:
    check_kernels(naive, n, v, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("n, v", [(3, 7), (130, 300), (257, 50_304)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gpus_passes_over_the_logits(n: int, v: int, dtype: torch.dtype) -> None:
    from thrifty.kernels.linear_loss import triton

    check_kernels(triton, n, v, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("float8", [False, True], ids=["bf16", "float8"])
def test_the_gpu_is_right(float8: bool) -> None:
    x, w, y = drawn(1040, 256, 4112, torch.bfloat16, "cuda")
    x.data *= 0.2
    found = gradients(x, w, y, float8=float8, logits_bytes=2**22)
    for a, b in zip(found, reference(x, w, y), strict=True):
        assert error(a, b) < (0.12 if float8 else 1e-2)
