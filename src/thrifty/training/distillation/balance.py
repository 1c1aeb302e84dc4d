"""Terms of a loss kept of one size by running means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

DECAY = 0.95
"""Of the running means: of some twenty steps."""


@final
@dataclass
class Balance:
    """Multiplies each term so that its running mean is that of one term among them.

    Args:
        means: {term: (running mean, sum of its weights)}.

    >>> import torch
    >>> balanced = Balance().applied({"outputs": torch.tensor(2.0), "hidden": torch.tensor(50.0)}, "outputs")
    >>> [round(float(x), 3) for x in balanced.values()]
    [2.0, 2.0]
    """

    means: dict[str, tuple[float, float]] = field(default_factory=dict)

    def applied(self, terms: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
        """The terms, balanced.

        Args:
            terms: {name: scalar}.
            reference: the term that stays as it is.
        """
        for name, x in terms.items():
            mean, mass = self.means.get(name, (0.0, 0.0))
            self.means[name] = (DECAY * mean + (1 - DECAY) * abs(float(x.detach())), DECAY * mass + (1 - DECAY))
        size = self._mean(reference)
        return {name: x if name == reference else x * (size / max(self._mean(name), 1e-12)) for name, x in terms.items()}

    def _mean(self, name: str) -> float:
        mean, mass = self.means[name]
        return mean / mass
