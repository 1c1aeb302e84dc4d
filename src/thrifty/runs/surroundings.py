"""Where and as what the process of a job runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def environment(threads: int) -> dict[str, str]:
    """The environment of a process that runs jobs.

    Waiting threads sleep: two that spin while others work took 10 times as long for a tiny net's step (2.7 s of 250 steps, for
    0.2 s) on two processors that were busy, and are no slower than sleeping ones where a step is long.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}


def place(spawned: float, threads: int, processors: Sequence[int] = ()) -> dict[str, Any]:
    """What a process is told of where and as what it runs, beside its job.

    Args:
        spawned: seconds since 1970 at which it was asked for; a first job waits until the warm process has imported.
        threads: of its libraries.
        processors: that it may use; none for all.
    """
    return {"spawned": spawned, "environment": environment(threads), "directory": os.getcwd(), "processors": list(processors),
            "threads": threads}
