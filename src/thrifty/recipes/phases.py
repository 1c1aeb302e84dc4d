"""The phases of a recipe: a training, a transform, or a compiler."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

from thrifty.recipes.compiler import Compiler
from thrifty.recipes.hyperparameters import HyperparameterError, choice, number, validate
from thrifty.recipes.method import Method, joined
from thrifty.recipes.text import value_text
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform

MAX_PHASES = 64


@final
@dataclass(frozen=True, init=False)
class Train:
    """One training phase: the methods that modify it and how long it lasts.

    Args:
        methods: at most one optimizer (AdamW where none is given), one precision and one parallelism.
        epochs: passes over the training set, fractions allowed; or
        steps: optimizer steps. One epoch where neither is given.
        batch_size: examples; the workload's where None.
        schedule: schedule of the learning rate after warm-up: "cosine" to zero, "linear" to zero, "constant", or "wsd": constant,
            then linear to zero over the last fifth.
        warmup: share of the steps over which the learning rate rises linearly.
        clip: largest norm of the gradient; None does not clip.
        evaluations: times that quality is scored on validation, evenly spaced, the last at the end.
        accumulate: micro-batches that a batch is taken in; gradients are those of the whole, memory that of one part.
        checkpointing: "blocks" computes the activations of rows of equal blocks again in the backward pass, "selective"
            those of them that are cheap; both save memory and cost time.
        compiled: whether Inductor compiles the model for its steps, a row of equal blocks once.
        packing: whether sequences of varying length share rows of one length instead of being padded; none attends to
            another. ``batch_size`` is then of rows.

    >>> from thrifty import AdamW, Bf16
    >>> str(Train(AdamW(), Bf16(), epochs=2))
    'train(adamw, bf16, epochs=2)'
    """

    methods: tuple[TrainingMethod, ...] = ()
    epochs: float | None = number(None, 0, open_low=True)
    steps: int | None = number(None, 1)
    batch_size: int | None = number(None, 1)
    schedule: str = choice("cosine", "cosine", "linear", "constant", "wsd")
    warmup: float = number(0.1, 0, 1, open_high=True)
    clip: float | None = number(1.0, 0, open_low=True)
    evaluations: int = number(1, 0)
    accumulate: int = number(1, 1)
    checkpointing: str = choice("none", "none", "blocks", "selective")
    compiled: bool = False
    packing: bool = False

    def __init__(self, *methods: TrainingMethod, epochs: float | None = None, steps: int | None = None,
                 batch_size: int | None = None, schedule: str = "cosine", warmup: float = 0.1,
                 clip: float | None = 1.0, evaluations: int = 1, accumulate: int = 1, checkpointing: str = "none",
                 compiled: bool = False, packing: bool = False) -> None:
        given = locals()
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, given[spec.name])
        self._check()

    def _check(self) -> None:
        validate(self, "train")
        for method in self.methods:
            if not isinstance(method, TrainingMethod):
                raise HyperparameterError(f"train({method!r}): only training methods can be in a train phase")
        if self.epochs is not None and self.steps is not None:
            raise HyperparameterError(f"train(epochs={self.epochs}, steps={self.steps}): give epochs or steps, not both")
        for i, method in enumerate(self.methods):
            for other in self.methods[:i]:
                if method.name == other.name:
                    raise HyperparameterError(f"train names {method.name} twice")
                if method.card.slot is not None and method.card.slot == other.card.slot:
                    raise HyperparameterError(
                        f"train has two methods that provide the {method.card.slot}: {other.name} and "
                        f"{method.name}; keep one"
                    )

    def __str__(self) -> str:
        settings = [f"{f.name}={value_text(getattr(self, f.name))}" for f in dataclasses.fields(self)
                    if f.name != "methods" and getattr(self, f.name) != f.default]
        return f"train({', '.join([*map(str, self.methods), *settings])})"

    def __or__(self, other: Any) -> Any:
        return joined(self, other)

    def but(self, **values: Any) -> Train:
        """The phase with other methods or settings.

        >>> str(Train(epochs=2).but(epochs=1))
        'train(epochs=1)'
        """
        given = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)} | values
        return Train(*given.pop("methods"), **given)


Phase = Train | Transform | Compiler


def methods_of(phase: Phase) -> tuple[Method, ...]:
    """The methods of a phase: those of a training, or the one that the phase is."""
    return phase.methods if isinstance(phase, Train) else (phase,)
