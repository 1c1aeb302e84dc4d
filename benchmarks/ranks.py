"""This script again, once a rank."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile


def started(count: int, threads: int) -> int:
    """Run the script with ``--rank`` and ``--meet`` (a file where ranks meet) for each rank; the worst exit code."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, *sys.argv, "--ranks", str(count), "--meet", f"{place}/meet"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        processes = [subprocess.Popen([*command, "--rank", str(i)], env=environment) for i in range(count)]
        return max(abs(process.wait()) for process in processes)
