"""What may cure a failure: another engine that takes what this one refused, or another scheme of few bits."""

from __future__ import annotations

from thrifty.errors import RecipeError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.registry import method_class, names

APART = ("auto", "export")
"""Compilers that are named for no cure: the first races the others, the second is what a recipe without one ends with."""
SCHEMES = ("w8a8", "w8a16", "bf16")


def cures(recipe: Recipe, phase: str, properties: frozenset[str], device: str = "cpu") -> str:
    """What to try where a recipe failed in a phase; "" where nothing is known that could help.

    Args:
        recipe: that failed.
        phase: text of the phase under way when it did.
        properties: of the workload's model as it comes.
        device: that it is for.

    >>> from thrifty.recipes.recipe import Recipe
    >>> cures(Recipe.parse("train(adamw)"), "train(adamw)", frozenset({"module", "float-weights"}))
    ''
    """
    compilers = [each for each in recipe if isinstance(each, Compiler)]
    if not compilers or phase != str(compilers[0]):
        return ""
    transforms = recipe.transforms
    engines = [f"compile({name})" for name in names() if name not in (*APART, compilers[0].name) and _takes(name, transforms,
               properties, device)]
    used = next((getattr(method, "scheme", None) for method in transforms.methods() if method.name == "quantize"), None)
    schemes = [f"quantize({scheme})" for scheme in SCHEMES if scheme != used] if used is not None else []
    parts = [f"another engine may accept it ({', '.join(engines)})"] if engines else []
    parts += [f"another scheme may work ({', '.join(schemes)})"] if schemes else []
    return " or ".join(parts)


def _takes(name: str, transforms: Recipe, properties: frozenset[str], device: str) -> bool:
    """Whether a compiler is installed, serves the device, and has nothing against the model by its card."""
    cls = method_class(name)
    if not issubclass(cls, Compiler) or device not in cls.card.devices or cls.missing() is not None:
        return False
    try:
        carry(transforms | cls(), properties)
    except RecipeError:
        return False
    return True
