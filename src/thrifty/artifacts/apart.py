"""An artifact verified in a process of its own: an engine that crashes, or never ends, takes nothing else with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from thrifty.artifacts.verification import Check, Verification, verify
from thrifty.measure.parent import end_with_parent

LONGEST = 600.0
"""Seconds that opening an engine and asking it once may take."""


def verify_apart(directory: Path | str, *, threads: int = 1, trust_native_code: bool = False,
                 longest: float = LONGEST) -> Verification:
    """As `verification.verify`, whatever opening the engine does to the process that opens it.

    Args:
        directory: of the artifact; it may be damaged or hostile.
        threads: of inference.
        trust_native_code: whether machine code in it may be run.
        longest: seconds that it may take.
    """
    command = [sys.executable, "-m", "thrifty.artifacts.apart", str(directory), str(threads), str(int(trust_native_code))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=longest)
    except subprocess.TimeoutExpired:
        return verify(directory, dead=f"it did not open and answer within {longest:g} s")
    try:
        return Verification(str(directory), tuple(Check(**check) for check in json.loads(done.stdout)))
    except (ValueError, TypeError):
        code = done.returncode
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        return verify(directory, dead=f"opening it ended its process {how}, which said: {said[0][:300]}; copy the artifact "
                                      "again, or run its recipe here")


def main() -> None:
    """The other end of `verify_apart`."""
    end_with_parent()
    written = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be mistaken for the answer
    directory, threads, trusted = sys.argv[1:]
    found = verify(directory, threads=int(threads), trust_native_code=trusted == "1")
    json.dump([vars(check) for check in found.checks], written)
    written.flush()
    os._exit(0)  # all is told: what a damaged engine does at its end is no matter


if __name__ == "__main__":
    main()
