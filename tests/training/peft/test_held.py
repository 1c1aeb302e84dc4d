"""Weights held in fewer bits: what they round to, their product forward and backward, what they cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from thrifty.training.peft.held import HOLD, Held

pytest.importorskip("bitsandbytes")

# QLoRA, appendix E: the quantiles of a normal law, scaled to [-1, 1].
NF4 = torch.tensor([-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803,
                    0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0])


def naive(weight: Tensor, form: str) -> Tensor:
    if form == "bf16":
        return weight.bfloat16().float()
    if form == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    rows = F.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30)
    levels = NF4[((rows / scale)[..., None] - NF4).abs().argmin(-1)] * scale
    return levels.flatten()[: weight.numel()].view_as(weight)


@settings(max_examples=15)
@given(st.sampled_from(list(HOLD)), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_the_numbers_are_the_formulas(form: str, inner: int, out: int, seed: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(inner, out)
    nn.init.normal_(linear.weight)
    weight = linear.weight.detach().clone()
    held = Held(linear, form)
    step = {"bf16": 0, "int8": 1 / 127, "nf4": 0.01}[form]  # a tie, or fp16's rounding of a weight, may fall either way
    bound = 1.1 * step * weight.abs().max() + 1e-6
    assert (held.weight - naive(weight, form)).abs().max() <= bound
    close = (held.weight - naive(weight, form)).abs() <= 1e-3 * weight.abs().max()
    assert close.double().mean() > 0.97 or weight.numel() < 100
    assert linear.weight.numel() == 0, "the float copy is gone"
    assert torch.equal(held.restore().weight, held.weight.float())


@pytest.mark.parametrize("form", HOLD)
@pytest.mark.parametrize("shape", [(6, 13), (2, 3, 13)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_and_its_gradient_are_those_of_the_decoded_weight(form: str, shape: tuple[int, ...], bias: bool) -> None:
    held = Held(nn.Linear(13, 7, bias=bias), form)
    x, direction = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 7)
    (held(x) * direction).sum().backward()
    got, x.grad = x.grad, None
    plain = F.linear(x, held.weight.float(), held.bias)
    torch.testing.assert_close(held(x), plain)
    (plain * direction).sum().backward()
    torch.testing.assert_close(got, x.grad)


@pytest.mark.parametrize(("form", "most"), [("bf16", 2.0), ("int8", 1.05), ("nf4", 0.57)])
def test_it_costs_what_it_says(form: str, most: float) -> None:
    held = Held(nn.Linear(256, 128), form)
    assert held.bytes_per_weight <= most
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        held(torch.randn(4, 256, requires_grad=True))
    assert sum(t.nbytes for t in kept) <= most * 256 * 128 + 1024, "no float copy waits for the backward pass"


@pytest.mark.parametrize("form", HOLD)
def test_under_autocast_the_product_is_bf16_both_ways(form: str) -> None:
    held, x = Held(nn.Linear(13, 7), form), torch.randn(6, 13, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = held(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, held.weight.float().sum(0).expand(6, 13), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", HOLD)
def test_under_checkpointing_the_gradient_is_the_same(form: str) -> None:
    held, x = Held(nn.Linear(13, 7), form), torch.randn(6, 13, requires_grad=True)
    checkpoint(held, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, held.weight.float().sum(0).expand(6, 13))
