"""A method of efficient AI: a frozen value whose fields are its hyperparameters."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from thrifty.errors import ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.cost import Known
from thrifty.recipes.hyperparameters import Table, validate
from thrifty.recipes.text import arguments_text

if TYPE_CHECKING:
    from thrifty.recipes.recipe import Recipe


@dataclass(frozen=True)
class Method(abc.ABC):
    """A method of efficient AI: its fields are its hyperparameters."""

    card: ClassVar[Card]
    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever the same hyperparameters would give another result: it is part of every hash."""
    placed_by: ClassVar[str] = "--device"
    """The option that says what it runs on."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            if "table" in spec.metadata and isinstance(value := getattr(self, spec.name), Mapping):
                object.__setattr__(self, spec.name, Table(value))
        validate(self, self.name)

    def __or__(self, other: Any) -> Recipe:
        return joined(self, other)

    def __str__(self) -> str:
        """As it stands in a recipe's text."""
        parts = arguments_text(self)
        return f"{self.name}({', '.join(parts)})" if parts else self.name

    @property
    def provides(self) -> frozenset[str]:
        """Properties that it gives a model: its card's, and what its hyperparameters make of it."""
        return self.card.provides

    @property
    def removes(self) -> frozenset[str]:
        """Properties that it takes from a model: its card's, and those that its hyperparameters take."""
        return self.card.removes

    @property
    def refuses(self) -> frozenset[str]:
        """Properties that a model must not have: its card's, and what its hyperparameters make of it."""
        return self.card.refuses

    @property
    def holds(self) -> frozenset[str]:
        """Properties that a model has while it trains it: its card's, and what its hyperparameters make of it."""
        return self.card.holds

    @property
    def needs(self) -> frozenset[str]:
        """What it needs of the workload: its card's, and what its hyperparameters make of it."""
        return self.card.needs

    @property
    def devices(self) -> frozenset[str]:
        """Where it runs: its card's devices, and what its hyperparameters leave of them."""
        return self.card.devices

    @property
    def hardware_bound(self) -> bool:
        """Whether what it decides holds for processors like this one alone: it is then part of the result's key."""
        return False

    def estimate(self, known: Known) -> float | None:
        """Seconds that its own work will take: of a transform to plan, of a compiler to lower, of a training method what it
        does beside the steps. A search asks before it has run here.

        Args:
            known: of the workload's model.

        Returns:
            seconds, or None where it cannot tell.
        """
        return None


def joined(first: Any, second: Any) -> Recipe:
    """The recipe of two parts, one after the other. Recipes are made of methods: hence the import at the call."""
    from thrifty.recipes.recipe import Recipe

    recipe: Recipe = Recipe.of(first) | second
    return recipe


def require_device(method: Method, device: str) -> None:
    """Refuse a method that does not run on a device.

    Raises:
        ThriftyError: it does not.
    """
    if device not in method.devices:
        named = method.name if device not in method.card.devices else method  # its hyperparameters are why
        raise ThriftyError(f"{named} runs on {', '.join(sorted(method.devices))} but this is {device}; use another "
                           f"method, or {method.placed_by} {min(method.devices)}")
    if device == "cuda" and torch.cuda.is_available() and (has := torch.cuda.get_device_capability()) < method.card.capability:
        least, found = ("{}.{}".format(*pair) for pair in (method.card.capability, has))
        raise ThriftyError(f"{method.name} needs a GPU of compute capability {least} or more, but {torch.cuda.get_device_name()} "
                           f"has {found}: use another method")
