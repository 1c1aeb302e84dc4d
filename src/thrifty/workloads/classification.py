"""Qualities of classifiers beside accuracy: overlaps of what was found with what is there, and how well scores rank."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty.errors import WorkloadError
from thrifty.measure.bootstrap import Statistic
from thrifty.workloads.classes import paired
from thrifty.workloads.quality import Batched, Predict, Scores
from thrifty.workloads.values import compared

Average = Literal["binary", "macro"]


@dataclass(frozen=True)
class Overlap(Batched):
    """A ratio for each class, of counts over all examples, tokens or pixels; then class 1's, or the mean over classes.

    Outputs are logits of classes, as `CrossEntropy` takes them, or one logit for each target, as `BCEWithLogits` does: above 0
    it says class 1.

    Args:
        average: "binary", class 1 of two; or "macro", the mean over the classes that occur, in targets or answers.
        ignore_index: targets that do not count.
        axis: of the classes, 1 or -1; where None, the one that fits the targets.
    """

    average: Average = "macro"
    ignore_index: int = -100
    axis: int | None = None
    higher_is_better = True

    def __post_init__(self) -> None:
        if self.average not in ("binary", "macro"):
            raise WorkloadError(f'average must be "binary" or "macro" but is {self.average!r}')

    @staticmethod
    @abc.abstractmethod
    def ratio(hits: Any, predicted: Any, actual: Any) -> tuple[Any, Any]:
        """(numerator, denominator) of a class, linear in: places where it is both, where it is predicted, where it is actual."""

    @property
    def statistic(self) -> Statistic:
        return mean_of_ratios

    @final
    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        found = [self.ratio(*self._counts(predict(inputs), target)) for inputs, target in self.batches(dataset)]
        first = 1 if self.average == "binary" else 0
        numerator, denominator = (np.concatenate(parts)[:, first:] for parts in zip(*found, strict=True))
        return Scores(numerator, denominator, np.arange(len(numerator)), mean_of_ratios)

    def _counts(self, outputs: Any, target: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places where a class is hit, predicted and actual: each [batch, classes] float64."""
        judge = type(self).__name__
        if isinstance(outputs, Tensor) and isinstance(target, Tensor) and outputs.numel() == target.numel():
            z, actual = compared(judge, outputs, target)
            predicted, classes = (z > 0).long(), 2
        else:
            logits, actual = paired(judge, outputs, target, self.axis)
            predicted, classes = logits.argmax(-1), logits.shape[-1]
        if self.average == "binary" and classes != 2:
            raise WorkloadError(f'{judge}(average="binary") is for two classes, but there are {classes}: use average="macro"')
        judged = actual != self.ignore_index
        at = torch.arange(len(actual)).reshape(-1, *[1] * (actual.ndim - 1)).expand_as(actual)[judged] * classes
        predicted, actual = predicted[judged], actual[judged].long()
        if len(actual) and not 0 <= int(actual.min()) <= int(actual.max()) < classes:
            raise WorkloadError(f"targets are {int(actual.min())} to {int(actual.max())}, but {judge}() judges classes 0 to "
                                f"{classes - 1}")

        def counted(places: Tensor) -> np.ndarray:
            return torch.bincount(places, minlength=len(target) * classes).reshape(-1, classes).double().numpy()

        return counted((at + actual)[predicted == actual]), counted(at + predicted), counted(at + actual)

    @final
    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of always answering one class: class 1, or the most frequent one."""
        found = torch.cat([target.flatten() for _, target in self.batches(dataset)])
        classes, actual = np.unique(found[found != self.ignore_index].long().numpy(), return_counts=True)
        if not len(classes):
            return None
        most = int(actual[classes == 1].sum()) if self.average == "binary" else int(actual.max())
        numerator, denominator = self.ratio(most, int(actual.sum()), most)
        return float(numerator / denominator / (1 if self.average == "binary" else len(classes)))


@final
@dataclass(frozen=True)
class F1(Overlap):
    """2 hits / (predicted + actual), the harmonic mean of precision and recall, as scikit-learn's ``f1_score``.

    >>> data = torch.utils.data.TensorDataset(torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1, 0, 1, 0]))
    >>> F1()(lambda inputs: inputs[0], data).value
    0.5
    """

    average: Average = "binary"
    name = "f1"

    @staticmethod
    def ratio(hits: Any, predicted: Any, actual: Any) -> tuple[Any, Any]:
        return 2 * hits, predicted + actual


@final
@dataclass(frozen=True)
class IoU(Overlap):
    """Intersection over union, hits / (predicted + actual - hits), as scikit-learn's ``jaccard_score``; for example of pixels.

    Counts are of all examples together, as usual for segmentation, and not of each image.

    >>> data = torch.utils.data.TensorDataset(torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[1, 0, 0]]))
    >>> IoU(average="binary")(lambda inputs: inputs[0], data).value
    0.5
    """

    name = "iou"

    @staticmethod
    def ratio(hits: Any, predicted: Any, actual: Any) -> tuple[Any, Any]:
        return hits, predicted + actual - hits


@final
@dataclass(frozen=True)
class AUC(Batched):
    """The area under the ROC curve: the share of pairs (an example of class 1, one of class 0) in which class 1 scores higher;
    ties count half, as in scikit-learn's ``roc_auc_score``.

    The score of an example is its one logit, or the second of two less the first.

    >>> data = torch.utils.data.TensorDataset(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    >>> AUC()(lambda inputs: inputs[0], data).value
    0.75
    """

    name = "auc"
    higher_is_better = True

    @property
    def statistic(self) -> Statistic:
        return area

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        found = [self._scored(predict(inputs), target) for inputs, target in self.batches(dataset)]
        scores, targets = (torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))
        if strange := sorted({*np.unique(targets)} - {0.0, 1.0}):
            raise WorkloadError(f"AUC() is for two classes, 0 and 1, but a target is {strange[0]:g}")
        return Scores(scores, targets, np.arange(len(scores)), area)

    def _scored(self, outputs: Any, target: Any) -> tuple[Tensor, Tensor]:
        if isinstance(outputs, Tensor) and isinstance(target, Tensor) and outputs.shape == (target.numel(), 2):
            z, y = outputs.double()[:, 1] - outputs.double()[:, 0], target.reshape(-1)
        else:
            z, y = compared("AUC", outputs, target)
        if z.numel() != len(z):
            raise WorkloadError(f"AUC() ranks examples by one score each, but the targets are {list(y.shape)}: give one per "
                                "example")
        return z.reshape(-1), y.reshape(-1)

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of a constant answer."""
        return 0.5


def mean_of_ratios(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over classes of sum / sum; those over 0 left out."""
    total = counts @ denominator
    each = np.divide(counts @ numerator, total, out=np.zeros_like(total), where=total > 0)
    classes = (total > 0).sum(1)
    return np.divide(each.sum(1), classes, out=np.full(len(counts), np.nan), where=classes > 0)


def area(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of scores, and targets 0 or 1; each [n, 1]."""
    order = np.argsort(numerator[:, 0], kind="stable")
    score, target, counts = numerator[order, 0], denominator[order, 0], counts[:, order]
    starts = np.flatnonzero(np.diff(score, prepend=-np.inf))  # of examples of one score
    ones, zeros = (np.add.reduceat(counts * of, starts, axis=1) for of in (target, 1 - target))
    won = (ones * (np.cumsum(zeros, 1) - zeros / 2)).sum(1)
    pairs = ones.sum(1) * zeros.sum(1)
    return np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)
