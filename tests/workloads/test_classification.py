from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty.errors import WorkloadError
from thrifty.measure.statistics import paired_drop
from thrifty.workloads.classification import AUC, F1, IoU
from thrifty.workloads.quality import Quality, Scores


def judged(quality: Quality, outputs: Tensor, target: Tensor) -> Scores:
    return quality(lambda inputs: outputs[inputs[0]], TensorDataset(torch.arange(len(target)), target))


def drawn(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (n,), generator=generator)
    return torch.randn(n, classes, generator=generator) + nn.functional.one_hot(target, classes), target


@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 50), st.integers(0, 2**31))
def test_overlaps_are_scikit_learns(n: int, classes: int, batch_size: int, seed: int) -> None:
    logits, target = drawn(n, classes, seed)
    answer = logits.argmax(-1)
    assert judged(F1(batch_size, average="macro"), logits, target).value == pytest.approx(
        metrics.f1_score(target, answer, average="macro", zero_division=0))
    assert judged(IoU(batch_size), logits, target).value == pytest.approx(
        metrics.jaccard_score(target, answer, average="macro", zero_division=0))
    if classes == 2 and 1 in (*target.tolist(), *answer.tolist()):
        assert judged(F1(), logits, target).value == pytest.approx(metrics.f1_score(target, answer))
        one = logits[:, 1] - logits[:, 0]
        assert judged(F1(), one, target).value == judged(F1(), one[:, None], target).value == judged(F1(), logits, target).value
        assert judged(IoU(average="binary"), one, target).value == pytest.approx(metrics.jaccard_score(target, answer))


def test_pixels_in_torchs_own_convention_without_those_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (6, 5, 4), generator=generator)
    logits = torch.randn(6, 3, 5, 4, generator=generator)
    target[:, 0] = -100
    kept = target != -100
    for quality, oracle in ((IoU(batch_size=4), metrics.jaccard_score), (F1(average="macro"), metrics.f1_score)):
        scores = judged(quality, logits, target)
        assert scores.value == pytest.approx(oracle(target[kept], logits.argmax(1)[kept], average="macro"))
        assert scores.numerator.shape == (6, 3)
    mask, one = (target == 1).long(), logits[:, :1]
    assert judged(IoU(average="binary"), one, mask).value == pytest.approx(
        metrics.jaccard_score(mask.flatten(), (one > 0).long().flatten()))


@given(st.integers(2, 60), st.integers(1, 50), st.booleans(), st.integers(0, 2**31))
def test_the_area_is_scikit_learns_with_ties_too(n: int, batch_size: int, ties: bool, seed: int) -> None:
    logits, target = drawn(n, 2, seed)
    logits = logits.round() if ties else logits
    target[0], target[1] = 0, 1
    score = logits[:, 1] - logits[:, 0]
    expected = pytest.approx(metrics.roc_auc_score(target, score))
    assert judged(AUC(batch_size), logits, target).value == expected
    assert judged(AUC(batch_size), score.double(), target.float()).value == expected
    assert judged(AUC(), score[:, None], target).value == expected


@pytest.mark.parametrize("quality", [AUC(), F1(), F1(average="macro"), IoU()])
def test_resampled_values_are_those_of_the_repeated_examples(quality: Quality) -> None:
    logits, target = drawn(30, 2, 7)
    logits = logits.round()
    scores = judged(quality, logits, target)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 20)
    values = quality.statistic(scores.numerator.reshape(30, -1), scores.denominator.reshape(30, -1),  # type: ignore[misc]
                               counts.astype(float))
    for value, row in zip(values, counts, strict=True):
        again = torch.from_numpy(np.repeat(np.arange(30), row))
        assert value == pytest.approx(judged(quality, logits[again], target[again]).value)


@pytest.mark.parametrize("quality", [F1(), F1(average="macro"), IoU(), IoU(average="binary"), AUC()])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_best_constant_answer_is_the_best(quality: Quality, share: float) -> None:
    target = (torch.arange(50) < 50 * share).long()
    values = [judged(quality, torch.full((50,), z), target).value for z in (-1.0, 1.0)]
    assert quality.constant(TensorDataset(torch.arange(50), target)) == pytest.approx(max(values))


def test_a_worse_model_loses_significantly_and_an_equal_one_does_not() -> None:
    logits, target = drawn(500, 2, 5)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    for quality in (F1(), F1(average="macro"), IoU(), AUC()):
        reference = judged(quality, logits, target)
        worse = paired_drop(reference, judged(quality, logits + 2 * noise, target), True)
        assert worse.low is not None and worse.low > 0
        alike = paired_drop(reference, judged(quality, logits + 0.05 * noise, target), True)
        assert alike.low is not None and alike.high is not None and alike.low <= 0 <= alike.high < 0.04


@pytest.mark.parametrize("quality", [F1(), F1(average="macro"), IoU(), IoU(average="binary")])
def test_no_difference_among_few_examples_is_no_certainty(quality: Quality) -> None:
    """The end is near what one answer lost would cost, as that of accuracy is; with more examples it comes nearer."""
    ends = []
    for n in (50, 500):
        logits, target = drawn(n, 2, 5)
        reference = judged(quality, logits, target)
        drop = paired_drop(reference, reference, True)
        assert drop.value == 0 and drop.low is not None and drop.high is not None and drop.low == -drop.high
        right = int(((logits.argmax(-1) == target) & (target == 1)).nonzero()[0])
        logits[right] = torch.tensor([9.0, -9.0])
        once = paired_drop(reference, judged(quality, logits, target), True)
        assert once.value < drop.high < 8 * once.value
        ends.append(drop.high)
    assert 7 < ends[0] / ends[1] < 14


@pytest.mark.parametrize(("quality", "outputs", "target", "says"), [
    (F1(), torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), r'F1\(average="binary"\) is for two classes, but there are 3'),
    (IoU(), torch.zeros(4), torch.tensor([0, 1, 2, 0]), "targets are 0 to 2, but IoU.. judges classes 0 to 1"),
    (AUC(), torch.zeros(4), torch.tensor([0, 1, 2, 0]), "two classes, 0 and 1, but a target is 2"),
    (AUC(), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), "do not fit"),
    (AUC(), torch.zeros(4, 5), torch.zeros(4, 5), "give one per example"),
])
def test_what_does_not_fit_is_told(quality: Quality, outputs: Any, target: Any, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        judged(quality, outputs, target)


def test_an_average_that_is_none() -> None:
    with pytest.raises(WorkloadError, match="must be \"binary\" or \"macro\" but is 'micro'"):
        F1(average="micro")  # type: ignore[arg-type]
