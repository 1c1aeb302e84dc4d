"""Sophia in the loop: what it computes, draws, refuses and says."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, Bf16, CrossEntropy, Sophia
from thrifty.errors import ThriftyError, TrainingFailed
from thrifty.kernels.sophia_step import Constants, step_for
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.phases import Train
from thrifty.training.data import Loader
from thrifty.training.loop import fit
from thrifty.training.optimizers.optimizer import WrongOptimizer
from thrifty.training.optimizers.sophia import START, SophiaOptimizer, adjusted
from thrifty.training.session import TrainingSession
from thrifty.workloads.embedded.python_lm import LanguageModel

CONSTANT = Train(schedule="constant", warmup=0, clip=None)


def data(n: int = 64) -> TensorDataset:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("correct", [False, True])
def test_twenty_steps_are_the_papers_in_float64(correct: bool) -> None:
    """Written out from algorithm 3, with gradients and estimates of its own making; h corrected for its start or not."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    optimizer = SophiaOptimizer([weight], lr=0.02, betas=(0.9, 0.8), gamma=0.3, weight_decay=0.1, correct=correct)
    p, m, h = weight.detach().clone(), torch.zeros(5, 4).double(), torch.zeros(5, 4).double()
    for t in range(20):
        if t % 3 == 0:
            weight.grad = torch.randn(5, 4, dtype=torch.float64)
            optimizer.update_curvature(count=7.0)
            h = 0.8 * h + 0.2 * 7.0 * weight.grad**2
        weight.grad = torch.randn(5, 4, dtype=torch.float64)
        m = 0.9 * m + 0.1 * weight.grad
        whole = h / (1 - 0.8 ** (t // 3 + 1)) if correct else h
        p = (1 - 0.02 * 0.1) * p - 0.02 * (m / (0.3 * whole).clamp(min=1e-12)).clamp(-1, 1)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), p, rtol=1e-5, atol=1e-6)  # m and h are float32, as they should be
    assert 0 < optimizer.unclipped < 1


def test_without_correction_a_step_is_the_published_one_bit_for_bit() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(33, 7)) for _ in range(2)]
    optimizer = SophiaOptimizer(weights, lr=0.02, betas=(0.96, 0.99), gamma=0.05, weight_decay=0.1, correct=False)
    for p in weights:
        p.grad = torch.randn_like(p)
    optimizer.update_curvature(count=7.0)
    wanted = [p.detach().clone() for p in weights]
    m, h = ([optimizer.state[p][name].clone() for p in weights] for name in "mh")
    constants = Constants(lr=0.02, beta1=0.96, gamma=0.05, eps=1e-12, weight_decay=0.1)
    step_for(wanted)(wanted, [p.grad for p in weights], m, h, constants)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(weights, wanted, strict=True))


def test_the_number_of_estimates_goes_with_torchs_own_state() -> None:
    """A loop of the user's own saves nothing else; h of a state that does not count is taken as it is."""
    def made() -> tuple[nn.Parameter, SophiaOptimizer]:
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.full((3,), 0.1)
        return weight, SophiaOptimizer([weight], lr=0.1, gamma=20.0, weight_decay=0.0)

    weight, optimizer = made()
    for _ in range(3):
        optimizer.update_curvature(count=1.0)
    state = copy.deepcopy(optimizer.state_dict())
    other, resumed = made()
    resumed.load_state_dict(state)
    for one in (optimizer, resumed):
        one.update_curvature(count=1.0)
        one.step()
    assert torch.equal(weight, other)
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.1 * 0.01 / (20.0 * 0.01)))
    del state["param_groups"][0]["estimates"]
    old, uncounted = made()
    uncounted.load_state_dict(state)
    uncounted.update_curvature(count=1.0)
    uncounted.step()
    torch.testing.assert_close(old.detach(), torch.full((3,), 1 - 0.1 * 0.01 / (20.0 * 0.01 * (1 - 0.95**4))))


