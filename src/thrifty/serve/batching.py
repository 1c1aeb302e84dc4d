"""Requests gathered into batches by the one thread that owns the engine."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import final

import numpy as np

from thrifty.errors import ThriftyError

Arrays = list[np.ndarray]
Run = Callable[[Arrays], Arrays]
Start = Callable[[], AbstractContextManager[tuple[Run, int]]]

GAIN = 0.9
"""Share of a lone request's time that a row of a batch may take, or there are no batches."""


class QueueFull(ThriftyError):
    """As many requests wait as may."""


class Closed(ThriftyError):
    """The server is shutting down."""


class Stuck(ThriftyError):
    """The engine has not ended what it began in time."""


class Died(ThriftyError):
    """The engine's thread ended for a reason of its own."""


@final
@dataclass(frozen=True, eq=False)
class Request:
    """Inputs that wait for an answer.

    Args:
        inputs: as the engine takes them; where batches vary, each with the same first dimension.
        answer: of its outputs.
        arrived: seconds of the monotonic clock.
    """

    inputs: Arrays
    answer: Future[Arrays] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        return len(self.inputs[0]) if self.inputs and self.inputs[0].ndim else 1

    @property
    def kind(self) -> tuple[tuple[np.dtype, tuple[int, ...]], ...]:
        """What two requests must share to run as one: all but the number of rows."""
        return tuple((x.dtype, x.shape[1:]) for x in self.inputs)


# -- the pure parts -----------------------------------------------------------------------------------------------


def take(queue: deque[Request], most: int) -> list[Request]:
    """Remove from the queue what runs next: its head, and what came after it, is of its kind and still fits.

    Args:
        queue: the first to come at its left; not empty.
        most: rows of a batch. A head with more of them runs alone.
    """
    head = queue.popleft()
    chosen, passed, rows = [head], [], head.rows
    while queue and rows < most:  # no further: of a long queue little is looked at
        request = queue.popleft()
        if rows + request.rows <= most and request.kind == head.kind:
            chosen.append(request)
            rows += request.rows
        else:
            passed.append(request)
    queue.extendleft(reversed(passed))
    return chosen


def enough(queue: Iterable[Request], most: int) -> bool:
    """Whether so many rows wait."""
    return any(rows >= most for rows in itertools.accumulate(request.rows for request in queue))


def join(requests: Sequence[Request]) -> Arrays:
    """The inputs of all requests as one batch, in their order."""
    if len(requests) == 1:
        return requests[0].inputs
    return [np.concatenate(parts) for parts in zip(*(request.inputs for request in requests), strict=True)]


def split(outputs: Arrays, requests: Sequence[Request]) -> list[Arrays]:
    """Each request's rows of a batch's outputs.

    Raises:
        ThriftyError: an output has another number of rows than the batch.
    """
    if len(requests) == 1:
        return [outputs]
    total = sum(request.rows for request in requests)
    if any(x.ndim == 0 or len(x) != total for x in outputs):
        raise ThriftyError(f"outputs of shapes {[x.shape for x in outputs]} cannot be split among {total} rows")
    ends = np.cumsum([request.rows for request in requests])[:-1]
    return [list(parts) for parts in zip(*(np.split(x, ends) for x in outputs), strict=True)]


