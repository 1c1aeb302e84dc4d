"""A recipe: an ordered tuple of phases, a value that parses, prints, checks and hashes.

Its text is a Python expression read with ``ast`` and never evaluated::

    train(adamw(lr=0.001), epochs=8) | prune(ratio=0.5) | train(distill, epochs=1) | quantize(w8a8) | compile(onnxruntime)
"""

from __future__ import annotations

import dataclasses
import hashlib
import keyword
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from thrifty.errors import ThriftyError
from thrifty.hyperparameters import HyperparameterError, Table, choice, number, validate
from thrifty.method import PROPERTIES, Compiler, Method, TrainingMethod, Transform
from thrifty.registry import method_class, names

MAX_PHASES = 64


class RecipeError(ThriftyError):
    """A recipe that cannot be read or cannot run; points at the offending piece of its text."""

    def __init__(self, message: str, text: str = "", start: int = 0, end: int = 0) -> None:
        self.reason, self.text, self.start, self.end = message, text, start, end
        super().__init__(f"{message}\n  {text}\n  {' ' * start}{'^' * max(1, end - start)}" if text else message)


# -- phases -----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, init=False)
class Train:
    """One training phase: the methods that modify it and how long it lasts.

    Args:
        methods: at most one optimizer (AdamW where none is given), one precision and one parallelism.
        epochs: passes over the training set, fractions allowed; or
        steps: optimizer steps. One epoch where neither is given.
        batch_size: examples; the workload's where None.
        schedule: of the learning rate after warm-up: "cosine" to zero, "linear" to zero, "constant", or "wsd": constant,
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
                raise HyperparameterError(f"train({method!r}): only training methods stand in a train phase")
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
        settings = [f"{f.name}={_value(getattr(self, f.name))}" for f in dataclasses.fields(self)
                    if f.name != "methods" and getattr(self, f.name) != f.default]
        return f"train({', '.join([_call(m) for m in self.methods] + settings)})"

    def __or__(self, other: Any) -> Recipe:
        joined: Recipe = Recipe((self,)) | other
        return joined


PhaseOf = Train | Transform | Compiler


def _value(value: Any) -> str:
    """As it stands in the text: values that are equal read the same, so that equal recipes hash the same."""
    if isinstance(value, float):  # also numpy's, which prints as np.float64(...)
        return repr(int(value)) if value.is_integer() else repr(float(value))
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Table):
        return f"{{{', '.join(f'{key!r}: {_word(word)}' for key, word in value.items())}}}"
    return repr(value)


def _word(value: Any) -> str:
    """An option bare, where it can stand bare."""
    return value if isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value) else repr(value)


def _call(method: Method) -> str:
    """A method as it stands in a recipe's text: defaults are left out, a leading word is bare.

    A transform's first hyperparameter is always there: ``quantize(w8a8)`` and ``prune(ratio=0.5)`` say more than
    ``quantize`` and ``prune``.
    """
    fields = dataclasses.fields(method)
    shown = method.arguments()
    if fields and isinstance(method, Transform):
        shown = {fields[0].name: getattr(method, fields[0].name), **shown}
    parts = []
    for position, spec in enumerate(fields):
        if spec.name in shown:
            word = "options" in spec.metadata
            text = _word(shown[spec.name]) if word else _value(shown[spec.name])
            parts.append(text if word and position == 0 else f"{spec.name}={text}")
    if isinstance(method, Compiler):
        return f"compile({', '.join([method.name, *parts])})"
    return f"{method.name}({', '.join(parts)})" if parts else method.name


def _phase(phase: PhaseOf) -> str:
    if isinstance(phase, Train):
        return str(phase)
    text = _call(phase)
    return text if text.endswith(")") else f"{text}()"


# -- the recipe -------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Recipe:
    """An ordered tuple of phases.

    >>> recipe = Recipe.parse("train(adamw(lr=0.01), epochs=2) | compile(onnxruntime)")
    >>> len(recipe.phases), Recipe.parse(str(recipe)) == recipe
    (2, True)
    """

    phases: tuple[PhaseOf, ...] = ()

    def __post_init__(self) -> None:
        if len(self.phases) > MAX_PHASES:
            raise RecipeError(f"a recipe has at most {MAX_PHASES} phases; this one has {len(self.phases)}")

    @staticmethod
    def of(part: Any) -> Recipe:
        """A recipe from a recipe, a phase, a training method, or a text."""
        match part:
            case Recipe():
                return part
            case str():
                return Recipe.parse(part)
            case Train() | Transform() | Compiler():
                return Recipe((part,))
            case TrainingMethod():
                return Recipe((Train(part),))
        raise RecipeError(f"{part!r} is no part of a recipe: give a text, Train(...), a transform or a compiler")

    @staticmethod
    def parse(text: str) -> Recipe:
        """Read a recipe's text; nothing of it is executed.

        Raises:
            RecipeError: it is not a recipe; points at the piece and names the nearest valid one.
        """
        from thrifty.reading import Reader  # which makes recipes

        return Reader(text).recipe()

    def __or__(self, other: Any) -> Recipe:
        return Recipe(self.phases + Recipe.of(other).phases)

    def __mul__(self, times: int) -> Recipe:
        return Recipe(self.phases * times)

    def __str__(self) -> str:
        return " | ".join(_phase(phase) for phase in self.phases)

    def __iter__(self) -> Iterator[PhaseOf]:
        return iter(self.phases)

    def __len__(self) -> int:
        return len(self.phases)

    def methods(self) -> list[Method]:
        """Every method, in the order of the text."""
        return [m for phase in self.phases for m in (phase.methods if isinstance(phase, Train) else (phase,))]

    @property
    def transforms(self) -> Recipe:
        """The recipe without its compiler: what determines the model."""
        return Recipe(tuple(phase for phase in self.phases if not isinstance(phase, Compiler)))

    @property
    def compiler(self) -> Compiler:
        """The last phase where it is a compiler, else the uncompiled export."""
        if self.phases and isinstance(self.phases[-1], Compiler):
            return self.phases[-1]
        export = method_class("export")()
        assert isinstance(export, Compiler)
        return export

    def hash(self) -> str:
        """Of the canonical text and the versions of all methods: of teachers, and of the optimizer by default, too."""
        versions = [f"adamw{method_class('adamw').version}" for phase in self
                    if isinstance(phase, Train) and not any(m.card.slot == "optimizer" for m in phase.methods)]
        for method in self.methods():
            versions.append(f"{method.name}{method.version}")
            versions += [Recipe.parse(getattr(method, spec.name)).hash() for spec in dataclasses.fields(method)
                         if "recipe" in spec.metadata]
        return hashlib.sha256(f"{self}#{','.join(versions)}".encode()).hexdigest()


# -- checking ---------------------------------------------------------------------------------------------------


def check(recipe: Recipe, properties: frozenset[str]) -> frozenset[str]:
    """Carry the model's properties through the phases.

    Args:
        properties: of the model as it comes: {"module", "float-weights"}, and "trained" where it was.

    Returns:
        the properties at the end.

    Raises:
        RecipeError: a phase requires what the model then lacks; says which earlier phase took it, or what would
            give it.
    """
    took: dict[str, str] = {}
    gave: dict[str, str] = {}
    for i, phase in enumerate(recipe):
        for method in phase.methods if isinstance(phase, Train) else (phase,):
            lacking = sorted(method.card.requires - properties)
            if lacking:
                raise RecipeError(_lack(method, lacking[0], took), str(recipe), *_span(recipe, i))
            for has in sorted(method.card.refuses & properties):
                raise RecipeError(f"{method.name} requires a model without {has}, which {gave.get(has, 'the workload')} gives "
                                  f"it: {PROPERTIES[has]}; give {gave.get(has, 'it')} another scheme, or use another compiler",
                                  str(recipe), *_span(recipe, i))
        if isinstance(phase, Train):
            for lacks in sorted({"module", "float-weights"} - properties):
                raise RecipeError(_lack(phase, lacks, took), str(recipe), *_span(recipe, i))
            properties |= {"trained"}
        for method in phase.methods if isinstance(phase, Train) else (phase,):
            for gone in method.card.removes & properties:
                took[gone] = method.name if not isinstance(method, Compiler) else f"compile({method.name})"
            gave |= dict.fromkeys(method.provides - properties, method.name)
            properties = (properties - method.card.removes) | method.provides
    return properties


def _lack(what: Method | Train, lacks: str, took: dict[str, str]) -> str:
    name = "train" if isinstance(what, Train) else what.name
    if took.get(lacks) == name:
        return f"{name} requires {lacks}, which {name} before it took away: it is applied once; leave one out"
    if lacks in took and isinstance(what, Compiler):
        return f"{name} requires {lacks}, which {took[lacks]} before it took away; one compiler ends a recipe: keep one"
    if lacks in took:
        return f"{name} requires {lacks}, which {took[lacks]} before it took away; put {name} before {took[lacks]}"
    if lacks == "trained":
        return f"{name} requires a trained model; put train(...) before it, for instance the workload's reference"
    givers = [m for m in names() if lacks in method_class(m).card.provides]
    return f"{name} requires {lacks}; " + (f"given by {', '.join(givers)}" if givers else "no method gives it")


def _span(recipe: Recipe, i: int) -> tuple[int, int]:
    """Where the i-th phase stands in the text."""
    texts = [_phase(phase) for phase in recipe]
    start = sum(len(text) + len(" | ") for text in texts[:i])
    return start, start + len(texts[i])


def seed_of(seed: int, phase: int, stream: str) -> int:
    """The seed of one stream of one phase: a 63-bit hash of (seed, phase index, stream)."""
    digest = hashlib.sha256(f"{seed}/{phase}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
