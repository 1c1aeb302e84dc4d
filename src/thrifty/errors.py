"""Errors that say what happened and what to do."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


class ThriftyError(Exception):
    """The root of every error that Thrifty raises on purpose; its message is meant for the user."""


def in_one_line(error: BaseException, most: int = 300) -> str:
    r"""What an exception says, on one line; its type's name where it says nothing.

    >>> in_one_line(ValueError("first\n  second")), in_one_line(ValueError())
    ('first second', 'ValueError')
    """
    try:
        said = " ".join(str(error).split())
    except Exception:  # an exception of the user's own may fail to say what it is
        said = ""
    return (said if len(said) <= most else f"{said[:most]}...") or type(error).__name__


class MissingExtra(ThriftyError):
    """An optional package is needed: names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'thrifty[{extra}]'")
        self.package, self.extra = package, extra


class NoEffect(ThriftyError):
    """A method changed nothing."""


class EffectLost(ThriftyError):
    """A later phase undid what an earlier method had claimed."""


class TrainingFailed(ThriftyError):
    """Training cannot continue (for example, the loss is not finite); the message names the step.

    ``seconds`` and ``flops`` say what was spent by then.
    """

    seconds: float = 0.0
    flops: float = 0.0


class WorkloadError(ThriftyError):
    """A workload that cannot be used: the message names the field and the way out."""


class RunFailed(ThriftyError):
    """A run that ended without a trial to measure; what it spent was still reported."""


class RecipeError(ThriftyError):
    """A recipe that cannot be read or cannot run; points at the offending piece of its text."""

    def __init__(self, message: str, text: str = "", start: int = 0, end: int = 0) -> None:
        self.reason, self.text, self.start, self.end = message, text, start, end
        super().__init__(f"{message}\n  {text}\n  {' ' * start}{'^' * max(1, end - start)}" if text else message)


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Keep stderr free of what a library prints and logs beside the exception that it raises (torch.export: whole graphs).

    >>> import sys
    >>> with told_once():
    ...     print("a graph", file=sys.stderr)
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
