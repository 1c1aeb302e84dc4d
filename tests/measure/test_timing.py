from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from thrifty.measure import scenarios
from thrifty.measure.comparison import Comparison, Reading, summarize
from thrifty.measure.process import Worker, WorkerFailed
from thrifty.measure.sides import CallableSide
from thrifty.measure.statistics import verdict
from thrifty.measure.timing import Effort, alone, compare, undisturbed

FACTORIES = Path(__file__).with_name("factories.py")
QUICK = Effort(rounds=2, block_seconds=0.004, cycles=2)
ONE = [np.ones((1, 2))]


def side(name: str) -> CallableSide:
    return CallableSide(f"{FACTORIES}:{name}")


@pytest.fixture(scope="module")
def three() -> Comparison:
    sides = {"once": side("work"), "twice": side("work_twice"), "again": side("work")}
    return compare(sides, "once", ONE, effort=dataclasses.replace(QUICK, rounds=3))


def test_twice_the_work_is_slower(three: Comparison) -> None:
    twice = three.ratios["twice"]
    assert twice is not None
    assert twice.low is not None
    assert 0.2 < twice.value < 0.9
    assert twice.n == 3
    assert three.figures["twice"].p50 > three.figures["once"].p50


def test_any_side_can_be_the_baseline(three: Comparison) -> None:
    a, b = three.ratio("twice", over="once"), three.ratio("once", over="twice")
    assert a == three.ratios["twice"]
    assert a is not None
    assert b is not None
    assert a.value == pytest.approx(1 / b.value)


def test_raw_blocks_are_kept_and_figures_follow_from_them(three: Comparison) -> None:
    assert len(three.readings) == 9
    assert all(len(reading.blocks) == 2 * QUICK.cycles for reading in three.readings)
    plain = json.loads(json.dumps(three.to_json()))
    readings = [Reading.from_json(value) for value in plain["readings"]]
    assert readings == list(three.readings)
    assert summarize(three.scenario, three.baseline, three.sides, readings) == three
    assert plain["ratios"]["twice"]["verdict"] == verdict(three.ratios["twice"])


def test_figures_are_of_a_process(three: Comparison) -> None:
    for figures in three.figures.values():
        assert 0 < figures.p50 <= figures.p90
        assert figures.first_inference_seconds >= figures.first_call_seconds > 0
        assert figures.throughput_per_second == pytest.approx(figures.batch / figures.p50)
        assert figures.peak_memory_bytes is not None
        assert figures.peak_memory_bytes >= 0


def test_one_round_screens() -> None:
    found = compare(
        {"a": side("work"), "b": side("work")}, "a", ONE, effort=dataclasses.replace(QUICK, rounds=1)
    )
    assert verdict(found.ratios["b"]) == "screened"


def test_an_interrupted_comparison_goes_on_where_it_stopped() -> None:
    seen: list[tuple[int, int]] = []
    rounds: list[int] = []
    sides = {"a": side("work"), "b": side("work")}
    first = compare(sides, "a", ONE, effort=dataclasses.replace(QUICK, rounds=1))
    both = compare(
        sides,
        "a",
        ONE,
        effort=QUICK,
        kept=first.readings,
        on_round=lambda index, readings: rounds.append(index),
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert both.readings[:2] == first.readings
    assert rounds == [1]
    assert seen == [(1, 2), (2, 2)]


def test_a_failing_side_fails_the_comparison_and_says_which() -> None:
    with pytest.raises(WorkerFailed, match="raises"):
        compare({"a": side("work"), "b": side("raises")}, "a", ONE, effort=QUICK)


@pytest.mark.parametrize("names", [["a"], ["b", "c"]])
def test_a_comparison_needs_its_baseline_and_another(names: list[str]) -> None:
    with pytest.raises(ValueError, match="two or more sides"):
        compare(dict.fromkeys(names, side("work")), "a", ONE)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"cycles": 0}, {"block_seconds": 0.0}])
def test_an_effort_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Effort(**wrong)  # type: ignore[arg-type]


def test_one_side_alone_has_figures() -> None:
    figures = alone(side("work"), ONE, effort=dataclasses.replace(QUICK, rounds=1))
    assert figures.p50 > 0


