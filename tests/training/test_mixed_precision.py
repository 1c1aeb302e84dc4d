"""bfloat16 training: what runs in it, what does not, and that saying so is checked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, Bf16, CrossEntropy
from thrifty.errors import NoEffect
from thrifty.training.loop import Fit, fit


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
    session = Fit(model, [Bf16(), AdamW()], CrossEntropy(), steps=3)
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
