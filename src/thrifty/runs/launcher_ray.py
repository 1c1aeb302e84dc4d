"""Jobs as tasks of a Ray cluster, one that is there or one of this machine."""

from __future__ import annotations

import importlib
import os
import queue
import threading
import time
from types import ModuleType
from typing import Any, final

from thrifty.errors import MissingExtra, RunFailed, ThriftyError
from thrifty.measure.environment import VERSION, processor
from thrifty.runs import cache
from thrifty.runs.job import Job, Outcome, Task
from thrifty.runs.launcher import Launcher, LocalLauncher
from thrifty.studies.events import Charged, Event, Listener, Noted, from_json, ignore, to_json
from thrifty.studies.ledger import Charge
from thrifty.studies.serialization import plain, typed
from thrifty.target import cores

STARTING = 50.0
"""Seconds that Ray has to start: after 60 it ends the whole process itself."""
TRIES = 2
"""Of a job whose worker was lost; what fails by itself fails at once."""


@final
class RayLauncher(Launcher):
    """Each job is one task in a fresh worker, which is given so many processors, GPUs and bytes.

    The driver decides everything: Ray itself retries nothing (it would repeat a job that does not fit without end). A job whose
    worker was lost runs once more. Checkpoints and engines come back through the cache, which all machines share.

    Args:
        cpus: processors a job.
        gpus: GPUs a job.
        memory: bytes a job; Ray starts no more jobs at once than have room. None where it is not looked at.
        workers: jobs at once in a cluster that is started here; ignored where RAY_ADDRESS names one.

    Raises:
        MissingExtra: Ray is not installed.
        ThriftyError: it does not start.
    """

    def __init__(self, *, cpus: int = 1, gpus: int = 0, memory: int | None = None, workers: int | None = None) -> None:
        self._ray = library()
        self._cpus, self._gpus, self._memory = cpus, gpus, memory
        if not self._ray.is_initialized():
            start(self._ray, workers * cpus if workers else None)
        found = self._ray.cluster_resources()
        self.workers = max(0, int(found.get("CPU", 0)) // cpus)
        if gpus:
            self.workers = min(self.workers, int(found.get("GPU", 0)) // gpus)
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.workers):
            self._slots.put(slot)
        if not self.workers:
            raise ThriftyError(f"a job asks for {cpus} processors and {gpus} GPUs, but the cluster has {found.get('CPU', 0):g} "
                               f"and {found.get('GPU', 0):g}: ask for fewer")

    def run(self, job: Job, listener: Listener = ignore) -> Outcome:
        slot = self._slots.get()  # waits: no more jobs are in flight than there is room for
        try:
            return typed(Outcome, self._ask(job, slot, listener))  # type: ignore[no-any-return]
        finally:
            self._slots.put(slot)

    def take(self, task: Task, listener: Listener = ignore) -> None:
        raise RunFailed("a single phase runs only where its job runs")

    def pace(self, job: Job) -> tuple[float, float]:
        return LocalLauncher().pace(job)  # machines of a cluster are alike

    def beside(self, count: int) -> list[Launcher]:
        return [self] * count

    @property
    def apart(self) -> bool:
        return True

    def close(self) -> None:
        """End the cluster, where it was started here."""
        self._ray.shutdown()

    def _ask(self, job: Job, slot: int, listener: Listener) -> Any:
        options: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": 0, "max_calls": 1}
        if self._memory is not None:
            options["memory"] = self._memory
        remote = self._ray.remote(**options)(execute)
        lost = (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError,
                self._ray.exceptions.LocalRayletDiedError, self._ray.exceptions.OutOfMemoryError,
                self._ray.exceptions.RayTaskError)
        why = ""
        for tried in range(TRIES):
            began = time.perf_counter()
            try:
                answer = self._ray.get(remote.remote(plain(job), str(cache.directory()), slot * self._cpus, self._cpus))
            except lost as error:
                why = str(error).strip().splitlines()[0]
                listener(Charged(Charge("failure", f"worker lost: {job.recipe}", time.perf_counter() - began)))
                if tried + 1 < TRIES:
                    listener(Noted(f"the worker of {job.recipe} was lost ({why}); it runs once more"))
                continue
            for event in answer["events"]:
                listener(from_json(event))
            if "error" in answer:
                raise RunFailed(answer["error"])
            require_alike(answer["machine"])
            return answer["outcome"]
        raise RunFailed(f"the worker of {job.recipe} was lost {TRIES} times ({why}): it may need more memory than is available")


def execute(job: dict[str, Any], place: str, first: int, cpus: int) -> dict[str, Any]:
    """What a worker does: the job in a process of its own, as on this machine. Values and paths come back, no models."""
    os.environ["THRIFTY_CACHE"] = place
    events: list[dict[str, Any]] = []

    def hear(event: Event) -> None:
        events.append(to_json(event))

    machine = {"processor": processor(), "version": VERSION}
    available = sorted(os.sched_getaffinity(0))
    launcher = LocalLauncher(tuple(dict.fromkeys(available[(first + i) % len(available)] for i in range(cpus))))
    try:
        outcome = launcher.run(typed(Job, job), hear)
    except ThriftyError as error:
        return {"error": str(error), "events": events, "machine": machine}
    return {"outcome": plain(outcome), "events": events, "machine": machine}


def require_alike(machine: dict[str, str]) -> None:
    """Refuse what another kind of machine made: its engines and timings are not comparable with this one's.

    Raises:
        RunFailed: the processor or the version of Thrifty is another one there.
    """
    here = {"processor": processor(), "version": VERSION}
    for what, value in here.items():
        if machine.get(what) != value:
            raise RunFailed(f"a worker's {what} is {machine.get(what)} but here it is {value}: trials from different machines "
                            "cannot be compared; keep such machines out of the cluster")


def library() -> ModuleType:
    """Ray.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingExtra("ray", "ray") from error


def start(ray: ModuleType, cpus: int | None, seconds: float = STARTING) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine.

    Raises:
        ThriftyError: it has not started in time, or says why it does not.
    """
    address, told, ready = os.environ.get("RAY_ADDRESS"), [], threading.Event()
    options: dict[str, Any] = {"address": address} if address else {
        "num_cpus": cpus or cores(), "include_dashboard": False, "object_store_memory": 100 * 2**20}

    def begin() -> None:
        try:
            ray.init(log_to_driver=False, logging_level="error", **options)
        except Exception as error:  # Ray's own kinds, and those of its parts
            told.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        ready.set()
        threading.Event().wait()  # Ray's processes end with the thread that started them

    threading.Thread(target=begin, daemon=True).start()
    if not ready.wait(seconds):
        raise ThriftyError(f"Ray did not start within {seconds:g} s: look at /tmp/ray/session_latest/logs, or run without "
                           "--workers ray")
    if told:
        raise ThriftyError(f"Ray does not start ({told[0]}): run without --workers ray, or fix RAY_ADDRESS")
