"""AdaRound: whether each weight is rounded up or down is learned from what the layer really reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
LAMBDA = 0.01
WARM = 0.2
"""Share of the steps without the regulariser."""
BETAS = (20.0, 2.0)
RATE = 0.1
"""Of Adam: ten times that of common practice, for a tenth of its steps."""


@final
@dataclass(frozen=True)
class Layer:
    """A linear map over groups: y = f(x W^T + b), as a matrix product, a convolution's patches being its rows.

    Args:
        weight: [groups, outputs, inputs] float32.
        scale: [groups, outputs] float32, steps of the grid.
        bias: [groups, outputs] float32.
        activation: f, elementwise, that follows the layer.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    activation: Callable[[Tensor], Tensor]

    def outputs(self, weight: Tensor, x: Tensor) -> Tensor:
        """f(x W^T + b) [groups, rows, outputs] for x [groups, rows, inputs]."""
        return self.activation(torch.baddbmm(self.bias.unsqueeze(1), x, weight.transpose(1, 2)))

    def errors(self, q: Tensor, x: Tensor, exact: Tensor) -> Tensor:
        """Mean squared error of each output [groups, outputs] with whole numbers q for weights."""
        return (self.outputs(q * self.scale.unsqueeze(2), x) - exact).square().mean(1)


def rectified(v: Tensor) -> Tensor:
    """The rectified sigmoid h(v) = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1): it reaches 0 and 1."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def unrectified(h: Tensor) -> Tensor:
    """v with h(v) = h, for h in [0, 1)."""
    return -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1)


def regulariser(h: Tensor, beta: float) -> Tensor:
    """sum of 1 - |2h - 1|^beta: 0 where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def beta_at(step: int, steps: int) -> float | None:
    """The exponent at a step: none while warm, then linearly from 20 to 2."""
    warm = math.ceil(WARM * steps)
    if step < warm:
        return None
    return BETAS[0] + (BETAS[1] - BETAS[0]) * (step - warm) / max(1, steps - 1 - warm)


def adaround(layer: Layer, x: Tensor, exact: Tensor, bits: int, steps: int, generator: torch.Generator,
             batch: int = 256) -> Tensor:
    """Whole numbers for a layer's weights, each the one below or above, that reconstruct its outputs.

    argmin over V of ||f(x W~^T + b) - y||^2 + lambda sum(1 - |2 h(V) - 1|^beta),
    W~ = s clip(floor(W / s) + h(V), -n, n), n = 2^(b-1) - 1, the error summed over outputs, averaged over rows, in units
    of the outputs' mean square, so that lambda weighs the same in every layer. Each output keeps the learned
    rounding or rounding to nearest, whichever has the smaller error on all rows, so that none is worse than nearest.

    Paper: "Up or down? Adaptive rounding for post-training quantization", Nagel et al. 2020, arXiv:2004.10568,
    equations 21 to 25.

    Args:
        layer: its float weights.
        x: [groups, rows, inputs], what the integer layer reads.
        exact: [groups, rows, outputs], what the float layer gives where nothing is rounded.
        bits: b of a weight.
        steps: of Adam.
        generator: draws the rows of a step.
        batch: rows a step.

    Returns:
        int8 [groups, outputs, inputs].
    """
    most = 2 ** (bits - 1) - 1
    scale = layer.scale.unsqueeze(2)
    exact_q = layer.weight / scale
    nearest = torch.round(exact_q).clamp(-most, most)
    below = torch.floor(exact_q)
    unit = exact.square().mean().clamp_min(1e-12)
    rows = x.shape[1]
    with torch.enable_grad():
        v = unrectified(exact_q - below).requires_grad_()
        optimizer = torch.optim.Adam([v], lr=RATE)
        for step in range(steps):
            drawn = torch.randint(rows, (min(batch, rows),), generator=generator)
            h = rectified(v)
            weight = (below + h).clamp(-most, most) * scale
            loss = (layer.outputs(weight, x[:, drawn]) - exact[:, drawn]).square().sum((0, 2)).mean() / unit
            beta = beta_at(step, steps)
            if beta is not None:
                loss = loss + LAMBDA * regulariser(h, beta)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    learned = (below + (rectified(v.detach()) >= 0.5)).clamp(-most, most)
    better = layer.errors(learned, x, exact) < layer.errors(nearest, x, exact)
    return torch.where(better.unsqueeze(2), learned, nearest).to(torch.int8)
