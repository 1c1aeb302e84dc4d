"""The selective scan against its recurrence in float64 and against transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.kernels.selective_scan import cpu, naive, parallel, selective_scan, selective_step
from thrifty.training.flops import count_flops


def drawn(batch: int, length: int, width: int, size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, B, C = (torch.randn(batch, length, last).to(dtype) for last in (width, size, size))
    dt, A = (torch.rand(batch, length, width) * 0.5).to(wide), -(torch.rand(width, size) * 4).to(wide)
    return x, dt, A, B, C, torch.randn(width).to(wide), torch.randn(batch, width, size).to(wide)


@pytest.mark.parametrize("size", [(2, 5, 3, 4), (1, 130, 4, 2), (3, 1, 2, 8)], ids=str)
def test_every_form_is_the_recurrence(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    case = drawn(*size)
    wanted = naive.scan(*case)
    torch.testing.assert_close(cpu.forward(*case), wanted)
    torch.testing.assert_close(parallel.scan(*case), wanted)


def test_no_tokens_leave_the_state() -> None:
    x, dt, A, B, C, D, initial = (v.requires_grad_() for v in drawn(2, 0, 2, 3))
    y, state = selective_scan(x, dt, A, B, C, D, initial=initial)
    (found,) = torch.autograd.grad(state.sum(), initial)
    assert y.shape == x.shape and torch.equal(state, initial) and torch.equal(found, torch.ones_like(initial))


def test_gradients() -> None:
    torch.manual_seed(0)
    case = [v.requires_grad_() for v in drawn(2, 70, 2, 3)]
    assert torch.autograd.gradcheck(lambda *args: selective_scan(*args[:6], initial=args[6]), case, fast_mode=True)
    outputs = selective_scan(*case[:6], initial=case[6])
    given = [torch.randn_like(v) for v in outputs]
    found = torch.autograd.grad(outputs, case, given)
    wanted = torch.autograd.grad(naive.scan(*case), case, given)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)], ids=str)
def test_every_precision_is_as_near_as_its_digits_allow(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    *case, initial = drawn(2, 100, 4, 8, dtype)
    y, _ = selective_scan(*case, initial=initial)
    wanted, _ = naive.scan(*(v.double() for v in case), initial.double())
    assert y.dtype == dtype and float((y.double() - wanted).norm() / wanted.norm()) < bound


def test_one_token_after_another_is_the_whole() -> None:
    torch.manual_seed(0)
    x, dt, A, B, C, D, state = drawn(2, 20, 4, 8, torch.float32)
    wanted, last = selective_scan(x, dt, A, B, C, D, initial=state)
    for t in range(20):
        y, state = selective_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        torch.testing.assert_close(y, wanted[:, t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_transformers_scan() -> None:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    torch.manual_seed(0)
    x, dt, A, B, C, D, _ = drawn(2, 50, 4, 8, torch.float32)
    wanted = mamba_selective_scan(x.mT, dt.mT, A, B.mT, C.mT, D, return_last_state=True)
    y, state = selective_scan(x, dt, A, B, C, D)
    torch.testing.assert_close((y.mT, state), wanted, rtol=1e-5, atol=1e-5)


def test_large_decays_leave_no_nan() -> None:
    case = [v.requires_grad_() for v in drawn(1, 70, 2, 4, torch.float32)]
    with torch.no_grad():
        case[2] *= 4000
    for y, state in (selective_scan(*case[:6], initial=case[6]), parallel.scan(*case)):
        assert all(v.isfinite().all() for v in torch.autograd.grad((y.sum(), state.sum()), case))


class Net(nn.Module):
    def forward(self, *case: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(*case)


def test_compiles_whole_and_exports_to_torchs_own_operators() -> None:
    torch.manual_seed(0)
    case = drawn(1, 30, 2, 4, torch.float32)[:6]
    torch.testing.assert_close(torch.compile(Net(), fullgraph=True, backend="aot_eager")(*case), Net()(*case))
    program = torch.export.export(Net(), case)
    assert not [n for n in program.graph.nodes if "thrifty" in str(n.target)]
    torch.testing.assert_close(program.module()(*case), Net()(*case), rtol=1e-5, atol=1e-5)
    torch.library.opcheck(torch.ops.thrifty.selective_scan.default, (*(v.requires_grad_() for v in case), None))


def test_flops_are_counted_and_sizes_that_do_not_fit_are_named() -> None:
    x, dt, A, B, C, D, _ = drawn(1, 10, 3, 4, torch.float32)
    _, count = count_flops(lambda: selective_scan(x, dt, A, B, C, D))
    assert count.flops == 6 * 10 * 3 * 4
    with pytest.raises(ThriftyError, match=r"need C \(1, 10, 4\), but it is \(1, 10, 3\)"):
        selective_scan(x, dt, A, B, C[..., :3], D)
