"""Schedules of the learning rate: a linear warm-up, then what their name says."""

from __future__ import annotations

import math

WSD_DECAY = 0.2
"""Share of the steps after warm-up over which "wsd" falls to zero, linearly."""


def rate(schedule: str, step: int, steps: int, warmup: float) -> float:
    """The factor of the learning rate at a step.

    Args:
        schedule: "cosine" to zero, "linear" to zero, "constant", or "wsd": constant, then linear to zero.
        step: from 0.
        steps: of the whole training.
        warmup: share of the steps over which the factor rises linearly, in [0, 1).

    >>> [round(rate("linear", step, 4, 0.0), 2) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    warm = warmup * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    done = min(1.0, (step - warm) / (steps - warm))
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0,
            "wsd": min(1.0, (1 - done) / WSD_DECAY)}[schedule]
