"""Products of groups of rows: the definition, its gradients, groups without rows, what compilers make of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from thrifty.errors import ThriftyError
from thrifty.kernels.grouped_linear import _grouped_outer, cpu, cuda, grouped_linear, naive

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def case(counts, outputs=5, inputs=3, dtype=torch.float64, device="cpu", seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(counts), inputs, generator=draw, dtype=torch.float64).to(device, dtype)
    weight = torch.randn(len(counts), outputs, inputs, generator=draw, dtype=torch.float64).to(device, dtype)
    return x, weight, torch.tensor(counts, device=device).cumsum(0)


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=6), outputs=st.integers(1, 9), inputs=st.integers(1, 9))
def test_it_is_the_definition(counts, outputs, inputs):
    x, weight, ends = case(counts, outputs, inputs)
    torch.testing.assert_close(grouped_linear(x, weight, ends), naive.forward(x, weight, ends))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    x, weight, ends = case([4, 0, 9, 1], 16, 24, dtype)
    want = naive.forward(x.double(), weight.double(), ends)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert (grouped_linear(x, weight, ends).double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("counts", [[2, 0, 4, 1], [0, 0, 3], [7]], ids=str)
def test_gradients_twice(counts):
    x, weight, ends = case(counts)
    x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, ends), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: grouped_linear(x, w, ends), (x, weight))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_group_without_rows_has_a_gradient_of_zero_on_dirty_memory(device):
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for _ in range(3):
        x, weight, ends = case([162, 0, 2577, 446, 0, 83], 16, 24, dtype, device)
        weight.requires_grad_()
        dirty = torch.full((6, 16, 24), float("nan"), dtype=dtype, device=device)
        del dirty
        grouped_linear(x, weight, ends).sum().backward()
        assert torch.isfinite(weight.grad).all()
        assert (weight.grad[[1, 4]] == 0).all() and (weight.grad[[0, 2, 3, 5]] != 0).any((1, 2)).all()


def test_no_rows_at_all():
    x, weight, ends = case([0, 0])
    assert grouped_linear(x, weight.requires_grad_(), ends).shape == (0, 5)
    grouped_linear(x, weight, ends).sum().backward()
    assert (weight.grad == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(16, 24), (17, 23)], ids=str)
def test_torchs_grouped_product_on_the_device(sizes):
    x, weight, ends = case([4, 0, 130, 1], *sizes, torch.bfloat16, "cuda")
    want = naive.forward(x.double(), weight.double(), ends)
    assert (cuda.forward(x, weight, ends).double() - want).norm() <= 2e-2 * want.norm()
    transposed = weight.transpose(1, 2).contiguous().transpose(1, 2)
    assert (cuda.forward(x, transposed, ends).double() - want).norm() <= 2e-2 * want.norm()
    want = cpu.outer(want, x.double(), ends)
    got = cuda.outer(naive.forward(x.float(), weight.float(), ends).bfloat16(), x, ends)
    assert (got.double() - want).norm() <= 2e-2 * want.norm()


def test_the_operator_keeps_torchs_laws():
    x, weight, ends = case([2, 0, 4], dtype=torch.float32)
    torch.library.opcheck(torch.ops.thrifty.grouped_linear.default, (x.requires_grad_(), weight.requires_grad_(), ends))
    torch.library.opcheck(torch.ops.thrifty.grouped_outer.default, (torch.randn(6, 5), x.detach(), ends))


def test_flops_are_counted():
    x, weight, ends = case([2, 0, 4])
    with FlopCounterMode(display=False) as counter:
        grouped_linear(x, weight.requires_grad_(), ends).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 6 * 5 * 3)
    with FlopCounterMode(display=False) as counter:
        _grouped_outer(torch.randn(6, 5).double(), x, ends)
    assert counter.get_total_flops() == 2 * 6 * 5 * 3


@pytest.mark.parametrize(("x", "weight", "ends", "says"), [
    ((3, 4), (2, 5, 3), (2,), "do not match"), ((3, 4), (2, 5, 4), (3,), "do not match"), ((3, 1, 4), (2, 5, 4), (2,), "do not "
                                                                                                                       "match"),
])
def test_what_does_not_fit_is_refused(x, weight, ends, says):
    with pytest.raises(ThriftyError, match=says):
        grouped_linear(torch.zeros(x), torch.zeros(weight), torch.zeros(ends, dtype=torch.int64))
    with pytest.raises(ThriftyError, match="the same precision"):
        grouped_linear(torch.zeros(3, 4), torch.zeros(2, 5, 4).double(), torch.tensor([1, 3]))
