"""What is known of a model while it is not yet known what a method will cost on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Known:
    """What a search has measured of the workload's model as it comes; a figure is None while nothing has told it.

    Args:
        forward: seconds of one forward pass over the calibration examples, request by request.
        step: seconds of one optimizer step of the workload's training.
        epoch: seconds of one epoch of it. Often only that one of the two is known in which the length is given.
    """

    forward: float | None = None
    step: float | None = None
    epoch: float | None = None
