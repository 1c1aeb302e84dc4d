"""How a model is judged: example by example, through whatever engine answers."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, default_collate

from thrifty.errors import WorkloadError
from thrifty.measure.bootstrap import Statistic, whole
from thrifty.workloads.classes import paired

Predict = Callable[[tuple[Tensor, ...]], Any]
"""Runs any engine on a tuple of input tensors of n examples and returns its outputs for the n examples."""

Collate = Callable[[list[Any]], Any]
"""Joins items of a data set to a batch."""

Split = Literal["validation", "test"]


@final
@dataclass(frozen=True)
class Scores:
    """Quality per example: the value is sum(numerator) / sum(denominator), or what a statistic makes of them.

    Args:
        numerator: [n] float64: hits, bits, ...; [n, k] where a statistic takes so many of each example.
        denominator: [n] or [n, k] float64: ones, bytes, ...
        cluster: [n] int64: examples of one cluster (windows of one file) are not independent.
        statistic: (numerator [n, k], denominator [n, k], counts [b, n]) -> values [b], of resampled examples, in which
            example i stands counts[:, i] times; the quality's own.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    cluster: np.ndarray
    statistic: Statistic | None = None

    def __post_init__(self) -> None:
        if self.statistic is not None:  # one column is [n, 1], as a study gives it back
            for name in ("numerator", "denominator"):
                if (given := getattr(self, name)).ndim == 1:
                    object.__setattr__(self, name, given[:, None])
        shapes = {self.numerator.shape, self.denominator.shape, self.cluster.shape}
        of_one = {self.numerator.shape, self.denominator.shape, (*self.cluster.shape, *self.numerator.shape[1:])}
        if len(of_one) != 1 or self.cluster.ndim != 1 or (self.statistic is None and self.numerator.ndim != 1):
            raise ValueError(f"numerator, denominator and cluster must be [n] and equally long but are {shapes}")

    @property
    def value(self) -> float:
        if self.statistic is not None:
            return whole(self.statistic, self.numerator, self.denominator)
        return float(self.numerator.sum() / self.denominator.sum())


class Quality(abc.ABC):
    """Scores a predictor on a dataset, example by example, so that differences between models are paired."""

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @property
    @abc.abstractmethod
    def higher_is_better(self) -> bool: ...

    @property
    def embeds(self) -> bool:
        """Whether the model's answers are embeddings, which distillation then compares; else they are logits."""
        return False

    @abc.abstractmethod
    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores: ...

    @property
    def statistic(self) -> Statistic | None:
        """What makes the value where that is no ratio of sums; `Scores` are given it too. Intervals are then by resampling."""
        return None

    def joined(self, collate: Collate | None) -> Quality:
        """This quality with a workload's way to join items, where it has none of its own."""
        return self

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The value of the best answer that does not look at its input; None where there is none to compare with."""
        return None

    def sample(self, dataset: Dataset[Any], most: int) -> Dataset[Any]:
        """At most ``most`` examples, evenly spread, to screen on; the whole set where examples judge one another."""
        n = length(dataset)
        return dataset if n <= most else Subset(dataset, [i * n // most for i in range(most)])


def batches(dataset: Dataset[Any], batch_size: int, collate: Collate | None = None) -> Any:
    """Yield collated (inputs tuple, target) batches of a map-style dataset, in order."""
    n = length(dataset)
    join = collate or default_collate
    for start in range(0, n, batch_size):
        inputs, target = join([dataset[i] for i in range(start, min(start + batch_size, n))])
        yield as_inputs(inputs), target


def as_inputs(inputs: Any) -> tuple[Tensor, ...]:
    """One input tensor, or a sequence of them, as the tuple that the model is called with."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def length(dataset: Dataset[Any]) -> int:
    if not isinstance(dataset, Sized):
        raise WorkloadError(
            f"a {type(dataset).__name__} has no length; Thrifty needs map-style datasets with __len__ and "
            "__getitem__, so that examples can be compared one by one"
        )
    return len(dataset)


@dataclass(frozen=True)
class Batched(Quality):
    """A quality that reads its data set batch by batch.

    Args:
        batch_size: batch size of scoring.
        collate: joins items; the workload's where None.
    """

    batch_size: int = 256
    collate: Collate | None = field(default=None, kw_only=True)

    def joined(self, collate: Collate | None) -> Batched:
        return self if self.collate is not None else dataclasses.replace(self, collate=collate)

    def batches(self, dataset: Dataset[Any]) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """(inputs, target) of the whole data set, in order."""
        yield from batches(dataset, self.batch_size, self.collate)


