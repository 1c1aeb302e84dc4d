"""What a method of efficient AI is: a frozen value, its card, and what it does to a model."""

from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.hyperparameters import Table, validate
from thrifty.target import Target

if TYPE_CHECKING:
    from thrifty.recipe import Recipe
    from thrifty.training.loop import Fit
    from thrifty.workload import Batch

Phase = Literal["training", "post-training"]
Slot = Literal["optimizer", "precision", "parallelism", "layers"]

FAMILIES: Mapping[str, Phase] = {
    "optimizers": "training",
    "distributed": "training",
    "peft": "training",
    "architectures": "training",
    "distillation": "training",
    "qat": "training",
    "gradient-nas": "training",
    "mixed-precision": "training",
    "ptq": "post-training",
    "pruning": "post-training",
    "low-rank": "post-training",
    "compilers": "post-training",
    "nas": "post-training",
}
"""The thirteen families and the phase that each belongs to."""

PROPERTIES: Mapping[str, str] = {
    "module": "a torch nn.Module, not yet an engine",
    "float-weights": "weights in floating point",
    "trained": "weights that were trained",
    "quantized": "weights of eight bits or fewer",
    "integer-products": "activations are integers too where they are multiplied",
    "float8-products": "weights and activations are float8 where they are multiplied",
    "bfloat16": "computes in bfloat16",
    "pruned": "structures were removed",
    "factorized": "weights are products of thinner ones",
    "compiled": "lowered to an engine",
}
"""What can be said of a model; recipes are checked by carrying these through their phases."""


# -- the card and the claims ------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Card:
    """What a method is for, what it costs and what it needs.

    Args:
        family: one of `FAMILIES`; the phase follows from it.
        benefit: "training time", "inference time" or both.
        trade_off: what the user pays.
        paper: title, authors' year and identifier of the source.
        needs: of "calibration", "labels", "teacher", "training".
        requires, provides, removes: of `PROPERTIES`.
        refuses: of them, what a model must not have.
        slot: at most one method of a ``train`` phase fills each.
        devices: where it runs.
        capability: least compute capability of a CUDA device that it runs on.
    """

    family: str
    benefit: str
    trade_off: str
    paper: str
    needs: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset({"module"})
    provides: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    slot: Slot | None = None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    capability: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is none of {', '.join(FAMILIES)}")
        unknown = (self.requires | self.provides | self.removes | self.refuses) - PROPERTIES.keys()
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no properties; known: {', '.join(PROPERTIES)}")

    @property
    def phase(self) -> Phase:
        return FAMILIES[self.family]


@final
@dataclass(frozen=True)
class Claim:
    """A measurable change that a method says it made.

    It holds for a value v when (v - before) * sign(after - before) >= minimum > 0.

    Args:
        what: the quantity, with its unit.
        before, after: its value without and with the method.
        minimum: the least change, in the claimed direction, that makes the claim true.
        probe: measures it again on a later model; None where only the method itself could count it.
        fact: the name under which a reloaded engine reports the same quantity; "" where none does.
    """

    what: str
    before: float
    after: float
    minimum: float
    probe: Callable[[nn.Module], float] | None = None
    fact: str = ""

    def holds(self, value: float) -> bool:
        return (value - self.before) * math.copysign(1.0, self.after - self.before) >= self.minimum

    def checked(self, method: str) -> Claim:
        """Return the claim itself.

        Raises:
            NoEffect: it does not hold.
        """
        if self.after == self.before or not self.holds(self.after):
            raise NoEffect(
                f"{method} changed nothing: {self.what} was {self.before:.6g} and is {self.after:.6g} "
                f"(at least {self.minimum:.3g} of change was expected)"
            )
        return self


# -- methods ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method(abc.ABC):
    """A method of efficient AI: its fields are its hyperparameters."""

    card: ClassVar[Card]
    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever the same hyperparameters would give another result: it is part of every hash."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            if "table" in spec.metadata and isinstance(value := getattr(self, spec.name), Mapping):
                object.__setattr__(self, spec.name, Table(value))
        validate(self, self.name)

    def __or__(self, other: Any) -> Recipe:
        from thrifty.recipe import Recipe

        joined: Recipe = Recipe.of(self) | other
        return joined

    @property
    def provides(self) -> frozenset[str]:
        """Properties that it gives a model: its card's, and what its hyperparameters make of it."""
        return self.card.provides

    def arguments(self) -> dict[str, Any]:
        """Hyperparameters that differ from their defaults, in order."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                if getattr(self, f.name) != f.default}


@final
@dataclass(frozen=True)
class Plan:
    """What a transform decided: JSON values and tensors, from which `Transform.build` gives the same model again."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


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


def require_device(method: Method, device: str) -> None:
    """Refuse a method that does not run on a device.

    Raises:
        ThriftyError: it does not.
    """
    if device not in method.card.devices:
        raise ThriftyError(f"{method.name} runs on {', '.join(sorted(method.card.devices))} and this is {device}; use another "
                           f"method, or --device {min(method.card.devices)}")
    if device == "cuda" and torch.cuda.is_available() and (has := torch.cuda.get_device_capability()) < method.card.capability:
        least, found = ("{}.{}".format(*pair) for pair in (method.card.capability, has))
        raise ThriftyError(f"{method.name} needs a GPU of compute capability {least} or more, and {torch.cuda.get_device_name()} "
                           f"has {found}: use another method")


