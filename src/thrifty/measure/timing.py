"""Compares sides in fresh, interleaved worker processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import final

import numpy as np

from thrifty.measure import energy
from thrifty.measure.comparison import Comparison, Figures, Reading, figures, summarize
from thrifty.measure.process import Worker
from thrifty.measure.sides import Side

Inputs = Sequence[np.ndarray]
Progress = Callable[[int, int, str], None]
"""(rounds done, rounds, what happens now)"""

OnRound = Callable[[int, list[Reading]], None]
"""(round, its readings)"""

_MOST_CALLS = 100_000
_WARM_SECONDS = 0.15


@final
@dataclass(frozen=True)
class Effort:
    """How long and how often to measure.

    Args:
        rounds: sets of fresh processes: 1 screens, 5 or more claim.
        block_seconds: of one block.
        cycles: palindromes of blocks (A B B A) in a round; two blocks a side each.
        least_calls: timed calls of each side in a round, more cycles being run where they are too few.
        finish: turns a reading that holds every call's duration into the one to keep.

    Raises:
        ValueError: a value is out of range.
    """

    rounds: int = 5
    block_seconds: float = 0.04
    cycles: int = 4
    least_calls: int = 0
    finish: Callable[[Reading], Reading] | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.cycles < 1 or not self.block_seconds > 0:
            raise ValueError(
                f"rounds and cycles must be 1 or more and block_seconds above 0 but effort is {self}"
            )


def compare(
    sides: Mapping[str, Side],
    baseline: str,
    inputs: Inputs | Mapping[str, Inputs],
    *,
    threads: int = 1,
    device: str = "cpu",
    rounds: int = 5,
    block_seconds: float = 0.04,
    cycles: int = 4,
    effort: Effort | None = None,
    scenario: str = "SingleStream",
    progress: Progress | None = None,
    kept: Sequence[Reading] = (),
    on_round: OnRound | None = None,
) -> Comparison:
    """Measure sides against a baseline.

    Each round starts fresh processes, one a side, imports their runtimes at once, then loads and first calls
    them one by one, warms them up, and runs blocks in palindromes (A B B A; A B C C B A), the idle ones
    stopped. A round's log ratio is `pair_log_ratio` of its blocks' median seconds; ratios are Student t intervals
    over rounds.

    Args:
        sides: name -> what to measure; two or more.
        baseline: one of the names.
        inputs: arrays of one call, the first dimension being the batch; a mapping where sides differ.
        threads: of inference, in every worker.
        device: "cpu" or "cuda".
        rounds, block_seconds, cycles: see `Effort`; ``effort`` overrides the three.
        scenario: a label for the result.
        progress: called before each round and after the last.
        kept: readings of rounds measured before, by an interrupted call with the same arguments; not measured
            again.
        on_round: called with each new round's readings as soon as they are there.

    Returns:
        raw readings, figures and ratios.

    Raises:
        ValueError: the baseline is not a side, or there are fewer than two sides.
        WorkerDied, WorkerFailed, WorkerTimeout: a side could not be measured.

    >>> from thrifty.measure.sides import CallableSide
    >>> side = CallableSide("thrifty.measure.process:_identity")
    >>> found = compare({"a": side, "b": side}, "a", [np.ones(1)], rounds=1, block_seconds=0.001, cycles=1)
    >>> found.ratios["b"].low is None  # one round screens: no interval, no claim
    True
    """
    if baseline not in sides or len(sides) < 2:
        raise ValueError(
            f"there must be two or more sides, {baseline!r} among them, but they are {list(sides)}"
        )
    effort = effort or Effort(rounds, block_seconds, cycles)
    each = inputs if isinstance(inputs, Mapping) else dict.fromkeys(sides, inputs)
    report = progress or (lambda done, total, what: None)
    readings = [reading for reading in kept if reading.round < effort.rounds]
    done = {reading.round for reading in readings}
    for index in (i for i in range(effort.rounds) if i not in done):
        report(index, effort.rounds, f"timing {', '.join(sides)}")
        fresh = measure_round(sides, each, index, effort, threads, device)
        if on_round is not None:
            on_round(index, fresh)
        readings += fresh
    readings.sort(key=lambda reading: reading.round)
    report(effort.rounds, effort.rounds, "timed")
    return summarize(scenario, baseline, list(sides), readings)


def alone(
    side: Side,
    inputs: Inputs,
    *,
    threads: int = 1,
    device: str = "cpu",
    rounds: int = 5,
    effort: Effort | None = None,
) -> Figures:
    """Figures of one side on its own, over fresh processes; no ratio can come of it.

    >>> from thrifty.measure.sides import CallableSide
    >>> side = CallableSide("thrifty.measure.process:_identity")
    >>> alone(side, [np.ones(1)], rounds=1, effort=Effort(1, block_seconds=0.001, cycles=1)).batch
    1
    """
    effort = effort or Effort(rounds)
    return figures(
        [
            reading
            for index in range(effort.rounds)
            for reading in measure_round({"alone": side}, {"alone": inputs}, index, effort, threads, device)
        ]
    )


@contextmanager
def workers(sides: Mapping[str, Side], threads: int, device: str) -> Iterator[dict[str, Worker]]:
    """Fresh workers, runtimes imported (at the same time), no model loaded yet."""
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(Worker(side, threads=threads, device=device))
            for name, side in sides.items()
        }
        for worker in opened.values():
            worker.submit_runtime()
        yield opened


@final
@dataclass
class _Lane:
    """One side's accumulation within a round."""

    worker: Worker
    batch: int
    runtime: float
    load: float
    first: float
    calls: int = 1
    blocks: list[float] = field(default_factory=list)
    durations: list[np.ndarray] = field(default_factory=list)
    undisturbed: list[np.ndarray] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)
    interrupted: list[float] = field(default_factory=list)


