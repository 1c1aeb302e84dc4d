"""Choosing one trial: constraints that it must meet, and what is then minimized."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from thrifty.studies.as_it_is import AsItIs, slower
from thrifty.studies.frontier import FrontierError, comparable, objectives_of
from thrifty.studies.trial import Ratio, Trial
from thrifty.units import NUMBER, seconds, size

MINIMIZE = {"latency": "inference", "bytes": "bytes", "memory": "memory", "training": "training"}
"""What can be made small -> the objective that it is judged by."""


@final
@dataclass(frozen=True)
class DropBar:
    """The most quality that may be lost: so many units of the quality, or a share of the baseline's."""

    amount: float
    relative: bool = False

    @staticmethod
    def parse(text: str | float | DropBar) -> DropBar:
        """Read "1pt" (0.01, absolute), "1%" (of the baseline) or "0.02" (in the quality's own unit).

        Raises:
            FrontierError: it is none of these; a text of 1 or more without a unit is none, as points or per cent may be meant.

        >>> DropBar.parse("1pt"), DropBar.parse("0.5%").relative
        (DropBar(amount=0.01, relative=False), True)
        """
        if isinstance(text, DropBar):
            return text
        match = re.fullmatch(rf"\s*{NUMBER}\s*(pt|%|)\s*", str(text))
        if not match:
            raise FrontierError(f"a drop is written 1pt (absolute), 1% (relative) or 0.02 (in the quality's unit), "
                                f"but is {text!r}")
        amount, unit = float(match[1]), match[2]
        if isinstance(text, str) and not unit and amount >= 1:
            raise FrontierError(f"a drop of {amount:g} can mean {amount:g}pt ({amount / 100:g}, absolute), {amount:g}% (of the "
                                f"reference), or {100 * amount:g}pt ({amount:g} in the quality's own unit): say which")
        return DropBar(amount / 100 if unit else amount, unit == "%")

    def __str__(self) -> str:
        if self.relative:
            return f"{100 * self.amount:g}%"
        return f"{100 * self.amount:g}pt" if self.amount >= 1 else f"{self.amount:g}"

    def allows(self, baseline: float) -> float:
        """The largest drop, in the quality's unit."""
        return self.amount * abs(baseline) if self.relative else self.amount


# -- bars ---------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Miss:
    """A bar that a trial is over: its name, the trial's figure, and the most that it allows."""

    bar: str
    figure: float
    limit: float

    @property
    def share(self) -> float:
        """By how much it is over, as a share of the constraint."""
        return (self.figure - self.limit) / max(abs(self.limit), 1e-12)


@final
@dataclass(frozen=True)
class Bars:
    """The constraints a trial must meet, and what to minimize among those that do.

    Args:
        max_drop: largest drop of quality, judged by the upper end of its interval.
        max_bytes: largest size of the artifact.
        max_latency: seconds a request, the median.
        minimize: "latency", "bytes", "memory" or "training".

    Raises:
        FrontierError: a constraint or what to minimize cannot be read.
    """

    max_drop: DropBar | None = None
    max_bytes: int | None = None
    max_latency: float | None = None
    minimize: str = "latency"

    def __post_init__(self) -> None:
        if self.minimize not in MINIMIZE:
            raise FrontierError(f"--minimize must be one of {', '.join(MINIMIZE)} but is {self.minimize!r}")

    @staticmethod
    def read(max_drop: str | float | DropBar | None = None, max_bytes: str | float | None = None,
             max_latency: str | float | None = None, minimize: str = "latency") -> Bars:
        """Bars from texts: "1pt", "2MB", "5ms".

        >>> Bars.read("1pt", "2MB", "5ms").max_latency
        0.005
        """
        return Bars(None if max_drop is None else DropBar.parse(max_drop), None if max_bytes is None else size(max_bytes),
                    None if max_latency is None else seconds(max_latency), minimize)

    @property
    def objective(self) -> str:
        """The one of `thrifty.studies.frontier.OBJECTIVES` that is minimized."""
        return MINIMIZE[self.minimize]

    def misses(self, trial: Trial) -> tuple[Miss, ...]:
        """The constraints that the trial is over; what was not measured is over its constraint."""
        over = []
        if self.max_drop is not None and trial.quality is not None:
            over.append(Miss("max_drop", trial.quality.drop.high, self.max_drop.allows(trial.quality.baseline)))
        if self.max_bytes is not None:
            over.append(Miss("max_bytes", trial.artifact.bytes if trial.artifact else math.inf, self.max_bytes))
        if self.max_latency is not None:
            over.append(Miss("max_latency", trial.inference.latency_p50 if trial.inference else math.inf,
                             self.max_latency))
        return tuple(miss for miss in over if not miss.figure - miss.limit < 1e-9 * max(1.0, abs(miss.limit)))

    def open(self, trial: Trial) -> bool:
        """Whether more evidence may yet show that the trial meets the constraints: the drop's lower end does."""
        lower = self.max_drop is None or trial.quality is None or (
            trial.quality.drop.low <= self.max_drop.allows(trial.quality.baseline))
        return lower and all(miss.bar == "max_drop" for miss in self.misses(trial))

    @staticmethod
    def of(kept: Mapping[str, Any] | None) -> Bars:
        """From what `to_json` gave; no constraints where nothing was kept."""
        return Bars.read(**(kept or {}))

    def to_json(self) -> dict[str, Any]:
        return {"max_drop": self.max_drop and str(self.max_drop), "max_bytes": self.max_bytes,
                "max_latency": self.max_latency, "minimize": self.minimize}


