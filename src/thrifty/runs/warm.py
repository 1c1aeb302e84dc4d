"""A warm process: torch is imported in it once, and each job is a fork of it, which starts in milliseconds, not in seconds.

A fork is as much on its own as a process that was started anew: what it crashes or eats is its own. The warm process imports
and forks, and does nothing else: it has no model and no thread (a fork copies none), and it never touches a GPU, whose driver
does not survive a fork; jobs of a GPU get processes that are started anew.

``python -m thrifty.runs.warm SOCKET`` is the warm process. It gets one byte and four descriptors for each job: the job's stdin,
stdout and stderr, and one on which it is told the job's process id and, later, how it ended.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, NoReturn, final

from thrifty.runs.surroundings import environment
from thrifty.target import cores
from thrifty.workloads.blame import leave

_AT_START = ("PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS", "NUMEXPR", "TORCH", "LD_", "ATEN_", "DNNL_", "ONEDNN_")
"""Variables that count when a process starts, by how they begin: with others, another process is needed."""
_PIPES = 4


@final
@dataclass(frozen=True)
class Child:
    """A job's process, as `subprocess.Popen` shows one.

    Args:
        pid: to be killed by.
        stdin, stdout, stderr: the parent's ends.
        status: on which the keeper tells how it ended.
    """

    pid: int
    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]
    status: IO[str]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code; minus the signal where one ended it."""
        return int(self.status.readline() or -signal.SIGKILL)

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr, self.status):
            with contextlib.suppress(OSError):
                stream.close()


class Warm:
    """The parent's handle on the warm process, which ends with its parent."""

    def __init__(self) -> None:
        self.began_with = _started_with()
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "thrifty.runs.warm", str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(cores()),
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._socket, self._mutex = ours, threading.Lock()

    def start(self) -> Child:
        """Fork a process that waits for its message.

        Raises:
            OSError: the warm process is gone.
        """
        pipes = [os.pipe() for _ in range(_PIPES)]
        theirs = [pipes[0][0], *(write for _, write in pipes[1:])]
        ours = [pipes[0][1], *(read for read, _ in pipes[1:])]
        try:
            with self._mutex:
                self._socket.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", theirs))])
        except OSError:
            for end in ours:
                os.close(end)
            raise
        finally:
            for end in theirs:
                os.close(end)
        stdin, stdout, stderr, status = (os.fdopen(end, "r" if i else "w") for i, end in enumerate(ours))
        pid = status.readline()
        if not pid:
            for stream in (stdin, stdout, stderr, status):
                stream.close()
            raise OSError("the warm process is gone")
        return Child(int(pid), stdin, stdout, stderr, status)

    def close(self) -> None:
        """End it, even while it still imports; jobs that run end by themselves."""
        self._socket.close()
        self.process.kill()
        self.process.wait()


_warm: list[Warm] = []
_mutex = threading.Lock()


def begin() -> None:
    """Start the warm process where there is none, and do not wait for it: it imports while the caller does."""
    with _mutex, contextlib.suppress(OSError):
        if _warm and (_warm[0].began_with != _started_with() or _warm[0].process.poll() is not None):
            _warm.pop().close()
        if not _warm:
            _warm.append(Warm())


def child() -> Child | None:
    """A process that was forked of the warm one, begun where there is none; None where that cannot be."""
    begin()
    with contextlib.suppress(OSError):
        return _warm[0].start() if _warm else None
    return None


@atexit.register
def _end() -> None:
    while _warm:
        _warm.pop().close()


def _started_with() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_AT_START)}


# -- the warm process ---------------------------------------------------------------------------------------------


def main() -> None:
    """Import what every job needs, then fork one for each byte that comes, until the parent's end of the socket closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    from thrifty.runs import process

    process.preload()
    gc.collect()
    gc.freeze()  # a collection in a fork has only its own objects to look at, and copies no page to mark the others
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are waited for by nobody
    while True:
        byte, pipes, *_ = socket.recv_fds(control, 1, _PIPES)
        if not byte:
            leave(0)
        if os.fork() == 0:
            control.close()
            _keep(pipes, process.main)
        for pipe in pipes:
            os.close(pipe)


def _keep(pipes: list[int], job: Callable[[], int]) -> NoReturn:
    """Fork the job, tell its process id, wait for it, tell how it ended; end it where nobody is left to be told."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = pipes
    pid = os.fork()
    if pid == 0:
        os.close(status)
        code = 1
        try:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            code = job()
            sys.stderr.flush()
        finally:
            leave(code)
    for stream in streams:
        os.close(stream)
    os.write(status, f"{pid}\n".encode())
    with contextlib.suppress(OSError), selectors.DefaultSelector() as ends:
        ends.register(os.pidfd_open(pid), selectors.EVENT_READ)
        ends.register(status, selectors.EVENT_READ)  # its reader's end says so, as an error does
        if all(key.fd == status for key, _ in ends.select()):
            os.kill(pid, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        os.write(status, f"{ended}\n".encode())
    leave(0)


if __name__ == "__main__":
    main()
