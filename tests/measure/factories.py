"""What the worker tests hold: callables of known behavior, loaded by path as `CallableSide`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import numpy as np

Call = Callable[[list[np.ndarray]], list[np.ndarray]]


def double() -> Call:
    return lambda arrays: [2 * x for x in arrays]


def work() -> Call:
    """About a millisecond of arithmetic."""
    a = np.ones((160, 160))

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [a @ a]

    return call


def work_twice() -> Call:
    once = work()

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [once(arrays)[0] + once(arrays)[0]]

    return call


def fixed_four() -> Call:
    """Takes batches of 4 alone."""

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        if len(arrays[0]) != 4:
            raise ValueError(f"batch must be 4 but is {len(arrays[0])}")
        return [2 * arrays[0]]

    return call


def batched() -> Call:
    """A call costs 2 ms and 0.1 ms an example, up to 8; beyond it, 5 ms an example."""

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        n = len(arrays[0])
        time.sleep(0.002 + 0.0001 * n + 0.005 * max(0, n - 8))
        return list(arrays)

    return call


def dies_at_eight() -> Call:
    """As out of memory: killed at batch 8."""

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        if len(arrays[0]) >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
        return list(arrays)

    return call


def chatty() -> Call:
    """Prints to stdout at every level, as libraries do, and reads stdin."""

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        print("noise", flush=True)
        os.write(1, b"more noise\n")
        os.system("echo even more")
        assert sys.stdin.read() == ""
        return list(arrays)

    return call


def allocates() -> Call:
    """64 MB held while called, given back after it."""

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [np.ones(8 << 20).sum(keepdims=True)]

    return call


def sleeps() -> Call:
    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        time.sleep(60)
        return []

    return call


def last_words() -> Call:
    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        print("these were the last words", file=sys.stderr, flush=True)
        os._exit(3)

    return call


def raises() -> Call:
    raise RuntimeError("no such model")


def threads() -> Call:
    """Tells the environment of its pools."""
    return lambda arrays: [np.array([int(os.environ["OMP_NUM_THREADS"]), "torch" in sys.modules])]


def scalar() -> Call:
    return lambda arrays: [np.array(1.0)]


def service() -> Call:
    """20 microseconds a call."""

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        end = time.perf_counter() + 20e-6
        while time.perf_counter() < end:
            pass
        return list(arrays)

    return call
