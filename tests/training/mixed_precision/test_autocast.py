"""bfloat16 training: what runs in it, what does not, and that saying so is checked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, Bf16, CrossEntropy, Fp16, Sophia, Tf32
from thrifty.errors import NoEffect, ThriftyError
from thrifty.training import session as module
from thrifty.training.loop import fit
from thrifty.training.optimizers.ema import Ema
from thrifty.training.session import TrainingSession


def data(n: int = 128) -> TensorDataset:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


class Spy(nn.Module):
    """Notes the precision of its layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(8, 2), set[torch.dtype]()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        self.seen.add(out.dtype)
        return out


def test_products_are_bf16_and_weights_gradients_and_loss_are_not() -> None:
    model = Spy()
    session = TrainingSession(model, [Bf16(), AdamW()], CrossEntropy(), steps=3)
    for x, y in zip(torch.randn(3, 4, 8), torch.randint(0, 2, (3, 4)), strict=True):
        assert session.step(((x,), y)).dtype == torch.float32
    assert model.seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters() if p.grad is not None} == {
        torch.float32}
    assert {s.dtype for state in session.optimizer.state.values() for s in state.values()} == {torch.float32}


def test_it_learns_what_fp32_learns() -> None:
    ends = [fit(net(), methods, data(), CrossEntropy(), batch_size=16).history[-1][1]
            for methods in ([AdamW(lr=0.03)], [AdamW(lr=0.03), Bf16()])]
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], abs=0.05)


def test_the_share_in_bf16_is_measured_and_a_share_of_zero_is_an_error() -> None:
    done = fit(net(), [Bf16()], data(), CrossEntropy())
    [(name, claim)] = done.claims
    assert (name, claim.before, claim.after) == ("bf16", 0.0, 1.0)

    def in_fp32(model: nn.Module, batch: tuple[tuple[Tensor, ...], Tensor]) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return model(*batch[0])  # type: ignore[no-any-return]

    [(_, claim)] = fit(net(), [Bf16()], data(), CrossEntropy(), forward=in_fp32).claims
    with pytest.raises(NoEffect, match="bf16 changed nothing"):
        claim.checked("bf16")


def test_a_model_of_half_its_products_in_fp32_says_half() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                x = self.a(x)
            return self.b(x)  # type: ignore[no-any-return]

    [(_, claim)] = fit(Half(), [Bf16()], data(), CrossEntropy()).claims
    assert claim.after == 0.5


# -- float16 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def anywhere(monkeypatch):
    """Processors run float16 too, slowly: enough to see what the method does."""
    monkeypatch.setattr(module, "require_device", lambda method, device: None)


def batches(n: int):
    generator = torch.Generator().manual_seed(1)
    return [((torch.randn(16, 8, generator=generator),), torch.randint(0, 2, (16,), generator=generator)) for _ in range(n)]


def state(session: TrainingSession) -> list[Tensor]:
    """Everything that a step may change."""
    held = [value for entry in session.optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    average = session.memory(Ema()).get("average")
    return [x.detach().clone() for x in (*session.model.parameters(), *held, *(average.state_dict().values() if average else ()))]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_overflow_skips_exactly_that_step(anywhere, device: str) -> None:
    session = TrainingSession(net(), [Fp16(scale=1024.0, patience=3), AdamW(lr=0.01), Ema(decay=0.9)], CrossEntropy(), steps=8,
                  device=device)
    scales, skipped = [], []
    for number, batch in enumerate(batches(8)):
        hooks = []
        if number == 4:  # an infinite gradient in one weight, as an overflow leaves it
            weight = session.model[0].weight
            hooks.append(weight.register_hook(lambda grad: torch.full_like(grad, float("inf"))))
        before = state(session)
        session.step(batch)
        after = state(session)
        skipped.append(len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        scales.append(session.loss_scale)
        for hook in hooks:
            hook.remove()
    assert skipped == [number == 4 for number in range(8)]
    assert scales == [1024.0, 1024.0, 2048.0, 2048.0, 1024.0, 1024.0, 1024.0, 2048.0]
    assert session.memory(Fp16())["skipped"] == 1


def test_the_update_is_that_of_unscaled_gradients(anywhere) -> None:
    """A power of two is exact: but for what underflows, the scale cannot be seen."""
    ends = []
    for scale in (1.0, 256.0):
        session = TrainingSession(net(), [Fp16(scale=scale), AdamW(lr=0.01)], CrossEntropy(), steps=4)
        for batch in batches(4):
            session.step(batch)
        ends.append(session.finish())
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_small_gradients_survive_by_the_scale_alone(anywhere) -> None:
    def gradient(scale: float) -> float:
        def loss(outputs: Tensor, batch: object) -> tuple[Tensor, Tensor]:
            return outputs.float().sum() * 1e-9, torch.ones(())

        session = TrainingSession(nn.Linear(8, 2), [Fp16(scale=scale), AdamW()], loss, steps=2)
        seen: list[float] = []
        session.optimizer.register_step_pre_hook(lambda *args: seen.append(float(session.model.weight.grad.abs().sum())))
        session.step(batches(1)[0])
        return seen[0]

    assert gradient(1.0) == 0.0 and gradient(2.0**16) > 0


def test_sophias_estimate_is_unscaled_before_it_is_squared(anywhere) -> None:
    found = []
    for scale in (1.0, 512.0):
        torch.manual_seed(3)
        session = TrainingSession(net(), [Fp16(scale=scale), Sophia(lr=1e-3)], CrossEntropy(), steps=2)
        session.step(batches(1)[0])
        found.append([entry["h"].clone() for entry in session.optimizer.state.values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-9)


@pytest.mark.parametrize("method", [Fp16(), Tf32()], ids=lambda method: method.name)
def test_a_processor_is_refused_before_anything_runs(method) -> None:
    with pytest.raises(ThriftyError, match=f"{method.name} runs on cuda but this is cpu"):
        TrainingSession(net(), [method], CrossEntropy(), steps=1)


def test_torchs_own_settings_are_put_back(anywhere) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    seen = []

    class Asks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return super().forward(x)

    fit(Asks(8, 2), [Tf32()], data(), CrossEntropy())
    assert set(seen) == {True}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
