"""The properties of the model, carried through the phases of a recipe: what can follow what."""

from __future__ import annotations

from thrifty.errors import RecipeError
from thrifty.recipes.card import PROPERTIES
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Train, methods_of
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names


def carry(recipe: Recipe, properties: frozenset[str]) -> frozenset[str]:
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
        for method in methods_of(phase):
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
        for method in methods_of(phase):
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
    texts = [str(phase) for phase in recipe]
    start = sum(len(text) + len(" | ") for text in texts[:i])
    return start, start + len(texts[i])
