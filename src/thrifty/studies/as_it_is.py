"""The model as it is, a candidate like any other: what it takes, and what is better than it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from thrifty.studies.frontier import TRAINING_NOISE, Bounds, objective
from thrifty.studies.trial import Ratio, Trial


@final
@dataclass(frozen=True)
class AsItIs:
    """What is known of the model that nothing was done to: the reference's, eager, in fp32.

    Args:
        bytes: of its weights; None where they were not counted.
        seconds: of its training as it is trained today; 0 where it comes trained.
        doubt: why nothing can be concluded from comparisons with it; None where there is no such reason.
    """

    bytes: int | None = None
    seconds: float | None = None
    doubt: str | None = None

    @staticmethod
    def of(noted: Mapping[str, Any] | None, doubt: str | None = None) -> AsItIs:
        """From what `to_json` gave; nothing is known where nothing was noted."""
        return AsItIs(**(noted or {}), doubt=doubt)

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "seconds": self.seconds}

    def figure(self, name: str, trial: Trial) -> Bounds | None:
        """What it has of an objective; None where that is not known.

        Args:
            name: of `thrifty.studies.frontier.OBJECTIVES`.
            trial: that it was measured beside.
        """
        if name == "inference":
            return Bounds(1.0, 1.0, 1.0)
        if name == "training" and self.seconds is not None:
            return Bounds(self.seconds, self.seconds * (1 - TRAINING_NOISE), self.seconds * (1 + TRAINING_NOISE))
        found = {"bytes": self.bytes, "memory": _eager_memory(trial)}.get(name)
        return None if found is None else Bounds(found, found, found)

    def beaten(self, name: str, trial: Trial) -> bool:
        """Whether a trial is significantly better in an objective, and not slower to serve in any case.

        A speed without an interval beats nothing: one pair of processes screens.

        >>> from thrifty.studies.trial import InferenceFigure
        >>> def served(*speed):
        ...     figure = InferenceFigure("SingleStream", 1e-3, 1e-3, Ratio(*speed), Ratio(None), None, None, None)
        ...     return Trial("x", "w", "h", "", 0, {}, "done", inference=figure)
        >>> [AsItIs().beaten("inference", served(*speed)) for speed in ((1.2, 1.1, 1.3), (1.2, 0.9, 1.6), (9.0,))]
        [True, False, False]
        """
        own, its = self.figure(name, trial), objective(name)(trial)
        if its is None or slower(trial.inference and trial.inference.speedup):
            return False
        return own is None or its.high < own.low

    def meets(self, limits: Mapping[str, float | None], trial: Trial) -> bool:
        """Whether it is known to keep to bars on the artifact's bytes and the request's latency.

        Args:
            limits: "max_bytes" and "max_latency"; None for none.
            trial: that it was measured beside.
        """
        latency = trial.inference and trial.inference.baseline_seconds
        known = {"max_bytes": self.bytes, "max_latency": latency}
        return all(limit is None or (value is not None and value <= limit)
                   for limit, value in ((limits[name], known[name]) for name in known))


def slower(speed: Ratio | None) -> bool:
    """Whether a speed is below the baseline's: its whole interval, or where one pair ran, its value."""
    if speed is None or speed.value is None:
        return False
    return (speed.value if speed.high is None else speed.high) < 1


def _eager_memory(trial: Trial) -> int | None:
    figures: Mapping[str, Any] = trial.raw.get("figures", {})
    found: int | None = figures.get("eager", {}).get("peak_memory_bytes")
    return found