def test_h_and_m_are_float32_whatever_the_weights() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = SophiaOptimizer([weight], lr=1e-3, betas=(0.9, 0.999))
    weight.grad = torch.full((4,), 1e-3, dtype=torch.bfloat16)
    for _ in range(200):
        optimizer.update_curvature(count=1.0)
    state = optimizer.state[weight]
    assert state["h"].dtype == state["m"].dtype == torch.float32
    assert float(state["h"][0]) == pytest.approx((1 - 0.999**200) * 1e-6, rel=0.02)  # a bfloat16 mean would stall


def test_the_loop_estimates_on_fresh_examples_every_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Tensor] = []
    estimated: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            (estimated if len(x) == 4 else trained).append(x)
            return self.layer(x)  # type: ignore[no-any-return]

    fit(Watched(), [Sophia(every=3)], data(), CrossEntropy(), settings=Train(steps=7), batch_size=8)
    assert len(trained) == 7 and len(estimated) == 3
    for i, part in enumerate(estimated):
        same = (part[:, None] == trained[3 * i][None]).all(-1).any(1)
        assert not bool(same.all()), "the estimate was made on the very examples of its step"


def test_the_estimate_is_of_the_unclipped_gradient_and_counts_valid_targets() -> None:
    x = torch.randn(8, 6)
    target = torch.tensor([0, 1, -100, 2, -100, -100, 1, 0])
    heights = []
    for clip in (None, 1e-6):
        session = TrainingSession(net(), [Sophia(estimator_batch=1.0)], CrossEntropy(), steps=1,
                      settings=Train(schedule="constant", warmup=0, clip=clip))
        session.step(((x,), target))
        heights.append(torch.cat([s["h"].flatten() for s in session.optimizer.state.values()]))
    assert torch.equal(*heights)
    model = net()
    noise = torch.Generator().manual_seed(_seed_of_the_session())
    from thrifty.training.optimizers.curvature import draw

    logits, valid = model(x), target != -100
    labels = draw(logits, noise)
    loss = -torch.log_softmax(logits, -1).gather(1, labels[:, None])[valid].mean()
    wanted = [0.05 * 5 * g**2 for g in torch.autograd.grad(loss, list(model.parameters()))]
    found = {p.shape: s["h"] for p, s in session.optimizer.state.items()}
    for h in wanted:
        torch.testing.assert_close(found[h.shape], h, rtol=1e-4, atol=1e-9)


def _seed_of_the_session() -> int:
    from thrifty.training.optimizers.sophia import _noise_seed

    return _noise_seed(torch.initial_seed(), 0)


def test_flops_are_those_of_steps_and_estimates() -> None:
    def flops(method: Any) -> float:
        return fit(net(), [method], data(), CrossEntropy(), settings=Train(steps=20), batch_size=16).flops

    plain = flops(AdamW())
    assert flops(Sophia(every=10, estimator_batch=0.5)) == pytest.approx(plain * (1 + 0.5 / 10))
    assert flops(Sophia(every=5, estimator_batch=0.25)) == pytest.approx(plain * (1 + 0.25 / 5))


@pytest.mark.parametrize("method", [Sophia(lr=0.03), Sophia("hutchinson", lr=0.03, gamma=0.01)], ids=str)
@pytest.mark.parametrize("more", [[], [Bf16()]], ids=["fp32", "bf16"])
def test_it_learns(method: Sophia, more: list[Any]) -> None:
    done = fit(net(), [method, *more], data(256), CrossEntropy(), settings=Train(epochs=15), batch_size=32)
    with torch.no_grad():
        x, y = data(256).tensors
        assert float((done.model(x).argmax(-1) == y).float().mean()) > 0.85
    claims = {claim.what: claim.after for name, claim in done.claims if name == "sophia"}
    assert claims["estimates of the curvature"] == 12
    assert 0 < claims["share of updates within the bound"] < 1


def test_hutchinson_goes_through_attention() -> None:
    """The fast kernels of attention have no second derivative; the mathematical one does."""
    torch.manual_seed(0)
    model = LanguageModel(vocabulary=20, width=16, layers=1, heads=2, hidden=16, context=8)
    session = TrainingSession(model, [Sophia("hutchinson")], CrossEntropy(), steps=2)
    ids = torch.randint(20, (4, 9))
    assert math.isfinite(float(session.step(((ids[:, :-1],), ids[:, 1:]))))
    assert any(bool(s["h"].any()) for s in session.optimizer.state.values())


