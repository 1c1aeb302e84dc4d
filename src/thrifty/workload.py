"""What the user brings: a model, its data, how it is judged, trained and served."""

from __future__ import annotations

import abc
import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from thrifty.errors import ThriftyError

Batch = tuple[tuple[Tensor, ...], Any]
"""A collated batch: (inputs, target). ``inputs`` is what the server gets; ``target`` what the loss needs."""

Predict = Callable[[tuple[Tensor, ...]], Any]
"""Runs any engine on a tuple of input tensors of n examples and returns its outputs for the n examples."""


class WorkloadError(ThriftyError):
    """A workload that cannot be used: the message names the field and the way out."""


@final
@dataclass(frozen=True)
class Scores:
    """Quality per example: the value is sum(numerator) / sum(denominator).

    Args:
        numerator: [n] float64: hits, bits, ...
        denominator: [n] float64: ones, bytes, ...
        cluster: [n] int64: examples of one cluster (windows of one file) are not independent.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    cluster: np.ndarray

    def __post_init__(self) -> None:
        shapes = {self.numerator.shape, self.denominator.shape, self.cluster.shape}
        if len(shapes) != 1 or self.numerator.ndim != 1:
            raise ValueError(f"numerator, denominator and cluster must be [n] and equally long but are {shapes}")

    @property
    def value(self) -> float:
        return float(self.numerator.sum() / self.denominator.sum())


# -- how it is trained ------------------------------------------------------------------------------------------


class Loss(abc.ABC):
    """Maps (outputs, batch) to (sum, weight): the mean loss of any grouping is sum of sums / sum of weights."""

    @abc.abstractmethod
    def __call__(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (sum of losses, number of valid examples or tokens), both scalars; the sum carries gradients."""

    @abc.abstractmethod
    def logits(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (logits [n, classes], valid [n] bool): what distillation and Sophia's estimator need."""


@final
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Sum of -log softmax(outputs)[target] over targets other than ``ignore_index``.

    ``outputs``: [batch, classes] with targets [batch], or [batch, tokens, classes] with targets [batch, tokens].

    >>> loss_sum, weight = CrossEntropy()(torch.zeros(4, 10), ((), torch.tensor([1, 2, 3, -100])))
    >>> round(float(loss_sum / weight), 4), int(weight)
    (2.3026, 3)
    """

    ignore_index: int = -100

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        target = batch[1].reshape(-1)
        logits = outputs.reshape(-1, outputs.shape[-1])
        total = nn.functional.cross_entropy(
            logits.float(), target, ignore_index=self.ignore_index, reduction="sum"
        )
        return total, (target != self.ignore_index).sum()

    def logits(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        target = batch[1].reshape(-1)
        return outputs.reshape(-1, outputs.shape[-1]), target != self.ignore_index


# -- how it is judged -------------------------------------------------------------------------------------------


class Quality(abc.ABC):
    """Scores a predictor on a dataset, example by example, so that differences between models are paired."""

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @property
    @abc.abstractmethod
    def higher_is_better(self) -> bool: ...

    @abc.abstractmethod
    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores: ...


def batches(
    dataset: Dataset[Any], batch_size: int, collate: Callable[[list[Any]], Any] | None = None
) -> Any:
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


@final
@dataclass(frozen=True)
class Accuracy(Quality):
    """Share of examples whose highest logit is the target's; numerator: hit, denominator: 1."""

    batch_size: int = 256
    name = "accuracy"
    higher_is_better = True

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        hits = [
            (predict(inputs).argmax(-1) == target).double().numpy()
            for inputs, target in batches(dataset, self.batch_size)
        ]
        numerator = np.concatenate(hits)
        return Scores(numerator, np.ones_like(numerator), np.arange(len(numerator)))


@final
@dataclass(frozen=True)
class BitsPerByte(Quality):
    """Bits a language model needs per byte of text: sum of -log2 p(token) / bytes, clustered by file.

    Dataset items are (ids [tokens], (target [tokens], bytes, file)); targets of -100 are not scored.
    """

    batch_size: int = 16
    name = "bits_per_byte"
    higher_is_better = False

    def __call__(self, predict: Predict, dataset: Dataset[Any]) -> Scores:
        bits, sizes, files = [], [], []
        for inputs, (target, size, file) in batches(dataset, self.batch_size):
            logits = predict(inputs).float()
            nats = nn.functional.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=-100, reduction="none"
            )
            bits.append(nats.view(target.shape).double().sum(-1).numpy() / math.log(2))
            sizes.append(torch.as_tensor(size).double().numpy())
            files.append(torch.as_tensor(file).long().numpy())
        return Scores(np.concatenate(bits), np.concatenate(sizes), np.concatenate(files))


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
    """One request after the other: median latency at batch 1."""

    name = "SingleStream"


