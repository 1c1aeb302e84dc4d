"""The parent's end of a run: starts its process, hears its events, survives its death."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from thrifty.errors import RunFailed
from thrifty.runs.job import Job, Outcome
from thrifty.studies.ledger import Ledger
from thrifty.studies.trial import Effect
from thrifty.target import cores

Event = Mapping[str, Any]
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that hears nothing."""


def start(job: Job, listener: Listener = ignore, processors: Iterable[int] = ()) -> Outcome:
    """Execute a job in a fresh process, on all processors or on those given; its events reach the listener.

    Raises:
        RunFailed: the process said why it failed, or was killed.
    """
    chosen = set(processors)
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(chosen) or cores()), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "thrifty.runs.execution"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    if chosen:
        os.sched_setaffinity(process.pid, chosen)
    told: list[str] = []
    with process:
        stderr = _drain(process.stderr, told)
        try:
            values = {**vars(job), "target": job.target.to_json(), "spawned": time.time()}
            process.stdin.write(json.dumps(values) + "\n")
            process.stdin.flush()  # it stays open: its closing tells the child that nobody listens any more
            last: Event = {}
            for line in process.stdout:
                last = json.loads(line)
                listener(last)
            process.stdin.close()
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        stderr.join()
    match last.get("event"):
        case "done":
            return Outcome(
                checkpoint=last["checkpoint"], artifact=last["artifact"],
                charges=Ledger.from_json(last["charges"]).charges,
                effects=tuple(Effect(**value) for value in last["effects"]),
                curve=tuple((seconds, quality) for seconds, quality in last["curve"]),
            )
        case "failed":
            raise RunFailed(last["error"])
    tail = "".join(told[-20:]).strip()
    how = (f"was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "") if code < 0
           else f"ended with exit code {code}")
    raise RunFailed(f"the run's process {how} and said: {tail or 'nothing'}")


def _drain(stream: IO[str], lines: list[str]) -> threading.Thread:
    """Keep the child's stderr from filling its pipe."""
    thread = threading.Thread(target=lambda: lines.extend(stream), daemon=True)
    thread.start()
    return thread


