"""Factorization's math against numpy, against tensorly, and against what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.posttraining.low_rank.factors import Matrix, Tucker, shape_of, square_root


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def correlated(rows: int, width: int, seed: int, mixing: int = 0) -> Tensor:
    """Rows whose second moment has eigenvalues that fall like 1 / i^2, in directions that ``mixing`` fixes."""
    turn = torch.linalg.qr(drawn(width, width, seed=1000 + mixing))[0]
    return drawn(rows, width, seed=seed) / torch.arange(1, width + 1) @ turn.T


def plain(width: int) -> tuple[Tensor, Tensor]:
    return torch.eye(width, dtype=torch.float64), torch.eye(width, dtype=torch.float64)


def root_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return square_root(x.T @ x / len(x))


def back(factors: list[Tensor]) -> Tensor:
    """The product of factors, written out."""
    if len(factors) == 2:
        return factors[1].flatten(1) @ factors[0].flatten(1)
    first, core, last = factors
    return torch.einsum("mb,bahw,an->mnhw", last[..., 0, 0], core, first[..., 0, 0])


# -- the root ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 10))
def test_a_root_squares_to_the_moment_and_has_an_inverse(rows: int, width: int, seed: int) -> None:
    x = correlated(rows, width, seed)  # fewer rows than columns among them
    moment = x.T @ x / rows
    root, inverse = square_root(moment)
    assert torch.allclose(root @ inverse, torch.eye(width, dtype=torch.float64), atol=1e-6)
    assert float((root @ root.T - moment).abs().max()) <= 1.01e-6 * float(torch.linalg.eigvalsh(moment)[-1])


@pytest.mark.parametrize("spoil", ["dead column", "constant", "one row", "repeated column"])
def test_a_singular_moment_is_clamped(spoil: str) -> None:
    x = correlated(200, 12, 0)
    if spoil == "dead column":
        x[:, 3] = 0
    elif spoil == "constant":
        x = torch.full_like(x, 2.5)
    elif spoil == "one row":
        x = x[:1]
    else:
        x[:, 4] = x[:, 5]
    root, inverse = root_of(x)
    assert inverse.isfinite().all()
    weight = drawn(9, 12, seed=1)
    for rank in range(1, 9):
        assert all(f.isfinite().all() for f in Matrix(weight, (root, inverse)).factors((rank,)))
    exact = back(Matrix(weight, (root, inverse)).factors((9,)))
    assert torch.allclose(exact, weight, atol=1e-7)
    if spoil in ("constant", "one row"):  # one direction was read: rank 1 serves it
        one = back(Matrix(weight, (root, inverse)).factors((1,)))
        assert torch.allclose(x @ one.T, x @ weight.T, rtol=1e-4, atol=1e-4)


# -- matrices ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.data())
def test_without_whitening_it_is_numpys_truncated_svd(m: int, n: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    weight = drawn(m, n, seed=m * 31 + n)
    left, values, right = np.linalg.svd(weight.numpy(), full_matrices=False)
    shape = Matrix(weight, plain(n))
    np.testing.assert_allclose(back(shape.factors((rank,))).numpy(), left[:, :rank] * values[:rank] @ right[:rank],
                               atol=1e-9)
    assert shape.kept((rank,)) == pytest.approx((values[:rank] ** 2).sum() / (values**2).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 20), st.integers(4, 20), st.integers(1, 3), st.integers(0, 50))
def test_whitened_is_the_best_of_its_rank_for_the_outputs(m: int, n: int, rank: int, seed: int) -> None:
    """Its squared error is the sum of the dropped squared singular values of W X^T: no matrix of that rank has less."""
    weight, x = drawn(m, n, seed=seed), correlated(300, n, seed + 1)
    shape = Matrix(weight, root_of(x))
    error = float((x @ (weight - back(shape.factors((rank,)))).T).square().sum())
    values = np.linalg.svd((x @ weight.T).numpy(), compute_uv=False)
    assert error == pytest.approx((values[rank:] ** 2).sum(), rel=1e-4, abs=1e-8)
    assert 1 - shape.kept((rank,)) == pytest.approx((values[rank:] ** 2).sum() / (values**2).sum(), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 32), st.integers(12, 32), st.integers(2, 6), st.integers(0, 30))
def test_whitened_beats_plain_on_held_out_correlated_inputs(m: int, n: int, rank: int, seed: int) -> None:
    weight = drawn(m, n, seed=seed)
    root, fresh = root_of(correlated(400, n, seed + 1)), correlated(400, n, seed + 2)

    def error(shape: Matrix) -> float:
        return float((fresh @ (weight - back(shape.factors((rank,)))).T).norm())

    assert error(Matrix(weight, root)) < error(Matrix(weight, plain(n)))


# -- Tucker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "kernel", "a", "b"), [
    (16, 12, (3, 3), 4, 5), (7, 9, (1, 3), 3, 2), (8, 8, (5, 3), 8, 8), (12, 5, (3, 3), 5, 1), (6, 6, (2, 2), 1, 1),
])
def test_tucker_is_as_good_as_tensorlys(m: int, n: int, kernel: tuple[int, int], a: int, b: int) -> None:
    from tensorly.decomposition import partial_tucker

    weight = drawn(m, n, *kernel, seed=m)
    (core, (outputs, inputs)), _ = partial_tucker(weight.numpy(), rank=[b, a], modes=[0, 1], n_iter_max=100, tol=1e-10)
    theirs = np.einsum("bahw,mb,na->mnhw", core, outputs, inputs)
    ours = back(Tucker(weight, plain(n)).factors((a, b))).numpy()
    rounding = 1e-13 * np.linalg.norm(weight.numpy())  # all that whole ranks leave
    assert np.linalg.norm(weight.numpy() - ours) <= np.linalg.norm(weight.numpy() - theirs) * 1.005 + rounding
    if (a, b) == (n, m):
        np.testing.assert_allclose(ours, weight, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 10), st.integers(2, 10), st.data())
def test_tuckers_table_is_the_energy_before_sweeps_and_sweeps_only_add(m: int, n: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(1, n)), data.draw(st.integers(1, m))
    weight = drawn(m, n, 3, 3, seed=m * 17 + n)
    shape = Tucker(weight, root_of(correlated(100, n, 5)))
    white = torch.einsum("mnhw,nj->mjhw", weight, shape.root[0])
    left = np.linalg.svd(white.flatten(1).numpy())[0][:, :b]
    right = np.linalg.svd(white.movedim(1, 0).flatten(1).numpy())[0][:, :a]
    held = (np.einsum("mnhw,mb,na->bahw", white.numpy(), left, right) ** 2).sum() / float(white.square().sum())
    assert shape.kept((a, b)) == pytest.approx(held, rel=1e-9)
    got = torch.einsum("mnhw,nj->mjhw", back(shape.factors((a, b))), shape.root[0])
    assert float((white - got).square().sum() / white.square().sum()) <= 1 - held + 1e-9
    full = back(shape.factors((n, m)))
    assert torch.allclose(full, weight, atol=1e-6)


def test_costs_are_the_elements_of_the_factors() -> None:
    matrix, tucker = Matrix(drawn(10, 6, seed=0), plain(6)), Tucker(drawn(10, 6, 3, 2, seed=0), plain(6))
    for shape in (matrix, tucker):
        for ranks in shape.ranks(2):
            assert shape.parameters(ranks) == sum(f.numel() for f in shape.factors(ranks))
    assert matrix.operations((4,), 9, 5) == 5 * 4 * 16
    assert tucker.operations((2, 4), 9, 5) == 9 * 6 * 2 + 5 * (2 * 4 * 6 + 4 * 10)
    assert matrix.ranks(2) == [(2,), (4,)] and matrix.ranks(8) == []
    assert tucker.ranks(4) == [(4, 4), (4, 8)]


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_a_weight_of_zeros_loses_nothing(kernel: tuple[int, ...]) -> None:
    shape = shape_of(torch.zeros(8, 6, *kernel, dtype=torch.float64), root_of(correlated(30, 6, 0)))
    ranks = shape.ranks(2)[0]
    assert shape.kept(ranks) == 1
    assert not back(shape.factors(ranks)).any()


def test_a_pointwise_convolution_is_a_matrix() -> None:
    shape = shape_of(drawn(8, 6, 1, 1, seed=0), plain(6))
    assert isinstance(shape, Matrix)
    assert [tuple(f.shape) for f in shape.factors((2,))] == [(2, 6, 1, 1), (8, 2, 1, 1)]
    assert isinstance(shape_of(drawn(8, 6, 3, 1, seed=0), plain(6)), Tucker)
