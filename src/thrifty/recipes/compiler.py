"""A method that lowers a model to an engine."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from thrifty.artifacts.lowered import Lowered
from thrifty.recipes.context import Context
from thrifty.recipes.method import Method
from thrifty.recipes.text import arguments_text


@dataclass(frozen=True)
class Compiler(Method):
    """A method that lowers a model to an engine; always the last phase. Its text is ``compile(name)``."""

    def __str__(self) -> str:
        """As it stands in a recipe's text."""
        return f"compile({', '.join([self.name, *arguments_text(self)])})"

    packages: ClassVar[tuple[str, ...]] = ("torch",)
    """Distributions that it compiles and opens with."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8", "fp8")
    """Of models that it takes."""
    pads: ClassVar[bool] = False
    """Whether sizes that a model cannot leave open are served by padding to one of several."""

    @abc.abstractmethod
    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write the engine's files into the (existing, empty) directory."""

    def admit(self, model: nn.Module, device: str) -> None:
        """Raise where the backend is known to lack, on that device, what the model is made of, before anything runs."""
        return

    @classmethod
    @abc.abstractmethod
    def missing(cls) -> str | None:
        """Say what must be installed before it can work here, or None where nothing is missing."""

    @classmethod
    def tools(cls) -> Mapping[str, str | None]:
        """Programs that it calls, and where they are; None where they are not. Most call none."""
        return {}
