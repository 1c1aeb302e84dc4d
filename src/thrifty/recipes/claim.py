"""A claim: a change that a method says it made, and that is measured again later."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import nn

from thrifty.errors import NoEffect


@final
@dataclass(frozen=True)
class Claim:
    """A measurable change that a method says it made.

    It holds for a value v when (v - before) * sign(after - before) >= minimum > 0.

    Args:
        what: the quantity, with its unit.
        before, after: its value without and with the method.
        minimum: the least change, in the claimed direction, that makes the claim true.
        probe: measures it again on a later model; None where only the method itself could count it.
        fact: the name under which a reloaded engine reports the same quantity; "" where none does.
    """

    what: str
    before: float
    after: float
    minimum: float
    probe: Callable[[nn.Module], float] | None = None
    fact: str = ""

    def holds(self, value: float) -> bool:
        return (value - self.before) * math.copysign(1.0, self.after - self.before) >= self.minimum

    def checked(self, method: str) -> Claim:
        """Return the claim itself.

        Raises:
            NoEffect: it does not hold.
        """
        if self.after == self.before or not self.holds(self.after):
            raise NoEffect(
                f"{method} changed nothing: {self.what} was {self.before:.6g} and is {self.after:.6g} "
                f"(at least {self.minimum:.3g} of change was expected)"
            )
        return self
