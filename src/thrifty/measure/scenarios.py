"""How each serving scenario is measured. A scenario is known by its name: one function and one entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np

from thrifty.errors import ThriftyError
from thrifty.measure.comparison import Comparison, Reading
from thrifty.measure.process import Worker, WorkerDied, WorkerFailed, WorkerTimeout
from thrifty.measure.queueing import LEAST_SAMPLES, highest_rate
from thrifty.measure.sides import Side
from thrifty.measure.timing import Effort, Inputs, OnRound, Progress, compare, undisturbed

Example = Callable[[int], Inputs]
"""n -> arrays of n requests."""

_LONGEST_CALL = 5.0  # seconds: a batch beyond it answers nobody and would make the search as long as it likes
_REPEATS = 5


class Measured(Protocol):
    """What measuring needs of a scenario (`thrifty.workloads.workload.Scenario`)."""

    @property
    def name(self) -> str: ...


class ScenarioError(ThriftyError):
    """A scenario that cannot be measured on these sides."""


@final
@dataclass(frozen=True)
class Bench:
    """All that is the same in every scenario; the fields are `measure`'s arguments."""

    sides: Mapping[str, Side]
    baseline: str
    example: Example
    effort: Effort
    threads: int
    device: str
    memory: int | None
    progress: Progress | None
    kept: Sequence[Reading]
    on_round: OnRound | None

    def compare(self, scenario: str, inputs: Inputs | Mapping[str, Inputs]) -> Comparison:
        return compare(
            self.sides,
            self.baseline,
            inputs,
            threads=self.threads,
            device=self.device,
            effort=self.effort,
            scenario=scenario,
            progress=self.progress,
            kept=self.kept,
            on_round=self.on_round,
        )

    def best_batch(self, side: Side, most: int) -> int:
        return best_batch(
            side, self.example, most, threads=self.threads, device=self.device, memory=self.memory
        )


def measure(
    scenario: Measured,
    sides: Mapping[str, Side],
    baseline: str,
    example: Example,
    *,
    threads: int = 1,
    device: str = "cpu",
    rounds: int = 5,
    memory: int | None = None,
    effort: Effort | None = None,
    progress: Progress | None = None,
    kept: Sequence[Reading] = (),
    on_round: OnRound | None = None,
) -> Comparison:
    """Measure sides as the scenario serves them.

    Args:
        scenario: SingleStream(), Offline() or Server(latency=...), by its ``name``.
        sides, baseline, threads, device, progress, kept, on_round: as of `compare`.
        example: n -> arrays of n requests.
        rounds: 1 screens, 5 or more claim; ``effort`` overrides it.
        memory: bytes that serving may use (Offline), None for no limit.

    Returns:
        the comparison, its ratios in the scenario's own figure of speed.

    Raises:
        ScenarioError: no way to measure the scenario is known, or a side takes no batch at all.
    """
    if scenario.name not in SCENARIOS:
        raise ScenarioError(
            f"{scenario.name!r} cannot be measured; known: {', '.join(SCENARIOS)}"
        )
    effort = effort or Effort(rounds)
    bench = Bench(sides, baseline, example, effort, threads, device, memory, progress, kept, on_round)
    return SCENARIOS[scenario.name](scenario, bench)


# -- SingleStream ----------------------------------------------------------------------------------


def _single_stream(scenario: Any, bench: Bench) -> Comparison:
    """One request after the other: the ratio of median latencies at batch 1."""
    return bench.compare(scenario.name, bench.example(1))


# -- Offline ---------------------------------------------------------------------------------------


def _offline(scenario: Any, bench: Bench) -> Comparison:
    """All requests at hand: the ratio of samples per second, each side at its own best batch within memory."""
    known = {reading.side: reading.batch for reading in bench.kept}  # a resumed comparison keeps its batches
    inputs = {
        name: bench.example(known.get(name) or bench.best_batch(side, scenario.max_batch))
        for name, side in bench.sides.items()
    }
    return bench.compare(scenario.name, inputs)


def best_batch(
    side: Side,
    example: Example,
    most: int,
    *,
    threads: int = 1,
    device: str = "cpu",
    memory: int | None = None,
) -> int:
    """The power of two with the most samples per second, among those that the side takes.

    The search ends at ``most``, at the memory limit, where the worker dies (a batch too large takes nothing
    else with it), where a call passes 5 s, and after two batches that were no better.

    Raises:
        ScenarioError: the side takes none of them.
    """
    rates: dict[int, float] = {}
    refusal: ThriftyError | None = None
    with Worker(side, threads=threads, device=device) as worker:
        worker.load()
        for batch in (1 << power for power in range(max(1, most).bit_length())):
            try:
                worker.prepare(example(batch))
                warm = float(worker.time(1)[0])
                if warm <= _LONGEST_CALL:
                    seconds, interrupted = worker.request("time", calls=_REPEATS)[1]
                    warm = float(np.median(undisturbed(seconds, interrupted)))
                used = worker.memory()
            except WorkerFailed as error:  # an engine of fixed shape refuses this batch and may take the next
                refusal = error
                continue
            except (WorkerDied, WorkerTimeout) as error:
                refusal = error
                break
            peak = used["device_peak_bytes"] or used["peak_bytes"] or 0
            if rates and memory is not None and peak > memory:
                break
            rates[batch] = batch / warm
            if warm > _LONGEST_CALL or _past_best(list(rates.values())):
                break
    if not rates:
        raise ScenarioError(f"{side!r} ran at no batch size up to {most}; the last error was: {refusal}")
    return max(rates, key=lambda batch: rates[batch])


def _past_best(rates: Sequence[float]) -> bool:
    """Whether the last two were no better than the best before them."""
    return len(rates) > 2 and max(rates[-2:]) <= max(rates[:-2])


# -- Server ----------------------------------------------------------------------------------------


def _server(scenario: Any, bench: Bench) -> Comparison:
    """Poisson arrivals: the ratio of the highest rates whose p99 latency meets the bound."""
    least = max(bench.effort.least_calls, LEAST_SAMPLES)
    effort = dataclasses.replace(
        bench.effort, least_calls=least, finish=lambda reading: _with_rate(reading, scenario.latency)
    )
    return dataclasses.replace(bench, effort=effort).compare(scenario.name, bench.example(1))


def _with_rate(reading: Reading, latency: float) -> Reading:
    # One seed a round, the same for every side: they meet the same arrivals.
    rate = highest_rate(reading.durations, latency, seed=reading.round)
    return dataclasses.replace(reading, rate=rate or 0.0, durations=())


SCENARIOS: Mapping[str, Callable[[Any, Bench], Comparison]] = {
    "SingleStream": _single_stream,
    "Offline": _offline,
    "Server": _server,
}
