"""The iteration against the formula in float64 and against torch's own, at odd sizes, tall and wide, gradients of zeros too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from thrifty.training.optimizers import newton_schulz
from thrifty.training.optimizers.newton_schulz import batches, orthogonalized


def naive(matrix: Tensor) -> Tensor:
    """One matrix, from the formula."""
    x = matrix.double()
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.775 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


def matrices(seed: int, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Of magnitudes from 1e-6 to 1e3: gradients are of any."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 10.0 ** (i % 10 - 6) for i, shape in enumerate(shapes)]


@given(st.integers(0, 99), st.lists(st.sampled_from([(1, 1), (1, 7), (5, 3), (3, 5), (8, 8), (13, 4)]), min_size=1, max_size=8))
def test_each_is_what_the_formula_makes_of_it_alone(seed: int, shapes: list[tuple[int, int]]) -> None:
    given_ = matrices(seed, shapes)
    before = [m.clone() for m in given_]
    for found, matrix, kept in zip(orthogonalized(given_), given_, before, strict=True):
        torch.testing.assert_close(found.double(), naive(matrix), rtol=1e-4, atol=1e-4)
        assert torch.equal(matrix, kept)


def test_a_limit_on_what_is_held_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    many = matrices(0, [(6, 4)] * 7 + [(4, 6)] * 2)
    together = orthogonalized(many)
    monkeypatch.setattr(newton_schulz, "TOGETHER", 50)
    assert [len(chosen) for chosen in batches(many)] == [2, 2, 2, 1, 2]
    for one, other in zip(together, orthogonalized(many), strict=True):
        torch.testing.assert_close(one, other)


def test_in_bfloat16_it_is_as_near_to_the_formula_as_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton_schulz, "precision", lambda device: torch.bfloat16)
    for matrix in matrices(3, [(64, 32), (32, 64), (48, 48)]):
        (ours,), exact = orthogonalized([matrix]), naive(matrix)
        theirs = _zeropower_via_newtonschulz(matrix.clone(), (3.4445, -4.775, 2.0315), 5, 1e-7)
        assert ours.dtype == torch.bfloat16
        assert float((ours - exact).norm()) <= 1.2 * float((theirs - exact).norm()) + 1e-3


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert not orthogonalized([torch.zeros(3, 5)])[0].any()
