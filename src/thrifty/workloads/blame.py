"""What the user's own code raised, as one line: which part of the workload, what, and where."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from thrifty.errors import ThriftyError, WorkloadError

DEBUG = "THRIFTY_DEBUG"
"""The environment variable that asks for whole traces; ``thrifty --debug`` sets it."""
LONGEST = 300
"""Characters of an exception's message that are told."""
PACKAGE = str(Path(__file__).resolve().parent.parent)
LIBRARIES = (PACKAGE, *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")))


leave = os._exit
"""Ends the process at once, whoever's code runs."""
_lock = threading.Lock()
_users = 0
_pid = 0


class ExitCalled(SystemExit):
    """The user's code called ``os._exit``, which would have ended Thrifty without a word, as if all were well."""


def _refused(code: int) -> None:
    if not _users or os.getpid() != _pid:  # a child that the user's code forked ends itself so
        leave(code)
    raise ExitCalled(f"os._exit({code}) was called")


@contextlib.contextmanager
def users_code() -> Iterator[None]:
    """Code of the user's runs: it can neither end this process nor write into what Thrifty says on stdout."""
    with ending_refused(), contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def ending_refused() -> Iterator[None]:
    """``os._exit`` raises `ExitCalled` in this process as long as the context lasts."""
    global _users, _pid
    with _lock:
        _users, _pid = _users + 1, os.getpid()
        os._exit = _refused  # type: ignore[assignment]
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                os._exit = leave


def debugging() -> bool:
    """Whether whole traces are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Tell what a part of the workload raises in one line.

    Args:
        name: of the part: "loss", "item 3 of the train set".

    Raises:
        WorkloadError: the part raised something that was not meant for the user already.

    >>> with part("loss"):
    ...     1 / 0
    Traceback (most recent call last):
    thrifty.errors.WorkloadError: loss raised ZeroDivisionError: division by zero...
    """
    try:
        with users_code():
            yield
    except (ThriftyError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise WorkloadError(f"{name} raised {described(error)}") from error


def described(error: BaseException) -> str:
    """An exception's type, the first line of its message, and the innermost line of the user's own code."""
    try:
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    except Exception as another:  # it cannot even say what it is
        message = f"(its message raised {type(another).__name__})"
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
    return type(error).__name__ + (f": {message}" if message else "") + where(error)


def where(error: BaseException) -> str:
    """``" (rows.py, line 3)"``, of the innermost frame of the user's own code; nothing where there is none."""
    return place(frame for frame in traceback.extract_tb(error.__traceback__))


def place(frames: Iterable[traceback.FrameSummary]) -> str:
    """As `where` says, of frames from the outermost to the innermost."""
    own = [frame for frame in frames if is_own(frame.filename)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def is_own(file: str) -> bool:
    """Whether a file of code is the user's: neither Thrifty's, nor Python's, nor of an installed package."""
    return not (file.startswith(("<", *LIBRARIES)) or "site-packages" in file or "dist-packages" in file)
