"""Several processes take one training together: started here, or by torchrun beside this one."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, final

import torch.distributed as dist

from thrifty.errors import RunFailed, ThriftyError
from thrifty.runs.job import Task
from thrifty.runs.surroundings import environment, place
from thrifty.studies.events import Listener, Noted, from_json
from thrifty.studies.serialization import plain
from thrifty.target import cores

HOST = "127.0.0.1"
GRACE = 3.0
"""Seconds that ranks have to end by themselves after the first of them failed."""
_POLL = 0.05


class Gang(abc.ABC):
    """Starts the ranks of a task, and hears of them until they end."""

    @abc.abstractmethod
    def take(self, task: Task, listener: Listener) -> None:
        """Take one training phase in ``task.ranks`` processes; the model is in the cache under the task's key.

        Raises:
            RunFailed: a rank failed, or was killed; the first failure is told, and the others are ended.
        """


@final
@dataclass(frozen=True)
class LocalGang(Gang):
    """Processes of this machine.

    Args:
        restarts: how often all are started again after one failed; they resume from the training's last saved state.
    """

    restarts: int = 0

    def take(self, task: Task, listener: Listener) -> None:
        count = task.ranks
        store = dist.TCPStore(HOST, 0, count, is_master=True, wait_for_workers=False)  # outlives every rank
        for attempt in range(self.restarts + 1):
            members = [Member(rank_message(task, i, count, i, HOST, store.port, attempt), listener if i == 0 else _nothing)
                       for i in range(count)]
            try:
                failure = _watched(members)
            finally:
                for member in members:
                    member.kill()
            if failure is None:
                return
            if attempt == self.restarts or failure.final:
                raise RunFailed(failure.text)
            listener(Noted(f"{failure.text}; all ranks start again from the last kept state "
                           f"({attempt + 1} of {self.restarts} restarts)"))


def rank_message(task: Task, index: int, count: int, local: int, host: str, port: int, attempt: int) -> dict[str, Any]:
    """What the process of a rank is told."""
    return {"task": plain(task), "rank": {"index": index, "count": count, "local": local, "host": host, "port": port,
                                          "attempt": attempt}}


@final
@dataclass(frozen=True)
class Failure:
    """Why a rank ended; ``final`` where another start would end alike."""

    text: str
    final: bool


def _nothing(event: Any) -> None:
    """What ranks beside the first tell is what the first tells."""


class Member:
    """The process of one rank.

    Args:
        message: that it is told.
        listener: hears its events.
        command: that starts it.
    """

    def __init__(self, message: dict[str, Any], listener: Listener) -> None:
        self.index, count = message["rank"]["index"], message["rank"]["count"]
        threads = max(1, (message["task"]["job"]["machine"]["threads"] or cores()) // count)
        self._process = subprocess.Popen([sys.executable, "-m", "thrifty.runs.process"], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                         env=environment(threads))
        self._last: dict[str, Any] = {}
        self._told: list[str] = []
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({**message, **place(time.time(), threads)}) + "\n")
            self._process.stdin.flush()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (lambda: self._hear(listener), self._drain)]
        for thread in self._threads:
            thread.start()

    def _hear(self, listener: Listener) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = json.loads(line)
            if "event" in self._last:
                listener(from_json(self._last))

    def _drain(self) -> None:
        assert self._process.stderr is not None
        self._told.extend(self._process.stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def failure(self) -> Failure | None:
        """Why it failed; None where it did what it was told."""
        for thread in self._threads:
            thread.join(timeout=5.0)
        if "answer" in self._last:
            return None
        code = self._process.returncode
        if "error" in self._last:
            return Failure(f"rank {self.index}: {self._last['error']}", bool(self._last.get("final")))
        if code is not None and code < 0:
            why = " (out of memory?)" if code == -9 else ""
            return Failure(f"rank {self.index} was killed by signal {-code}{why}", False)
        tail = "".join(self._told[-20:]).strip()
        return Failure(f"rank {self.index} ended with exit code {code} and said: {tail or 'nothing'}", False)

    def kill(self) -> None:
        if not self.ended:
            self._process.kill()
            self._process.wait()


def _watched(members: list[Member]) -> Failure | None:
    """Wait for all; the failure of the first that failed, the others having had a moment to end too."""
    first: Failure | None = None
    waiting, deadline = list(members), float("inf")
    while waiting and time.monotonic() < deadline:
        for member in [member for member in waiting if member.ended]:
            waiting.remove(member)
            if (failure := member.failure()) is not None and first is None:
                first, deadline = failure, time.monotonic() + GRACE
        time.sleep(_POLL if waiting else 0)
    return first


# -- under torchrun ------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Elastic:
    """What torchrun tells each process that it starts.

    Args:
        index, count: of this process among all.
        local: among those of its machine.
        host, port: of the store that torchrun's agent keeps.
    """

    index: int
    count: int
    local: int
    host: str
    port: int
    attempt: int = 0

    @classmethod
    def here(cls) -> Elastic | None:
        """As the environment has it; None where torchrun did not start this process, or only this one.

        Raises:
            ThriftyError: the variables are not what torchrun sets.
        """
        env = os.environ
        if int(env.get("WORLD_SIZE") or 1) <= 1 or "RANK" not in env:
            return None
        try:
            return cls(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", env["RANK"])), env["MASTER_ADDR"],
                       int(env["MASTER_PORT"]), int(env.get("TORCHELASTIC_RESTART_COUNT") or 0))
        except (KeyError, ValueError) as error:
            raise ThriftyError(f"RANK and WORLD_SIZE are set, but {error} is not what torchrun sets: start with torchrun, or "
                               "unset RANK") from error

    def store(self) -> dist.Store:
        """Where all meet. Without torchrun's agent (a cluster sets the variables itself), the first process keeps it."""
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        keeps = self.index == 0 and not agent and not os.environ.get("THRIFTY_STORE_KEPT")
        try:
            found = dist.TCPStore(self.host, self.port, None, is_master=keeps, wait_for_workers=False,
                                  timeout=timedelta(minutes=5))
        except RuntimeError as error:
            raise ThriftyError(f"{self.host}:{self.port} cannot be used as the ranks' meeting place "
                               f"({str(error).splitlines()[0]}): is the port taken? give another MASTER_PORT") from error
        os.environ["THRIFTY_STORE_KEPT"] = "1"
        return dist.PrefixStore(f"thrifty/{self.attempt}", found)


