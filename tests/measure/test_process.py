"""Workers: real processes, real deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from thrifty.measure.process import Worker, WorkerDied, WorkerFailed, WorkerTimeout, environment
from thrifty.measure.sides import ArtifactSide, CallableSide, ModuleSide, Side, from_json, to_json

FACTORIES = Path(__file__).with_name("factories.py")


def side(name: str) -> CallableSide:
    return CallableSide(f"{FACTORIES}:{name}")


def gone(pid: int, within: float = 10.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_worker_loads_runs_and_times() -> None:
    with Worker(side("double")) as worker:
        seconds = worker.load()
        assert seconds["runtime"] > 0
        assert seconds["load"] >= 0
        assert np.array_equal(worker.run([np.arange(3)])[0], [0, 2, 4])
        worker.prepare([np.ones(4)])
        times = worker.time(7, warm_seconds=0.001)
        assert times.shape == (7,)
        assert np.all(times > 0)
        pid = worker.pid
    assert not psutil.pid_exists(pid)  # reaped, not a zombie


def test_prints_of_libraries_do_not_reach_the_protocol() -> None:
    with Worker(side("chatty")) as worker:
        worker.load()
        for _ in range(3):
            assert worker.run([np.ones(2)])[0].tolist() == [1.0, 1.0]


def test_threads_are_set_before_libraries_start_and_torch_is_not_imported() -> None:
    with Worker(side("threads"), threads=3) as worker:
        worker.load()
        assert worker.run([])[0].tolist() == [3, 0]


def test_megabytes_travel_both_ways() -> None:
    sent = np.random.default_rng(0).standard_normal(1 << 20)
    with Worker(side("double")) as worker:
        worker.load()
        assert np.array_equal(worker.run([sent])[0], 2 * sent)


def test_an_error_in_a_command_is_told_and_the_worker_lives_on() -> None:
    with Worker(side("fixed_four")) as worker:
        worker.load()
        with pytest.raises(WorkerFailed, match="batch must be 4 but is 3") as error:
            worker.run([np.ones(3)])
        assert "factories.py" in error.value.traceback
        assert worker.run([np.ones(4)])[0].sum() == 8


def test_a_side_that_cannot_be_loaded_is_an_error_not_a_death() -> None:
    with Worker(side("raises")) as worker, pytest.raises(WorkerFailed, match="no such model"):
        worker.load()


def test_commands_out_of_order_say_so() -> None:
    with Worker(side("double")) as worker, pytest.raises(WorkerFailed, match="nothing is loaded"):
        worker.run([np.ones(1)])


def test_a_worker_killed_in_a_block_died() -> None:
    with Worker(side("sleeps")) as worker:
        worker.load()
        worker.prepare([])
        killer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerDied, match="SIGKILL, most likely because memory ran out"):
            worker.time(1)
        killer.join()
        with pytest.raises(WorkerDied):  # and stays dead
            worker.time(1)


def test_a_death_shows_the_last_words() -> None:
    with Worker(side("last_words")) as worker:
        worker.load()
        with pytest.raises(WorkerDied, match=r"exit code 3; it last wrote:\nthese were the last words"):
            worker.run([])


def test_a_worker_that_does_not_answer_is_stopped() -> None:
    with Worker(side("sleeps"), timeout=5.0) as worker:
        worker.load()
        worker.timeout = 0.3
        pid = worker.pid
        with pytest.raises(WorkerTimeout, match="did not answer"):
            worker.run([])
        with pytest.raises(WorkerDied, match="SIGKILL"):
            worker.run([])
    assert not psutil.pid_exists(pid)
    with pytest.raises(WorkerDied):  # closed, and says no more than that
        worker.memory()


def test_a_stopped_worker_stands_still_and_goes_on() -> None:
    with Worker(side("double")) as worker:
        worker.load()
        worker.stop()
        time.sleep(0.05)
        assert psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
        worker.cont()
        assert worker.run([np.ones(1)])[0].tolist() == [2.0]
        worker.stop()  # a stopped worker answers commands, and closes
        assert worker.run([np.ones(1)])[0].tolist() == [2.0]
        worker.stop()
        pid = worker.pid
    assert not psutil.pid_exists(pid)


def test_an_error_in_the_parent_leaves_no_worker() -> None:
    worker = Worker(side("sleeps"))

    def interrupted() -> None:
        with worker:
            worker.load()
            worker.submit("run")
            raise KeyboardInterrupt

    pid = worker.pid
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel tells of a parent's death on Linux"
)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_parent_leaves_no_worker(stopped: bool) -> None:
    script = f"""
        import time
        from thrifty.measure.process import Worker
        from thrifty.measure.sides import CallableSide
        worker = Worker(CallableSide({f"{FACTORIES}:double"!r}))
        worker.load()
        {"worker.stop()" if stopped else ""}
        print(worker.pid, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, env=environment(1)
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_memory_above_an_empty_runtime_is_seen_and_its_peak_kept() -> None:
    with Worker(side("allocates")) as worker:
        worker.load()
        before = worker.memory()
        worker.prepare([])
        worker.time(2)
        after = worker.memory()
    assert before["empty_bytes"]
    assert after["peak_bytes"]
    assert before["peak_bytes"]
    assert after["empty_bytes"] == before["empty_bytes"]
    assert after["peak_bytes"] - before["peak_bytes"] > 48 << 20
    assert after["device_peak_bytes"] is None


@pytest.mark.parametrize(
    "value", [ArtifactSide("a", True), ModuleSide("w.py:workload", None), side("double")]
)
def test_sides_travel_as_json(value: Side) -> None:
    assert from_json(to_json(value)) == value
