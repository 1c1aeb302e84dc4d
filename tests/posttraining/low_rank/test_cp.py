"""CP decompositions against tensorly's, and as the three convolutions that they become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.posttraining.low_rank.test_factors import correlated, drawn, plain, root_of
from torch import Tensor, nn

from thrifty import LowRank
from thrifty.posttraining.low_rank.cp import Cp
from thrifty.posttraining.low_rank.factored import Factored, factored, product


def back(factors: list[Tensor]) -> Tensor:
    """sum over r, written out."""
    first, middle, last = factors
    return torch.einsum("mr,rhw,rn->mnhw", last[..., 0, 0], middle[:, 0], first[..., 0, 0])


@pytest.mark.parametrize(("m", "n", "kernel", "rank"), [
    (8, 6, (3, 3), 3), (7, 9, (1, 3), 4), (5, 6, (3, 2), 12), (6, 5, (3, 3), 1)])
def test_it_is_as_good_as_tensorlys(m: int, n: int, kernel: tuple[int, int], rank: int) -> None:
    from tensorly.cp_tensor import cp_to_tensor
    from tensorly.decomposition import parafac

    weight = drawn(m, n, *kernel, seed=m)
    flat = weight.flatten(2).numpy()
    theirs = cp_to_tensor(parafac(flat, rank, n_iter_max=60, init="svd", tol=1e-9, random_state=0))
    ours = back(Cp(weight, plain(n)).factors((rank,))).flatten(2).numpy()
    assert np.linalg.norm(flat - ours) <= np.linalg.norm(flat - theirs) * 1.03
    kept = Cp(weight, plain(n)).kept((rank,))
    assert 1 - kept == pytest.approx(np.linalg.norm(flat - ours) ** 2 / np.linalg.norm(flat) ** 2, rel=1e-6)


def test_a_weight_of_that_rank_is_found_and_whitening_is_undone() -> None:
    parts = [drawn(size, 3, seed=size) for size in (8, 6, 9)]
    weight = torch.einsum("mr,nr,kr->mnk", *parts).reshape(8, 6, 3, 3)
    for root in (plain(6), root_of(correlated(300, 6, 0))):
        torch.testing.assert_close(back(Cp(weight, root).factors((3,))), weight, rtol=1e-2, atol=1e-2 * float(weight.std()))


def test_whitened_loses_less_of_what_is_read() -> None:
    weight, x = drawn(8, 12, 3, 3, seed=0), correlated(500, 12, 1)

    def error(root: tuple[Tensor, Tensor]) -> float:
        lost = weight - back(Cp(weight, root).factors((6,)))
        return float(torch.einsum("mnhw,bn->mhwb", lost, x).norm())

    assert error(root_of(x)) < error(plain(12))


def test_its_factors_are_a_pointwise_a_depthwise_and_a_pointwise_convolution() -> None:
    conv = nn.Conv2d(6, 5, (3, 2), stride=2, padding=1, dilation=2)
    factors = [f.float() for f in Cp(conv.weight.detach().double(), plain(6)).factors((4,))]
    layer, whole = factored(conv, factors), nn.Conv2d(6, 5, (3, 2), stride=2, padding=1, dilation=2)
    whole.weight, whole.bias = nn.Parameter(back(factors)), conv.bias
    torch.testing.assert_close(product(layer).float(), whole.weight.detach())
    x = torch.randn(3, 6, 11, 12)
    torch.testing.assert_close(layer(x), whole(x), rtol=1e-4, atol=1e-5)
    assert [part.groups for part in layer] == [1, 4, 1]  # type: ignore[union-attr]
    shape = Cp(conv.weight.detach().double(), plain(6))
    assert shape.parameters((4,)) == sum(f.numel() for f in factors)
    assert shape.operations((4,), 9, 5) == 9 * 24 + 5 * (4 * 6 + 20)
    assert all(shape.parameters(r) < 180 for r in shape.ranks(1)) and len(shape.ranks(1)) <= 6


def test_a_model_is_factored_by_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    x = torch.randn(8, 16, 10, 10)
    thin = LowRank(ratio=0.5, convolution="cp")(model, [x])
    assert any(isinstance(layer, Factored) and layer[1].groups > 1 for layer in thin)  # type: ignore[union-attr]
    assert sum(p.numel() for p in thin.parameters()) <= 0.5 * sum(p.numel() for p in model.parameters())
    assert thin(x).shape == model(x).shape and thin(x).isfinite().all()
