"""What a comparison found: raw readings first, then figures and ratios derived from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from thrifty.measure.statistics import Interval, pair_log_ratio, ratio_interval, verdict

_UNSTABLE = 0.10
_INTERRUPTED = 0.25


@final
@dataclass(frozen=True)
class Reading:
    """One side in one process.

    Args:
        side: its name.
        round: which set of fresh processes.
        batch: examples in a call.
        blocks: median seconds a call of each block, in the order in which they ran.
        calls: calls in a block.
        p50, p90: seconds a call over the timed calls of the process.
        runtime_seconds: import of the runtime; not part of first inference.
        load_seconds: loading the model.
        first_call_seconds: the first call after it.
        empty_bytes: resident with the runtime and no model.
        peak_bytes: highest resident from after loading on, or reserved on the device; None where unknown.
        joules: a call, None where no counter is readable.
        durations: every timed call's seconds, where they were asked for.
        interrupted: share of calls in which another process was given the processor; blocks, p50 and p90 leave them
            out where a block has others.
        rate: examples per second that count as this process's speed, where it is not batch / seconds; 0 where the
            scenario's bound is missed at any rate.
    """

    side: str
    round: int
    batch: int
    blocks: tuple[float, ...]
    calls: int
    p50: float
    p90: float
    runtime_seconds: float
    load_seconds: float
    first_call_seconds: float
    empty_bytes: int | None
    peak_bytes: int | None
    joules: float | None
    durations: tuple[float, ...] = ()
    interrupted: float = 0.0
    rate: float | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reading:
        """The reading that `dataclasses.asdict` and JSON have carried."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**fields)

    @property
    def spread(self) -> float:
        """Interquartile range of the blocks over their median."""
        low, middle, high = np.percentile(self.blocks, [25, 50, 75])
        return float((high - low) / middle)


@final
@dataclass(frozen=True)
class Figures:
    """One side over all its processes: the median of each figure.

    Args:
        p50, p90: seconds a call.
        batch: examples in a call.
        throughput_per_second: examples per second, one call after the other; the Server scenario's is its
            highest rate.
        first_inference_seconds: from an imported runtime to the first answer: load and first call.
        first_call_seconds: the first call alone.
        peak_memory_bytes: above an empty runtime.
        joules: an example.
    """

    p50: float
    p90: float
    batch: int
    throughput_per_second: float | None
    first_inference_seconds: float
    first_call_seconds: float
    peak_memory_bytes: int | None
    joules: float | None


@final
@dataclass(frozen=True)
class Comparison:
    """Sides measured against each other in the same rounds.

    Args:
        scenario: which figure ``ratios`` are of.
        baseline: the name that ratios refer to.
        sides: names in the order in which they ran.
        readings: raw, round by round.
        figures: one for each side.
        ratios: speed over the baseline's, above 1 = faster; None where it was not measured.
        warnings: what a reader should know before trusting the figures.
    """

    scenario: str
    baseline: str
    sides: tuple[str, ...]
    readings: tuple[Reading, ...]
    figures: dict[str, Figures]
    ratios: dict[str, Interval | None]
    warnings: tuple[str, ...]

    def of(self, side: str) -> list[Reading]:
        """The side's readings, round by round."""
        return [reading for reading in self.readings if reading.side == side]

    def ratio(self, side: str, over: str) -> Interval | None:
        """One side's speed over another's, from the same rounds; above 1 = ``side`` is faster.

        None where a side misses the scenario's bound at any rate.
        """
        return speed_ratio(self.of(over), self.of(side))

    def to_json(self) -> dict[str, Any]:
        """Everything, raw values included, as JSON values."""
        return {
            **dataclasses.asdict(self),
            "ratios": {
                name: None if ratio is None else {**ratio.to_json(), "verdict": verdict(ratio)}
                for name, ratio in self.ratios.items()
            },
        }


def speed_ratio(baseline: Sequence[Reading], side: Sequence[Reading]) -> Interval | None:
    """Interval of examples per second over the baseline's; None where a rate is 0."""
    if any(reading.rate == 0 for reading in (*baseline, *side)):
        return None
    return ratio_interval([_log_ratio(a, b) for a, b in zip(baseline, side, strict=True)])


def _log_ratio(a: Reading, b: Reading) -> float:
    if a.rate and b.rate:
        return math.log(b.rate / a.rate)
    return pair_log_ratio(a.blocks, b.blocks) + math.log(b.batch / a.batch)


def summarize(scenario: str, baseline: str, sides: Sequence[str], readings: Sequence[Reading]) -> Comparison:
    """The comparison of raw readings."""
    by_side = {name: [r for r in readings if r.side == name] for name in sides}
    return Comparison(
        scenario=scenario,
        baseline=baseline,
        sides=tuple(sides),
        readings=tuple(readings),
        figures={name: figures(rows) for name, rows in by_side.items()},
        ratios={
            name: speed_ratio(by_side[baseline], rows) for name, rows in by_side.items() if name != baseline
        },
        warnings=tuple(warning for name, rows in by_side.items() for warning in _unstable(name, rows)),
    )


def figures(rows: Sequence[Reading]) -> Figures:
    """Medians over the side's processes."""
    p50, batch = float(np.median([r.p50 for r in rows])), rows[0].batch
    memory = [r.peak_bytes - (r.empty_bytes or 0) for r in rows if r.peak_bytes is not None]
    rates = [r.rate for r in rows]
    known = [rate for rate in rates if rate is not None]
    joules = [r.joules / r.batch for r in rows if r.joules is not None]
    return Figures(
        p50=p50,
        p90=float(np.median([r.p90 for r in rows])),
        batch=batch,
        throughput_per_second=batch / p50 if None in rates else (float(np.median(known)) or None),
        first_inference_seconds=float(np.median([r.load_seconds + r.first_call_seconds for r in rows])),
        first_call_seconds=float(np.median([r.first_call_seconds for r in rows])),
        peak_memory_bytes=int(max(0.0, np.median(memory))) if memory else None,
        joules=float(np.median(joules)) if joules else None,
    )


def _unstable(name: str, rows: Sequence[Reading]) -> list[str]:
    warnings = []
    if any(r.rate == 0 for r in rows):
        warnings.append(
            f"{name}: it misses the latency bound even with nobody waiting, so no rate was measured"
        )
    interrupted = max(r.interrupted for r in rows)
    if interrupted > _INTERRUPTED:
        warnings.append(
            f"{name}: other processes got the processor during {100 * interrupted:.0f}% of its calls"
        )
    spread = max(r.spread for r in rows)
    if spread <= _UNSTABLE:
        return warnings
    return [
        *warnings,
        (
            f"{name}: block times of one process spread by {100 * spread:.0f}% (quartiles over median); "
            "the machine was busy: close what else runs, or ask for more rounds"
        ),
    ]
