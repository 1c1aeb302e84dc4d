"""What a run hands to a method that plans or lowers: data, a clock, a judge, a memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.target import Target


@final
@dataclass(frozen=True)
class Context:
    """What a method may use while it decides; everything done through it is charged by who made it.

    Args:
        example: one request, a tuple of tensors.
        calibration: () -> a fresh iterator over batches of inputs (tuples of tensors).
        seed: of this phase; the same seed gives the same result.
        target: what the model will run on.
        time: model -> seconds a request on the target, charged; None where timing is not at hand.
        score: model -> quality on validation (higher is better), charged; None where no data is.
        shapes: {input position: {dimension: (low, high)}} that vary when served.
        recall: (key, compute) -> JSON values, computed once and kept under the key; a key tells all they depend on.
        progress: told in a few words what goes on.
    """

    example: tuple[Tensor, ...]
    calibration: Callable[[], Iterator[tuple[Tensor, ...]]]
    seed: int = 0
    target: Target = Target()
    time: Callable[[nn.Module], float] | None = None
    score: Callable[[nn.Module], float] | None = None
    shapes: Mapping[int, Mapping[int, tuple[int, int]]] = field(default_factory=dict)
    recall: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda key, compute: compute()
    progress: Callable[[str], None] = lambda text: None

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
