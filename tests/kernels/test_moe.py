"""Experts of a mixture against their definition: torch's operations, the kernels by Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.interpreter import interpret, interpreted
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from thrifty.errors import ThriftyError
from thrifty.kernels.moe import cpu, moe, naive

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
SIZES = [(5, 2, 20, 24, 19), (4, 4, 16, 16, 7), (16, 8, 33, 17, 1), (6, 1, 32, 24, 21)]
"""(experts, top_k, width, hidden, tokens)"""
INTERPRETED = """
from tests.kernels.test_moe import SIZES, compare, drawn, views
from tests.kernels.interpreter import poison
from thrifty.kernels.moe.launch import How, Tile
poison()
plain = How(16, Tile(16, 16, 4, 3), Tile(32, 16, 4, 2), Tile(16, 16, 4, 2), Tile(16, 32, 4, 2), Tile(32, 16, 4, 2),
            Tile(16, 16, 4, 2), 16)
bulk = How(16, *(Tile(32, 16, 4, 2, 2, True) for _ in range(6)), 32)
for size in SIZES:
    compare(drawn(*size), bulk)
for how, made in zip((plain, bulk, plain), views(drawn(*SIZES[0])), strict=True):
    compare(made, how)
compare(drawn(*SIZES[2]), plain)
compare(drawn(6, 1, 16, 8, 61, counts=[30, 0, 0, 1, 0, 30]), bulk)
"""
Case = tuple[Tensor, ...]


def drawn(experts: int, top_k: int, width: int, hidden: int, tokens: int, *, counts: list[int] | None = None,
          device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    """x, gate_up, down, weights, order, ends: choices at random, or ``counts`` of each expert."""
    draw = torch.Generator().manual_seed(seed)
    x, gate_up, down = (torch.randn(*shape, generator=draw) / shape[-1] ** 0.5 for shape in (
        (tokens, width), (experts, 2 * hidden, width), (experts, width, hidden)))
    if counts is None:
        flat = torch.rand(tokens, experts, generator=draw).topk(top_k, 1).indices.flatten()
    else:
        flat = torch.repeat_interleave(torch.arange(experts), torch.tensor(counts))[torch.randperm(tokens, generator=draw)]
    weights = torch.rand(tokens, top_k, generator=draw)
    order, ends = flat.argsort(stable=True), flat.bincount(minlength=experts).cumsum(0)
    return tuple(v.to(device) for v in (*(v.to(dtype) for v in (x, gate_up, down)), weights, order, ends))


def views(case: Case) -> list[Case]:
    """Weights stored the other way round, and as parts of larger tensors."""
    x, gate_up, down, *others = case
    turned = [v.mT.contiguous().mT for v in (gate_up, down)]
    packed = [torch.cat([v, v], 2)[..., : v.shape[2]] for v in (gate_up, down)]
    return [(x, *turned, *others), (x, *packed, *others), (torch.cat([x, x], 1)[:, : x.shape[1]], gate_up, down, *others)]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def wanted(case: Case, dy: Tensor) -> list[Tensor]:
    """The output and the gradients of x, gate_up, down and weights, from the definition in float64."""
    given = [v.double().requires_grad_() for v in case[:4]]
    y = naive.forward(*given, *case[4:])
    return [y.detach(), *torch.autograd.grad(y, given, dy.double())]


def compare(case: Case, how: object = None, bound: float = 1e-6) -> None:
    """Both directions of the kernels against the definition; gradients of experts without rows are exactly 0."""
    from thrifty.kernels.moe import launch

    dy = torch.randn(case[0].shape).to(case[0])
    y, gates = launch.forward(*case, True, how)
    assert torch.equal(y, launch.forward(*case, False, how)[0])
    got = [y, *launch.backward(dy, *case, gates, [True] * 3, how)]
    for mine, theirs in zip(got, wanted(case, dy), strict=True):
        assert mine.shape == theirs.shape and relative(mine, theirs) <= bound
    empty = case[5].diff(prepend=case[5].new_zeros(1)) == 0
    assert not got[2][empty].any() and not got[3][empty].any()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_operator_is_the_definition_forward_and_backward(size: tuple[int, ...]) -> None:
    case = drawn(*size, dtype=torch.float64)
    given = [v.requires_grad_() for v in case[:4]]
    dy = torch.randn_like(case[0])
    y = moe(*case)
    for got, want in zip((y, *torch.autograd.grad(y, given, dy)), wanted(case, dy), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)


def test_only_the_gradients_asked_for_are_made() -> None:
    case = drawn(*SIZES[0])
    case[1].requires_grad_()
    moe(*case).sum().backward()
    assert case[1].grad is not None and case[0].grad is None and case[3].grad is None


def test_no_tokens_at_all() -> None:
    case = drawn(3, 2, 8, 4, 0)
    case[1].requires_grad_()
    y = moe(*case)
    y.sum().backward()
    assert y.shape == (0, 8) and not case[1].grad.any()


def test_a_gradient_of_a_gradient_is_refused() -> None:
    case = drawn(*SIZES[0])
    x = case[0].requires_grad_()
    first, = torch.autograd.grad(moe(*case).square().sum(), x, create_graph=True)
    with pytest.raises(ThriftyError, match="gradients of gradients"):
        first.sum().backward()


def test_a_second_pass_back_gives_the_same() -> None:
    case = drawn(*SIZES[0])
    x = case[0].requires_grad_()
    y = moe(*case).sum()
    first, = torch.autograd.grad(y, x, retain_graph=True)
    assert torch.equal(first, torch.autograd.grad(y, x)[0])


def test_the_operator_keeps_torchs_laws() -> None:
    case = drawn(*SIZES[0])
    torch.library.opcheck(torch.ops.thrifty.moe.default, (*case, False))
    torch.library.opcheck(torch.ops.thrifty.moe.default, (*(v.requires_grad_() for v in case[:4]), *case[4:], True))


def test_flops_are_counted() -> None:
    _, top_k, width, hidden, tokens = SIZES[0]
    case = drawn(*SIZES[0])
    with FlopCounterMode(display=False) as counter:
        moe(*(v.requires_grad_() for v in case[:3]), *case[3:]).sum().backward()
    assert counter.get_total_flops() == 3 * 6 * tokens * top_k * width * hidden


def test_what_does_not_fit_is_refused() -> None:
    x, gate_up, down, weights, order, ends = drawn(*SIZES[0])
    with pytest.raises(ThriftyError, match="do not fit each other"):
        moe(x, gate_up, down.mT, weights, order, ends)
    with pytest.raises(ThriftyError, match="do not fit each other"):
        moe(x, gate_up, down, weights, order[1:], ends)
    with pytest.raises(ThriftyError, match="one precision"):
        moe(x, gate_up.double(), down, weights, order, ends)


@interpreted
def test_the_kernels_are_the_maths_where_they_are_interpreted() -> None:
    interpret(INTERPRETED)


# -- on a GPU ---------------------------------------------------------------------------------------------------


def dirty() -> None:
    """Leaves NaN where the allocator takes memory from next."""
    held = [torch.full((2**24,), torch.nan, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
    del held


ON_GPU = [*SIZES, (128, 8, 256, 128, 500), (7, 2, 104, 56, 3000), (6, 1, 130, 72, 700), (8, 8, 64, 64, 9), (5, 2, 100, 50, 900)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", ON_GPU, ids=str)
def test_the_kernels_on_the_device(size: tuple[int, ...], dtype: torch.dtype) -> None:
    dirty()
    compare(drawn(*size, device="cuda", dtype=dtype), bound=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("size", [(5, 2, 128, 256, 900), (5, 2, 100, 50, 30)], ids=str)
def test_strides_are_honored_on_the_device(size: tuple[int, ...], which: int) -> None:
    dirty()
    compare(views(drawn(*size, device="cuda", dtype=torch.bfloat16))[which], bound=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("counts", [[162, 0, 2577, 446, 0, 83], [0, 0, 3268, 0, 0, 0]], ids=str)
def test_experts_without_rows_on_the_device(counts: list[int]) -> None:
    for _ in range(3):
        dirty()
        compare(drawn(6, 1, 128, 64, sum(counts), counts=counts, device="cuda", dtype=torch.bfloat16), bound=1e-2)


@pytest.mark.gpu
def test_more_numbers_than_thirty_two_bits_count_on_the_device() -> None:
    tokens, hidden = 140_000, 1024  # times 8 choices and 2 * hidden: past 2^31
    case = drawn(16, 8, 64, hidden, tokens, device="cuda", dtype=torch.bfloat16)
    given = [v.requires_grad_() for v in case[:4]]
    dy = torch.randn_like(case[0])
    got = torch.autograd.grad(moe(*case), given, dy)
    full = [v.detach().float() for v in case[:4]]
    _, gates = cpu.forward(*full, *case[4:], True)
    for mine, theirs in zip(got, cpu.backward(dy.float(), *full, *case[4:], gates, [True] * 3), strict=True):
        assert relative(mine, theirs) <= 1e-2


@pytest.mark.gpu
def test_compiled_captured_and_eager_are_equal_on_the_device() -> None:
    case = drawn(16, 4, 128, 64, 300, device="cuda", dtype=torch.bfloat16)
    given = [v.requires_grad_() for v in case[:4]]
    dy = torch.randn_like(case[0])
    want = torch.autograd.grad(moe(*case), given, dy)
    assert all(torch.equal(a, b) for a, b in zip(want, torch.autograd.grad(moe(*case), given, dy), strict=True))
    compiled = torch.compile(moe, fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(want, torch.autograd.grad(compiled(*case), given, dy), strict=True))
    torch.compiler.reset()
    with torch.no_grad():
        y = moe(*case)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = moe(*case)
        graph.replay()
    assert torch.equal(again, y)
