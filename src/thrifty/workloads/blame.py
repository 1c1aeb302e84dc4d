"""What the user's own code raised, as one line: which part of the workload, what, and where."""

from __future__ import annotations

import contextlib
import os
import sysconfig
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
        yield
    except ThriftyError:
        raise
    except (Exception, SystemExit) as error:
        raise WorkloadError(f"{name} raised {described(error)}") from error


def described(error: BaseException) -> str:
    """An exception's type, the first line of its message, and the innermost line of the user's own code."""
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
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
