"""What ends a search from outside: SIGTERM, as Ctrl-C does, and a budget that is spent while something runs."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class BudgetOver(BaseException):
    """The budget is spent, and what is under way is still going on. No error: nothing may take it for a trial's failure."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """SIGTERM raises `KeyboardInterrupt`, and the end of so many seconds `BudgetOver`, wherever the context then is.

    Infinitely many seconds never end. Outside of the main thread, where Python takes no signals, neither happens.

    >>> import time
    >>> with contextlib.suppress(BudgetOver), deadline(0.01):
    ...     time.sleep(10)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in ((signal.SIGTERM, _leave), (signal.SIGALRM, _over))}
    if math.isfinite(seconds):
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _over(number: int, frame: FrameType | None) -> NoReturn:
    raise BudgetOver
