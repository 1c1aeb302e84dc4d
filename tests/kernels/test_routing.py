"""Routing by kernels against its definition: by Triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.interpreter import interpret, interpreted

from thrifty.kernels.routing import logits, naive, route

INTERPRETED = """
from tests.kernels.test_routing import SIZES, compare
from tests.kernels.interpreter import poison
poison()
for size in SIZES:
    compare(*size, "softmax", "shares", "cpu")
for score, weighting in (("sigmoid", "shares"), ("softmax", "scores"), ("sigmoid", "scores"), ("softmax", "ones")):
    compare(*SIZES[1], score, weighting, "cpu")
"""
SIZES = [(1, 5, 2), (37, 12, 3), (20, 16, 16), (70, 9, 1)]
"""(tokens, experts, top_k)"""


def compare(tokens: int, experts: int, top_k: int, score: str, weighting: str, device: str) -> None:
    draw = torch.Generator().manual_seed(tokens)
    given = torch.randn(tokens, experts, generator=draw).to(device).requires_grad_()
    how = torch.randn(experts, generator=draw).to(device) * 0.2, top_k, score, weighting, 1.5
    by = torch.randn(tokens, top_k, generator=draw).to(device)
    chosen, weights, order, counts = naive.route(given, *how)
    found = route(given, *how)
    for got, want in zip((found[0], *found[2:]), (chosen, order, counts, counts.cumsum(0)), strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(found[1], weights)
    wanted, = torch.autograd.grad(weights, given, by)
    torch.testing.assert_close(torch.autograd.grad(found[1], given, by)[0], wanted, rtol=1e-4, atol=1e-6)


@interpreted
def test_the_kernels_are_the_maths_where_they_are_interpreted() -> None:
    interpret(INTERPRETED)


@pytest.mark.gpu
@pytest.mark.parametrize("weighting", ["shares", "scores", "ones"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [*SIZES, (5000, 128, 8), (300, 1000, 4)], ids=str)
def test_the_kernels_on_the_device(size: tuple[int, int, int], score: str, weighting: str) -> None:
    compare(*size, score, weighting, "cuda")


@pytest.mark.gpu
def test_a_score_that_is_no_number_chooses_experts_that_there_are() -> None:
    chosen, _, order, counts, _ = route(torch.full((9, 5), torch.nan, device="cuda"), torch.zeros(5, device="cuda"), 3, "softmax",
                                        "shares", 1.0)
    assert int(chosen.max()) < 5 and int(counts.sum()) == 27 and torch.equal(order.sort().values, torch.arange(27, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_logits_of_bfloat16_are_as_exact_as_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(700, 512, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(32, 512, device="cuda").to(dtype).requires_grad_()
    by = torch.randn(700, 32, device="cuda")
    want = x.double() @ weight.double().T
    wanted = torch.autograd.grad(want, (x, weight), by.double())
    got = logits(x, weight)
    assert got.dtype == torch.float32 and (got - want).norm() <= 1e-5 * want.norm()
    for mine, theirs in zip(torch.autograd.grad(got, (x, weight), by), wanted, strict=True):
        assert (mine - theirs).norm() <= (3e-3 if mine.dtype == torch.bfloat16 else 1e-4) * theirs.norm()
