"""Several ranks over torch.distributed: sums, flags, values, and one rank's failure told to all."""

from __future__ import annotations

import datetime
import io
import threading
import time
from types import TracebackType
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.recipes.ranks import Ranks

T = TypeVar("T")

TIMEOUT = 600.0
"""Seconds that a rank waits for the others at one point."""
BOTH = "cpu:gloo,cuda:nccl"
"""Backends of a group on GPUs."""
_FAILURE = "thrifty/failure"
_POLL = 0.05


class RankFailed(ThriftyError):
    """Another rank failed, or did not come in time; the message is that rank's."""


@final
class Group(Ranks):
    """The ranks of a process group, for as long as the context lasts.

    A rank that leaves the context by an error tells the others, who raise `RankFailed` with its message at their next
    call, or where they wait already: nobody waits for a rank that will not come.

    Args:
        store: where the ranks meet; the same for all.
        index: index of this rank.
        count: number of ranks.
        backend: "gloo" on CPUs; `BOTH` where GPUs train, whose flags stay on CPUs.
        timeout: seconds that a rank waits for the others at one point.

    >>> with Group(dist.HashStore(), 0, 1) as ranks:
    ...     ranks.sum(torch.ones(2)).tolist(), ranks.any(False), ranks.gather("x")
    ([1.0, 1.0], False, ['x'])
    """

    def __init__(self, store: dist.Store, index: int, count: int, *, backend: str = "gloo", timeout: float = TIMEOUT) -> None:
        self._store, self._index, self._count = store, index, count
        self._backend, self._timeout = backend, timeout

    @property
    def index(self) -> int:
        return self._index

    @property
    def count(self) -> int:
        return self._count

    def __enter__(self) -> Group:
        dist.init_process_group(self._backend, store=dist.PrefixStore("thrifty/group", self._store), rank=self._index,
                                world_size=self._count, timeout=datetime.timedelta(seconds=self._timeout))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            if not isinstance(error, RankFailed):
                self._store.compare_set(_FAILURE, "", f"rank {self._index}: {type(error).__name__}: {error}")
            # Others may still wait for this rank: taking the group down can wait for them in turn, so nobody waits for it.
            threading.Thread(target=dist.destroy_process_group, daemon=True).start()
            return
        dist.destroy_process_group()

    def sum(self, x: Tensor) -> Tensor:
        total = x.detach().clone()
        if total.is_cuda:  # ordered on the GPU: nothing waits here, and whoever started the ranks sees one that died
            dist.all_reduce(total)
        else:
            self._wait(lambda: dist.all_reduce(total, async_op=True))
        return total

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def gather(self, value: T) -> list[T]:
        """Values are sent as torch saves them, and read as plain values and tensors alone."""
        return [self._broadcast(value, index) for index in range(self._count)]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _broadcast(self, value: Any, source: int) -> Any:
        sent = io.BytesIO()
        if source == self._index:
            torch.save(value, sent)
        size = self.sum(torch.tensor(len(sent.getvalue())))
        data = torch.zeros(int(size), dtype=torch.uint8)
        if source == self._index:
            data.copy_(torch.frombuffer(bytearray(sent.getvalue()), dtype=torch.uint8))
        self._wait(lambda: dist.broadcast(data, source, async_op=True))
        return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)

    def _wait(self, begin: Any) -> None:
        """Begin a collective call and wait for it, with an eye on failures."""
        self._raise_others()
        deadline = time.monotonic() + self._timeout
        try:
            work = begin()
            pause = 1e-5
            looked = time.monotonic()
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, 2e-3)
                now = time.monotonic()
                if now - looked > _POLL:
                    looked = now
                    self._raise_others()
                if now > deadline:
                    raise RankFailed(f"rank {self._index} waited {self._timeout:g} s for the others; one of them hangs, or "
                                     "was never started")
            work.wait()
        except RuntimeError as error:  # a connection that a dead rank closed: its own words are better, where it had any
            time.sleep(2 * _POLL)
            self._raise_others()
            raise RankFailed(f"rank {self._index} lost the others: {str(error).splitlines()[0]}") from error

    def _raise_others(self) -> None:
        try:
            told = self._store.get(_FAILURE).decode() if self._store.check([_FAILURE]) else ""
        except RuntimeError as error:  # the rank that keeps the store is gone
            raise RankFailed(f"rank {self._index} lost the others: {str(error).splitlines()[0]}") from error
        if told:
            raise RankFailed(told)
