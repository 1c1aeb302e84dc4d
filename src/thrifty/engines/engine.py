"""What a loaded artifact can do."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np

from thrifty.errors import ThriftyError


class EngineError(ThriftyError):
    """An artifact that cannot be opened or called here; the message says what to do."""


class Engine(abc.ABC):
    """A loaded artifact. Conversions stand outside the timed call."""

    @abc.abstractmethod
    def native(self, arrays: Sequence[np.ndarray]) -> Any:
        """Inputs as the engine takes them, in the order of the artifact's ``inputs``."""

    @abc.abstractmethod
    def run(self, native: Any) -> Any:
        """The call that is timed."""

    @abc.abstractmethod
    def arrays(self, outputs: Any) -> list[np.ndarray]:
        """What `run` gave, in the order of the artifact's ``outputs``."""

    def close(self) -> None:
        """Give back what the engine holds outside of Python; most hold nothing."""
