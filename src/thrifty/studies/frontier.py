"""The efficiency frontier: which trials no other trial beats, and how sure that is.

Every objective is an interval to be made small. Trial a *beats* trial b when a's points are nowhere above b's and, on
one objective at least, a's whole interval lies below b's. On intervals without width that is Pareto dominance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from thrifty.errors import ThriftyError
from thrifty.studies.trial import Trial

Status = Literal["front", "tied", "dominated"]

TRAINING_NOISE = 0.05
"""Training runs once: a difference in its seconds within this share either way is not taken for a difference."""


class FrontierError(ThriftyError):
    """Trials that cannot be compared, or a constraint or an objective that cannot be read."""


# -- dominance ----------------------------------------------------------------------------------------------------


def dominance(value: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Who beats whom.

    a beats b when value[a, k] <= value[b, k] for every k and high[a, k] < low[b, k] for some k; and when a beats
    one that beats b. Points order this relation, so that it has no cycles: it is irreflexive, antisymmetric and
    transitive. Widening an interval about its point only ever takes pairs away.

    Args:
        value, low, high: [n, k] objectives to be made small, low <= value <= high.

    Returns:
        [n, n] bool: [a, b] says that a beats b.

    >>> points = np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    >>> dominance(points, points, points).any(0)
    array([False,  True, False])
    """
    nowhere_above = (value[:, None] <= value[None]).all(-1)
    somewhere_below = (high[:, None] < low[None]).any(-1)
    beats = np.asarray(nowhere_above & somewhere_below)
    for middle in range(len(value)):
        beats |= beats[:, middle, None] & beats[None, middle]
    return beats


# -- objectives ---------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Bounds:
    """A figure to be made small, and the ends between which it may really lie."""

    value: float
    low: float
    high: float


Objective = Callable[[Trial], Bounds | None]


def _around(value: float | None, low: float | None = None, high: float | None = None) -> Bounds | None:
    """Bounds that hold their own point; None where any part is missing or is not a number."""
    if value is None or not math.isfinite(value):
        return None
    low, high = (value if end is None else end for end in (low, high))
    if math.isnan(low) or math.isnan(high):
        return None
    return Bounds(value, min(low, value), max(high, value))


def _quality(trial: Trial) -> Bounds | None:
    drop = trial.quality and trial.quality.drop
    return _around(drop.value, drop.low, drop.high) if drop else None


def _training(trial: Trial) -> Bounds | None:
    seconds = trial.training and trial.training.seconds
    if seconds is None:
        return None
    return _around(seconds, seconds * (1 - TRAINING_NOISE), seconds * (1 + TRAINING_NOISE))


def _inference(trial: Trial) -> Bounds | None:
    """Time relative to the baseline, 1 / speedup; where one pair ran there is no interval, so anything goes."""
    speedup = trial.inference and trial.inference.speedup
    if not speedup or speedup.value is None or not speedup.value > 0:
        return None
    low = 1 / speedup.high if speedup.high else 0.0
    high = 1 / speedup.low if speedup.low is not None and speedup.low > 0 else math.inf
    return _around(1 / speedup.value, low, high)


def _bytes(trial: Trial) -> Bounds | None:
    return _around(trial.artifact and trial.artifact.bytes)


def _memory(trial: Trial) -> Bounds | None:
    return _around(trial.inference and trial.inference.peak_memory_bytes)


OBJECTIVES: Mapping[str, Objective] = {
    "quality": _quality,
    "training": _training,
    "inference": _inference,
    "bytes": _bytes,
    "memory": _memory,
}
"""What a frontier can be drawn over, each made small: the drop, the seconds, 1 / speedup, the artifact, memory."""

_MEASURED_BY: Mapping[str, str] = {"quality": "quality", "training": "training cost", "inference": "speedup",
                                   "bytes": "artifact", "memory": "serving memory"}


