"""Where a job runs. Launchers differ in that, and in nothing else."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Any, Protocol, final

import numpy as np

from thrifty.errors import RunFailed
from thrifty.runs import warm
from thrifty.runs.job import Job, Outcome, Task
from thrifty.runs.surroundings import environment, place
from thrifty.studies.events import Charged, Event, Listener, PhaseBegan, from_json, ignore
from thrifty.studies.ledger import Charge
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
            RunFailed: it failed, or was killed; what it spent was still reported.
        """

    @abc.abstractmethod
    def take(self, task: Task, listener: Listener = ignore) -> None:
        """Take one phase of a job: what it leaves is in the cache under the task's key.

        Raises:
            RunFailed: it failed, or was killed.
        """

    @abc.abstractmethod
    def pace(self, job: Job) -> tuple[float, float]:
        """Seconds that the job's trainings will take at the very least, and about, by a few steps where they would run.

        Raises:
            RunFailed: a step failed.
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
    """A process of this machine for each job: a fork of a warm one, or on a GPU one that is started anew.

    Args:
        processors: that it may use; none for all.
        restarts: how often the ranks of a training are started again after one of them failed.
    """

    processors: tuple[int, ...] = ()
    restarts: int = 0

    def run(self, job: Job, listener: Listener = ignore) -> Outcome:
        return typed(Outcome, self._ask({"job": plain(job), "restarts": self.restarts}, job, listener))  # type: ignore[no-any-return]

    def take(self, task: Task, listener: Listener = ignore) -> None:
        self._ask({"task": plain(task)}, task.job, listener)

    def pace(self, job: Job) -> tuple[float, float]:
        least, about = self._ask({"pace": plain(job)}, job, ignore)
        return least, about

    def beside(self, count: int) -> list[Launcher]:
        shares = np.array_split(self.processors or sorted(os.sched_getaffinity(0)), count)
        return [LocalLauncher(tuple(share.tolist()), self.restarts) for share in shares]

    def _ask(self, message: dict[str, Any], job: Job, listener: Listener) -> Any:
        """Give a process the message and hear its events; its answer. What it spent before it failed is charged."""
        threads, began = job.machine.threads or len(self.processors) or cores(), time.perf_counter()
        spawned = time.time()
        forked = None if "cuda" in (job.target.device, job.machine.device) else warm.child()
        process: Process = forked or Started(threads)
        spent, phase, told_failure = 0.0, job.recipe, False
        told: list[str] = []
        last: dict[str, Any] = {}

        def hear(event: Event) -> None:
            nonlocal spent, phase, told_failure
            if isinstance(event, Charged):
                spent += event.charge.seconds
                told_failure |= event.charge.kind == "failure"
            elif isinstance(event, PhaseBegan):
                phase = event.text
            listener(event)

        stderr = _drain(process.stderr, told)
        try:
            process.stdin.write(json.dumps({
                **message, **place(spawned, threads, self.processors)}) + "\n")
            process.stdin.flush()  # it stays open: its closing tells the child that nobody listens any more
            for line in process.stdout:
                last = json.loads(line)
                if "event" in last:
                    hear(from_json(last))
            process.stdin.close()
            code = process.wait()
        except BrokenPipeError:  # it died before it was asked anything
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            stderr.join(1.0)
            process.close()
        if "answer" in last:
            return last["answer"]
        if not told_failure:
            listener(Charged(Charge("failure", phase, max(0.0, time.perf_counter() - began - spent))))
        if "error" in last:
            raise RunFailed(last["error"])
        tail = "".join(told[-20:]).strip()
        how = (f"was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "") if code < 0
               else f"ended with exit code {code}")
        raise RunFailed(f"the run's process {how} and said: {tail or 'nothing'}")


class Process(Protocol):
    """A process that runs a job."""

    @property
    def stdin(self) -> IO[str]: ...
    @property
    def stdout(self) -> IO[str]: ...
    @property
    def stderr(self) -> IO[str]: ...

    def kill(self) -> None: ...
    def wait(self) -> int: ...
    def close(self) -> None: ...


@final
class Started:
    """A process that was started anew.

    Args:
        threads: of its libraries.
    """

    def __init__(self, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thrifty.runs.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment(threads),
        )
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self.stdin, self.stdout, self.stderr = self._process.stdin, self._process.stdout, self._process.stderr

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        self._process.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                stream.close()


def _drain(stream: IO[str], lines: list[str]) -> threading.Thread:
    """Keep the child's stderr from filling its pipe."""

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):  # closed, since a grandchild kept it open
            lines.extend(stream)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
