"""This process's memory, as the kernel counts it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def _status(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def resident() -> int | None:
    """Bytes resident now, None where the system does not say."""
    return _status("VmRSS")


def peak() -> int:
    """Highest bytes resident since the process began, or since `reset_peak` where that is permitted."""
    high = _status("VmHWM")
    if high is not None:
        return high
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Let `peak` start again from the memory resident now; False where the system does not permit it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def trim() -> None:
    """Give freed memory back to the system, so that what is resident is what is used."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc only


def peak_since(before: int, was_reset: bool) -> int:
    """Peak bytes since a moment at which the peak was ``before``.

    Where the counter could not be reset, a peak that has not risen says only that it was not passed: what is
    resident now is then the best lower bound.
    """
    now = peak()
    return now if was_reset or now > before else resident() or now
