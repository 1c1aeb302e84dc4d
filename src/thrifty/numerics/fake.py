"""Rounding in training: numbers on an integer grid whose step, like the numbers, gets a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thrifty.numerics.grid import TINY


def fake_quantize(x: Tensor, step: Tensor, low: Tensor, high: Tensor, gain: float = 1.0) -> Tensor:
    """Round x to the grid of ``step``; gradients pass as if it had not been rounded.

        v = x / s;  q = round(v);  y = s clamp(q, low, high)
        dy/dx = 1 where low <= q <= high, else 0
        dy/ds = gain * (q - v where low <= q <= high, else low or high)

    The paper bounds v, not q: the greatest weight of a row, which its step comes from, would be out by a rounding error.
    ``gain`` is 1 / sqrt(n high), n numbers sharing the step: steps are then changed about as fast as what they round.

    Args:
        x: of any shape, any float dtype; rounded in float32.
        step: above 0, float32, broadcast against x.
        low, high: the least and the greatest whole number, broadcast against x.
        gain: of the step's gradient.

    Returns:
        of x's shape and dtype.

    Paper: "Learned Step Size Quantization", Esser et al. 2019, arXiv:1902.08153, equations 1 to 3.

    >>> x, s = torch.tensor([0.3, 9.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    >>> y = fake_quantize(x, s, torch.tensor(-7.0), torch.tensor(7.0))
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist(), round(float(s.grad), 3)
    ([0.5, 3.5], [1.0, 0.0], 7.4)
    """
    apply: Any = _Round.apply  # torch leaves it without types
    rounded: Tensor = apply(x, step, low, high, gain)
    return rounded


def learning_gain(count: int, high: float) -> float:
    """1 / sqrt(n Q), Q the greatest whole number of the grid.

    >>> learning_gain(100, 4.0)
    0.05
    """
    return 1 / math.sqrt(count * max(high, 1.0))


def first_step(weight: Tensor, high: float) -> Tensor:
    """2 E|w| / sqrt(Q) for each row, where no calibration gave a step; rows of zeros take the whole layer's.

    Args:
        weight: [rows, ...].
        high: Q, the greatest whole number.

    Returns:
        float32 [rows], above 0.

    Paper: Esser et al. 2019, arXiv:1902.08153, section 2.1.

    >>> first_step(torch.tensor([[1.0, -3.0], [0.0, 0.0]]), high=4.0).tolist()
    [2.0, 1.0]
    """
    size = weight.detach().float().abs().flatten(1).mean(1)
    return torch.where(size > TINY, size, size.mean()).clamp_min(TINY) * 2 / math.sqrt(high)


class _Round(torch.autograd.Function):
    """`fake_quantize`; the quotient is computed again in the backward pass, so that x alone is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: Tensor, high: Tensor, gain: float) -> Tensor:
        ctx.save_for_backward(x, step, low, high)
        ctx.gain = gain
        q = torch.clamp(torch.round(x.float() / step), low, high)
        rounded: Tensor = (q * step).to(x.dtype)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, step, low, high = ctx.saved_tensors
        v = x.float() / step
        rounded = torch.round(v)
        q = torch.clamp(rounded, low, high)
        inside = q == rounded
        to_x = gradient * inside if ctx.needs_input_grad[0] else None
        to_step = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, q - v, q)
            to_step = (gradient.float() * slope).sum_to_size(step.shape) * ctx.gain
        return to_x, to_step, None, None, None
