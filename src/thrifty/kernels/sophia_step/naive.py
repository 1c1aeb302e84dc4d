"""The math of a step of Sophia, in torch's own operations: any device, any precision, any layout."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.kernels.sophia_step.constants import Constants


def step(weights: list[Tensor], gradients: list[Tensor], m: list[Tensor], h: list[Tensor], constants: Constants) -> Tensor:
    """Update weights and m in place.

        m <- b1 m + (1 - b1) g
        p <- (1 - lr wd) p - lr clip(m / max(gamma h, eps), 1)

    Args:
        weights, gradients: of any one shape each; the arithmetic is m's, whatever theirs.
        m, h: running means of gradients and of the curvature.

    Returns:
        how many of |m / max(gamma h, eps)| are below 1, an int64 scalar on the weights' device.

    >>> p, m = torch.tensor([1.0, 1.0]), torch.zeros(2)
    >>> constants = Constants(lr=0.1, beta1=0.5, gamma=1.0, eps=1e-12, weight_decay=0.0)
    >>> int(step([p], [torch.tensor([1.0, 1.0])], [m], [torch.tensor([1.0, 0.1])], constants)), p.tolist()
    (1, [0.949999988079071, 0.8999999761581421])

    Source: "Sophia", Liu et al. 2023, arXiv:2305.14342, algorithm 3.
    """
    within = torch.zeros((), dtype=torch.int64, device=weights[0].device)
    for p, g, mean, curvature in zip(weights, gradients, m, h, strict=True):
        mean.mul_(constants.beta1).add_(g.to(mean.dtype), alpha=1 - constants.beta1)
        ratio = mean / (constants.gamma * curvature).clamp(min=constants.eps)
        within += _local(ratio.abs() < 1).sum()
        after = p.to(mean.dtype) * (1 - constants.lr * constants.weight_decay) - constants.lr * ratio.clamp(-1, 1)
        p.copy_(after if constants.rounding is None else stochastic(after, constants.rounding))
    return within


def stochastic(x: Tensor, seed: int) -> Tensor:
    """float32 to bfloat16, up or down with the probabilities that make the mean right.

    >>> round(float(stochastic(torch.full((10_000,), 1.001), 0).float().mean()), 3)
    1.001
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    rounded = ((x.float().view(torch.int32) + noise) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)


def _local(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, so that counting needs no communication."""
    return x.to_local() if hasattr(x, "to_local") else x