_ENDED = "ended"


@final
@dataclass(frozen=True)
class TorchrunGang(Gang):
    """The processes that torchrun started beside this one, on this machine and others, which `follow`.

    Args:
        elastic: what torchrun said.
    """

    elastic: Elastic
    store: dist.Store = field(compare=False)

    def take(self, task: Task, listener: Listener) -> None:
        here, store = self.elastic, self.store
        if task.ranks != here.count:
            raise RunFailed(f"torchrun started {here.count} ranks, but the training asks for {task.ranks}")
        number = store.add("tasks", 1)
        store.set(f"task/{number}", json.dumps(plain(task)))
        failure = _of_one(here, plain(task), number, listener)
        told = [failure] if failure is not None else []
        for index in range(1, here.count):
            text = store.get(f"outcome/{number}/{index}").decode()
            told += [Failure(text, True)] if text else []
        if told:
            raise RunFailed(_first(store, number) or told[0].text)


def _of_one(here: Elastic, task: dict[str, Any], number: int, listener: Listener) -> Failure | None:
    """This machine's part of a task, in a process of its own; a failure is told to all."""
    message = {"task": task, "rank": {"index": here.index, "count": here.count, "local": here.local, "host": here.host,
                                      "port": here.port, "attempt": f"{here.attempt}.{number}"}}
    member = Member(message, listener)
    store = here.store()
    failure = None
    try:
        deadline = float("inf")
        while not member.ended and time.monotonic() < deadline:
            time.sleep(4 * _POLL)
            if deadline == float("inf") and _first(store, number):
                deadline = time.monotonic() + GRACE
        failure = member.failure() if member.ended else Failure(_first(store, number), False)
    finally:
        member.kill()
        if failure is not None:
            store.compare_set(f"failed/{number}", "", failure.text)
        store.set(f"outcome/{number}/{here.index}", failure.text if failure else "")
    return failure


def _first(store: dist.Store, number: int) -> str:
    """The failure that was told first."""
    return store.get(f"failed/{number}").decode() if store.check([f"failed/{number}"]) else ""


def follow(here: Elastic) -> int:
    """What every process of torchrun but the first does: take what the first hands out, until it ends. Its exit code."""
    store, number, failed = here.store(), 1, False
    while True:
        while not store.check([f"task/{number}"]):
            if store.check([_ENDED]):
                return int(failed)
            time.sleep(4 * _POLL)
        failed = _of_one(here, json.loads(store.get(f"task/{number}")), number, _nothing) is not None
        number += 1


@contextlib.contextmanager
def leading(here: Elastic) -> Iterator[None]:
    """Around the first process's work: the others end with it."""
    store = here.store()
    try:
        yield
    finally:
        store.set(_ENDED, "1")
        time.sleep(1.0)  # without an agent the store ends with this process


def count_here(nproc: int | None) -> int:
    """Ranks that train together: as asked for, or as torchrun started them.

    Raises:
        ThriftyError: the two differ.
    """
    here = Elastic.here()
    if here is not None and nproc not in (None, here.count):
        raise ThriftyError(f"--nproc {nproc} was given, but torchrun started {here.count} processes: remove --nproc")
    return here.count if here is not None else nproc or 1


def gang(restarts: int = 0) -> Gang:
    """Whoever takes trainings of several ranks here."""
    here = Elastic.here()
    return LocalGang(restarts) if here is None else TorchrunGang(here, here.store())

