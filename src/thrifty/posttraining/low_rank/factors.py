"""The math of low-rank factorization: whitening, singular values, Tucker-2. Everything here is float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final

import torch
from torch import Tensor

Ranks = tuple[int, ...]
"""(rank,) of a matrix; (rank of the inputs, rank of the outputs) of a convolution."""

FLOOR = 1e-6
"""Eigenvalues of a second moment are clamped at this share of the largest: directions that calibration did not show
keep a little weight. On correlated inputs 1e-4 cost up to twice the error on held-out ones, and 1e-8 gained nothing."""
SWEEPS = 8
SETTLED = 1e-9


def square_root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """S and its inverse, S S^T = moment: by Cholesky, or by clamped eigenvalues where that is not safely definite.

    Args:
        moment: [n, n] float64, symmetric, not all zero.

    >>> root, inverse = square_root(torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    >>> torch.allclose(root @ inverse, torch.eye(2, dtype=torch.float64))
    True
    """
    root, failed = torch.linalg.cholesky_ex(moment)
    pivots = root.diagonal().square()
    if not failed and pivots.min() > FLOOR * moment.diagonal().max():
        return root, torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=False)
    values, vectors = torch.linalg.eigh(moment)
    scale = values.clamp_min(FLOOR * float(values[-1])).sqrt()
    return vectors * scale, (vectors / scale).T


@final
@dataclass(frozen=True)
class Matrix:
    """W [m, n] as a product of two thinner matrices.

    svd(W S) = U Sigma V^T, W' = U_k Sigma_k V_k^T S^-1: of all matrices of rank k the one that minimizes
    ||(W - W') X||_F where S S^T = X X^T (singular values after whitening; "SVD-LLM", Wang et al. 2024,
    arXiv:2403.07378). S = 1 gives the plain truncated decomposition.

    Args:
        weight: [m, n] or [m, n, 1, 1].
        root: S and S^-1, each [n, n].
    """

    weight: Tensor
    root: tuple[Tensor, Tensor]

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = torch.linalg.svd(self.weight.flatten(1) @ self.root[0], full_matrices=False)
        return left, values, right @ self.root[1]

    def ranks(self, step: int) -> list[Ranks]:
        """Multiples of ``step`` that are below full rank."""
        return [(k,) for k in range(step, min(self.weight.shape[:2]), step)]

    def parameters(self, ranks: Ranks) -> int:
        return ranks[0] * sum(self.weight.shape[:2])

    def operations(self, ranks: Ranks, reads: int, writes: int) -> int:
        """Multiply-adds, for ``reads`` vectors in and ``writes`` vectors out."""
        return writes * self.parameters(ranks)

    def kept(self, ranks: Ranks) -> float:
        """Share of ||W S||_F^2 that these ranks keep; 1 of a weight that is zero."""
        energy = self._svd[1].square()
        return float(energy[:ranks[0]].sum() / energy.sum()) if energy.any() else 1.0

    def factors(self, ranks: Ranks) -> list[Tensor]:
        """What is applied first, then second: [k, n] and [m, k] (a convolution's with [1, 1] behind)."""
        left, values, right = (part[..., :ranks[0]] if i < 2 else part[:ranks[0]] for i, part in enumerate(self._svd))
        half = values.sqrt()
        tail = self.weight.shape[2:]
        return [(half[:, None] * right).reshape(-1, self.weight.shape[1], *tail), (left * half).reshape(
            self.weight.shape[0], -1, *tail)]


@final
@dataclass(frozen=True)
class Outputs:
    """W [m, n] as a product of two thinner matrices, from the second moment of the outputs.

    W M W^T = Q L Q^T, M the second moment of the inputs: W' = Q_k Q_k^T W. It is the matrix of rank k that `Matrix` finds with
    the root of M, without a root and without an inverse. Paper: "Swift-SVD", 2026, arXiv:2604.01609.

    Args:
        weight: [m, n] or [m, n, 1, 1].
        moment: [n, n].
    """

    weight: Tensor
    moment: Tensor

    @cached_property
    def _basis(self) -> tuple[Tensor, Tensor]:
        flat = self.weight.flatten(1)
        values, vectors = torch.linalg.eigh(flat @ self.moment @ flat.T)
        return values.flip(0).clamp_min(0), vectors.flip(1)

    def ranks(self, step: int) -> list[Ranks]:
        """Multiples of ``step`` that are below full rank."""
        return [(k,) for k in range(step, min(self.weight.shape[:2]), step)]

    def parameters(self, ranks: Ranks) -> int:
        return ranks[0] * sum(self.weight.shape[:2])

    def operations(self, ranks: Ranks, reads: int, writes: int) -> int:
        """Multiply-adds, for ``reads`` vectors in and ``writes`` vectors out."""
        return writes * self.parameters(ranks)

    def kept(self, ranks: Ranks) -> float:
        """Share of the outputs' energy that these ranks keep; 1 of a weight that is zero."""
        energy = self._basis[0]
        return float(energy[:ranks[0]].sum() / energy.sum()) if energy.any() else 1.0

    def factors(self, ranks: Ranks) -> list[Tensor]:
        """What is applied first, then second: [k, n] and [m, k] (a convolution's with [1, 1] behind)."""
        basis, tail = self._basis[1][:, :ranks[0]], self.weight.shape[2:]
        return [(basis.T @ self.weight.flatten(1)).reshape(-1, self.weight.shape[1], *tail),
                basis.reshape(self.weight.shape[0], -1, *tail)]


@final
@dataclass(frozen=True)
class Tucker:
    """W [m, n, h, w] as 1x1, h x w and 1x1 convolutions: Tucker-2 over the input and output channels.

    W' = G x_out U x_in (V^T S^-1)^T with U [m, b], V [n, a] of orthonormal columns and G = (W x_in S^T) x_out U^T
    x_in V^T. U and V start from the higher-order SVD and are swept in turn, each the best for the other (HOOI).
    S S^T is the second moment of the input channels. Paper: "Compression of deep convolutional neural networks for
    fast and low power mobile applications", Kim et al. 2015, arXiv:1511.06530.

    Args:
        weight: [m, n, h, w].
        root: S and S^-1, each [n, n].
    """

    weight: Tensor
    root: tuple[Tensor, Tensor]

    @cached_property
    def _whitened(self) -> Tensor:
        return torch.einsum("mnhw,nj->mjhw", self.weight, self.root[0])

    @cached_property
    def _bases(self) -> tuple[Tensor, Tensor]:
        """All of U and V by the higher-order SVD, the strongest first."""
        return _basis(self._whitened, 0), _basis(self._whitened, 1)

    @cached_property
    def _table(self) -> Tensor:
        """[n + 1, m + 1]: share of energy that the first a inputs and b outputs of the full core hold."""
        outputs, inputs = self._bases
        core = torch.einsum("mnhw,mb,na->abhw", self._whitened, outputs, inputs)
        sums = core.square().sum((2, 3)).cumsum(0).cumsum(1)
        return torch.nn.functional.pad(sums / sums[-1, -1] if sums.any() else torch.ones_like(sums), (1, 0, 1, 0))

    def ranks(self, step: int) -> list[Ranks]:
        """Pairs of multiples of ``step``."""
        m, n = self.weight.shape[:2]
        return [(a, b) for a in range(step, n + 1, step) for b in range(step, m + 1, step)]

    def parameters(self, ranks: Ranks) -> int:
        return self.operations(ranks, 1, 1)

    def operations(self, ranks: Ranks, reads: int, writes: int) -> int:
        """Multiply-adds, for ``reads`` pixels in and ``writes`` pixels out."""
        (m, n, h, w), (a, b) = self.weight.shape, ranks
        return reads * n * a + writes * (a * b * h * w + b * m)

    def kept(self, ranks: Ranks) -> float:
        """Share of ||W x_in S^T||^2 that these ranks keep before sweeping, which keeps no less."""
        return float(self._table[ranks])

    def factors(self, ranks: Ranks) -> list[Tensor]:
        """In the order of application: [a, n, 1, 1], [b, a, h, w], [m, b, 1, 1]."""
        a, b = ranks
        outputs, inputs = self._bases[0][:, :b], self._bases[1][:, :a]
        before = 0.0
        for _ in range(SWEEPS):
            outputs = _basis(torch.einsum("mnhw,na->mahw", self._whitened, inputs), 0)[:, :b]
            half = torch.einsum("mnhw,mb->bnhw", self._whitened, outputs)
            inputs = _basis(half, 1)[:, :a]
            energy = float(torch.einsum("bnhw,na->bahw", half, inputs).square().sum())
            if energy <= before * (1 + SETTLED):
                break
            before = energy
        core = torch.einsum("mnhw,mb,na->bahw", self._whitened, outputs, inputs)
        return [(inputs.T @ self.root[1])[..., None, None], core, outputs[..., None, None]]


class Shape(Protocol):
    """What a layer's weight can become: ranks, what they cost and keep, and the factors."""

    @property
    def weight(self) -> Tensor: ...
    def ranks(self, step: int) -> list[Ranks]: ...
    def parameters(self, ranks: Ranks) -> int: ...
    def operations(self, ranks: Ranks, reads: int, writes: int) -> int: ...
    def kept(self, ranks: Ranks) -> float: ...
    def factors(self, ranks: Ranks) -> list[Tensor]: ...


@final
@dataclass(frozen=True)
class Scaled:
    """Another decomposition, of D W in place of W, and D^-1 on what is applied last: rows count by D.

    With D_i^2 the Fisher information of row i it is "Language Model Compression with Weighted Low-Rank Factorization", Hsu et
    al. 2022, arXiv:2207.00112.

    Args:
        inner: of D W.
        scale: [m], D's diagonal.
    """

    inner: Shape
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        return self.inner.weight / self._along(self.inner.weight)

    def ranks(self, step: int) -> list[Ranks]:
        return self.inner.ranks(step)

    def parameters(self, ranks: Ranks) -> int:
        return self.inner.parameters(ranks)

    def operations(self, ranks: Ranks, reads: int, writes: int) -> int:
        return self.inner.operations(ranks, reads, writes)

    def kept(self, ranks: Ranks) -> float:
        return self.inner.kept(ranks)

    def factors(self, ranks: Ranks) -> list[Tensor]:
        *first, last = self.inner.factors(ranks)
        return [*first, last / self._along(last)]

    def _along(self, tensor: Tensor) -> Tensor:
        return self.scale.reshape(-1, *[1] * (tensor.ndim - 1))


def shape_of(weight: Tensor, root: tuple[Tensor, Tensor]) -> Shape:
    """A matrix, or a 1x1 convolution, has singular values; a wider kernel has a Tucker decomposition."""
    return Matrix(weight, root) if weight.shape[2:].numel() == 1 else Tucker(weight, root)


def _basis(tensor: Tensor, mode: int) -> Tensor:
    """Orthonormal left singular vectors of the unfolding along ``mode``, the strongest first."""
    rows = tensor.movedim(mode, 0).flatten(1)
    return torch.linalg.eigh(rows @ rows.T)[1].flip(1)
