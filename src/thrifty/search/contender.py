"""An optimizer that is being tuned: the recipes of its learning rates, which is next, whether an optimum was found."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from thrifty.errors import ThriftyError
from thrifty.recipes.hyperparameters import Range
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.search import line
from thrifty.search.line import Line
from thrifty.training.optimizers.optimizer import Optimizer
from thrifty.workloads.workload import Workload

FIRST, SECOND = 3, 2
"""Trials that bracket a learning rate, and those that bracket any other number, whose center is known by then."""

Point = tuple[float, ...]
"""An exponent on each of a contender's lines."""


class TuneError(ThriftyError):
    """Something that cannot be tuned, or not within what was given; says what can."""


@final
@dataclass(frozen=True)
class Contender:
    """An optimizer in the place of the reference's own, and the lines on which it is tuned.

    Args:
        optimizer: with the values that are searched around.
        reference: a recipe with one ``train`` phase, whose other methods and settings stay.
        lines: the learning rate's, then those of the numbers that are tuned beside it.

    >>> from thrifty import load_workload
    >>> contender = Contender.of(load_workload("digits"), "lion(lr=0.001)")
    >>> str(contender.recipe((-1.0, 1.0)))
    'train(lion(lr=0.00025, weight_decay=0.4), epochs=3)'
    """

    optimizer: TrainingMethod
    reference: Recipe
    lines: tuple[Line, ...]

    @staticmethod
    def of(workload: Workload, text: str, also: str = "") -> Contender:
        """The contender of an optimizer's text.

        Args:
            workload: its reference says what is trained, how long, and with what beside the optimizer.
            text: a name, or as in a recipe: "sophia(lr=0.0003)" is searched around that learning rate.
            also: names, with commas between them, of what is tuned beside the learning rate: numbers of the optimizer's or
                "warmup". "lr" is the learning rate alone; where it is empty, what the optimizer's paper says has to be
                tuned, but for words and zeros, which no grid stands around.

        Raises:
            TuneError: it is no optimizer, it has no such number, or the reference has not one training.
            RecipeError: the text cannot be read, or a value is not permitted.
        """
        optimizer, reference = optimizer_of(text), reference_of(workload)
        named = further(also) if also else [name for name in tuned_of(optimizer) if name != "lr"
                                            and _positive(getattr(optimizer, name))]
        return Contender(optimizer, reference, tuple(
            _line(optimizer, training_of(reference), name) for name in ("lr", *named)))

    def __str__(self) -> str:
        return str(self.optimizer)

    @property
    def origin(self) -> Point:
        """Where every line has its center."""
        return tuple(0.0 for _ in self.lines)

    def values(self, point: Point) -> dict[str, float]:
        """{hyperparameter: value} at a point."""
        return {each.name: each.value(exponent) for each, exponent in zip(self.lines, point, strict=True)}

    def recipe(self, point: Point, **settings: Any) -> Recipe:
        """The reference with this optimizer at a point, and with some settings of its training changed."""
        values = self.values(point)
        own = {name: value for name, value in values.items() if hasattr(self.optimizer, name)}
        settings |= {name: value for name, value in values.items() if name not in own}
        optimizer = dataclasses.replace(self.optimizer, **own)

        def changed(phase: Train) -> Train:
            others = [method for method in phase.methods if method.card.slot != "optimizer"]
            return phase.but(methods=(optimizer, *others), **settings)

        return Recipe(tuple(changed(phase) if isinstance(phase, Train) else phase for phase in self.reference))

    def following(self, known: Mapping[Point, float], trials: int) -> Point | None:
        """The point to try next, None where ``trials`` are spent or nothing is left to try.

        One line after the other, each at the best of those before: the learning rate, then the others, of which each gets a
        third of the trials where there is one, a fourth of them where there are two. Where the trials do not bracket
        all, the last lines stay at their centers.

        Args:
            known: {point: quality}, higher is better.
            trials: in all.
        """
        others = min(len(self.lines) - 1, (trials - FIRST) // SECOND)
        share, before = max(SECOND, trials // (others + 2)), self.origin[:0]
        for i in range(others + 1):
            tried = self._along(known, before)
            if len(known) < trials - share * (others - i):
                exponent = self.lines[i].following(tried)
                if exponent is not None:
                    return (*before, exponent, *self.origin[i + 1:])
            before = (*before, line.best(tried))
        return None

    def best(self, known: Mapping[Point, float]) -> Point:
        """The point of the highest quality along the path that `following` took."""
        found = self.origin[:0]
        for _ in self.lines:
            found = (*found, line.best(self._along(known, found)))
        return found

    def edges(self, known: Mapping[Point, float]) -> tuple[str, ...]:
        """Names of the numbers whose best value has no other on one of its sides: they are not tuned."""
        at = self.best(known)
        return tuple(each.name for i, each in enumerate(self.lines) if not line.inside(self._along(known, at[:i])))

    def _along(self, known: Mapping[Point, float], before: Point) -> dict[float, float]:
        """{exponent: quality} on the line that comes after some, where these stand so and those after it at their centers."""
        i = len(before)
        return {point[i]: quality for point, quality in known.items() if point[:i] == before and not any(point[i + 1:])}


def fewest(also: str) -> int:
    """Trials without which nothing is tuned, or not what was asked for."""
    return FIRST + SECOND * len(further(also))


def further(also: str) -> list[str]:
    """What ``also`` names beside the learning rate."""
    return [name for name in dict.fromkeys(part.strip() for part in also.split(",")) if name not in ("", "lr")]


# -- reading ------------------------------------------------------------------------------------------------------


def optimizer_of(text: str) -> TrainingMethod:
    """Read one optimizer.

    Raises:
        TuneError: there is no such optimizer; names the nearest.
        RecipeError: its arguments cannot be read.
    """
    name, known = text.partition("(")[0].strip(), optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise TuneError(f"there is no optimizer {name!r}; "
                        + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"))
    methods = training_of(Recipe.parse(f"train({text})")).methods
    if len(methods) > 1:
        raise TuneError(f"{text!r} contains more than one optimizer: give them one at a time; other training methods "
                        "belong in the workload's reference")
    return methods[0]


def optimizers() -> list[str]:
    """Names of the methods that can stand as a training's optimizer."""
    return [name for name in names() if method_class(name).card.slot == "optimizer"]


def tuned_of(optimizer: TrainingMethod) -> tuple[str, ...]:
    """What its paper says has to be tuned."""
    return optimizer.tuned if isinstance(optimizer, Optimizer) else ("lr",)


def reference_of(workload: Workload) -> Recipe:
    """How the workload is trained today.

    Raises:
        TuneError: it is not trained, or not in one phase.
    """
    if workload.train is None or workload.loss is None:
        raise TuneError(f"{workload.name} has no training set or no loss, so nothing can be tuned: give `train` "
                        "and `loss` in its Workload")
    recipe = Recipe.parse(workload.reference).transforms
    count = sum(isinstance(phase, Train) for phase in recipe)
    if count != 1:
        raise TuneError(f"tuning needs a reference with one train phase, but that of {workload.name} has {count}: "
                        f"{workload.reference!r}; give one in its Workload, such as reference='train(adamw, epochs=3)'")
    return recipe


def training_of(recipe: Recipe) -> Train:
    """The one training of a recipe."""
    (training,) = (phase for phase in recipe if isinstance(phase, Train))
    return training


def _line(optimizer: TrainingMethod, training: Train, name: str) -> Line:
    """The line of a number of the optimizer's or, where it has none of that name, of the training's."""
    for owner in (optimizer, training):
        found = _numbers(owner)
        if name not in found:
            continue
        value = getattr(owner, name)
        if isinstance(value, str):
            raise TuneError(f"{name} is {value!r} here, so there is nothing to tune: give a number to search around")
        return Line(name, value, found[name])
    own = _numbers(optimizer)
    raise TuneError(f"{optimizer.name} has no number {name!r} to tune; it has {', '.join(own)}; the training has warmup")


def _numbers(owner: Any) -> dict[str, Range]:
    """{name: range} of the hyperparameters that are no whole numbers."""
    return {spec.name: spec.metadata["range"] for spec in dataclasses.fields(owner)
            if "range" in spec.metadata and str(spec.type).startswith("float")}


def _positive(value: Any) -> bool:
    return not isinstance(value, str) and value > 0