@pytest.mark.parametrize("gamma", [0.2, "auto"])
def test_resuming_goes_on_as_if_nothing_had_happened(gamma: float | str) -> None:
    batches = [batch for batch, _ in zip(Loader(data(), 8, 0), range(8), strict=False)]
    method = Sophia(gamma=gamma, every=2)

    def session() -> TrainingSession:
        return TrainingSession(net(), [method], CrossEntropy(), steps=8, settings=CONSTANT)

    whole = session()
    for batch in batches:
        whole.step(batch)
    first, second = session(), session()
    for batch in batches[:4]:
        first.step(batch)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    method.load_state_dict(second, method.state_dict(first))
    second.step_number = first.step_number
    for batch in batches[4:]:
        second.step(batch)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))
    assert [group["gamma"] for group in whole.optimizer.param_groups] == [
        group["gamma"] for group in second.optimizer.param_groups]


def test_gamma_follows_the_share_within_the_bound() -> None:
    """At every estimate, by what the steps since the last one did."""
    method = Sophia(gamma="auto", every=2, lr=1e-3)
    session = TrainingSession(net(), [method], CrossEntropy(), steps=40, settings=CONSTANT)
    batch, gamma, before = ((torch.randn(8, 6),), torch.arange(8) % 3), START, torch.zeros(2)
    seen = set()
    for step in range(40):
        counts = session.optimizer.counts.clone()  # type: ignore[attr-defined]
        session.step(batch)
        if step % 2 == 0:
            gamma = adjusted(gamma, *map(int, counts - before))
            before = counts
        assert {group["gamma"] for group in session.optimizer.param_groups} == {gamma}
        seen.add(gamma)
    assert len(seen) > 2
    (claim,) = (claim for claim in method.claims(session) if claim.what.startswith("gamma"))
    assert (claim.before, claim.after) == (START, gamma)


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    batch = ((torch.randn(8, 6),), torch.randint(0, 3, (8,)))
    adamw, sophia = (TrainingSession(net(), [method], CrossEntropy(), steps=2) for method in (AdamW(), Sophia()))
    for session in (adamw, sophia):
        session.step(batch)
    with pytest.raises(WrongOptimizer, match="this state is adamw, which sophia cannot resume from"):
        sophia.optimizer.load_state_dict(adamw.optimizer.state_dict())
    with pytest.raises(WrongOptimizer, match="this state is sophia, which adamw cannot"):
        adamw.optimizer.load_state_dict(sophia.optimizer.state_dict())
    model = net()
    plain = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    plain.step()
    with pytest.raises(ThriftyError, match="not Sophia's state"):
        SophiaOptimizer(net().parameters()).load_state_dict(plain.state_dict())


def test_a_gradient_of_nan_stops_the_training() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(6, 3), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + (self.scale * 0).sqrt() * 0  # finite, its gradient is not

    with pytest.raises(TrainingFailed, match="scale are no longer finite"):
        fit(Root(), [Sophia()], data(), CrossEntropy(), settings=Train(steps=4), batch_size=8)


def test_schedules_and_groups_are_torchs() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = SophiaOptimizer([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    a.grad, b.grad = torch.ones(3), -torch.ones(2)
    assert float(optimizer.step(lambda: 4.0)) == 4.0
    assert a.tolist() == [0.5] * 3 and b.tolist() == pytest.approx([1.1] * 2)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"gamma": 0.0}, {"gamma": "much"},
                                   {"every": 0}, {"estimator_batch": 1.5}, {"estimator": "fisher"}], ids=str)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HyperparameterError, match=next(iter(wrong))):
        Sophia(**wrong)


@pytest.mark.parametrize(("wrong", "said"), [({"lr": 0.0}, "lr must be above 0 but is 0.0"), ({"gamma": -1.0}, "gamma"),
                                             ({"betas": (0.9, 1.0)}, "betas"), ({"weight_decay": -1.0}, "weight_decay")])
def test_the_optimizer_refuses_them_too(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SophiaOptimizer([nn.Parameter(torch.ones(1))], **wrong)
