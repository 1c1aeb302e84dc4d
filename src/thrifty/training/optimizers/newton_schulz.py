"""Matrices made orthogonal by the Newton-Schulz iteration, those of one shape together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

A, B, C, ROUNDS, LEAST = 3.4445, -4.7750, 2.0315, 5, 1e-7
"""The polynomial a x + b x^3 + c x^5, how often it is applied, and the smallest norm that is divided by."""
TOGETHER = 1 << 25
"""Numbers that are iterated over at once: many small matrices fill the device, and more would only hold memory."""


def precision(device: torch.device) -> torch.dtype:
    """What the iteration runs in: bfloat16 on GPUs.

    CPUs run it in float32: most emulate products of bfloat16, and the last bit of a gradient then decides how a number of
    the update is rounded, so that ranks part from one process by 1e-4 in fifty steps.
    """
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def orthogonalized(matrices: Sequence[Tensor]) -> list[Tensor]:
    """About U V^T of each matrix's singular value decomposition U S V^T: singular values end around 1, between about 0.7 and 1.2.

        X <- M / |M|_F;  five times: X <- a X + (b X X^T + c (X X^T)^2) X

    Args:
        matrices: any shapes, on one device; they are left as they are.

    Returns:
        matrices in the precision of the iteration, in the order given.

    >>> orthogonalized([torch.tensor([[2.0, 0.0], [0.0, -2.0]])])[0].sign()
    tensor([[ 1.,  0.],
            [ 0., -1.]])

    Source: "Muon: An optimizer for hidden layers in neural networks", Jordan et al. 2024.
    """
    found: dict[int, Tensor] = {}
    for chosen in batches(matrices):
        found.update(zip(chosen, _iterated([matrices[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(matrices))]


def batches(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """Numbers of matrices of one shape, as many as are iterated over together.

    >>> list(batches([torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3)]))
    [[0, 2], [1]]
    """
    alike: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        alike.setdefault(matrix.shape, []).append(i)
    for shape, members in alike.items():
        most = max(1, TOGETHER // max(1, shape.numel()))
        yield from (members[at : at + most] for at in range(0, len(members), most))


def _iterated(matrices: Sequence[Tensor]) -> Iterable[Tensor]:
    """Matrices that all have one shape; the shorter side is multiplied by itself."""
    x = torch.stack([m.to(precision(m.device)) for m in matrices])
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=LEAST)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.mT if tall else x).unbind()
