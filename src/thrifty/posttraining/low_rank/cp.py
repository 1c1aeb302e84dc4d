"""Canonical polyadic decomposition of a convolution: a 1x1, a depthwise kernel and a 1x1."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from torch import Tensor

from thrifty.posttraining.low_rank.factors import Ranks

SWEEPS = 60
SETTLED = 1e-7
CHOICES = 6
"""Ranks that are looked at: each needs a decomposition of its own."""


@final
@dataclass(frozen=True, eq=False)
class Cp:
    """W [m, n, h, w] = sum over r of u_r x v_r x k_r, with u_r [m], v_r [n], k_r [h, w]: CP over outputs, inputs and offsets.

    Alternating least squares in float64: each of the three matrices in turn is the best for the other two. S S^T is the
    second moment of the input channels, W x_in S^T what is decomposed, and V^T S^-1 what is applied.

    Paper: "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", Lebedev et al. 2014, arXiv:1412.6553,
    with both axes of the kernel as one: depthwise kernels are what engines have.

    Args:
        weight: [m, n, h, w].
        root: S and S^-1, each [n, n].
        seed: of the first guess, where a rank is above a dimension.
    """

    weight: Tensor
    root: tuple[Tensor, Tensor]
    seed: int = 0

    def ranks(self, step: int) -> list[Ranks]:
        """Up to `CHOICES` multiples of ``step``, evenly spread below the break-even rank."""
        m, n, h, w = self.weight.shape
        most = (m * n * h * w - 1) // (m + n + h * w) // step
        return [(step * k,) for k in sorted({max(1, round(most * i / CHOICES)) for i in range(1, CHOICES + 1)}) if most]

    def parameters(self, ranks: Ranks) -> int:
        m, n, h, w = self.weight.shape
        return ranks[0] * (m + n + h * w)

    def operations(self, ranks: Ranks, reads: int, writes: int) -> int:
        """Multiply-adds, for ``reads`` pixels in and ``writes`` pixels out."""
        m, n, h, w = self.weight.shape
        return ranks[0] * (reads * n + writes * (h * w + m))

    def kept(self, ranks: Ranks) -> float:
        """Share of ||W x_in S^T||^2 that these ranks keep."""
        total = self._whitened.square().sum()
        return 1 - float((self._whitened - _compose(self._decomposed(ranks))).square().sum() / total) if total else 1.0

    def factors(self, ranks: Ranks) -> list[Tensor]:
        """In the order of application: [r, n, 1, 1], [r, 1, h, w], [m, r, 1, 1]."""
        outputs, inputs, offsets = self._decomposed(ranks)
        size = [part.norm(dim=0).clamp_min(1e-30) for part in (outputs, inputs, offsets)]
        even = (size[0] * size[1] * size[2]) ** (1 / 3)  # of equal size, as training likes them
        outputs, inputs, offsets = (part / s * even for part, s in zip((outputs, inputs, offsets), size, strict=True))
        return [(inputs.T @ self.root[1])[..., None, None], offsets.T.reshape(-1, 1, *self.weight.shape[2:]),
                outputs[..., None, None]]

    @property
    def _whitened(self) -> Tensor:
        return torch.einsum("mnhw,nj->mjhw", self.weight, self.root[0]).flatten(2)

    @cache  # noqa: B019 - lives as long as a plan is made
    def _decomposed(self, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        """[m, r], [n, r], [h w, r]: of two starts what ends nearer, since alternating squares end where they do."""
        generator = torch.Generator().manual_seed(self.seed)
        ends = [_swept(self._whitened, [_start(self._whitened, mode, strongest, ranks[0], generator) for mode in range(3)])
                for strongest in (ranks[0], 0)]
        return min(ends, key=lambda end: float((self._whitened - _compose(end)).square().sum()))


def _swept(tensor: Tensor, found: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    before = torch.inf
    for _ in range(SWEEPS):
        for mode in range(3):
            a, b = (found[other] for other in range(3) if other != mode)
            gram = (a.T @ a) * (b.T @ b)
            seen = torch.einsum("xyz,yr,zr->xr", tensor.movedim(mode, 0), a, b)
            ridge = 1e-10 * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram)).to(gram)
            found[mode] = torch.linalg.solve(gram + ridge, seen.T).T
        error = float((tensor - _compose((found[0], found[1], found[2]))).square().sum())
        if error >= before * (1 - SETTLED):
            break
        before = error
    return found[0], found[1], found[2]


def _start(tensor: Tensor, mode: int, strongest: int, rank: int, generator: torch.Generator) -> Tensor:
    """The strongest directions of an unfolding, and drawn ones where there are too few."""
    rows = tensor.movedim(mode, 0).flatten(1)
    vectors = torch.linalg.eigh(rows @ rows.T)[1].flip(1)[:, :strongest]
    drawn = torch.randn(len(rows), rank - vectors.shape[1], generator=generator, dtype=torch.float64).to(vectors)
    return torch.cat([vectors, drawn / len(rows) ** 0.5], dim=1)


def _compose(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.einsum("mr,nr,kr->mnk", *parts)