@dataclass(frozen=True)
class Transform(Method):
    """A method that changes the model between trainings: it plans, at whatever cost, then builds, cheaply."""

    @property
    def calibrated(self) -> bool:
        """Whether it looks at data; where it does not, it can be called without any."""
        return True

    @abc.abstractmethod
    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide. The model is not changed."""

    @abc.abstractmethod
    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Apply a plan to the model, in place or not; needs no data and gives the same result every time.

        The structure must not depend on the values of the weights: a checkpoint is rebuilt on a fresh model
        whose weights are loaded last.
        """

    @abc.abstractmethod
    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        """What the method says it changed, measured on both models."""

    def __call__(self, model: nn.Module, data: Iterable[Any] = (), seed: int = 0) -> nn.Module:
        """Apply the method alone, on a copy.

        Raises:
            NoEffect: nothing changed.
        """
        original = copy.deepcopy(model).eval()
        context = (Context.of(data, seed, required_inputs(model) or None) if self.calibrated
                   else Context((), lambda: iter(()), seed))
        after = self.build(copy.deepcopy(original), self.plan(copy.deepcopy(original), context))
        for claim in self.claims(original, after):
            claim.checked(self.name)
        return after


# What training methods touch, in the one order in which they are applied whatever the text's.
Layer = Literal["structure", "numerics", "checkpointing", "compile", "sharding", "optimizer"]
LAYERS: tuple[Layer, ...] = ("structure", "numerics", "checkpointing", "compile", "sharding", "optimizer")


@dataclass(frozen=True)
class TrainingMethod(Method):
    """A method that modifies training, by hooks that default to doing nothing.

    What a method remembers during training lives in ``fit.memory(self)``, a dictionary: the method is a value.
    """

    layer: ClassVar[Layer] = "structure"

    def prepare(self, fit: Fit) -> None:
        """Before the first step: may replace ``fit.model``."""

    def parameter_groups(self, fit: Fit, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Regroup the parameters that the optimizer gets. A group's "lr_factor" is how many times the learning rate it gets."""
        return groups

    def optimizer(self, fit: Fit, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
        """Make the optimizer; only a method whose slot is "optimizer" does."""
        return None

    def step_kind(self, fit: Fit) -> str:
        """What kind of step comes next, where steps on equal batches differ in FLOPs: each kind is counted once."""
        return ""

    def before(self, fit: Fit, batch: Batch) -> None:
        """Before a step on a batch that is on the device: no gradient is held yet, nor need any be left."""

    def forward(self, fit: Fit, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        """Around the forward pass."""
        return proceed(batch)

    def loss(self, fit: Fit, outputs: Any, batch: Batch, total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """From (sum, weight) of the losses so far to those that are minimised."""
        return total, weight

    def backward(self, fit: Fit, loss: Tensor, proceed: Callable[[Tensor], None]) -> None:
        """Around the backward pass."""
        proceed(loss)

    def update(self, fit: Fit, proceed: Callable[[], None]) -> None:
        """Around clipping and the optimizer's step; not calling ``proceed`` skips the step."""
        proceed()

    def evaluate(self, fit: Fit, model: nn.Module) -> nn.Module:
        """The model that is evaluated now (averaged weights, say)."""
        return model

    def finish(self, fit: Fit, model: nn.Module) -> nn.Module:
        """After the last step: the model as it leaves training."""
        return model

    def state_dict(self, fit: Fit) -> dict[str, Any]:
        """What exact resumption needs beyond model and optimizer."""
        return {}

    def load_state_dict(self, fit: Fit, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def claims(self, fit: Fit) -> tuple[Claim, ...]:
        """What the method says it did, counted during training."""
        return ()


@final
@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype ("float32") and shape of an engine's input or output; -1 where a dimension varies.

    Args:
        name: under which the model's forward takes it or gives it back.
        dtype, shape: of the tensor.
        varies: (dimension, name, low, high) of what varies in an input; dimensions of one name are of one size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    varies: tuple[tuple[int, str, int, int], ...] = ()


@final
@dataclass(frozen=True)
class Lowered:
    """What a compiler left in the artifact's directory.

    Args:
        engine: the engine that opens it, a file's name in ``thrifty.engines``.
        files: names, relative to the directory.
        inputs, outputs: in the order of the call.
        portable: loads on another machine with the same runtime.
        native: holds machine code, which is only opened where the user trusts it.
        needs: distributions of what opening it imports.
        precision: what the arithmetic really runs in ("fp32", "bf16", "int8", "fp8").
        instruction_set: needed from the processor ("avx512"), "" for none.
        facts: figures read off what the engine executes, by the name that claims use.
        spent: (what, seconds) of the lowering that went into what was not kept.
    """

    engine: str
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    portable: bool
    native: bool
    needs: tuple[str, ...]
    precision: str
    instruction_set: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)
    spent: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Compiler(Method):
    """A method that lowers a model to an engine; always the last phase. Its text is ``compile(name)``."""

    packages: ClassVar[tuple[str, ...]] = ("torch",)
    """Distributions that it compiles and opens with."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8", "fp8")
    """Of models that it takes."""
    pads: ClassVar[bool] = False
    """Whether sizes that a model cannot leave open are served by padding to one of several."""

    @abc.abstractmethod
    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write the engine's files into the (existing, empty) directory."""

    @classmethod
    @abc.abstractmethod
    def missing(cls) -> str | None:
        """Say what must be installed before it can work here, or None where nothing is missing."""

    @classmethod
    def tools(cls) -> Mapping[str, str | None]:
        """Programs that it calls, and where they are; None where they are not. Most call none."""
        return {}
