"""Verifies artifacts that are named on its stdin, each in a fork of its own.

This process imports an engine and runs none: a fork of one whose libraries have threads may hang or crash for that alone.
"""

import importlib
import json
import os
import signal
import sys

from thrifty.artifacts.verification import verify

LONGEST = 120


def opened(place: str) -> tuple[object, int]:
    """What `verify` finds in a child of this process, and how the child ended."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            signal.alarm(LONGEST)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            found = verify(place, trust_native_code=True)
            os.write(writing, json.dumps([vars(check) for check in found.checks]).encode())
        except BaseException as error:
            os.write(writing, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        said = told.read()
    return json.loads(said) if said else None, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    importlib.import_module(f"thrifty.engines.{sys.argv[1]}")
    for line in sys.stdin:
        print(json.dumps(opened(line.rstrip("\n"))), flush=True)
