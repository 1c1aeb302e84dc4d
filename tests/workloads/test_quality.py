from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from thrifty.workloads.quality import Accuracy, BitsPerByte, Scores, batches


@given(st.integers(1, 40), st.integers(1, 50))
def test_accuracy_is_the_share_of_hits_whatever_the_batch(n: int, batch_size: int) -> None:
    outputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    data = TensorDataset(torch.arange(n), torch.arange(n) % 4)
    scores = Accuracy(batch_size)(lambda inputs: outputs[inputs[0]], data)
    assert scores.value == pytest.approx((outputs.argmax(-1) == torch.arange(n) % 4).double().mean().item())
    assert len(set(scores.cluster)) == n


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary_a_token() -> None:
    class Windows(Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            target = torch.tensor([1, 2, 3, -100 if index else 0])
            return torch.zeros(4, dtype=torch.long), (target, 6, index // 2)

    scores = BitsPerByte(batch_size=2)(lambda inputs: torch.zeros(*inputs[0].shape, 16), Windows())
    np.testing.assert_allclose(scores.numerator, [16, 12, 12, 12, 12])
    np.testing.assert_allclose(scores.denominator, 6)
    assert scores.cluster.tolist() == [0, 0, 1, 1, 2]
    assert scores.value == pytest.approx(64 / 30)


def test_scores_must_be_equally_long() -> None:
    with pytest.raises(ValueError, match="equally long"):
        Scores(np.ones(3), np.ones(2), np.arange(3))
    with pytest.raises(ValueError, match="equally long"):
        Scores(np.ones((3, 1)), np.ones((3, 1)), np.ones((3, 1)))


def test_batches_keep_the_order_and_the_rest() -> None:
    seen = list(batches(TensorDataset(torch.arange(7), torch.arange(7)), 3))
    assert [tuple(inputs[0].tolist()) for inputs, _ in seen] == [(0, 1, 2), (3, 4, 5), (6,)]