# -- the frontier -------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Standing:
    """Where one trial stands.

    Args:
        trial: the trial.
        status: "front": no other trial's points are nowhere worse and somewhere better; "tied": some trial's are,
            but by no more than the intervals allow for; "dominated": beaten beyond its intervals.
        by: the id of the trial that beats it (or, where tied, whose points do); None on the front.
    """

    trial: Trial
    status: Status
    by: str | None = None


@final
@dataclass(frozen=True)
class Incomplete:
    """A trial that has no place: it failed, or a figure was not measured."""

    trial: Trial
    reason: str


@final
@dataclass(frozen=True)
class Frontier:
    """Every comparable trial with its standing, in the order given; the others apart, never ranked."""

    objectives: tuple[str, ...]
    standings: tuple[Standing, ...]
    incomplete: tuple[Incomplete, ...] = ()

    @property
    def front(self) -> tuple[Trial, ...]:
        return tuple(s.trial for s in self.standings if s.status == "front")

    def standing(self, id: str) -> Standing | None:
        """The standing of the trial of that id, None where it has none."""
        return next((s for s in self.standings if s.trial.id == id), None)


def frontier(trials: Iterable[Trial], objectives: Sequence[str] = ("quality", "training", "inference")) -> Frontier:
    """Find the trials that no other trial beats.

    Args:
        trials: trials of one workload on one target, scored on one split.
        objectives: some of `OBJECTIVES`.

    Raises:
        FrontierError: an objective is unknown, or the trials cannot be compared.

    >>> frontier([]).front
    ()
    """
    for name in objectives:
        objective(name)
    complete, figures, incomplete = [], [], []
    for trial in trials:
        reason, row = objectives_of(trial, objectives)
        if reason:
            incomplete.append(Incomplete(trial, reason))
        else:
            complete.append(trial)
            figures.append(row)
    comparable(complete)
    table = np.array([[(x.value, x.low, x.high) for x in row] for row in figures], dtype=np.float64)
    value, low, high = table.reshape(len(complete), len(objectives), 3).transpose(2, 0, 1)
    beats, above = dominance(value, low, high), dominance(value, value, value)
    return Frontier(
        tuple(objectives),
        tuple(_standing(complete, i, beats, above) for i in range(len(complete))),
        tuple(incomplete),
    )


def _standing(trials: list[Trial], i: int, beats: NDArray[np.bool_], above: NDArray[np.bool_]) -> Standing:
    """The one named as better is itself unbeaten: following who beats whom ends there, as there are no cycles."""
    if not above[:, i].any():
        return Standing(trials[i], "front")
    status: Status = "dominated" if beats[:, i].any() else "tied"
    better = beats if status == "dominated" else above
    best = np.flatnonzero(better[:, i] & ~better.any(0))
    on_front = [j for j in best if not above[:, j].any()]
    return Standing(trials[i], status, trials[(on_front or list(best))[0]].id)


def objective(name: str) -> Objective:
    """How to read an objective off a trial.

    Raises:
        FrontierError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise FrontierError(f"there is no objective {name!r}; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def objectives_of(trial: Trial, names: Sequence[str]) -> tuple[str, list[Bounds]]:
    """Why the trial cannot be compared ("" where it can), and its objectives."""
    read = [objective(name) for name in names]
    if trial.status != "done":
        return f"failed: {trial.error or 'no reason was given'}", []
    found = [each(trial) for each in read]
    missing = [_MEASURED_BY[name] for name, figure in zip(names, found, strict=True) if figure is None]
    return (f"not measured: {', '.join(missing)}" if missing else ""), [x for x in found if x is not None]


def comparable(trials: Sequence[Trial]) -> None:
    """Refuse to compare across workloads, targets or splits.

    Raises:
        FrontierError: says what differs.
    """
    for what, keys in (
        ("workloads", {f"{t.workload} {t.workload_hash[:12]}" for t in trials}),
        ("targets", {", ".join(f"{k} {v}" for k, v in sorted(t.target.items())) for t in trials}),
        ("splits", {t.quality.split for t in trials if t.quality}),
    ):
        if len(keys) > 1:
            raise FrontierError(f"trials of different {what} cannot be compared: {'; '.join(sorted(keys))}")
