from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from thrifty.errors import WorkloadError
from thrifty.workloads.quality import Accuracy
from thrifty.workloads.workload import CrossEntropy, Offline, Server, SingleStream, Workload


def rows(labels: Tensor | None = None, n: int = 20) -> TensorDataset:
    return TensorDataset(torch.randn(n, 2), torch.arange(n) % 2 if labels is None else labels)


def workload(**changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "name": "rows", "model": lambda: nn.Linear(2, 2), "train": rows(), "validation": rows(), "test": rows(),
        "loss": CrossEntropy(), "quality": Accuracy(), "example": lambda n: (torch.zeros(n, 2),),
        "reference": "train(adamw, epochs=1)",
    }
    return Workload(**{**fields, **changes})


# -- unlabelled inputs ------------------------------------------------------------------------------------------


class Alone(Dataset[Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2,), float(index))


def test_unlabelled_inputs_are_learnt_from_where_there_is_no_training_set() -> None:
    found = workload(train=None, loss=None, reference="", unlabelled=Alone())
    assert found.lessons is not None
    data, loss = found.lessons
    assert len(data) == 12 and torch.equal(data[3][0], torch.full((2,), 3.0)) and data[3][1] == 0
    total, weight = loss(torch.zeros(5, 2), ((torch.zeros(5, 2),), torch.zeros(5)))
    assert float(total) == 0 and int(weight) == 5
    for shape, rows in (((5, 3), 5), ((2, 4, 3), 8), ((2, 3, 4, 5), 40)):
        logits, valid = loss.logits(torch.zeros(shape), ((torch.zeros(shape[0], 2),), None))
        assert logits.shape == (rows, 3) and valid.shape == (rows,) and bool(valid.all())
    labelled = workload(unlabelled=Alone())
    assert labelled.lessons == (labelled.train, labelled.loss)
    assert workload(train=None, loss=None, reference="").lessons is None


# -- the value --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": ""}, "name must be letters"),
    ({"name": "a/b"}, "name must be letters"),
    ({"name": "../a"}, "name must be letters"),
    ({"name": 3}, "name must be letters"),
    ({"model": nn.Linear}, None),
    ({"model": 3}, "model must be callable but is 3"),
    ({"example": torch.zeros(1)}, "example must be callable"),
    ({"forward": None}, "forward must be callable"),
    ({"quality": "accuracy"}, "quality must be a thrifty.Quality such as Accuracy() but is 'accuracy'"),
    ({"quality": Accuracy}, "quality must be a thrifty.Quality"),
    ({"loss": nn.CrossEntropyLoss()}, "loss must be a thrifty.Loss such as CrossEntropy()"),
    ({"scenario": "Offline"}, "scenario must be SingleStream()"),
    ({"reference": None}, "reference must be a recipe's text"),
    ({"train": None}, "`train` and `loss` are needed"),
    ({"loss": None}, "`train` and `loss` are needed"),
    ({"train": None, "loss": None, "reference": ""}, None),
    ({"batch_size": 0}, "batch_size must be a whole number"),
    ({"batch_size": "64"}, "batch_size must be a whole number"),
])
def test_a_field_of_the_wrong_kind_is_named(changes: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert workload(**changes)
        return
    with pytest.raises(WorkloadError) as caught:
        workload(**changes)
    assert words in str(caught.value)


def test_a_server_needs_a_latency_above_zero() -> None:
    assert {SingleStream().name, Offline().name, Server(latency=0.05).name} == {"SingleStream", "Offline", "Server"}
    for latency in (0, -1, math.nan):
        with pytest.raises(WorkloadError, match="in seconds and must be above 0"):
            Server(latency=latency)


def test_calibration_comes_from_training_data_and_where_there_is_none_from_validation() -> None:
    with_train = workload()
    assert with_train.training_set is with_train.train
    without = workload(train=None, reference="")
    assert without.training_set is without.validation


# -- losses and qualities ---------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(2, 7), st.integers(0, 2**31))
def test_cross_entropy_of_parts_adds_up_to_the_whole(n: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, classes, generator=generator)
    target = torch.randint(0, classes, (n,), generator=generator)
    target[torch.rand(n, generator=generator) < 0.3] = -100
    total, weight = CrossEntropy()(outputs, ((), target))
    parts = [CrossEntropy()(outputs[i:i + 1], ((), target[i:i + 1])) for i in range(n)]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(), total)
    assert sum(int(w) for _, w in parts) == int(weight) == int((target != -100).sum())
    if int(weight):
        torch.testing.assert_close(total / weight, nn.functional.cross_entropy(outputs, target))
    logits, valid = CrossEntropy().logits(outputs, ((), target))
    assert logits.shape == (n, classes)
    assert int(valid.sum()) == int(weight)


def test_cross_entropy_over_tokens_equals_torchs() -> None:
    outputs, target = torch.randn(3, 5, 7, requires_grad=True), torch.randint(0, 7, (3, 5))
    total, weight = CrossEntropy()(outputs, ((), target))
    torch.testing.assert_close(total / weight, nn.functional.cross_entropy(outputs.flatten(0, 1), target.flatten()))
    total.backward()
    assert outputs.grad is not None
