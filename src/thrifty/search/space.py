"""The recipes that an exploration may propose: a few slots, each with a few options, from what the methods' cards say.

A recipe of the space is, in this order: transforms that the training follows, the reference's training (perhaps by another
optimizer, in another precision, or shorter), transforms of a trained model, a training that recovers from them, transforms
that end the float weights, a compiler. Where a method stands follows from its kind, its phase and the properties that it
requires and removes; the values tried are the ``search`` of a transform's hyperparameters.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

from thrifty.errors import RecipeError, ThriftyError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import DEFAULT_OPTIMIZER, method_class, names
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
RECOVERY_STEPS, RECOVERY_RATE = 200, 1e-4
"""Length and learning rate of a recovering training where the model comes trained, so that there is no share to take. In steps,
so that its cost does not grow with the data. The net of `digits` (accuracy 0.985), pruned by half (0.332) or by three quarters
(0.100), comes back to 0.983 and 0.973; at three times the rate to 0.985 and 0.978, but that is much for a pretrained one."""

APART = ("export", "auto")
"""Compilers that are no options: the first is how a recipe without one ends, the second would race the others again."""

NAMED = ("nas", "gradient-nas", "architectures")
"""Families that take part where they are named: two search by themselves, for minutes a trial, and of the third each trial is
another whole training."""

Kind = Literal["before", "structure", "after", "last", "training", "length", "place", "recovery", "compiler"]
"""What a slot decides: a transform before the training, before or after it, after it, or at the end of the float weights; a
method of the training; how much of it; on which side of it "structure" stands; what recovers; what lowers."""
Place = Literal["after", "before"]
Part = Method | Train | float | Place | None
"""What an option puts into a recipe; None leaves it as it is."""

Choice = Mapping[str, str]
"""{slot: option} for every slot of a space."""


class SpaceError(ThriftyError):
    """A space without recipes, or a method that it cannot use."""


@final
@dataclass(frozen=True)
class Slot:
    """One decision.

    Args:
        name: for readers.
        kind: what it decides.
        parts: {option: what it puts into the recipe}; the first is what the reference has.
    """

    name: str
    kind: Kind
    parts: Mapping[str, Part]

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(self.parts)

    @property
    def changes(self) -> tuple[str, ...]:
        """The options that put something into the recipe."""
        return tuple(option for option, part in self.parts.items() if part is not None)


@final
@dataclass(frozen=True)
class Space:
    """Slots, and the recipes that their options make.

    Args:
        properties: of the workload's model as it comes.
        reference: how it is trained today; without phases where it comes trained.
        slots: the decisions, each under a name of its own.
    """

    properties: frozenset[str]
    reference: Recipe
    slots: tuple[Slot, ...]

    @staticmethod
    def of(workload: Workload, methods: Sequence[str] = (), device: str = "cpu", ranks: int = 1,
           training_device: str | None = None) -> Space:
        """The space of a workload.

        Args:
            workload: it decides whether there is training.
            methods: names of those to use; all that are installed where none is given.
            device: that the recipes will run on.
            ranks: processes that train together; with one there is nothing to spread.
            training_device: that trains; the same device where None.

        Raises:
            SpaceError: a method is unknown, not installed, or no use to the workload.
        """
        reference = Recipe.parse(workload.reference)
        classes = _chosen(workload, methods, device, training_device or device, ranks)
        slots = _slots(reference, _recovery(workload, reference, classes), classes)
        used = set().union(*(_names(part) for slot in slots for part in slot.parts.values()))
        if unused := [name for name in methods if name not in used]:
            why = dict.fromkeys(_unused(method_class(name), reference) for name in unused)
            raise SpaceError(f"{', '.join(unused)} cannot be explored on {workload.name}: {'; '.join(why)}")
        if not any(len(slot.parts) > 1 for slot in slots):
            raise SpaceError("there is nothing to explore: no method that is installed applies")
        return Space(initial_properties(workload), reference, slots)

    @property
    def parts(self) -> dict[str, Mapping[str, Part]]:
        """{slot's name: {option: what it puts into the recipe}}."""
        return {slot.name: slot.parts for slot in self.slots}

    @property
    def plain(self) -> dict[str, str]:
        """The choice that leaves the reference as it is."""
        return {slot.name: slot.options[0] for slot in self.slots}

    @property
    def recovered(self) -> frozenset[Kind]:
        """Kinds of the transforms that may follow the last training: a short one more recovers from them."""
        return _recovered(self.reference) if self.slot("recovery") is not None else frozenset()

    def only(self, keeps: Callable[[Slot, Part], bool]) -> Space:
        """The space with those options that are kept; the first of each slot stays."""
        def kept(slot: Slot) -> Slot:
            first = slot.options[0]
            return dataclasses.replace(slot, parts={option: part for option, part in slot.parts.items()
                                                    if option == first or keeps(slot, part)})

        return dataclasses.replace(self, slots=tuple(map(kept, self.slots)))

    def slot(self, kind: Kind) -> Slot | None:
        """The first slot of a kind."""
        return next((slot for slot in self.slots if slot.kind == kind), None)

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
        """The choice's phases, the transforms of one place in every order; none where nothing trains what must be trained."""
        chosen: dict[Kind, list[Any]] = {kind: [] for kind in get_args(Kind)}
        for slot in self.slots:
            if (part := slot.parts[choice[slot.name]]) is not None:
                chosen[slot.kind].append(part)
        early = "before" in chosen["place"]
        before = chosen["before"] + (chosen["structure"] if early else [])
        after = chosen["after"] + (chosen["structure"] if not early else [])
        training = tuple(_varied(phase, chosen["training"], *chosen["length"]) if isinstance(phase, Train) else phase
                         for phase in self.reference)
        untrained = after if _trainings(self.reference) else before + after
        recovery = chosen["recovery"] if untrained else []
        if not recovery and any("training" in method.card.needs for method in untrained):
            return
        for order in itertools.product(*map(itertools.permutations, (before, after, chosen["last"]))):
            yield Recipe((*order[0], *training, *order[1], *recovery, *order[2], *chosen["compiler"]))

    def choice(self, recipe: Recipe) -> dict[str, str] | None:
        """The first choice that makes a recipe, None where none does."""
        here = {*recipe, *recipe.methods()}
        fits = [[option for option, part in slot.parts.items() if not isinstance(part, Method | Train) or part in here]
                or list(slot.options) for slot in self.slots]  # none fits where another slot leaves this one without effect
        for options in itertools.product(*fits):
            choice = self._named(options)
            if recipe in self._orders(choice) and self.recipe(choice) == recipe:
                return choice
        return None

    def size(self) -> int:
        """How many choices there are; several may make one recipe."""
        return math.prod(len(slot.parts) for slot in self.slots)

    def recipes(self) -> dict[str, dict[str, str]]:
        """{recipe's text: the first choice that makes it} of the whole space, which must be small."""
        found: dict[str, dict[str, str]] = {}
        for options in itertools.product(*(slot.parts for slot in self.slots)):
            choice = self._named(options)
            if (recipe := self.recipe(choice)) is not None:
                found.setdefault(str(recipe), choice)
        return found

    def _named(self, options: Sequence[str]) -> dict[str, str]:
        return dict(zip((slot.name for slot in self.slots), options, strict=True))


# -- what stands where --------------------------------------------------------------------------------------------


def _chosen(workload: Workload, methods: Sequence[str], device: str, trains: str, ranks: int) -> list[type[Method]]:
    """The classes to use."""
    chosen = []
    for name in methods or names():
        cls = method_class(name)
        if not methods and cls.card.family in NAMED:
            continue
        if (place := trains if issubclass(cls, TrainingMethod) else device) not in cls.card.devices:
            if methods:
                raise SpaceError(f"{name} does not run on {place}")
            continue
        if cls.card.slot == "parallelism" and ranks == 1:
            if methods:
                raise SpaceError(f"{name} distributes training over ranks, but there is only one: give --nproc")
            continue
        if issubclass(cls, Compiler) and (missing := cls.missing()):
            if methods:
                raise SpaceError(missing)
            continue
        if (issubclass(cls, TrainingMethod) or "training" in cls.card.needs) and not _can_train(workload):
            if methods:
                raise SpaceError(f"{name} {'modifies' if issubclass(cls, TrainingMethod) else 'needs'} training, and "
                                 f"{workload.name} has no training set or no loss")
            continue
        if issubclass(cls, TrainingMethod) and "logits" in cls().needs and not _gives_logits(workload):
            if methods:
                raise SpaceError(f"{name} needs logits, but the loss of {workload.name}, {type(workload.loss).__name__}, "
                                 "gives none")
            continue
        chosen.append(cls)
    return chosen


def _can_train(workload: Workload) -> bool:
    return workload.lessons is not None


def _gives_logits(workload: Workload) -> bool:
    return workload.lessons is not None and workload.lessons[1].gives_logits


def _slots(reference: Recipe, recovery: Train | None, classes: Sequence[type[Method]]) -> tuple[Slot, ...]:
    """What can be decided.

    Args:
        reference: how the model is trained today.
        recovery: the plainest training that recovers, None where nothing can be trained.
        classes: the methods to use.
    """
    present = {method.name for method in reference.methods()}
    classes = [cls for cls in classes if cls.name not in present]
    slots = [Slot(f"{_kind(cls)}.{cls.name}", _kind(cls), {NONE: None} | {str(made): made for made in _values(cls)})
             for cls in classes if issubclass(cls, Transform)]
    trained = bool(_trainings(reference))
    methods = [cls() for cls in classes if issubclass(cls, TrainingMethod)]
    if trained:
        for name in dict.fromkeys(method.card.slot for method in methods if method.card.slot is not None):
            fitting: dict[str, Part] = {str(method): method for method in methods if method.card.slot == name}
            slots.append(Slot(name, "training", {NONE: None} | fitting))
        slots.append(Slot("length", "length", {f"{share:g}": share for share in LENGTHS}))
        if any(slot.kind == "structure" for slot in slots):
            slots.append(Slot("place", "place", {place: place for place in get_args(Place)}))
    if recovery is not None and any(slot.kind in _recovered(reference) for slot in slots):
        present = {method.name for method in recovery.methods}
        loose = [recovery.but(methods=(*recovery.methods, method)) for method in methods
                 if method.card.slot is None and method.name not in present]
        slots.append(Slot("recover", "recovery", {NONE: None} | {str(phase): phase for phase in (recovery, *loose)}))
    compilers: dict[str, Part] = {cls.name: cls() for cls in classes if issubclass(cls, Compiler) and cls.name not in APART}
    if compilers:
        slots.append(Slot("compile", "compiler", {"export": None} | compilers))
    return tuple(slots)


def _kind(cls: type[Transform]) -> Kind:
    """Where a transform may stand."""
    card = cls.card
    if "float-weights" in cls().removes:
        return "last"
    if "trained" in card.requires:
        return "after"
    return "before" if card.phase == "training" else "structure"


def _values(cls: type[Transform]) -> Iterator[Transform]:
    """The transform with every combination of the values that its hyperparameters' ``search`` names."""
    searched = {spec.name: spec.metadata["search"] for spec in dataclasses.fields(cls) if spec.metadata.get("search")}
    for values in itertools.product(*searched.values()):
        yield cls(**dict(zip(searched, values, strict=True)))


def _unused(cls: type[Method], reference: Recipe) -> str:
    """Why a method is in no recipe of the space."""
    if cls.name in {method.name for method in reference.methods()}:
        return "its own training names it"
    if issubclass(cls, Compiler):
        return "recipes without a compiler end as export, and auto would race the others again"
    if cls.card.slot is not None:
        return "the model comes trained, so there is no training of it to vary"
    return "there is nothing to recover from: add a transform, such as prune"


# -- trainings ----------------------------------------------------------------------------------------------------


def _trainings(reference: Recipe) -> list[Train]:
    return [phase for phase in reference if isinstance(phase, Train)]


def _recovered(reference: Recipe) -> frozenset[Kind]:
    """Kinds of the transforms that no training of the reference need follow."""
    follow: frozenset[Kind] = frozenset({"structure", "after"})
    return follow if _trainings(reference) else follow | {"before"}


def _recovery(workload: Workload, reference: Recipe, classes: Sequence[type[Method]]) -> Train | None:
    """A short training by the reference's own methods at a smaller learning rate; by the default optimizer where the model
    comes trained, with a teacher where its inputs have no labels; None where it cannot be trained."""
    default: Any = method_class(DEFAULT_OPTIMIZER)()
    if trainings := _trainings(reference):
        last = _shorter(trainings[-1], RECOVERY)
        named = any(method.card.slot == "optimizer" for method in last.methods)
        return last.but(methods=tuple(map(_slowed, last.methods if named else (default, *last.methods))))
    if not _can_train(workload):
        return None
    plain = Train(dataclasses.replace(default, lr=RECOVERY_RATE), steps=RECOVERY_STEPS)
    if workload.labelled:
        return plain
    teaching = next((cls for cls in classes if "teacher" in cls.card.needs), None)
    if teaching is None:
        return None
    objective = {"objective": "embedding"} if workload.quality.embeds else {}
    return plain.but(methods=(*plain.methods, teaching(**objective)))


def _slowed(method: Any) -> Any:
    rates = {spec.name: _round(getattr(method, spec.name) * RECOVERY) for spec in dataclasses.fields(method) if spec.name == "lr"}
    return dataclasses.replace(method, **rates)


def _varied(phase: Train, methods: Sequence[TrainingMethod], share: float = 1.0) -> Train:
    """The training with methods in the place of those of the same slot, or behind the others, and so much of it."""
    waiting = {method.card.slot: method for method in methods}
    kept = [waiting.pop(method.card.slot, method) for method in phase.methods]
    return _shorter(phase, share).but(methods=(*kept, *waiting.values()))


def _shorter(phase: Train, share: float) -> Train:
    if share == 1:
        return phase
    if phase.steps is not None:
        return phase.but(steps=max(1, round(phase.steps * share)))
    return phase.but(epochs=_round((phase.epochs or 1.0) * share))


def _round(value: float) -> float:
    """Three significant digits: a recipe's text is for reading."""
    return float(f"{value:.3g}")


def _names(part: Part) -> set[str]:
    """Methods that a part of a recipe names."""
    match part:
        case Train():
            return {method.name for method in part.methods}
        case Method():
            return {part.name}
    return set()