# -- choosing -----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Choice:
    """The best trial that meets the constraints and beats the model as it is, or None; then what comes nearest to that.

    Args:
        trial: meets every constraint and is significantly better than the model as it is; None where nothing is.
        nearest: the same trial, or what comes closest; None where nothing was measured.
        misses: the constraints that ``nearest`` is over; none where it meets them.
        keep: why the model as it is should be kept; None where a trial is recommended, where the model as it is misses a
            constraint itself, or where nothing was measured.
    """

    trial: Trial | None
    nearest: Trial | None
    misses: tuple[Miss, ...] = ()
    keep: str | None = None


def choose(trials: Iterable[Trial], bars: Bars, as_it_is: AsItIs = AsItIs()) -> Choice:
    """Choose the trial with the least of something among those that meet the constraints and beat the model as it is.

    The drop is judged by the upper end of its interval, and so is what is minimized: a speed that was screened with
    one pair comes after every speed that has an interval, and beats nothing. Among latencies that cannot be told from the
    least (their value is below its upper end) the smallest drop decides. What is slower than the unmodified model is
    never chosen, whatever is minimized. Failed and unmeasured trials are never chosen.

    Args:
        trials: as for `frontier`.
        bars: what to keep to, and what to minimize.
        as_it_is: what is known of the model that nothing was done to; with a doubt, nothing is chosen.

    Raises:
        FrontierError: the trials cannot be compared.
    """
    ranked = []
    for trial in trials:
        reason, row = objectives_of(trial, ("quality", bars.objective))
        if not reason and not math.isnan(row[0].high):
            ranked.append((row[1].high, row[1].value, row[0].high, trial))
    comparable([trial for *_, trial in ranked])
    ranked.sort(key=lambda entry: entry[:3])
    meeting = [entry for entry in ranked if not bars.misses(entry[3])]
    chosen = _least([entry for entry in meeting if as_it_is.beaten(bars.objective, entry[3])], bars)
    nearest = chosen or next((trial for *_, trial in meeting), None) or min(
        (trial for *_, trial in ranked), key=lambda t: max(miss.share for miss in bars.misses(t)), default=None)
    if as_it_is.doubt is not None:
        chosen = None
    keep = None if chosen is not None or nearest is None else _kept(nearest, bars, as_it_is)
    return Choice(chosen, nearest, bars.misses(nearest) if nearest else (), keep)


def _least(ranked: Sequence[tuple[float, float, float, Trial]], bars: Bars) -> Trial | None:
    """The first of sorted (upper end, value, drop's upper end, trial); of latencies like its own, that with the smallest drop."""
    if not ranked:
        return None
    alike = [entry for entry in ranked if entry[1] <= ranked[0][0]] if bars.objective == "inference" else ranked[:1]
    return min(alike, key=lambda entry: entry[2])[3]


def _kept(nearest: Trial, bars: Bars, as_it_is: AsItIs) -> str | None:
    """Why the model as it is should be kept, seen from the trial that comes nearest; None where it misses a constraint itself."""
    if as_it_is.doubt is not None:
        return as_it_is.doubt
    if bars.misses(nearest):
        meets = as_it_is.meets({"max_bytes": bars.max_bytes, "max_latency": bars.max_latency}, nearest)
        return "no trial meets the constraints, but it does" if meets else None
    speed = nearest.inference and nearest.inference.speedup
    if slower(speed):
        return f"no trial that meets the constraints is faster than it: the nearest is {_times(speed)} as fast"
    if bars.objective != "inference":
        return f"no trial that meets the constraints needs significantly less {bars.minimize}"
    if speed is not None and speed.low is None:
        return (f"no trial that meets the constraints is significantly faster: the nearest was screened at {_times(speed)} with "
                "one pair of processes, which is not evidence yet: explore again with a larger --budget, which resumes from "
                "there, or run its recipe with --pairs 5")
    return f"no trial that meets the constraints is significantly faster: the nearest is {_times(speed)} as fast"


def _times(speed: Ratio | None) -> str:
    if speed is None or speed.value is None:
        return "not known to be"
    ends = "" if speed.low is None or speed.high is None else f" [{speed.low:.2f}, {speed.high:.2f}]"
    return f"{speed.value:.2f}x{ends}"


def best(trials: Iterable[Trial], max_drop: str | float | DropBar | None = None, minimize: str = "latency", *,
         max_bytes: str | float | None = None, max_latency: str | float | None = None) -> Choice:
    """Choose the best trial under constraints that are given as text, such as "1pt" or "5ms".

    Args:
        trials: as for `frontier`.
        max_drop: such as "1pt" or "1%".
        minimize: "latency", "bytes", "memory" or "training".
        max_bytes: such as "2MB".
        max_latency: such as "5ms".

    Raises:
        FrontierError: a constraint cannot be read, or the trials cannot be compared.

    >>> best([], "1pt").trial is None
    True
    """
    return choose(trials, Bars.read(max_drop, max_bytes, max_latency, minimize))
