"""The recipes that an exploration may propose: a few slots, each with a few options, from what the methods' cards say.

A recipe of the space is, in this order: transforms of the training families, the reference's training (perhaps in
another precision, by another optimizer, or shorter), structural transforms (perhaps before the training), a training
that recovers from them, transforms that end the float weights, a compiler. Which method stands where follows from its
kind, its phase and its properties; the values tried are the ``search`` of a transform's hyperparameters.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from thrifty.errors import RecipeError, ThriftyError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Phase, Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform
from thrifty.runs.preflight import initial_properties
from thrifty.workloads.workload import Workload

NONE = "-"
"""The option of a slot that leaves the recipe as it is."""
LENGTHS = (1.0, 0.5)
"""Shares of the reference's training."""
RECOVERY = 1 / 3
"""A recovering training's share of the reference's length, and of its learning rate."""

APART = ("export", "auto")
"""Compilers that are no options: the first is how a recipe without one ends, the second would race the others again."""

Choice = Mapping[str, str]
"""{slot: option} for every slot of a space."""


class SpaceError(ThriftyError):
    """A space without recipes, or a method that it cannot use."""


@final
@dataclass(frozen=True)
class Slot:
    """One decision: its name and its options; the first is what the reference has."""

    name: str
    options: tuple[str, ...]


@final
@dataclass(frozen=True)
class Space:
    """Slots, and the recipes that their options make.

    Args:
        properties: of the workload's model as it comes.
        reference: how it is trained today; without phases where it comes trained.
        parts: {slot: {option: what it puts into the recipe}}.
    """

    properties: frozenset[str]
    reference: Recipe
    parts: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def of(workload: Workload, methods: Sequence[str] = (), device: str = "cpu") -> Space:
        """The space of a workload.

        Args:
            workload: it decides whether there is training.
            methods: names of those to use; all that are installed where none is given.
            device: that the recipes will run on.

        Raises:
            SpaceError: a method is unknown, not installed, or no use to the workload.
        """
        reference = Recipe.parse(workload.reference)
        found = Space(initial_properties(workload), reference, _parts(reference, _chosen(workload, methods, device)))
        unused = [name for name in methods if not any(name in _names(part) for options in found.parts.values()
                                                      for part in options.values())]
        if unused:
            raise SpaceError(f"{', '.join(unused)} cannot be explored on {workload.name}: "
                             + ("it has no training set" if not reference.phases else "its own training names it"))
        return found

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(Slot(name, tuple(options)) for name, options in self.parts.items())

    @property
    def plain(self) -> dict[str, str]:
        """The choice that leaves the reference as it is."""
        return {slot.name: slot.options[0] for slot in self.slots}

    def recipe(self, choice: Choice) -> Recipe | None:
        """The recipe of a choice; None where its phases cannot follow one another in any order that is offered."""
        for recipe in self._orders(choice):
            try:
                carry(recipe, self.properties)
            except RecipeError:
                continue
            return recipe
        return None

    def _orders(self, choice: Choice) -> Iterator[Recipe]:
        """The choice's phases, the transforms of one kind in every order."""
        part = {name: options[choice[name]] for name, options in self.parts.items()}
        first, structure, last = ([x for name, x in part.items() if x is not None and name.startswith(f"{kind}.")]
                                  for kind in ("first", "structure", "last"))
        training = _trained(self.reference, part.get("length", 1.0), part.get("precision"), part.get("optimizer"))
        recovery = [part["recover"]] if structure and part.get("recover") is not None else []
        if part.get("place") == "before":
            first, structure, recovery = first + structure, [], []
        end = [part["compile"]] if part.get("compile") is not None else []
        for order in itertools.product(*(itertools.permutations(x) for x in (first, structure, last))):
            yield Recipe((*order[0], *training, *order[1], *recovery, *order[2], *end))

    def choice(self, recipe: Recipe) -> dict[str, str] | None:
        """The first choice that makes a recipe, None where none does."""
        here = set(recipe)
        fits = [[option for option, part in options.items()
                 if not isinstance(part, Transform | Compiler | Train) or part in here] or list(options)
                for options in self.parts.values()]  # none fits where another slot's choice leaves the slot without effect
        for options in itertools.product(*fits):
            choice = dict(zip(self.parts, options, strict=True))
            if recipe in self._orders(choice) and self.recipe(choice) == recipe:
                return choice
        return None

    def size(self) -> int:
        """How many choices there are; several may make one recipe."""
        return math.prod(len(options) for options in self.parts.values())

    def recipes(self) -> dict[str, dict[str, str]]:
        """{recipe's text: the first choice that makes it} of the whole space, which must be small."""
        found: dict[str, dict[str, str]] = {}
        for options in itertools.product(*self.parts.values()):
            choice = dict(zip(self.parts, options, strict=True))
            if (recipe := self.recipe(choice)) is not None:
                found.setdefault(str(recipe), choice)
        return found


# -- what stands where --------------------------------------------------------------------------------------------


