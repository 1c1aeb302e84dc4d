from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from thrifty.errors import WorkloadError
from thrifty.measure.statistics import paired_drop
from thrifty.studies.store import Store, Study
from thrifty.workloads.quality import Accuracy, BitsPerByte, Perplexity, Scores, batches
from thrifty.workloads.workload import CrossEntropy


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


def test_classes_in_dimension_1_are_torchs_own_convention() -> None:
    """Sizes agree on purpose: classes, height and width are 4."""
    target = torch.randint(0, 4, (6, 4, 4))
    target[0, :2] = -100
    outputs = nn.functional.one_hot(target.clamp(min=0), 4).movedim(-1, 1).float()
    data = TensorDataset(torch.arange(6), target)
    scores = Accuracy(batch_size=4)(lambda inputs: outputs[inputs[0]], data)
    assert scores.value == 1 and scores.denominator.tolist() == [8, 16, 16, 16, 16, 16]
    wrong = Accuracy()(lambda inputs: outputs[inputs[0]].roll(1, 1), data)
    assert wrong.value == 0
    logits = torch.randn(6, 4, 4, 4, requires_grad=True)
    total, weight = CrossEntropy()(logits, ((), target))
    torch.testing.assert_close(total / weight, nn.functional.cross_entropy(logits, target))
    rows, valid = CrossEntropy().logits(logits, ((), target))
    assert rows.shape == (96, 4) and int(valid.sum()) == 88
    assert torch.equal(rows[16], logits[1, :, 0, 0])


@pytest.mark.parametrize("judge", [CrossEntropy, Accuracy])
def test_an_axis_that_fits_twice_is_asked_for(judge: Any) -> None:
    outputs, target = torch.randn(3, 5, 5), torch.randint(0, 5, (3, 5))

    def judged(axis: int | None) -> float:
        if judge is CrossEntropy:
            return float(CrossEntropy(axis=axis)(outputs, ((), target))[0].detach())
        return Accuracy(axis=axis)(lambda inputs: outputs[inputs[0]], TensorDataset(torch.arange(3), target)).value

    with pytest.raises(WorkloadError, match=r"say which, \w+\(axis=1\) or \w+\(axis=-1\)"):
        judged(None)
    if judge is CrossEntropy:
        assert judged(1) == pytest.approx(float(nn.functional.cross_entropy(outputs, target, reduction="sum")))
        assert judged(-1) == pytest.approx(float(nn.functional.cross_entropy(outputs.mT, target, reduction="sum")))
    else:
        assert judged(1) == (outputs.argmax(1) == target).float().mean() and judged(-1) == pytest.approx(
            (outputs.argmax(-1) == target).double().mean().item())


@pytest.mark.parametrize(("outputs", "target", "says"), [
    (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), "have one value for each target"),
    (torch.zeros(4), torch.zeros(4, dtype=torch.long), "have one value for each target"),
    (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), r"outputs \[4, 3\] and targets \[5\] do not fit"),
    (torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 3, dtype=torch.long), "do not fit"),
    (torch.zeros(4, 3), torch.zeros(4, 3), "the targets are float32|have one value"),
    ((torch.zeros(4, 3),), torch.zeros(4, dtype=torch.long), "the outputs are a tuple"),
    (torch.zeros(4, 3), ("a", "b"), "the targets are a tuple of str"),
])
def test_outputs_and_targets_that_do_not_fit_are_told(outputs: Any, target: Any, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        CrossEntropy()(outputs, ((), target))


def test_the_workloads_collate_joins_what_is_judged() -> None:
    data = [({"x": float(i)}, i % 2) for i in range(6)]

    def collate(items: Any) -> Any:
        return torch.tensor([item["x"] for item, _ in items]), torch.tensor([y for _, y in items])

    assert Accuracy().joined(collate)(lambda inputs: nn.functional.one_hot(inputs[0].long() % 2, 2), data).value == 1
    assert Accuracy(collate=collate).joined(None).collate is collate


def test_a_constant_answer() -> None:
    data = TensorDataset(torch.arange(8), torch.tensor([0, 1, 1, 1, 2, -100, -100, 0]))
    assert Accuracy().constant(data) == 0.5
    windows = [(torch.zeros(4), (torch.tensor([0, 1, 2, 3]), 4, 0))] * 3
    assert BitsPerByte().constant(windows) == pytest.approx(2.0)


@pytest.mark.parametrize("shape", [(9, 6, 5), (9, 5, 6)])
def test_perplexity_is_exp_of_torchs_mean_cross_entropy(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(shape, generator=generator), torch.randint(0, 5, (9, 6), generator=generator)
    target[:, 0] = -100
    scores = Perplexity(batch_size=4)(lambda inputs: logits[inputs[0]], TensorDataset(torch.arange(9), target))
    expected = nn.functional.cross_entropy(logits if shape[1] == 5 else logits.mT, target)
    assert scores.value == pytest.approx(float(expected.exp())) and scores.cluster.tolist() == list(range(9))


def test_perplexity_judges_what_bits_per_byte_judges() -> None:
    windows = [(torch.zeros(4), (torch.tensor([0, 1, 2, -100]), 4, i // 2)) for i in range(5)]
    scores = Perplexity(batch_size=2)(lambda inputs: torch.zeros(*inputs[0].shape, 16), windows)  # type: ignore[arg-type]
    assert scores.value == pytest.approx(16) and scores.cluster.tolist() == [0, 0, 1, 1, 2]
    assert Perplexity().constant(windows) == pytest.approx(3.0)  # type: ignore[arg-type]


def test_perplexity_is_paired_with_what_a_study_gives_back(tmp_path: Path) -> None:
    windows = [(torch.zeros(4), torch.tensor([0, 1, 2, -100])) for _ in range(5)]
    quality = Perplexity(batch_size=2)
    scores = quality(lambda inputs: torch.zeros(*inputs[0].shape, 16), windows)  # type: ignore[arg-type]
    with Store.open(tmp_path / "study", "write", Study("rows", "ab12", {"device": "cpu"})) as store:
        store.put_scores("one", "test", scores)
        kept = store.scores("one", "test", quality.statistic)
    assert kept is not None and paired_drop(kept, scores, higher_is_better=False).value == 0


def test_scores_of_a_statistic_may_have_columns() -> None:
    columns = np.ones((3, 2))
    assert Scores(columns, columns, np.arange(3), lambda a, b, counts: (counts @ a).sum(1)).value == 6
    with pytest.raises(ValueError, match="equally long"):
        Scores(columns, columns, np.arange(2), lambda a, b, counts: (counts @ a).sum(1))
