"""The estimators against exact diagonals, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from thrifty.errors import ThriftyError
from thrifty.training.optimizers.curvature import draw, hutchinson, sampled_loss


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def rows(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """(inputs, targets, valid): the last third is padding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator), torch.arange(n) < n - n // 3


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def within_errors(draws: Tensor, exact: Tensor, errors: float = 4.0) -> None:
    """The mean of [draws, parameters] is the exact one: nearly all within 3 standard errors, all within ``errors``."""
    apart = (draws.mean(0) - exact).abs() / (draws.std(0) / math.sqrt(len(draws))).clamp(min=1e-12)
    assert float((apart <= 3).double().mean()) >= 0.95
    assert float(apart.max()) < errors


def bartlett(model: nn.Module, x: Tensor, valid: Tensor, noise: torch.Generator) -> Tensor:
    model.zero_grad()
    total, count = sampled_loss(model(x), valid, noise)
    (total / count).backward()
    return flat([float(count) * p.grad**2 for p in model.parameters() if p.grad is not None])


def test_bartletts_estimate_is_the_diagonal_of_gauss_newton_over_valid_rows() -> None:
    model, (x, _, valid) = net(), rows()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    jacobians = jacrev(lambda w: functional_call(model, w, (x,)))(weights)  # [rows, classes, *shape] each
    p = torch.softmax(model(x), -1).detach()
    exact = []
    for name in weights:
        j = jacobians[name].flatten(2)[valid]
        hessian = torch.diag_embed(p[valid]) - p[valid].unsqueeze(2) * p[valid].unsqueeze(1)
        exact.append(torch.einsum("nci,ncd,ndi->i", j, hessian, j) / int(valid.sum()))
    noise = torch.Generator().manual_seed(0)
    within_errors(torch.stack([bartlett(model, x, valid, noise) for _ in range(3000)]), torch.cat(exact))


def test_hutchinsons_estimate_is_the_diagonal_of_the_hessian() -> None:
    model, (x, y, valid) = net(), rows()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(w: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, w, (x,))[valid], y[valid])

    hessian = torch.func.hessian(loss)(weights)
    exact = torch.cat([hessian[n][n].reshape(w.numel(), w.numel()).diagonal() for n, w in weights.items()])
    noise, parameters = torch.Generator().manual_seed(0), list(model.parameters())
    draws = torch.stack([flat(hutchinson(loss(dict(model.named_parameters())), parameters, noise)) for _ in range(2000)])
    assert bool((exact < 0).any())  # it may be negative, and the estimate says so
    within_errors(draws, exact)


def test_padding_and_micro_batches_do_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, _, valid) = net(), rows(9)
    fixed = torch.arange(9) % 3  # the draw itself aside: the same labels however the rows are grouped
    monkeypatch.setattr("thrifty.training.optimizers.curvature.draw", lambda logits, noise: fixed[: len(logits)])
    noise = torch.Generator()
    whole = bartlett(model, x, valid, noise)
    torch.testing.assert_close(bartlett(model, x[valid], valid[valid], noise), whole)  # without the padding
    model.zero_grad()  # in two parts, divided by the count of both
    for part in (slice(0, 3), slice(3, 9)):  # the parts begin at label 0, as `fixed` does
        total, _ = sampled_loss(model(x[part]), valid[part], noise)
        (total / int(valid.sum())).backward()
    parts = flat([int(valid.sum()) * p.grad**2 for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("classes", [3, 256, 700])
def test_labels_are_drawn_with_the_models_probabilities(classes: int) -> None:
    logits = torch.randn(classes) * 2
    logits[1] = -math.inf
    drawn = draw(logits.expand(20_000, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=classes).double()
    expected = torch.softmax(logits.double(), -1) * 20_000
    assert counts.shape == expected.shape and counts[1] == 0
    large = expected >= 5
    chi = float(((counts - expected)[large] ** 2 / expected[large]).sum())
    freedom = int(large.sum()) - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom)


@given(st.integers(1, 600), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_a_drawn_class_exists_and_is_possible(classes: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(7, classes, generator=generator) * 50).to(dtype)
    drawn = draw(logits, generator)
    assert drawn.shape == (7,) and int(drawn.min()) >= 0 and int(drawn.max()) < classes
    assert bool((torch.softmax(logits.float(), -1).gather(1, drawn[:, None]) > 0).all())


def test_ranks_draw_apart() -> None:
    from thrifty.training.optimizers.sophia import _noise_seed

    seeds = {_noise_seed(seed, rank) for seed in range(20) for rank in range(64)}
    assert len(seeds) == 20 * 64


class Once(torch.autograd.Function):
    """An operation without a second derivative."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g * 2


def test_what_cannot_be_differentiated_twice_is_refused() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ThriftyError, match=r"differentiates twice.*use the other estimator: sophia\(gnb\)"):
        hutchinson((Once.apply(x) ** 2).sum(), [x], torch.Generator())
    assert hutchinson(x.sum(), [x], torch.Generator())[0].tolist() == [0.0, 0.0, 0.0]
