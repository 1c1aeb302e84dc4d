"""Where a job runs. Launchers differ in that, and in nothing else."""

from __future__ import annotations

import abc
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Any, final

import numpy as np

from thrifty.errors import RunFailed
from thrifty.runs.job import Job, Outcome, Task
from thrifty.studies.events import Listener, from_json, ignore
from thrifty.studies.serialization import plain, typed
from thrifty.target import cores


class Launcher(abc.ABC):
    """Starts jobs somewhere, and hears of them until they end."""

    @abc.abstractmethod
    def run(self, job: Job, listener: Listener = ignore) -> Outcome:
        """Execute a job.

        Args:
            job: what to do.
            listener: hears events while things go on.

        Raises:
            RunFailed: it failed, or was killed; what it spent was told all the same.
        """

    @abc.abstractmethod
    def take(self, task: Task, listener: Listener = ignore) -> None:
        """Take one phase of a job: what it leaves is in the cache under the task's key.

        Raises:
            RunFailed: it failed, or was killed.
        """

    @abc.abstractmethod
    def beside(self, count: int) -> list[Launcher]:
        """Launchers that run so many jobs side by side."""

    @property
    def apart(self) -> bool:
        """Whether jobs side by side have processors of their own wherever they run, so that their seconds are figures."""
        return False


@final
@dataclass(frozen=True)
class LocalLauncher(Launcher):
    """A fresh process of this machine for each job.

    Args:
        processors: that it may use; none for all.
        restarts: how often the ranks of a training are started again after one of them failed.
    """

    processors: tuple[int, ...] = ()
    restarts: int = 0

    def run(self, job: Job, listener: Listener = ignore) -> Outcome:
        return typed(Outcome, self._ask({"job": plain(job), "restarts": self.restarts}, listener))  # type: ignore[no-any-return]

    def take(self, task: Task, listener: Listener = ignore) -> None:
        self._ask({"task": plain(task)}, listener)

    def beside(self, count: int) -> list[Launcher]:
        shares = np.array_split(self.processors or sorted(os.sched_getaffinity(0)), count)
        return [LocalLauncher(tuple(share.tolist()), self.restarts) for share in shares]

    def _ask(self, message: dict[str, Any], listener: Listener) -> Any:
        """Start `thrifty.runs.process`, give it the message, hear its events; its answer."""
        threads = len(self.processors) or cores()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "thrifty.runs.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        if self.processors:
            os.sched_setaffinity(process.pid, self.processors)
        told: list[str] = []
        last: dict[str, Any] = {}
        with process:
            stderr = _drain(process.stderr, told)
            try:
                process.stdin.write(json.dumps({**message, "spawned": time.time()}) + "\n")
                process.stdin.flush()  # it stays open: its closing tells the child that nobody listens any more
                for line in process.stdout:
                    last = json.loads(line)
                    if "event" in last:
                        listener(from_json(last))
                process.stdin.close()
            except BaseException:
                process.kill()
                raise
            code = process.wait()
            stderr.join()
        if "answer" in last:
            return last["answer"]
        if "error" in last:
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
