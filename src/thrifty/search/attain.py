"""How soon trainings attain a quality: seconds, steps and FLOPs, with intervals over seeds. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from thrifty.measure.statistics import Interval, Verdict, mean_interval, ratio_interval, verdict
from thrifty.search.line import FAILED
from thrifty.training.loop import Evaluation


@final
@dataclass(frozen=True)
class Trained:
    """One training with one seed.

    Args:
        seed: of every random stream.
        curve: quality (higher is better) on validation on its way; empty where it diverged.
        wall: seconds of its process.
        apart: of these, seconds of evaluations.
        error: why it diverged.
    """

    seed: int
    curve: tuple[Evaluation, ...]
    wall: float
    apart: float = 0.0
    error: str = ""

    @property
    def quality(self) -> float:
        """At its end; `FAILED` where there is none."""
        found = self.curve[-1].quality if self.curve else FAILED
        return found if math.isfinite(found) else FAILED

    def attains(self, quality: float) -> Evaluation | None:
        """The first evaluation from which on none falls below a quality; None where the last one does."""
        attained = None
        for point in reversed(self.curve):
            if not point.quality >= quality:
                break
            attained = point
        return attained


@final
@dataclass(frozen=True)
class Attained:
    """What trainings of one recipe attain, over seeds.

    Args:
        seeds: of the trainings.
        attained: how many of them attain the quality asked for.
        diverged: how many have no quality at their end.
        quality: at the end, mean; None where one diverged.
        change: of it against the reference's of the same seed; positive is better.
        seconds, steps, flops: to the quality asked for, geometric means; None where one does not attain it.
        speedup: the reference's seconds over these, seed by seed: its own to that quality, or all of them where a seed
            of its own does not attain it, which flatters nobody but the reference.
        verdict: what may be said of it.
    """

    seeds: tuple[int, ...]
    attained: int
    diverged: int
    quality: Interval | None
    change: Interval | None
    seconds: Interval | None
    steps: Interval | None
    flops: Interval | None
    speedup: Interval | None
    verdict: Verdict


def attained(runs: Sequence[Trained], reference: Sequence[Trained], quality: float) -> Attained:
    """Judge trainings by how soon they attain a quality.

    Args:
        runs: of one recipe, one a seed.
        reference: of the reference, of the same seeds in the same order.
        quality: asked for; higher is better.
    """
    points = [point for run in runs if (point := run.attains(quality)) is not None]
    ends = [run.quality for run in runs]
    whole = FAILED not in ends
    every = len(points) == len(runs)
    changes = [run.quality - base.quality for run, base in zip(runs, reference, strict=True)]
    speedup = None
    if every:
        own = [(run.attains(quality) or run.curve[-1]).seconds for run in reference]
        speedup = ratio_interval([math.log(base / point.seconds) for base, point in zip(own, points, strict=True)])
    return Attained(
        seeds=tuple(run.seed for run in runs),
        attained=len(points),
        diverged=ends.count(FAILED),
        quality=mean_interval(ends) if whole else None,
        change=mean_interval(changes) if whole else None,
        seconds=_geometric([point.seconds for point in points]) if every else None,
        steps=_geometric([point.step for point in points]) if every else None,
        flops=_geometric([point.flops for point in points]) if every else None,
        speedup=speedup,
        verdict=verdict(speedup),
    )


def _geometric(values: Sequence[float]) -> Interval | None:
    """The geometric mean; None where one of them was not counted."""
    return ratio_interval([math.log(value) for value in values]) if all(value > 0 for value in values) else None