@final
@dataclass(frozen=True)
class Offline(Scenario):
    """All requests at hand: samples a second, each side at its own best batch within memory."""

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
    """A model, its data, how its quality is judged, how it is trained today, how it will be served.

    Args:
        name: letters, digits, ``-`` and ``_``.
        model: () -> nn.Module in fp32, with its pretrained weights where it has any.
        train: map-style Dataset of (input, target), or None where the model comes trained.
        validation, test: likewise; choices are scored on validation, the final front alone on test.
        loss: needed by every ``train`` phase; None where nothing is trained.
        quality: scores predictions per example.
        example: n -> a tuple of n requests' tensors, as the server gets them.
        scenario: SingleStream(), Offline() or Server(latency=...).
        reference: the recipe by which it is trained today; "" where the model comes trained.
        forward: (model, batch) -> outputs, where it is more than the model on the inputs.
        collate: joins dataset items; torch's default_collate otherwise.
        batch_size: of training, examples.
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
    example: Callable[[int], tuple[Tensor, ...]]
    train: Dataset[Any] | None = None
    loss: Loss | None = None
    scenario: Scenario = SingleStream()
    reference: str = ""
    forward: Forward = call_model
    collate: Callable[[list[Any]], Any] | None = None
    batch_size: int = 64
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

    @property
    def served_shapes(self) -> dict[int, dict[int, tuple[int, int]]]:
        """{input position: {dimension: (low, high)}} that an engine must take: ``shapes``, and the scenario's batch."""
        varying = {i: dict(dimensions) for i, dimensions in self.shapes.items()}
        if self.scenario.largest_batch > 1:
            for i in range(len(self.example(1))):
                varying.setdefault(i, {}).setdefault(0, (1, self.scenario.largest_batch))
        return varying

    @property
    def training_set(self) -> Dataset[Any]:
        """Where calibration and training data come from: ``train``, or validation inputs where there is none."""
        return self.validation if self.train is None else self.train


# -- finding one ------------------------------------------------------------------------------------------------


def load_workload(reference: str) -> Workload:
    """Load a workload by name or place.

    Args:
        reference: an embedded workload's name ("digits"), a file ("my.py", "my.py:workload"), or a module
            ("package.module:workload").

    Returns:
        the workload, its ``source`` set to an absolute place that a fresh process can load.

    Raises:
        WorkloadError: it is not there, raises while it loads, or is not a Workload.

    >>> load_workload("digits").name
    'digits'
    """
    from thrifty.workloads import EMBEDDED

    place, _, attribute = _place(reference, EMBEDDED)
    module = _module(place, reference)
    if not hasattr(module, attribute):
        raise WorkloadError(
            f"{place} defines no {attribute!r}; end it with `{attribute} = thrifty.Workload(name=..., ...)`"
        )
    workload = getattr(module, attribute)
    if not isinstance(workload, Workload):
        raise WorkloadError(f"{attribute} of {place} must be a thrifty.Workload but is {type(workload).__name__}")
    return dataclasses.replace(workload, source=f"{place}:{attribute}")


