"""HQQ: grids found from the weights alone, by an error that a few far-off weights do not rule."""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.numerics.grid import TINY, per_group, to_group
from thrifty.numerics.grouped import Grouped

NORM = 0.7
ITERATIONS = 20
BETA, KAPPA = 1.0, 1.01


def hqq(weight: Tensor, bits: int, group: int, *, iterations: int = ITERATIONS) -> Grouped:
    """Half-quadratic quantization: scales and zeros of least sum |w - s (q - z)|^p, without any data.

    The error is split by e, what the grid is allowed to miss (p = 0.7, b = 1 and 1.01 times as much each iteration):

        min over s, z, e of |e / s|^p + b / 2 ((w - s (q - z) - e) / s)^2

    solved in turn, q = clamp(round(w / s) + z) being what is nearest:

        e / s = shrink((w - s (q - z)) / s),  shrink(x) = sign(x) max(0, |x| - |x|^(p - 1) / b)
        z = round(mean(q - (w - e) / s)),     s = <q - z, w - e> / <q - z, q - z>

    The paper holds s and lets z be a fraction. Here zeros are whole numbers, which integer kernels ask for, so s is
    solved for too; and errors are in steps of the grid, so that b means the same for small weights and large ones.
    A group begins at its extremes' grid and takes another only where neither sum |w - s (q - z)|^p nor the sum of the
    errors themselves grows, which a z that is a fraction would bring to 0: errors of one sign add up in the outputs.

    Args:
        weight: [out, in].
        bits: of a weight.
        group: weights a scale; divides in.
        iterations: of all steps.

    Source: "Half-Quadratic Quantization of Large Machine Learning Models", Badri and Shaji 2023,
    https://mobiusml.github.io/hqq_blog/.

    >>> hqq(torch.randn(2, 32), bits=4, group=32).scale.shape
    torch.Size([2, 1])
    """
    w = weight.detach().float().reshape(len(weight), -1, group)
    most = 2**bits - 1
    scale, zero = (x.unsqueeze(2) for x in (per_group(weight, bits, group)))
    zero = zero.float()
    best, least, beta = (scale, zero), _missed(w, scale, zero, most), BETA
    for _ in range(iterations):
        q = (torch.round(w / scale) + zero).clamp(0, most)
        lost = (w - scale * (q - zero)) / scale
        aimed = w - scale * lost.sign() * (lost.abs() - lost.abs().clamp_min(TINY) ** (NORM - 1) / beta).clamp_min(0)
        zero = torch.round((q - aimed / scale).mean(2, keepdim=True)).clamp(0, most)
        steps = q - zero
        scale = ((steps * aimed).sum(2, keepdim=True) / steps.square().sum(2, keepdim=True).clamp_min(TINY)).clamp_min(TINY)
        beta *= KAPPA
        found = _missed(w, scale, zero, most)
        better = (found[0] < least[0]) & (found[1] <= least[1])
        best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
        least = torch.where(better, found[0], least[0]), torch.where(better, found[1], least[1])
    scale, zero = best[0].squeeze(2), best[1].squeeze(2).to(torch.uint8)
    return Grouped(to_group(weight.detach(), scale, zero, bits), scale, zero, bits)


def _missed(w: Tensor, scale: Tensor, zero: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """For each group, sum |w - s (q - z)|^p and |sum (w - s (q - z))|."""
    lost = w - scale * ((torch.round(w / scale) + zero).clamp(0, most) - zero)
    return lost.abs().pow(NORM).sum(2, keepdim=True), lost.sum(2, keepdim=True).abs()
