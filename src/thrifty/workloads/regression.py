"""Qualities of models whose outputs are quantities: what their errors are, in the targets' unit or beside a constant answer's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch.utils.data import Dataset

from thrifty.errors import WorkloadError
from thrifty.measure.bootstrap import Statistic
from thrifty.workloads.quality import Batched, Predict, Scores, ratio
from thrifty.workloads.values import compared


@final
@dataclass(frozen=True)
class MeanAbsoluteError(Batched):
    """Mean of |output - target| over all elements, as scikit-learn's ``mean_absolute_error``.

    >>> import torch
    >>> data = torch.utils.data.TensorDataset(torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0]))
    >>> MeanAbsoluteError()(lambda inputs: inputs[0], data).value
    1.5
    """

    name = "mae"
    higher_is_better = False

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        found = [(np.abs(z - y).sum(1), np.full(len(y), y.shape[1])) for z, y in _pairs(self, predict, dataset)]
        return _scores(found)

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of always answering the median."""
        y = _targets(self, dataset)
        return float(np.abs(y - np.median(y, 0)).mean())


@final
@dataclass(frozen=True)
class RMSE(Batched):
    """Square root of the mean of (output - target)^2 over all elements, as torchmetrics' ``MeanSquaredError(squared=False)``.

    For one output it is scikit-learn's ``root_mean_squared_error``, which of several takes the mean of each one's root.

    >>> import torch
    >>> data = torch.utils.data.TensorDataset(torch.tensor([1.0, 7.0]), torch.tensor([0.0, 0.0]))
    >>> RMSE()(lambda inputs: inputs[0], data).value
    5.0
    """

    name = "rmse"
    higher_is_better = False

    @property
    def statistic(self) -> Statistic:
        return root_of_ratio

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        found = [(((z - y) ** 2).sum(1), np.full(len(y), y.shape[1])) for z, y in _pairs(self, predict, dataset)]
        return _scores(found, root_of_ratio)

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of always answering the mean."""
        y = _targets(self, dataset)
        return float(np.sqrt(((y - y.mean(0)) ** 2).mean()))


@final
@dataclass(frozen=True)
class R2(Batched):
    """1 - sum (output - target)^2 / sum (target - mean target)^2, as scikit-learn's ``r2_score``.

    For several outputs, the mean of each one's. An output whose targets are all alike has no value and is left out.

    >>> import torch
    >>> data = torch.utils.data.TensorDataset(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
    >>> R2()(lambda inputs: inputs[0], data).value
    0.5
    """

    name = "r2"
    higher_is_better = True

    @property
    def statistic(self) -> Statistic:
        return determination

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        found = list(_pairs(self, predict, dataset))
        if len({y.shape[1] for _, y in found}) > 1:
            raise WorkloadError("R2() compares each output with its own mean, but examples have different numbers of targets: "
                                "use RMSE() or MeanAbsoluteError()")
        z, y = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Scores((z - y) ** 2, y - y.mean(0), np.arange(len(y)), determination)

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of always answering the mean."""
        return 0.0


def root_of_ratio(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.sqrt(ratio(numerator, denominator, counts))


def determination(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """R2 of squared errors, and targets less their mean over the data set; each [n, outputs]."""
    squares = counts @ denominator**2
    spread = squares - (counts @ denominator) ** 2 / counts.sum(1, keepdims=True)
    known = spread > 1e-12 * squares
    each = 1 - np.divide(counts @ numerator, spread, out=np.zeros_like(spread), where=known)
    outputs = known.sum(1)
    return np.divide((each * known).sum(1), outputs, out=np.full(len(counts), np.nan), where=outputs > 0)


def _pairs(quality: Batched, predict: Predict, dataset: Dataset[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(outputs, targets), each [batch, numbers] float64."""
    for inputs, target in quality.batches(dataset):
        pair = compared(type(quality).__name__, predict(inputs), target)
        z, y = (x.double().reshape(len(target), -1).numpy() for x in pair)
        yield z, y


def _scores(found: list[tuple[np.ndarray, np.ndarray]], statistic: Statistic | None = None) -> Scores:
    """From (numerators, denominators) by batch."""
    numerator, denominator = (np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True))
    return Scores(numerator, denominator, np.arange(len(numerator)), statistic)


def _targets(quality: Batched, dataset: Dataset[Any]) -> np.ndarray:
    """[n, numbers], or [all, 1] where examples have different numbers of them."""
    found = [target.double().reshape(len(target), -1).numpy() for _, target in quality.batches(dataset)]
    alike = len({y.shape[1] for y in found}) == 1
    return np.concatenate(found if alike else [y.reshape(-1, 1) for y in found])
