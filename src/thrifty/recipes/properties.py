"""The properties of the model, carried through the phases of a recipe: what can follow what, and what goes together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

from thrifty.errors import RecipeError
from thrifty.recipes.card import PROPERTIES
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Phase, Train, methods_of
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.training_method import STAGES, Stage, TrainingMethod


def carry(recipe: Recipe, properties: frozenset[str]) -> frozenset[str]:
    """Carry the model's properties through the phases and, within a training, through its methods.

    Args:
        recipe: to be judged.
        properties: of the model as it comes: {"module", "float-weights"}, and "trained" where it was.

    Returns:
        the properties at the end.

    Raises:
        RecipeError: a phase requires what the model then lacks, or refuses what it has; says which method took it away or
            gave it, or what would give it.
    """
    found = _Carried(properties)
    for i, phase in enumerate(recipe):
        if why := found.through(phase):
            raise RecipeError(why, str(recipe), *_span(recipe, i))
    return found.properties


@final
@dataclass
class _Carried:
    """Properties on their way through a recipe, and who took and gave them."""

    properties: frozenset[str]
    took: dict[str, str] = field(default_factory=dict)
    gave: dict[str, str] = field(default_factory=dict)

    def through(self, phase: Phase) -> str | None:
        """Go through a phase; why that cannot be, or None."""
        if isinstance(phase, Train):
            for lacks in sorted({"module", "float-weights"} - self.properties):
                return self._lack(phase, lacks)
            if why := self._within(phase):
                return why
            self.properties |= {"trained"}
        else:
            if why := self._meets(phase, self.properties, self.gave):
                return why
        for method in methods_of(phase):
            for gone in method.removes & self.properties:
                self.took[gone] = method.name if not isinstance(method, Compiler) else f"compile({method.name})"
            self.gave |= dict.fromkeys(method.provides - self.properties, method.name)
            self.properties = (self.properties - method.removes) | method.provides
        return None

    def _within(self, phase: Train) -> str | None:
        """Put a training together, stage by stage, as its session will."""
        properties, gave = self.properties, dict(self.gave)
        for name, method, holds in _steps(phase):
            if method is not None and (why := self._meets(method, properties, gave)):
                return why
            gave |= dict.fromkeys(holds - properties, name)
            properties |= holds
        return None

    def _meets(self, method: Method, properties: frozenset[str], gave: dict[str, str]) -> str | None:
        for lacks in sorted(method.card.requires - properties):
            return self._lack(method, lacks)
        for has in sorted(method.refuses & properties):
            giver = gave.get(has, "the workload")
            match method:
                case TrainingMethod():
                    mend = f"keep one of {giver} and {method.name}"
                case Compiler():
                    mend = f"give {gave.get(has, 'it')} another scheme, or use another compiler"
                case _:
                    mend = f"put {method.name} before {giver}"
            return f"{method.name} requires a model without {has}, which {giver} gives it: {PROPERTIES[has]}; {mend}"
        return None

    def _lack(self, what: Method | Train, lacks: str) -> str:
        name, took = "train" if isinstance(what, Train) else what.name, self.took
        if took.get(lacks) == name:
            return f"{name} requires {lacks}, which the earlier {name} removed: it can be applied only once; remove one"
        if lacks in took and isinstance(what, Compiler):
            return f"{name} requires {lacks}, which the earlier {took[lacks]} removed; one compiler ends a recipe: keep one"
        if lacks in took:
            return f"{name} requires {lacks}, which the earlier {took[lacks]} removed; put {name} before {took[lacks]}"
        if lacks == "trained":
            return f"{name} requires a trained model; put train(...) before it, for instance the workload's reference"
        givers = [m for m in names() if lacks in method_class(m).card.provides | method_class(m).card.holds]
        return f"{name} requires {lacks}; " + (f"given by {', '.join(givers)}" if givers else "no method gives it")


def _steps(phase: Train) -> Iterator[tuple[str, TrainingMethod | None, frozenset[str]]]:
    """(name, method or None for a setting, what the model then has) of a training, in the order in which it happens."""
    settings: dict[Stage, tuple[str, bool, str]] = {
        "structure": ("packing", phase.packing, "packed-rows"),
        "checkpointing": ("checkpointing", phase.checkpointing != "none", "recomputed-activations"),
        "compile": ("compiled", phase.compiled, "compiled-steps"),
    }
    for stage in STAGES:
        if stage in settings and settings[stage][1]:
            yield f"train({settings[stage][0]}=...)", None, frozenset({settings[stage][2]})
        for method in phase.methods:
            if method.stage == stage:
                yield method.name, method, method.holds


def _span(recipe: Recipe, i: int) -> tuple[int, int]:
    """Where the i-th phase stands in the text."""
    texts = [str(phase) for phase in recipe]
    start = sum(len(text) + len(" | ") for text in texts[:i])
    return start, start + len(texts[i])
