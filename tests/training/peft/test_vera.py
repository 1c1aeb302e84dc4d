"""VeRA against its formula."""

from __future__ import annotations

import pytest
import torch

from tests.training.peft.nets import answers, batch, mlp
from thrifty import CrossEntropy, Vera
from thrifty.training.session import TrainingSession

pytest.importorskip("peft")


def test_random_projections_are_shared_and_scaled_by_two_vectors() -> None:
    (x,), _ = batch()
    session = TrainingSession(mlp(), [Vera(rank=7, start=0.3)], CrossEntropy(), steps=1)
    torch.testing.assert_close(answers(session.model, x), answers(mlp(), x))
    expected = x
    with torch.no_grad():
        for layer in session.model:
            if not hasattr(layer, "base_layer"):
                expected = layer(expected)
                continue
            d, b = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
            assert torch.equal(d, torch.full((7,), 0.3)) and not b.any()
            b.normal_()
            base = layer.base_layer
            down, up = layer.vera_A["default"][:, : base.in_features], layer.vera_B["default"][: base.out_features]
            expected = base(expected) + b * ((d * (expected @ down.T)) @ up.T)
    torch.testing.assert_close(answers(session.model, x), expected, rtol=1e-4, atol=1e-5)
    assert session.model[0].vera_A["default"] is session.model[4].vera_A["default"]


def test_the_projections_seed_decides_them() -> None:
    def down(seed: int) -> torch.Tensor:
        model = TrainingSession(mlp(), [Vera(rank=7, projection=seed)], CrossEntropy(), steps=1).model
        found: torch.Tensor = model[0].vera_A["default"]
        return found

    torch.manual_seed(5)
    first = down(3)
    assert torch.equal(first, down(3))
    assert not torch.equal(first, down(4))
