"""One meter for everything that is charged: seconds, FLOPs, joules, and the peak memory of what was metered alone."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from thrifty.measure import energy

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_SAMPLING = 0.01
"""Seconds between two looks at the memory, where the kernel's own high-water mark cannot be reset."""


@final
@dataclass(frozen=True)
class Metered:
    """What a piece of work took.

    Args:
        seconds: wall-clock.
        device_seconds: of all devices that worked on it: wall-clock times their number.
        peak_memory_bytes: resident memory of this process at its highest while the work went on; None where it was not read.
        device_memory_bytes: allocated on the GPU at its highest, the largest of all GPUs; None without one.
        joules: of all counters that may be read, processor and GPUs; None where there is none.
        flops: None where they were not counted.
    """

    seconds: float
    device_seconds: float
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    joules: float | None = None
    flops: float | None = None


@final
class Meter:
    """Meters a piece of work.

    Args:
        device: "cpu" or "cuda".
        devices: how many work on it.

    >>> with Meter() as meter:
    ...     work = bytearray(1000)
    >>> meter.read().seconds < 1
    True
    """

    def __init__(self, device: str = "cpu", devices: int = 1) -> None:
        self._device, self._devices, self._energy = device, devices, energy.meters(device)
        self.flops: float | None = None
        self._read: Metered | None = None

    def __enter__(self) -> Meter:
        self._memory = contextlib.ExitStack()
        self._peak = self._memory.enter_context(peak_memory(self._device))
        self._joules = self._energy.read()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._read = self.read()
        self._memory.close()

    def read(self) -> Metered:
        """What it took until now, or until the context ended."""
        if self._read is not None:
            return self._read
        resident, allocated = self._peak()  # waits for the GPU: what it was given to do is part of the work
        seconds = time.perf_counter() - self._began
        return Metered(seconds, seconds * self._devices, resident, allocated,
                       self._energy.between(self._joules, self._energy.read()), self.flops)


Peak = Callable[[], tuple[int | None, int | None]]
_OUTER: list[Peak] = []
"""The meters that run, the outermost first: those inside share its marks, which can be reset once alone."""


@contextlib.contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Yield a function that gives the highest memory since the outermost of such contexts began, in bytes.

    Linux keeps a high-water mark that a process may reset for itself; where it may not, memory is looked at every few
    milliseconds, which misses what is shorter. Elsewhere it is the process's highest since its start.

    Yields:
        () -> (resident in this process, allocated on the GPU that holds most or None without one).
    """
    if _OUTER:
        yield _OUTER[0]
        return
    give_back()
    _reset_allocated(device)
    with contextlib.ExitStack() as stack:
        resident = _resident(stack)
        _OUTER.append(lambda: (resident(), _allocated(device)))
        stack.callback(_OUTER.pop)
        yield _OUTER[0]


def _resident(stack: contextlib.ExitStack) -> Callable[[], int | None]:
    if _reset():
        return lambda: _status("VmHWM")
    if _status("VmRSS") is not None:
        sampler = stack.enter_context(_Sampler())
        return lambda: sampler.highest
    scale = 1 if sys.platform == "darwin" else 1024
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _reset_allocated(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def _allocated(device: str) -> int | None:
    if device != "cuda":
        return None
    import torch

    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))


def give_back() -> None:
    """Return what was freed to the system: what an earlier phase held is no part of the next one's memory."""
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset() -> bool:
    """Reset the kernel's high-water mark of this process; False where that is not permitted."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    highest, now = _status("VmHWM"), _status("VmRSS")
    return highest is not None and now is not None and highest < now + 32 * 2**20


def _status(name: str) -> int | None:
    """Bytes under a name of /proc/self/status; None where there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


@final
class _Sampler:
    """Looks at the resident memory from a thread of its own."""

    def __init__(self) -> None:
        self.highest, self._ended = _status("VmRSS"), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_SAMPLING):
            self.highest = max(self.highest or 0, _status("VmRSS") or 0)