def _chosen(workload: Workload, methods: Sequence[str], device: str) -> list[type[Method]]:
    """The classes to use."""
    chosen = []
    for name in methods or names():
        cls = method_class(name)
        if device not in cls.card.devices:
            if methods:
                raise SpaceError(f"{name} does not run on {device}")
            continue
        if issubclass(cls, Compiler) and (missing := cls.missing()):
            if methods:
                raise SpaceError(missing)
            continue
        if issubclass(cls, TrainingMethod) and (workload.train is None or workload.loss is None):
            if methods:
                raise SpaceError(f"{name} modifies training, and {workload.name} has no training set or no loss")
            continue
        chosen.append(cls)
    return chosen


def _parts(reference: Recipe, classes: Sequence[type[Method]]) -> dict[str, dict[str, Any]]:
    """{slot: {option: part}}, the first option being what the reference has."""
    trainings = [phase for phase in reference if isinstance(phase, Train)]
    present = {method.name for method in reference.methods()}
    parts: dict[str, dict[str, Any]] = {}
    structural = False
    for cls in classes:
        if issubclass(cls, Transform) and cls.name not in present:
            ends = "float-weights" in cls.card.removes
            kind = "last" if ends else "first" if cls.card.phase == "training" else "structure"
            structural |= kind == "structure"
            parts[f"{kind}.{cls.name}"] = {NONE: None} | {_text(made): made for made in _values(cls)}
    if trainings:
        methods = [cls() for cls in classes if issubclass(cls, TrainingMethod) and cls.name not in present]
        for slot in ("precision", "optimizer"):
            fitting = {_text(made): made for made in methods if made.card.slot == slot}
            if fitting:
                parts[slot] = {NONE: None} | fitting
        parts["length"] = {f"{share:g}": share for share in LENGTHS}
        if structural:
            parts["place"] = {"after": "after", "before": "before"}
            loose = [made for made in methods if made.card.slot in (None, "layers")]
            recoveries = [_recovery(trainings[-1], extra) for extra in [None, *loose]]
            parts["recover"] = {NONE: None} | {str(phase): phase for phase in recoveries}
    compilers = {cls.name: cls() for cls in classes if issubclass(cls, Compiler) and cls.name not in APART}
    if compilers:
        parts["compile"] = {"export": None} | compilers
    if not any(len(options) > 1 for options in parts.values()):
        raise SpaceError("there is nothing to explore: no method that is installed applies")
    return parts


def _values(cls: type[Transform]) -> Iterator[Transform]:
    """The transform with every combination of the values that its hyperparameters' ``search`` names."""
    searched = {spec.name: spec.metadata["search"] for spec in dataclasses.fields(cls) if spec.metadata.get("search")}
    for values in itertools.product(*searched.values()):
        yield cls(**dict(zip(searched, values, strict=True)))


def _recovery(last: Train, extra: TrainingMethod | None) -> Train:
    """A short training by the reference's own optimizer at a smaller learning rate, with one method more."""
    methods = [_slowed(method) for method in last.methods]
    return _with(_shorter(last, RECOVERY), [*methods, *([extra] if extra is not None else [])])


def _slowed(method: Any) -> Any:
    rates = {spec.name: _round(getattr(method, spec.name) * RECOVERY) for spec in dataclasses.fields(method) if spec.name == "lr"}
    return dataclasses.replace(method, **rates)


def _trained(reference: Recipe, share: float, precision: Any, optimizer: Any) -> tuple[Phase, ...]:
    """The reference with every training that long, in that precision, by that optimizer."""
    def changed(phase: Train) -> Train:
        methods = [m for m in phase.methods if optimizer is None or m.card.slot != "optimizer"]
        return _with(_shorter(phase, share), [*([optimizer] if optimizer is not None else []), *methods,
                                              *([precision] if precision is not None else [])])

    return tuple(changed(phase) if isinstance(phase, Train) else phase for phase in reference)


def _shorter(phase: Train, share: float) -> Train:
    if share == 1:
        return phase
    if phase.steps is not None:
        return replaced(phase, steps=max(1, round(phase.steps * share)))
    return replaced(phase, epochs=_round((phase.epochs or 1.0) * share))


def _with(phase: Train, methods: Iterable[TrainingMethod]) -> Train:
    return replaced(phase, methods=tuple(methods))


def replaced(phase: Train, **values: Any) -> Train:
    """The phase with other methods or settings."""
    given = {spec.name: getattr(phase, spec.name) for spec in dataclasses.fields(phase)} | values
    return Train(*given.pop("methods"), **given)


def _round(value: float) -> float:
    """Three significant digits: a recipe's text is for reading."""
    return float(f"{value:.3g}")


def _text(method: Method) -> str:
    return str(Recipe.of(method)) if not isinstance(method, TrainingMethod) else str(Train(method))[6:-1]


@functools.singledispatch
def _names(part: Any) -> set[str]:
    """Methods that a part of a recipe names."""
    return set()


@_names.register(Method)
def _(part: Method) -> set[str]:
    return {part.name}


@_names.register(Train)
def _(part: Train) -> set[str]:
    return {method.name for method in part.methods}
