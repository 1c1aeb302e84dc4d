"""What a run hands to a method that plans or lowers: data, a clock, a judge, a memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.recipes.method import Method
from thrifty.target import Target
from thrifty.workloads.workload import Batch


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """A module beside which others are timed, so that timings hours apart are in the same seconds.

    Args:
        module: in eval mode; it may not change while it is referred to.
        inputs: that it is called on.
        seconds: what a call took when it was timed alone, in the engine that the others are timed in.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    seconds: float


class Clock(Protocol):
    """Times modules on behalf of a method."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...] | None = None, *, engine: str = "eager",
                 key: str = "", reference: Reference | None = None) -> float:
        """Seconds of one call on the target: the median, or in turns with a reference, as a share of its seconds.

        Args:
            module: what is timed, in eval mode.
            inputs: that it is called on; the context's example where None.
            engine: "eager", or a compiler's name: the module is lowered by it and its engine timed.
            key: names the question, where it may be asked in another order by a search that goes on after it was killed.
            reference: stays open in the engine until another is given.

        Raises:
            SearchBudgetSpent: no time is left for it.
        """
        ...


class Judge(Protocol):
    """Scores models on behalf of a method."""

    def __call__(self, model: nn.Module, *, key: str = "") -> float:
        """Quality on validation, higher is better.

        Args:
            model: in any mode.
            key: as a `Clock` has it.

        Raises:
            SearchBudgetSpent: no time is left for it.
        """
        ...


class Trainer(Protocol):
    """Trains a model for a short time on behalf of a method."""

    def __call__(self, model: nn.Module, methods: Sequence[Method], steps: int) -> nn.Module:
        """The model after so many optimizer steps on the workload's training data.

        Args:
            model: trained in place.
            methods: training methods; AdamW where none provides an optimizer.
            steps: of the optimizer.
        """
        ...


@final
@dataclass(frozen=True)
class DistilledBlock:
    """A block that learned to stand in another's place.

    Args:
        student: the trained block, in eval mode.
        error_before: of the block as it came, relative to the square of what the teacher's block gives, on held-out examples.
        error: likewise after training; never above ``error_before``.
        steps: optimizer steps taken.
        seconds: that training and judging took.
        flops: likewise.
    """

    student: nn.Module
    error_before: float
    error: float
    steps: int
    seconds: float
    flops: float


class Distiller(Protocol):
    """Distils a block from recorded examples on behalf of a method."""

    def __call__(self, student: nn.Module, examples: Sequence[Any], *, steps: int = 100,
                 seconds: float = math.inf, key: str = "") -> DistilledBlock:
        """As `thrifty.training.distillation.blockwise.distil_block`.

        Args:
            student: copied, not changed.
            examples: calls of the teacher's block, from `Context.record`.
            steps: most optimizer steps.
            seconds: most seconds; what is left of the budget where that is less.
            key: as a `Clock` has it.

        Raises:
            SearchBudgetSpent: no time is left for it.
        """
        ...


class Recorder(Protocol):
    """Records what blocks of a model read and give."""

    def __call__(self, model: nn.Module, names: Sequence[str], batches: Iterable[tuple[Tensor, ...]],
                 valid: int | None = None) -> Mapping[str, Sequence[Any]]:
        """As `thrifty.training.distillation.blockwise.record`: {name: [an example for each batch]}."""
        ...


class SearchBudgetSpent(ThriftyError):
    """The seconds that a method may spend on measuring are spent."""


@final
@dataclass(frozen=True)
class Context:
    """What a method may use while it decides; its creator charges everything done through it.

    Whatever is measured through it is recorded: a method asks in an order that follows from the answers alone, so that a
    search which was killed, or which is replayed, goes the same way.

    Args:
        example: one request, a tuple of tensors.
        calibration: () -> a fresh iterator over batches of inputs (tuples of tensors).
        seed: seed of this phase; the same seed gives the same result.
        target: what the model will run on.
        time: module -> seconds a call on the target, charged; None where timing is not at hand.
        score: model -> quality on validation (higher is better), charged; None where no data is.
        shapes: {input position: {dimension: (low, high)}} that vary when served.
        recall: (key, compute) -> values, computed once and kept: JSON values and tensors by name. The key tells what they
            depend on beside the method and the model that it was given, weights and all, which are part of it already.
        progress: told in a few words what goes on.
        labelled: () -> a fresh iterator over batches (inputs, target) of the training set; None where there are no targets.
        loss: (model, batch of ``labelled``) -> the mean loss, which carries gradients; None where there is none.
        fit: trains a model for a short time, charged; None where nothing can be trained.
        rehearsal: whether this is a rehearsal: nothing is timed, scored or trained, and a search may try one candidate.
        remaining: () -> seconds that may still be spent on measuring.
        record: what blocks of a model read and give, to distil from; None where nothing can be trained.
        distil: trains one block to stand in another's place, charged and kept; None likewise.
        batch: requests that are served at once, at most: what an engine is made for where the batch is free.
    """

    example: tuple[Tensor, ...]
    calibration: Callable[[], Iterator[tuple[Tensor, ...]]]
    seed: int = 0
    target: Target = Target()
    time: Clock | None = None
    score: Judge | None = None
    shapes: Mapping[int, Mapping[int, tuple[int, int]]] = field(default_factory=dict)
    recall: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda key, compute: compute()
    progress: Callable[[str], None] = lambda text: None
    labelled: Callable[[], Iterator[Batch]] | None = None
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    fit: Trainer | None = None
    rehearsal: bool = False
    remaining: Callable[[], float] = lambda: math.inf
    record: Recorder | None = None
    distil: Distiller | None = None
    batch: int = 1

    @staticmethod
    def of(data: Iterable[Any], seed: int = 0, inputs: int | None = None) -> Context:
        """A context from batches, such as a DataLoader's.

        Args:
            data: of tensors, or of sequences that begin with the model's inputs (targets behind them are left), or of
                pairs whose first is the sequence of inputs.
            seed: of whatever the method draws.
            inputs: tensors that the model takes; None for all that a batch holds.
        """
        known = [_inputs(batch, inputs) for batch in data]
        if not known:
            raise ThriftyError("the calibration data is empty: give at least one batch of inputs")
        return Context(example=tuple(x[:1] for x in known[0]), calibration=lambda: iter(known), seed=seed)


def _inputs(batch: Any, count: int | None) -> tuple[Tensor, ...]:
    if isinstance(batch, Tensor):
        return (batch,)
    return tuple(batch[0] if isinstance(batch[0], list | tuple) else batch)[:count]


def required_inputs(model: nn.Module) -> int:
    """Positional arguments that the model's forward requires."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in inspect.signature(model.forward).parameters.values())
