from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from thrifty.errors import WorkloadError
from thrifty.workloads.losses import MAE, MSE, BCEWithLogits, CrossEntropy, Loss

ORACLES: list[tuple[Loss, Any]] = [(MSE(), nn.functional.mse_loss), (MAE(), nn.functional.l1_loss),
                                   (BCEWithLogits(), nn.functional.binary_cross_entropy_with_logits)]


@given(st.sampled_from(ORACLES), st.sampled_from([(5,), (4, 3), (2, 3, 4, 4)]), st.integers(0, 2**31))
def test_means_and_gradients_are_torchs_and_parts_add_up(pair: Any, shape: tuple[int, ...], seed: int) -> None:
    loss, oracle = pair
    generator = torch.Generator().manual_seed(seed)
    outputs, target = torch.randn(shape, generator=generator, requires_grad=True), torch.rand(shape, generator=generator)
    total, weight = loss(outputs, ((), target))
    expected = oracle(outputs, target)
    torch.testing.assert_close(total / weight, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, outputs)[0] for x in (total / weight, expected)))
    parts = [loss(outputs[i:i + 1], ((), target[i:i + 1])) for i in range(len(outputs))]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(), total)
    assert sum(int(n) for _, n in parts) == int(weight) == target.numel()


@pytest.mark.parametrize("loss", [MSE(), MAE(), BCEWithLogits()])
@pytest.mark.parametrize(("outputs", "target"), [((9, 1), (9,)), ((9,), (9, 1)), ((9, 1, 4, 5), (9, 4, 5))])
def test_a_dimension_of_one_is_not_broadcast(loss: Loss, outputs: Any, target: Any) -> None:
    z, y = torch.randn(outputs), torch.rand(target)
    torch.testing.assert_close(loss(z, ((), y))[0], loss(z.reshape(target), ((), y))[0])


@pytest.mark.parametrize("loss", [MSE(), MAE(), BCEWithLogits()])
def test_whole_numbers_and_half_precision_are_taken(loss: Loss) -> None:
    total, weight = loss(torch.zeros(4, 1, dtype=torch.bfloat16), ((), torch.tensor([0, 1, 1, 0])))
    assert total.dtype == torch.float32 and int(weight) == 4


@pytest.mark.parametrize(("outputs", "target", "says"), [
    (torch.zeros(4, 2), torch.zeros(4), r"outputs \[4, 2\] and targets \[4\] do not fit: MSE\(\) compares one"),
    (torch.zeros(4), torch.zeros(5), "do not fit"),
    ((torch.zeros(4),), torch.zeros(4), "the outputs are a tuple but MSE"),
    (torch.zeros(4), ("a",), "the targets are a tuple but MSE"),
])
def test_what_does_not_fit_is_told(outputs: Any, target: Any, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        MSE()(outputs, ((), target))


def test_binary_logits_are_those_of_two_classes() -> None:
    """Their cross entropy is the loss itself, and softened by T they are s(z / T), which is what distillation needs."""
    z, y = torch.randn(6, 3), torch.randint(0, 2, (6, 3))
    logits, valid = BCEWithLogits().logits(z, ((), y))
    assert logits.shape == (18, 2) and bool(valid.all())
    torch.testing.assert_close(nn.functional.cross_entropy(logits, y.flatten(), reduction="sum"),
                               BCEWithLogits()(z, ((), y))[0])
    torch.testing.assert_close((logits / 3).softmax(-1)[:, 1], (z.flatten() / 3).sigmoid())


class Huber(Loss):
    """A loss of a user's own: __call__ alone."""

    def __call__(self, outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return nn.functional.huber_loss(outputs, batch[1], reduction="sum"), torch.tensor(len(outputs))


def test_a_loss_needs_no_logits_and_says_whether_it_has_some() -> None:
    assert [loss.gives_logits for loss in (CrossEntropy(), BCEWithLogits(), MSE(), MAE(), Huber())] == [
        True, True, False, False, False]
    with pytest.raises(WorkloadError, match="the loss Huber gives no logits"):
        Huber().logits(torch.zeros(3), ((), torch.zeros(3)))
