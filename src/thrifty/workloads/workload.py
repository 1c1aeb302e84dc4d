"""What the user brings: a model, its data, how it is judged, trained and served."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from torch import nn
from torch.utils.data import Dataset

from thrifty.errors import WorkloadError
from thrifty.workloads.losses import Batch as Batch
from thrifty.workloads.losses import CrossEntropy as CrossEntropy
from thrifty.workloads.losses import Loss as Loss
from thrifty.workloads.losses import Unlabelled
from thrifty.workloads.quality import Quality

# -- inputs alone ------------------------------------------------------------------------------------------------


@final
class Inputs(Dataset[tuple[Any, int]]):
    """Inputs alone as items (input, 0), which training reads."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index], 0


@final
class Alone(Dataset[Any]):
    """The inputs of a data set of (input, target)."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][0]


# -- how it is served -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario(abc.ABC):
    """How requests arrive; decides which figure is the speed."""

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @property
    def largest_batch(self) -> int:
        """Requests that an engine may be given at once; above 1 its batch dimension must vary."""
        return 1


@final
@dataclass(frozen=True)
class SingleStream(Scenario):
    """One request after another: median latency at batch 1."""

    name = "SingleStream"


@final
@dataclass(frozen=True)
class Offline(Scenario):
    """All requests available at once: samples per second, each side at its own best batch size within memory."""

    name = "Offline"
    max_batch: int = 64

    @property
    def largest_batch(self) -> int:
        return self.max_batch


@final
@dataclass(frozen=True)
class Server(Scenario):
    """Poisson arrivals: the highest rate whose p99 latency stays under ``latency`` seconds."""

    name = "Server"
    latency: float = 0.1

    def __post_init__(self) -> None:
        if not self.latency > 0:
            raise WorkloadError(f"Server(latency=...) is in seconds and must be above 0 but is {self.latency}")


# -- the workload -----------------------------------------------------------------------------------------------


class Forward(Protocol):
    def __call__(self, model: nn.Module, batch: Batch) -> Any: ...


def call_model(model: nn.Module, batch: Batch) -> Any:
    """The default ``forward``: the model on the batch's inputs."""
    return model(*batch[0])


@final
@dataclass(frozen=True)
class Workload:
    """A model, its data, its quality metric, how it is trained today and how it will be served.

    Args:
        name: letters, digits, ``-`` and ``_``.
        model: () -> nn.Module in fp32, with its pretrained weights where it has any.
        train: map-style Dataset of (input, target), or None where the model comes trained.
        validation, test: likewise; choices are scored on validation, the final front alone on test.
        loss: needed by every ``train`` phase with labels; None where nothing is trained, or on unlabelled inputs alone.
        quality: scores predictions per example.
        example: n -> n requests' tensors, as the server gets them: a tuple in the order of the model's forward, or a
            dictionary by its names; items of the data sets then hold inputs of those names. `load_workload` puts them in order.
        scenario: SingleStream(), Offline() or Server(latency=...).
        reference: the recipe by which it is trained today; "" where the model comes trained.
        forward: (model, batch) -> outputs, where it is more than the model on the inputs.
        collate: joins dataset items; torch's default_collate otherwise.
        unlabelled: map-style Dataset of inputs alone, for where there is no ``train`` or no ``loss``: a model that comes trained
            is distilled on them. Where ``collate`` is given, it gets items (input, 0).
        batch_size: batch size of training, in examples.
        loader_workers: processes that make training batches ahead, like num_workers of torch's DataLoader; 0 for none.
        shapes: {input position: {dimension: (low, high)}}: which dimensions vary when served.
        source: where a fresh process finds it, "file.py:workload" or "package.module:workload"; set by
            `load_workload`.

    Raises:
        WorkloadError: a field is missing or of the wrong kind.
    """

    name: str
    model: Callable[[], nn.Module]
    validation: Dataset[Any]
    test: Dataset[Any]
    quality: Quality
    example: Callable[[int], Any]
    train: Dataset[Any] | None = None
    loss: Loss | None = None
    scenario: Scenario = SingleStream()
    reference: str = ""
    forward: Forward = call_model
    collate: Callable[[list[Any]], Any] | None = None
    unlabelled: Dataset[Any] | None = None
    batch_size: int = 64
    loader_workers: int = 0
    shapes: Mapping[int, Mapping[int, tuple[int, int]]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise WorkloadError(f"name must be letters, digits, '-', '_' and '.' but is {self.name!r}")
        for attribute in ("model", "example", "forward"):
            if not callable(getattr(self, attribute)):
                raise WorkloadError(f"{attribute} must be callable but is {getattr(self, attribute)!r}")
        if not isinstance(self.quality, Quality):
            raise WorkloadError(f"quality must be a thrifty.Quality such as Accuracy() but is {self.quality!r}")
        object.__setattr__(self, "quality", self.quality.joined(self.collate))
        if not isinstance(self.scenario, Scenario):
            raise WorkloadError(
                f"scenario must be SingleStream(), Offline() or Server(...) but is {self.scenario!r}"
            )
        if self.loss is not None and not isinstance(self.loss, Loss):
            raise WorkloadError(f"loss must be a thrifty.Loss such as CrossEntropy() but is {self.loss!r}")
        if not isinstance(self.reference, str):
            raise WorkloadError(f"reference must be a recipe's text but is {self.reference!r}")
        if self.reference and (self.train is None or self.loss is None):
            raise WorkloadError(f"reference {self.reference!r} trains, so `train` and `loss` are needed")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise WorkloadError(f"batch_size must be a whole number, 1 or more, but is {self.batch_size!r}")
        if not isinstance(self.loader_workers, int) or self.loader_workers < 0:
            raise WorkloadError(f"loader_workers must be a whole number, 0 or more, but is {self.loader_workers!r}")

    @property
    def served_shapes(self) -> dict[int, dict[int, tuple[int, int]]]:
        """{input position: {dimension: (low, high)}} that an engine must take: ``shapes``, and the scenario's batch."""
        varying = {i: dict(dimensions) for i, dimensions in self.shapes.items()}
        if self.scenario.largest_batch > 1:
            for i in range(len(self.example(1))):
                varying.setdefault(i, {}).setdefault(0, (1, self.scenario.largest_batch))
        return varying

    @property
    def lessons(self) -> tuple[Dataset[Any], Loss] | None:
        """What a training takes: ``train`` and ``loss``; or where one is missing, the unlabelled inputs and the loss of no
        labels; None where there are neither."""
        if self.train is not None and self.loss is not None:
            return self.train, self.loss
        return None if self.unlabelled is None else (Inputs(self.unlabelled), Unlabelled())

    @property
    def labelled(self) -> bool:
        """Whether a training has labels to learn from."""
        return self.train is not None and self.loss is not None

    @property
    def training_set(self) -> Dataset[Any]:
        """Where calibration and training data come from: ``train``, or validation inputs where there is none."""
        return self.validation if self.train is None else self.train
