"""When the command that this process runs began: starting Python and importing torch is part of what it spends."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_began: list[float] = []


def begin() -> None:
    """This process is a command: what it opens first has been going on since the process started."""
    _began[:] = [process_began()]


def began() -> float:
    """Seconds since 1970 at which what is begun now really began: once the command's own start, else now."""
    return min(time.time(), _began.pop()) if _began else time.time()


def process_began() -> float:
    """Seconds since 1970 at which this process started; now, where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    return time.time()
