"""The parent's handle on a worker process: commands, timeouts, death, and never an orphan."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np

import thrifty.measure
from thrifty.errors import ThriftyError
from thrifty.measure.protocol import Message, decode, encode
from thrifty.measure.sides import Side, to_json

_TAIL = 4000  # characters of a dead worker's stderr to show


class WorkerDied(ThriftyError):
    """The worker process ended in the middle of its work; the message says how and what it last wrote."""


class WorkerFailed(ThriftyError):
    """A command raised in the worker, which lives on; ``traceback`` is the worker's."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


class WorkerTimeout(ThriftyError):
    """The worker did not answer in time and was killed."""


def environment(threads: int) -> dict[str, str]:
    """The worker's environment: threads are set before any library starts its pool.

    Waiting threads sleep (``PASSIVE``): on a shared machine spinning ones steal the time that is being
    measured.
    """
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
    root = str(Path(thrifty.measure.__path__[0]).parents[1])
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        **{f"{pool}_NUM_THREADS": str(threads) for pool in pools},
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "PYTHONPATH": os.pathsep.join([root, path] if path else [root]),
        "PYTHONUNBUFFERED": "1",
    }


@final
class Worker:
    """A worker process that holds one side.

    Args:
        side: what it holds.
        threads: of inference.
        device: "cpu" or "cuda".
        timeout: seconds that a command may take.

    Raises:
        WorkerDied, WorkerFailed, WorkerTimeout: by every command.

    >>> from thrifty.measure.sides import CallableSide
    >>> with Worker(CallableSide("thrifty.measure.process:_identity")) as worker:
    ...     _ = worker.load()
    ...     worker.run([np.ones(2)])[0].tolist()
    [1.0, 1.0]
    """

    def __init__(self, side: Side, *, threads: int = 1, device: str = "cpu", timeout: float = 600.0) -> None:
        self.side, self.threads, self.device, self.timeout = side, threads, device, timeout
        self._stopped = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # a file, not a pipe: nobody has to drain it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thrifty.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env=environment(threads),
            start_new_session=True,  # Ctrl-C is the parent's to handle: it closes its workers
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    # -- commands
    # -------------------------------------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        """Import the runtime and load the model; returns {"runtime", "load"} seconds."""
        self.submit_runtime()
        imported = self.result()[0]
        return {"runtime": imported["seconds"], "load": self.load_model()}

    def submit_runtime(self) -> None:
        """Start importing the runtime; `result` waits for it. Several workers import at once."""
        self.submit("runtime", side=to_json(self.side))

    def load_model(self) -> float:
        """Load the model once the runtime is there; returns the seconds."""
        return float(self.request("load", threads=self.threads, device=self.device)[0]["seconds"])

    def prepare(self, inputs: Sequence[np.ndarray]) -> None:
        """Give the inputs of the calls to be timed."""
        self.request("prepare", inputs)

    def time(self, calls: int, warm_seconds: float = 0.0) -> np.ndarray:
        """[calls] seconds, one for each call, after ``warm_seconds`` of untimed ones."""
        return self.request("time", calls=calls, warm_seconds=warm_seconds)[1][0]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of one inference."""
        return self.request("run", inputs)[1]

    def memory(self) -> dict[str, int | None]:
        """Bytes: resident, empty (runtime without model), peak since loading, peak on the device."""
        return self.request("memory")[0]

    def stop(self) -> None:
        """Suspend the idle worker: its threads cannot take time from the other side's."""
        self._signal(signal.SIGSTOP)
        self._stopped = True

    def cont(self) -> None:
        """Let it run again."""
        if self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped = False

    @property
    def pid(self) -> int:
        return self._process.pid

    # -- the exchange
    # ---------------------------------------------------------------------------------------------

    def request(self, command: str, arrays: Sequence[np.ndarray] = (), **fields: Any) -> Message:
        """Send a command and wait for its answer."""
        self.submit(command, arrays, **fields)
        return self.result()

    def submit(self, command: str, arrays: Sequence[np.ndarray] = (), **fields: Any) -> None:
        """Send a command; `result` waits for its answer."""
        if (
            self._process.poll() is not None
        ):  # its descriptors are closed: their numbers may be another file's
            raise self._died()
        self.cont()
        deadline = time.monotonic() + self.timeout
        for part in encode({"command": command, **fields}, arrays):
            view = memoryview(part)
            while view:
                try:
                    view = view[os.write(self._in, view) :]
                except BlockingIOError:
                    self._wait(self._in, selectors.EVENT_WRITE, deadline)
                except BrokenPipeError:
                    raise self._died() from None

    def result(self) -> Message:
        """The answer to the last command."""
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            raise self._died()
        deadline = time.monotonic() + self.timeout

        def read(size: int) -> bytearray:
            data, done = bytearray(size), 0
            view = memoryview(data)
            while done < size:
                try:
                    got = os.readv(self._out, [view[done:]])
                except BlockingIOError:
                    self._wait(self._out, selectors.EVENT_READ, deadline)
                    continue
                if not got:
                    raise EOFError
                done += got
            return data

        try:
            header, arrays = decode(read)
        except EOFError:
            raise self._died() from None
        if "error" in header:
            raise WorkerFailed(f"{self.side!r}: {header['error']}", header["traceback"])
        return header, arrays

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                self._kill()
                raise WorkerTimeout(
                    f"{self.side!r} did not answer within {self.timeout:.0f} s and was stopped{self._tail()}"
                )

    # -- the end
    # --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the worker: ask, then kill; it is reaped in any case."""
        try:
            if self._process.poll() is None:
                with contextlib.suppress(OSError, ThriftyError):
                    self.cont()
                assert self._process.stdin is not None
                self._process.stdin.close()  # its end of requests
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(2.0)
        finally:
            self._kill()

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # also ends a stopped process
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _signal(self, number: int) -> None:
        if self._process.poll() is not None:
            raise self._died()
        self._process.send_signal(number)

    def _died(self) -> WorkerDied:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:  # it closed its pipes but lives
            self._process.kill()
            code = self._process.wait()
        return WorkerDied(f"{self.side!r}: {_how(code)}{self._tail()}")

    def _tail(self) -> str:
        if self._stderr.closed:
            return ""
        # pread, not seek: the descriptor's offset is shared with the worker, which may still be writing.
        size = os.fstat(self._stderr.fileno()).st_size
        text = os.pread(self._stderr.fileno(), _TAIL, max(0, size - _TAIL)).decode(errors="replace").strip()
        return f"; it last wrote:\n{text}" if text else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._kill() if error is not None else self.close()
        finally:
            self._stderr.close()


def _how(code: int) -> str:
    if code >= 0:
        return f"the worker ended with exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    cause = ", most likely because memory ran out; try a smaller batch" if name == "SIGKILL" else ""
    return f"the worker was killed by {name}{cause}"


def _identity() -> Any:
    return lambda arrays: arrays
