"""The worker process: holds one side, answers commands. ``python -m thrifty.measure.worker``.

torch is imported only where the side needs it: an ONNX Runtime worker starts in a fraction of torch's time.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from thrifty.measure import memory
from thrifty.measure.parent import end_with_parent
from thrifty.measure.protocol import Message, decode, encode
from thrifty.measure.sides import Runner, Side, from_json


@final
@dataclass
class Worker:
    """The state behind the commands; every public method is a command: (header, arrays) -> message."""

    side: Side | None = None
    runner: Runner | None = None
    native: Any = None
    device: str = "cpu"
    empty: int | None = None
    high: tuple[int, bool] = field(default=(0, False))

    def _loaded(self) -> Runner:
        if self.runner is None:
            raise RuntimeError("nothing is loaded: send 'load' first")
        return self.runner

    def _synchronise(self) -> Callable[[], None]:
        if self.device.startswith("cuda"):
            import torch

            return torch.cuda.synchronize
        return lambda: None

    def runtime(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> Message:
        """Import the runtime of header["side"]; answers seconds and bytes resident with no model."""
        start = time.perf_counter()
        self.side = from_json(header["side"])
        self.side.runtime()
        seconds = time.perf_counter() - start
        memory.trim()
        self.empty = memory.resident()
        return {"seconds": seconds, "empty_bytes": self.empty}, []

    def load(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> Message:
        """Load the model with header["threads"] on header["device"]; answers the seconds."""
        if self.side is None:
            raise RuntimeError("there is no side: send 'runtime' first")
        self.device = header["device"]
        start = time.perf_counter()
        self.runner = self.side.open(header["threads"], self.device)
        seconds = time.perf_counter() - start
        memory.trim()
        self.high = (memory.peak(), memory.reset_peak())
        return {"seconds": seconds}, []

    def prepare(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> Message:
        """Take the inputs of the calls to be timed."""
        self.native = self._loaded().native(arrays)
        return {}, []

    def time(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> Message:
        """header["calls"] calls after header["warm_seconds"] of untimed ones.

        Answers [calls] seconds, and [calls] whether the kernel gave the processor to another process meanwhile.
        """
        run, native, synchronize = self._loaded().run, self.native, self._synchronise()
        clock, calls, warm = time.perf_counter, int(header["calls"]), 0
        seconds, switches = np.empty(calls), np.empty(calls + 1, np.int64)
        end = clock() + float(header.get("warm_seconds", 0.0))
        collecting = gc.isenabled()
        gc.disable()  # a collection in one block and not in another is noise
        try:
            while clock() < end:
                run(native)
                warm += 1
            synchronize()
            switches[0] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            for i in range(calls):
                start = clock()
                run(native)
                synchronize()
                seconds[i] = clock() - start
                switches[i + 1] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        finally:
            if collecting:
                gc.enable()
        return {"warm_calls": warm}, [seconds, np.diff(switches) > 0]

    def run(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> Message:
        """One inference on the arrays; answers its outputs."""
        runner = self._loaded()
        return {}, runner.arrays(runner.run(runner.native(arrays)))

    def memory(self, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> Message:
        """Bytes: resident now, with no model, at the highest since loading, and on the device."""
        answer = {
            "resident_bytes": memory.resident(),
            "empty_bytes": self.empty,
            "peak_bytes": memory.peak_since(*self.high),
            "device_peak_bytes": None,
        }
        if self.device.startswith("cuda"):
            import torch

            answer["device_peak_bytes"] = torch.cuda.max_memory_reserved()
        return answer, []


def _go_first() -> None:
    """Out of memory takes the worker, not its parent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def serve(worker: Worker, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer commands until "quit" or the end of the requests."""
    commands = {
        name: getattr(worker, name) for name in ("runtime", "load", "prepare", "time", "run", "memory")
    }

    def read(size: int) -> bytearray:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            got = requests.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise EOFError
            done += got
        return data

    while True:
        try:
            header, arrays = decode(read)
        except EOFError:
            return
        command = header.pop("command")
        if command == "quit":
            return
        try:
            answer, outputs = commands[command](header, arrays)
        except Exception as error:
            answer = {
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
                "arrays": [],
            }
            outputs = []
        for part in encode(answer, outputs):
            replies.write(part)
        replies.flush()


def main() -> None:
    """Keep the protocol's two pipes to ourselves: libraries print to stderr and read nothing."""
    end_with_parent()
    _go_first()
    sys.stdout.flush()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    worker = Worker()
    with contextlib.suppress(BrokenPipeError):
        serve(worker, requests, replies)
    if worker.runner is not None:
        worker.runner.close()
    # Temporary folders are removed; tearing torch's modules down, a third of a second a process, serves nobody.
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