def test_a_busy_machine_is_warned_of() -> None:
    steady = Reading("a", 0, 1, (1.0, 1.01, 0.99, 1.0), 5, 1.0, 1.1, 0.1, 0.1, 0.1, None, None, None)
    noisy = dataclasses.replace(steady, side="b", blocks=(1.0, 1.5, 1.0, 1.9))
    found = summarize("SingleStream", "a", ["a", "b"], [steady, noisy])
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("b: block times")
    assert found.figures["a"].peak_memory_bytes is None
    assert found.figures["a"].joules is None


def test_disturbed_calls_are_left_out_where_others_remain() -> None:
    seconds = np.array([1.0, 5.0, 1.1])
    assert undisturbed(seconds, np.array([False, True, False])).tolist() == [1.0, 1.1]
    assert undisturbed(seconds, np.array([True, True, True])).tolist() == seconds.tolist()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are pinned to a core on Linux")
def test_a_busy_neighbour_on_the_same_core_is_noticed() -> None:
    core = [min(os.sched_getaffinity(0))]
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(hog.pid, core)
        with Worker(side("work")) as worker:
            worker.load()
            os.sched_setaffinity(worker.pid, core)
            worker.prepare(ONE)
            seconds, interrupted = worker.request("time", calls=400)[1]
    finally:
        hog.kill()
        hog.wait()
    assert seconds.shape == interrupted.shape == (400,)
    assert interrupted.any()
    assert np.mean(seconds[interrupted]) > np.mean(seconds[~interrupted])


# -- scenarios ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    max_batch: int = 16
    latency: float = 0.01


def example(n: int) -> list[np.ndarray]:
    return [np.ones((n, 2))]


def test_single_stream_is_batch_one() -> None:
    sides = {"a": side("work"), "b": side("work_twice")}
    found = scenarios.measure(Scenario("SingleStream"), sides, "a", example, effort=QUICK)
    assert found.scenario == "SingleStream"
    assert {figures.batch for figures in found.figures.values()} == {1}


def test_offline_takes_each_side_at_its_own_best_batch() -> None:
    sides = {"fixed": side("fixed_four"), "free": side("batched")}
    found = scenarios.measure(Scenario("Offline"), sides, "fixed", example, effort=QUICK)
    assert found.figures["fixed"].batch == 4
    assert found.figures["free"].batch in (4, 8)
    ratio, figures = found.ratios["free"], found.figures
    assert ratio is not None
    assert figures["free"].throughput_per_second
    assert figures["fixed"].throughput_per_second
    assert ratio.value < 1  # a rate of samples, not of calls


def test_a_batch_that_kills_the_worker_is_not_chosen() -> None:
    assert scenarios.best_batch(side("dies_at_eight"), example, 64) == 4


def test_a_side_that_takes_no_batch_is_an_error() -> None:
    with pytest.raises(scenarios.ScenarioError, match="ran at no batch size up to 2"):
        scenarios.best_batch(side("fixed_four"), example, 2)


def test_server_compares_rates_within_the_bound() -> None:
    sides = {"a": side("service"), "b": side("service")}
    found = scenarios.measure(Scenario("Server", latency=0.05), sides, "a", example, effort=QUICK)
    rate = found.figures["b"].throughput_per_second
    assert rate is not None
    assert rate <= 1 / 15e-6
    assert all(reading.rate and not reading.durations for reading in found.readings)
    ratio = found.ratios["b"]
    assert ratio is not None
    assert ratio.n == 2


def test_server_with_a_bound_that_nothing_meets_is_not_measured() -> None:
    sides = {"a": side("service"), "b": side("service")}
    found = scenarios.measure(Scenario("Server", latency=1e-9), sides, "a", example, effort=Effort(1, 0.004, 1))
    assert found.ratios["b"] is None
    assert found.figures["a"].throughput_per_second is None
    assert any("latency bound" in warning for warning in found.warnings)
    assert verdict(found.ratios["b"]) == "not measured"


def test_an_unknown_scenario_names_those_known() -> None:
    with pytest.raises(scenarios.ScenarioError, match="SingleStream, Offline, Server"):
        scenarios.measure(Scenario("MultiStream"), {}, "a", example)
