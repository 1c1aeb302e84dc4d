"""How much is said: results and errors alone, what goes on too, or every detail."""

from __future__ import annotations

import enum
import os

VARIABLE = "THRIFTY_VERBOSITY"
"""The environment variable that says it: quiet, normal or verbose; ``thrifty -q`` and ``thrifty -v`` set it."""


class Verbosity(enum.Enum):
    """How much is said beside results and errors."""

    quiet = "quiet"
    normal = "normal"
    verbose = "verbose"

    @staticmethod
    def asked() -> Verbosity:
        """What this process was asked for; normal where the variable says nothing that is known."""
        try:
            return Verbosity(os.environ.get(VARIABLE, "normal"))
        except ValueError:
            return Verbosity.normal

    def ask(self) -> None:
        """Ask for it, of processes that are started too."""
        os.environ[VARIABLE] = self.value
