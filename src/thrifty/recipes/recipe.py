"""A recipe: an ordered tuple of phases, a value that parses, prints and hashes.

Its text is a Python expression read with ``ast`` and never evaluated::

    train(adamw(lr=0.001), epochs=8) | prune(ratio=0.5) | train(distill, epochs=1) | quantize(w8a8) | compile(onnxruntime)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from thrifty.errors import RecipeError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.parser import parse_phases
from thrifty.recipes.phases import MAX_PHASES, Phase, Train, methods_of
from thrifty.recipes.registry import DEFAULT_COMPILER, DEFAULT_OPTIMIZER, method_class
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform


@final
@dataclass(frozen=True)
class Recipe:
    """An ordered tuple of phases.

    >>> recipe = Recipe.parse("train(adamw(lr=0.01), epochs=2) | compile(onnxruntime)")
    >>> len(recipe.phases), Recipe.parse(str(recipe)) == recipe
    (2, True)
    """

    phases: tuple[Phase, ...] = ()

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
        raise RecipeError(f"{part!r} is not part of a recipe: give a string, Train(...), a transform or a compiler")

    @staticmethod
    def parse(text: str) -> Recipe:
        """Read a recipe's text; nothing of it is executed.

        Raises:
            RecipeError: it is not a recipe; points at the piece and names the nearest valid one.
        """
        return Recipe(tuple(parse_phases(text)))

    def __or__(self, other: Any) -> Recipe:
        return Recipe(self.phases + Recipe.of(other).phases)

    def __mul__(self, times: int) -> Recipe:
        return Recipe(self.phases * times)

    def __str__(self) -> str:
        return " | ".join(map(str, self.phases))

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __len__(self) -> int:
        return len(self.phases)

    def methods(self) -> list[Method]:
        """Every method, in the order of the text."""
        return [method for phase in self.phases for method in methods_of(phase)]

    @property
    def transforms(self) -> Recipe:
        """The recipe without its compiler: what determines the model."""
        return Recipe(tuple(phase for phase in self.phases if not isinstance(phase, Compiler)))

    @property
    def compiler(self) -> Compiler:
        """The last phase where it is a compiler, else the uncompiled export."""
        if self.phases and isinstance(self.phases[-1], Compiler):
            return self.phases[-1]
        export = method_class(DEFAULT_COMPILER)()
        assert isinstance(export, Compiler)
        return export

    def hash(self) -> str:
        """The hash of the canonical text and the versions of all methods, teachers and the default optimizer included."""
        versions = [f"{DEFAULT_OPTIMIZER}{method_class(DEFAULT_OPTIMIZER).version}" for phase in self
                    if isinstance(phase, Train) and not any(m.card.slot == "optimizer" for m in phase.methods)]
        for method in self.methods():
            versions.append(f"{method.name}{method.version}")
            versions += [Recipe.parse(text).hash() for spec in dataclasses.fields(method) for text in _inner(method, spec)]
        return hashlib.sha256(f"{self}#{','.join(versions)}".encode()).hexdigest()


def _inner(method: Method, spec: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Texts of the recipes that one hyperparameter names."""
    if "recipe" in spec.metadata:
        return (str(getattr(method, spec.name)),)
    return tuple(getattr(method, spec.name)) if "recipes" in spec.metadata else ()
