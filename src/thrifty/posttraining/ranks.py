"""Which rank each layer gets: a budget of parameters is spent where it keeps the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np


@final
@dataclass(frozen=True)
class Choices:
    """What one layer can be.

    Args:
        parameters: [options] of each.
        kept: [options] share of the layer's energy that each keeps; 1 where it stays as it is.
    """

    parameters: np.ndarray
    kept: np.ndarray


def allocate(layers: Sequence[Choices], budget: int) -> list[int]:
    """Choose an option a layer: the kept shares' sum is to be large, the parameters' sum at most the budget.

    With a price p for a parameter each layer takes argmax kept - p parameters by itself. The lowest price that meets
    the budget is found by bisection; what it leaves over buys the step with the best gain a parameter that still
    fits, again and again.

    Returns:
        the option's position, for each layer.

    Raises:
        ValueError: the smallest options together are above the budget.

    >>> layer = Choices(np.array([4, 8, 16]), np.array([0.5, 0.9, 1.0]))
    >>> allocate([layer, layer], 21), allocate([layer, layer], 24)
    ([1, 1], [1, 2])
    """
    least = sum(int(layer.parameters.min()) for layer in layers)
    if least > budget:
        raise ValueError(f"the smallest options have {least} parameters, which is above {budget}")

    def at(price: float) -> list[int]:
        # Of equals the one with fewer parameters.
        return [int(np.lexsort((c.parameters, price * c.parameters - c.kept))[0]) for c in layers]

    def total(chosen: Sequence[int]) -> int:
        return sum(int(c.parameters[i]) for c, i in zip(layers, chosen, strict=True))

    low, high = 0.0, 2.0  # one parameter saved is worth more than everything kept
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if total(at(middle)) > budget else (low, middle)
    chosen = at(high)
    while True:
        left, best = budget - total(chosen), (0.0, -1, -1)
        for position, (layer, now) in enumerate(zip(layers, chosen, strict=True)):
            extra, gain = layer.parameters - layer.parameters[now], layer.kept - layer.kept[now]
            worth = np.where((gain > 0) & (extra <= left), gain / np.maximum(extra, 1e-3), 0.0)
            step = int(worth.argmax())
            best = max(best, (float(worth[step]), position, step))
        if best[0] <= 0:
            return chosen
        chosen[best[1]] = best[2]