def measure_round(
    sides: Mapping[str, Side],
    inputs: Mapping[str, Inputs],
    index: int,
    effort: Effort,
    threads: int,
    device: str,
) -> list[Reading]:
    """One reading for each side, from one set of fresh processes."""
    with workers(sides, threads, device) as opened:
        # All runtimes before any model: an import beside a first call would take its time.
        imported = {name: float(worker.result()[0]["seconds"]) for name, worker in opened.items()}
        lanes = {name: _start(worker, inputs[name], imported[name]) for name, worker in opened.items()}
        for lane in lanes.values():
            lane.calls = _calibrate(lane.worker, effort.block_seconds)
            lane.worker.stop()
        # An odd round starts from the other end: no side is always the first.
        names = list(lanes) if index % 2 == 0 else list(lanes)[::-1]
        meter = energy.meter(device)
        for _ in range(_cycles(effort, min(lane.calls for lane in lanes.values()))):
            for name in [*names, *names[::-1]]:
                _block(lanes[name], meter, effort.block_seconds)
        return [_reading(name, index, lanes[name], effort.finish) for name in sides]


def _cycles(effort: Effort, calls: int) -> int:
    return max(effort.cycles, math.ceil(effort.least_calls / (2 * calls)))


def _start(worker: Worker, inputs: Inputs, runtime: float) -> _Lane:
    load = worker.load_model()
    worker.prepare(inputs)
    first = float(worker.time(1)[0])
    batch = int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1
    return _Lane(worker, batch, runtime, load, first)


def _calibrate(worker: Worker, block_seconds: float) -> int:
    """Warm up; return how many calls fill a block."""
    worker.time(1, warm_seconds=_WARM_SECONDS)
    seconds = float(np.median(worker.time(3)))
    if seconds < 0.1 * block_seconds:  # three calls are a poor estimate, and cost little to better
        seconds = float(np.median(worker.time(20)))
    return int(min(_MOST_CALLS, max(1, round(block_seconds / max(seconds, 1e-9)))))


def _block(lane: _Lane, meter: energy.Meter, block_seconds: float) -> None:
    lane.worker.cont()
    before = meter.read()
    # The other side has just had the caches: some untimed calls, one at least, take them back.
    header, (seconds, interrupted) = lane.worker.request(
        "time", calls=lane.calls, warm_seconds=0.1 * block_seconds
    )
    spent = meter.between(before, meter.read())
    lane.worker.stop()
    counted = undisturbed(seconds, interrupted)
    lane.blocks.append(float(np.median(counted)))
    lane.durations.append(seconds)
    lane.undisturbed.append(counted)
    lane.interrupted.append(float(interrupted.mean()))
    # The counters ran during the untimed calls too.
    lane.joules.append(None if spent is None else spent / (header["warm_calls"] + lane.calls))


def undisturbed(seconds: np.ndarray, interrupted: np.ndarray) -> np.ndarray:
    """The calls in which no other process was given the processor; all of them where none is left.

    A scheduler's slice is milliseconds long: a call that lost one says what else ran, not what the model costs.

    >>> undisturbed(np.array([1.0, 5.0, 1.0, 1.0]), np.array([False, True, False, False])).tolist()
    [1.0, 1.0, 1.0]
    """
    kept: np.ndarray = seconds[~interrupted]
    return kept if len(kept) else seconds


def _reading(name: str, index: int, lane: _Lane, finish: Callable[[Reading], Reading] | None) -> Reading:
    every, counted = np.concatenate(lane.durations), np.concatenate(lane.undisturbed)
    memory = lane.worker.memory()
    on_device = memory["device_peak_bytes"] is not None
    joules = [value for value in lane.joules if value is not None]
    reading = Reading(
        side=name,
        round=index,
        batch=lane.batch,
        blocks=tuple(lane.blocks),
        calls=lane.calls,
        p50=float(np.median(counted)),
        p90=float(np.percentile(counted, 90)),
        runtime_seconds=lane.runtime,
        load_seconds=lane.load,
        first_call_seconds=lane.first,
        empty_bytes=0 if on_device else memory["empty_bytes"],
        peak_bytes=memory["device_peak_bytes"] if on_device else memory["peak_bytes"],
        joules=float(np.mean(joules)) if joules else None,
        interrupted=float(np.mean(lane.interrupted)),
        durations=() if finish is None else tuple(every.tolist()),
    )
    return reading if finish is None else finish(reading)
