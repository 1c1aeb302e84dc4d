"""Hypothesis strategies: random valid methods, phases and recipes of whatever is registered."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from hypothesis import strategies as st

from thrifty.recipes.compiler import Compiler
from thrifty.recipes.hyperparameters import HyperparameterError, Range
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform


def of_kind(kind: type) -> list[type[Method]]:
    return [method_class(name) for name in names() if issubclass(method_class(name), kind)]


def numbers(bounds: Range, whole: bool) -> st.SearchStrategy[Any]:
    """Values that the range permits, its ends among them where they are permitted."""
    low, high = max(bounds.low, -1e9), min(bounds.high, 1e9)
    if whole:
        return st.integers(math.ceil(low), math.floor(high)).filter(lambda x: x in bounds)
    floats = st.floats(low, high, allow_nan=False)
    return (floats | st.integers(math.ceil(low), math.floor(high)) if math.ceil(low) <= math.floor(high)
            else floats).filter(lambda x: x in bounds)


def field_values(spec: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    """Values of one hyperparameter, from its metadata."""
    values: st.SearchStrategy[Any]
    if "options" in spec.metadata:
        values = st.sampled_from(spec.metadata["options"])
    elif "range" in spec.metadata:
        values = numbers(spec.metadata["range"], str(spec.type).startswith("int"))
        if spec.metadata["words"]:
            values |= st.sampled_from(spec.metadata["words"])
    elif "recipe" in spec.metadata:
        values = st.sampled_from(["", "train(adamw)", "train(adamw(lr=0.01),  epochs=2) | prune(ratio=0.25)"])
    elif "recipes" in spec.metadata:
        values = st.lists(st.sampled_from(["quantize(w8a8)", "prune(ratio=0.25)", "low_rank(ratio=0.5)"]), unique=True).map(tuple)
    elif "table" in spec.metadata:
        values = st.dictionaries(st.sampled_from(["head", r"blocks\.0\..*", "a|'b\"c"]),
                                 st.sampled_from(spec.metadata["table"] or ["blocks.1", "head"]))
    elif "workload" in spec.metadata:
        values = st.sampled_from(["", "big.py:workload", "./a directory"])
    elif "pattern" in spec.metadata:
        values = st.sampled_from(["all-linear", "query|value", r"blocks\.0\..*"])
    elif "sizes" in spec.metadata:
        values = st.lists(st.integers(1, 512), max_size=4).map(tuple)
    elif spec.type == "bool":
        values = st.booleans()
    else:
        return st.just(spec.default)
    return values | st.none() if "None" in str(spec.type) else values


def made(cls: Any) -> st.SearchStrategy[Any]:
    """Instances of a method's class; what it refuses of hyperparameters that do not go together is drawn anew."""
    return st.fixed_dictionaries({spec.name: field_values(spec) for spec in dataclasses.fields(cls)}).map(
        lambda values: _built(cls, values)).filter(lambda method: method is not None)


def _built(cls: Any, values: dict[str, Any]) -> Any:
    try:
        return cls(**values)
    except HyperparameterError:
        return None


@functools.cache  # each is looked through when it is first drawn from, which takes longer than drawing
def methods(kind: type) -> st.SearchStrategy[Any]:
    return st.one_of([made(cls) for cls in of_kind(kind)])


def distinct(chosen: list[TrainingMethod]) -> bool:
    slots = [m.card.slot for m in chosen if m.card.slot]
    return len({m.name for m in chosen}) == len(chosen) and len(set(slots)) == len(slots)


@functools.cache
def settings_of_trainings() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({spec.name: field_values(spec) for spec in dataclasses.fields(Train) if spec.name != "methods"})


@functools.cache
def chosen_methods() -> st.SearchStrategy[list[Any]]:
    return st.lists(methods(TrainingMethod), max_size=3).filter(distinct)


@functools.cache
def all_phases(most: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(trains() | methods(Transform), max_size=most)


@functools.cache
def ends() -> st.SearchStrategy[Any]:
    return st.none() | methods(Compiler)


@st.composite
def trains(draw: st.DrawFn) -> Train:
    chosen = draw(chosen_methods())
    settings = draw(settings_of_trainings())
    settings = dict(settings)
    if settings["epochs"] is not None and settings["steps"] is not None:
        del settings[draw(st.sampled_from(["epochs", "steps"]))]
    return Train(*chosen, **settings)


@st.composite
def recipes(draw: st.DrawFn, most: int = 5) -> Recipe:
    """Recipes that can be written; not all of them can run."""
    phases, end = draw(all_phases(most)), draw(ends())
    return Recipe(tuple(phases) + ((end,) if end is not None else ()))