def _place(reference: str, embedded: Mapping[str, Any]) -> tuple[str, str, str]:
    if reference in embedded:
        reference = embedded[reference].place
    place, colon, attribute = reference.rpartition(":")
    if not colon:
        place, attribute = reference, "workload"
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise WorkloadError(f"there is no file {path}; give a file that defines `workload`, or one of: "
                                + ", ".join(embedded))
        return str(path), colon, attribute
    if "/" not in place and (colon or "." in place):
        return place, colon, attribute
    import difflib

    near = difflib.get_close_matches(place, embedded, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise WorkloadError(
        f"there is no workload {place!r}{hint} Embedded: {', '.join(embedded)}. "
        "Or give a file that defines `workload`: thrifty run my_workload.py ..."
    )


def _module(place: str, reference: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        name = f"thrifty_workload_{hashlib.sha256(place.encode()).hexdigest()[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickling look classes up here
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # the file's own helpers import as when it is run
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except ThriftyError:
        raise
    except (Exception, SystemExit) as error:
        raise WorkloadError(f"loading {reference} raised {type(error).__name__}: {error}{_where(error, place)}") from error


def _where(error: BaseException, place: str) -> str:
    if isinstance(error, TypeError) and "required" in str(error):
        names = ", ".join(f.name for f in dataclasses.fields(Workload) if f.default is dataclasses.MISSING
                          and f.default_factory is dataclasses.MISSING)
        return f" (a Workload needs: {names})"
    frame = error.__traceback__
    line = None
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == place:
            line = frame.tb_lineno
        frame = frame.tb_next
    return f" (line {line})" if line else ""


def check_example(workload: Workload, model: nn.Module) -> Any:
    """Run the model on one of the workload's examples; return its outputs.

    Raises:
        WorkloadError: ``example`` gives no tensors, or the model cannot take them.
    """
    try:
        example = workload.example(1)
    except Exception as error:
        raise WorkloadError(f"example(1) raised {type(error).__name__}: {error}") from error
    if not isinstance(example, tuple) or not all(isinstance(x, Tensor) for x in example) or not example:
        raise WorkloadError(f"example(n) must return a tuple of tensors but returned {type(example).__name__}")
    try:
        with torch.no_grad():
            return model.eval()(*example)
    except Exception as error:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in example)
        raise WorkloadError(
            f"the model cannot take its own example ({shapes}): {type(error).__name__}: {error}"
        ) from error


def check_data(workload: Workload) -> None:
    """Refuse empty and one-class data sets before anything is spent on them.

    Raises:
        WorkloadError: a split is empty, an item cannot be read, or every label of a classification set is the same.
    """
    for split in ("train", "validation", "test"):
        dataset = getattr(workload, split)
        if dataset is None:
            continue
        n = length(dataset)
        if n == 0:
            raise WorkloadError(f"the {split} set of {workload.name} is empty")
        labels = [_label(_item(workload, split, i)) for i in _spread(n, 512)]
        if n > 1 and all(isinstance(x, int) for x in labels) and len(set(labels)) == 1:
            whole = {_label(_item(workload, split, i)) for i in range(n)}
            if len(whole) == 1:
                raise WorkloadError(
                    f"every label of the {split} set of {workload.name} is {labels[0]}: nothing can be learnt or "
                    "judged from one class"
                )


def _item(workload: Workload, split: str, i: int) -> Any:
    try:
        return getattr(workload, split)[i]
    except ThriftyError:
        raise
    except Exception as error:
        raise WorkloadError(
            f"item {i} of the {split} set of {workload.name} raised {type(error).__name__}: {error}"
        ) from error


def _label(item: Any) -> int | None:
    target = item[1] if isinstance(item, Sequence) and len(item) == 2 else None
    if isinstance(target, Tensor) and target.ndim == 0 and not target.is_floating_point():
        return int(target)
    return target if isinstance(target, int) else None


def _spread(n: int, most: int) -> list[int]:
    """At most ``most`` indices spread evenly over range(n)."""
    return list(range(n)) if n <= most else [i * (n - 1) // (most - 1) for i in range(most)]


def fingerprint(workload: Workload) -> str:
    """Hash of the workload's source and data: its file, those beside it that it imports, up to 512 items a split."""
    digest = hashlib.sha256()
    for path in _sources(workload):
        digest.update(path.read_bytes())
    for split in ("train", "validation", "test"):
        dataset = getattr(workload, split)
        if dataset is None:
            continue
        n = length(dataset)
        digest.update(f"{split}{n}".encode())
        for i in _spread(n, 512):
            _update(digest, dataset[i])
    return digest.hexdigest()


def _sources(workload: Workload) -> list[Path]:
    """The workload's file and, transitively, the files beside it that it imports."""
    place = workload.source.rpartition(":")[0]
    if not place:
        return []
    waiting = [Path(place if place.endswith(".py") else sys.modules[place].__file__ or "")]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ())] + [getattr(node, "module", None) or ""]
            if isinstance(node, ast.Import | ast.ImportFrom):
                waiting += [path.parent / f"{name.rpartition('.')[2]}.py" for name in names if name]
    return sorted(found)


def _update(digest: Any, item: Any) -> None:
    match item:
        case Tensor():
            digest.update(str((item.dtype, tuple(item.shape))).encode())
            digest.update(item.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes() if item.ndim
                          else repr(item.item()).encode())
        case np.ndarray():
            digest.update(str((item.dtype, item.shape)).encode() + np.ascontiguousarray(item).tobytes())
        case dict():
            for key in item:
                digest.update(str(key).encode())
                _update(digest, item[key])
        case list() | tuple():
            for part in item:
                _update(digest, part)
        case _:
            digest.update(repr(item).encode())


Split = Literal["validation", "test"]
