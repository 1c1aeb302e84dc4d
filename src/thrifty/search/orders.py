"""The orders in which methods can follow one another: each that the properties allow is a recipe, and is measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from thrifty.errors import RecipeError, ThriftyError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.phases import Phase
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class
from thrifty.recipes.training_method import TrainingMethod
from thrifty.runs.preflight import initial_properties, resolve
from thrifty.search.sweep import sweep
from thrifty.studies.events import Listener, ignore
from thrifty.studies.trial import Trial
from thrifty.target import Target
from thrifty.workloads.workload import Workload

MOST = 5
"""Methods that are ordered: 120 recipes."""


@final
@dataclass(frozen=True)
class Orders:
    """Args:
        recipes: those that can be, each with its order in words.
        refused: {order: why it cannot be}.
    """

    recipes: dict[str, Recipe]
    refused: dict[str, str]


@final
@dataclass(frozen=True)
class Ordered:
    """Args:
        trials: {order: its trial}, the best quality first.
        refused: {order: why it cannot be}.
    """

    trials: dict[str, Trial]
    refused: dict[str, str]

    def to_json(self) -> dict[str, object]:
        return {"orders": [{"order": order, **trial.to_json()} for order, trial in self.trials.items()], "refused": self.refused}


def orders(workload: Workload, methods: Sequence[str], epochs: int = 1, compiler: str = "") -> Orders:
    """Every order of the methods, after the workload's reference.

    Transforms are phases; a training method is a phase ``train(method, epochs=...)`` of its own.

    Args:
        workload: whose reference comes first, where it has one.
        methods: names or texts, such as "prune(ratio=0.3)", two to five.
        epochs: of each training.
        compiler: a text that ends every recipe, such as "compile(onnxruntime)".

    Raises:
        ThriftyError: fewer than two methods or more than five, a compiler among them, or no order that can be.
    """
    if not 2 <= len(methods) <= MOST:
        raise ThriftyError(f"orders takes 2 to {MOST} methods but got {len(methods)}: name them, such as prune distill quantize")
    phases = [_phase(text, epochs) for text in methods]
    start = Recipe.parse(workload.reference).phases if workload.reference else ()
    end = Recipe.parse(compiler).phases if compiler else ()
    found: dict[str, Recipe] = {}
    refused: dict[str, str] = {}
    for order in itertools.permutations(range(len(phases))):
        name = " -> ".join(methods[i] for i in order)
        recipe = Recipe((*start, *(phases[i] for i in order), *end))
        try:
            carry(recipe, initial_properties(workload))
            found[name] = recipe
        except RecipeError as error:
            refused[name] = error.reason
    if not found:
        raise ThriftyError(f"no order of {', '.join(methods)} is possible: {next(iter(refused.values()))}")
    return Orders(found, refused)


def _phase(text: str, epochs: int) -> Phase:
    """A method by its text, as a phase."""
    name = text.partition("(")[0].strip()
    if name == "compile" or (name != "train" and issubclass(method_class(name), Compiler)):
        raise ThriftyError(f"{text} is a compiler, which comes last in every order: give it with --compiler")
    trains = name != "train" and issubclass(method_class(name), TrainingMethod)
    found = Recipe.parse(f"train({text}, epochs={epochs})" if trains else text).phases
    if len(found) != 1:
        raise ThriftyError(f"orders takes one method per argument but got {text!r}: remove the |")
    return found[0]


def measure_orders(workload: str | Workload, methods: Sequence[str], *, epochs: int = 1, compiler: str = "",
                   study: str | Path | None = None, target: Target | None = None, seed: int = 0, price: float | None = None,
                   listener: Listener = ignore) -> Ordered:
    """Run every order that can be, and rank them by quality on validation.

    Args:
        workload: a workload, or a reference that `load_workload` takes.
        methods, epochs, compiler: see `orders`.
        study, target, seed, price, listener: see `sweep`.
    """
    definition = resolve(workload)
    found = orders(definition, methods, epochs, compiler)
    swept = sweep(definition, list(found.recipes.values()), study=study, target=target, seed=seed, price=price, listener=listener)
    by_recipe = {trial.recipe: trial for trial in swept.trials}
    trials = {order: by_recipe[str(recipe)] for order, recipe in found.recipes.items()}
    sign = -1 if definition.quality.higher_is_better else 1

    def worst_last(entry: tuple[str, Trial]) -> float:
        quality = entry[1].quality
        return float("inf") if quality is None else sign * quality.value

    return Ordered(dict(sorted(trials.items(), key=worst_last)), found.refused)
