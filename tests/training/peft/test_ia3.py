"""(IA)^3 against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.peft.nets import adapted, answers, batch, mlp
from thrifty import CrossEntropy, Ia3
from thrifty.errors import ThriftyError
from thrifty.training.session import TrainingSession

pytest.importorskip("peft")


def test_outputs_or_inputs_are_scaled() -> None:
    (x,), _ = batch()
    session = TrainingSession(mlp(), [Ia3(inputs="2")], CrossEntropy(), steps=1)
    factors = []
    with torch.no_grad():
        for i in (0, 2, 4):
            factor = session.model[i].ia3_l["default"]
            assert torch.equal(factor, torch.ones_like(factor))
            factors.append(factor.normal_().flatten())
        a, _, b, _, c = mlp()
        hidden = torch.relu(factors[0] * (x @ a.weight.T + a.bias))
        hidden = torch.tanh((hidden * factors[1]) @ b.weight.T)
        expected = factors[2] * (hidden @ c.weight.T + c.bias)
    torch.testing.assert_close(answers(session.model, x), expected)
    torch.testing.assert_close(answers(session.finish(), x), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_by_pattern() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 5))
    x = torch.randn(8, 1, 8, 8)
    session = adapted(Ia3(targets="0|2|4", inputs="2"), model, data=((x,), torch.arange(8) % 5))
    before = answers(session.model, x)
    torch.testing.assert_close(answers(session.finish(), x), before, rtol=1e-5, atol=1e-5)


def test_inputs_that_name_no_adapted_layer_are_refused() -> None:
    with pytest.raises(ThriftyError, match=r"ia3\(inputs='4'\) matches none of the layers that are adapted: 0"):
        TrainingSession(mlp(), [Ia3(targets="0", inputs="4")], CrossEntropy(), steps=1)