def largest(run: Run, inputs: Arrays, most: int, same: Callable[[Arrays, Arrays], bool]) -> int:
    """The most rows, of ``most`` and its halves, that run together and are answered as they are alone.

    Args:
        run: the engine.
        inputs: one request.
        most: rows to begin with.
        same: whether two answers are, as far as the precision explains a difference.

    Returns:
        1 where no batch is right: a model may mix its rows, or an engine take no more.
    """
    one, other = Request(inputs), Request([x[..., ::-1] if x.ndim > 1 else x for x in inputs])
    while most > 1:
        # Beside its own copies, a row that takes from its neighbors would look right.
        together = [one, *[other] * (most // one.rows - 1)]
        try:
            alone = [run(one.inputs), *[run(other.inputs)] * (len(together) - 1)]
            if len(together) > 1 and all(map(same, alone, split(run(join(together)), together))):
                return most
        except Exception:  # each runtime raises its own kinds; what it refuses here it would refuse when serving
            pass
        most //= 2
    return 1


def pays(run: Run, inputs: Arrays, most: int) -> bool:
    """Whether a row of the largest batch takes at most `GAIN` of what a request alone takes.

    On one thread many models gain nothing by company, and who waits for it only waits. The least of interleaved calls is
    compared, since whatever else the machine does only adds to one.
    """
    one = Request(inputs)
    copies = [one] * (most // one.rows)
    batch = join(copies)
    times: dict[bool, list[float]] = {False: [], True: []}
    for together in (False, True) * 5:
        began = time.perf_counter()
        run(batch if together else inputs)
        times[together].append(time.perf_counter() - began)
    return min(times[True]) / len(copies) <= GAIN * min(times[False])


# -- the thread ---------------------------------------------------------------------------------------------------


@final
class Batcher:
    """A queue and the thread that empties it.

    Args:
        start: entered and left in the thread, which alone touches the engine: its call, and the most rows of a batch.
        wait: seconds that a request may wait for others.
        queue: requests that may wait; one more is refused.
        patience: seconds that a batch may run before no more requests are taken.
        heard: told the rows of each batch and the seconds it ran.
    """

    def __init__(self, start: Start, *, wait: float, queue: int, patience: float = math.inf,
                 heard: Callable[[int, float], None] = lambda rows, seconds: None) -> None:
        self.wait, self.limit, self.patience, self.heard = wait, queue, patience, heard
        self.most = 1
        self._queue: deque[Request] = deque()
        self._changed = threading.Condition()
        self._closing = self._died = False
        self._running: list[Request] = []
        self._began = math.inf
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(start, ready), name="engine", daemon=True)
        self._thread.start()
        ready.result()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> bool:
        """Whether the engine is at work on a batch."""
        return bool(self._running)

    @property
    def overdue(self) -> bool:
        """Whether a batch has run for longer than patience allows."""
        return time.monotonic() - self._began > self.patience

    def submit(self, inputs: Arrays) -> Future[Arrays]:
        """Queue a request.

        Raises:
            QueueFull: as many wait as may.
            Closed: the batcher was closed.
            Stuck: a batch is overdue.
            Died: the engine's thread did.
        """
        request = Request(inputs)
        with self._changed:
            if self._died:
                raise Died("the engine's thread has died")
            if self._closing:
                raise Closed("the server is shutting down")
            if self.overdue:
                raise Stuck(f"the engine has not finished a batch within {self.patience:g} s")
            if len(self._queue) >= self.limit:
                raise QueueFull(f"{self.limit} requests are already waiting")
            self._queue.append(request)
            self._changed.notify()
        return request.answer

    def close(self, within: float | None = None) -> bool:
        """Answer what waits, then end the thread.

        Args:
            within: seconds to wait for it; None for as long as it takes.

        Returns:
            whether it ended.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(within)
        return not self.alive

    def abandon(self) -> None:
        """Fail what waits and what runs, though the engine goes on."""
        with self._changed:
            self._closing = True
            self._fail(Closed("the server is shutting down, and the engine did not answer in time"))
            self._changed.notify()

    def _work(self, start: Start, ready: Future[None]) -> None:
        try:
            with start() as (run, self.most):
                ready.set_result(None)
                while requests := self._next():
                    self._running = [request for request in requests if request.answer.set_running_or_notify_cancel()]
                    self._began = time.monotonic()
                    if self._running:
                        self._answer(run, self._running)
                    self._began, self._running = math.inf, []
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            self._died = True
            logging.getLogger(__name__).error("thrifty: the engine's thread died: %s: %s", type(error).__name__,
                                              str(error).partition("\n")[0][:300])
        finally:  # nobody would answer them
            with self._changed:
                self._closing = True
                self._began = math.inf
                self._fail(Died("the engine's thread has died"))

    def _fail(self, error: ThriftyError) -> None:
        for request in (*self._running, *self._queue):
            with contextlib.suppress(InvalidStateError):  # answered, or given up
                request.answer.set_exception(error)
        self._queue.clear()

    def _next(self) -> list[Request]:
        """Wait for a batch; nothing once the batcher is closed and its queue empty."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._queue:
                return []
            until = self._queue[0].arrived + self.wait
            while not enough(self._queue, self.most) and not self._closing:
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            return take(self._queue, self.most)

    def _answer(self, run: Run, requests: list[Request]) -> None:
        began = time.perf_counter()
        try:
            parts = split(run(join(requests)), requests)
        except Exception as error:
            if len(requests) == 1:
                _settle(requests[0], error=error)
            for request in requests if len(requests) > 1 else ():  # one request must not fail its neighbors
                self._answer(run, [request])
            return
        self.heard(sum(request.rows for request in requests), time.perf_counter() - began)
        for request, part in zip(requests, parts, strict=True):
            _settle(request, part)


def _settle(request: Request, answer: Arrays | None = None, error: Exception | None = None) -> None:
    with contextlib.suppress(InvalidStateError):  # it was given up meanwhile
        if error is not None:
            request.answer.set_exception(error)
        else:
            request.answer.set_result(answer or [])