@final
@dataclass(frozen=True)
class Accuracy(Batched):
    """Share of targets whose logit is the highest; numerator: an example's hits, denominator: its targets.

    Outputs and targets are those that `CrossEntropy` takes: a class for each example, or for each token or pixel.

    Args:
        batch_size: batch size of scoring.
        ignore_index: targets that do not count.
        axis: axis of the classes, 1 or -1; where None, the one that fits the targets.
        collate: joins items; the workload's where None.
    """

    ignore_index: int = -100
    axis: int | None = None
    name = "accuracy"
    higher_is_better = True

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        hits, counts = [], []
        for inputs, target in self.batches(dataset):
            logits, classes = paired("Accuracy", predict(inputs), target, self.axis)
            judged = (classes != self.ignore_index).reshape(len(classes), -1)
            hit = (logits.argmax(-1) == classes).reshape(judged.shape) & judged
            hits.append(hit.sum(1).double().numpy())
            counts.append(judged.sum(1).double().numpy())
        numerator = np.concatenate(hits)
        return Scores(numerator, np.concatenate(counts), np.arange(len(numerator)))

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of always answering the most frequent class."""
        found = torch.cat([target.flatten() for _, target in self.batches(dataset)])
        counts = np.unique(found[found != self.ignore_index].numpy(), return_counts=True)[1]
        return float(counts.max() / counts.sum()) if len(counts) else None


# -- of text ----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class BitsPerByte(Batched):
    """Bits a language model needs per byte of text: sum of -log2 p(token) / bytes, clustered by file.

    Dataset items are (ids [tokens], (target [tokens], bytes, file)); targets of -100 are not scored.

    Args:
        batch_size: batch size of scoring.
        collate: joins items; the workload's where None.
    """

    batch_size: int = 16
    name = "bits_per_byte"
    higher_is_better = False

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        bits, sizes, files = [], [], []
        for inputs, (target, size, file) in self.batches(dataset):
            logits = predict(inputs).float()
            nats = nn.functional.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="none"
            )
            bits.append(nats.view(target.shape).double().sum(-1).numpy() / math.log(2))
            sizes.append(torch.as_tensor(size).double().numpy())
            files.append(torch.as_tensor(file).long().numpy())
        return Scores(np.concatenate(bits), np.concatenate(sizes), np.concatenate(files))

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of always answering the frequencies of the tokens."""
        targets, total = [], 0.0
        for _, (target, size, _) in self.batches(dataset):
            targets.append(target[target != -100])
            total += float(torch.as_tensor(size).double().sum())
        counts = np.unique(torch.cat(targets).numpy(), return_counts=True)[1]
        return float(-(counts * np.log2(counts / counts.sum())).sum() / total) if len(counts) else None


@final
@dataclass(frozen=True)
class Perplexity(Batched):
    """exp of the mean of -log p(token) over the tokens that are scored.

    Dataset items are (ids [tokens], target [tokens]), or those of `BitsPerByte`, clustered by file then. Outputs and targets
    fit together as `CrossEntropy` takes them.

    Args:
        ignore_index: targets that do not count.
        axis: axis of the classes, 1 or -1; where None, the one that fits the targets.
    """

    batch_size: int = 16
    ignore_index: int = -100
    axis: int | None = None
    name = "perplexity"
    higher_is_better = False

    @property
    def statistic(self) -> Statistic:
        return exp_of_ratio

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        nats, tokens = [], []
        files: list[np.ndarray] = []
        for inputs, targets in self.batches(dataset):
            target, *rest = targets if isinstance(targets, list | tuple) else (targets,)
            logits, target = paired("Perplexity", predict(inputs), target, self.axis)
            lost = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), target.reshape(-1),
                                               ignore_index=self.ignore_index, reduction="none")
            nats.append(lost.reshape(len(target), -1).double().sum(1).numpy())
            tokens.append((target != self.ignore_index).reshape(len(target), -1).sum(1).double().numpy())
            first = sum(len(file) for file in files)
            files.append(torch.as_tensor(rest[-1]).long().numpy() if rest else np.arange(first, first + len(target)))
        return Scores(np.concatenate(nats), np.concatenate(tokens), np.concatenate(files), exp_of_ratio)

    def constant(self, dataset: Dataset[Any]) -> float | None:
        """The score of always answering the frequencies of the tokens."""
        found = [targets[0] if isinstance(targets, list | tuple) else targets for _, targets in self.batches(dataset)]
        tokens = torch.cat([target[target != self.ignore_index] for target in found]).numpy()
        shares = np.unique(tokens, return_counts=True)[1] / max(1, len(tokens))
        return float(np.exp(-(shares * np.log(shares)).sum())) if len(tokens) else None


def ratio(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum / sum, all columns together; NaN over 0: [b] for numerator and denominator [n, k] and counts [b, n]."""
    total = counts @ denominator.sum(1)
    found: np.ndarray = np.divide(counts @ numerator.sum(1), total, out=np.full(len(counts), np.nan), where=total > 0)
    return found


def exp_of_ratio(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(ratio(numerator, denominator, counts))
    return found
