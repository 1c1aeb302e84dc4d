"""The wall-clock of a study: what no charge covers is charged when its writer ends, or by the next one where it was killed.

While a study is written, the time of its lock file says that its writer lives. A writer that was killed left a note of when it
began; the lock file says how long it lived; what of that was not charged was work in hand.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import final

from thrifty.studies.database import touch
from thrifty.studies.ledger import Charge, Kind
from thrifty.studies.store import Store

BEAT = 0.1
"""Seconds between two signs of life: so much of a killed writer's time goes uncharged at most."""
KILLED, HARNESS = "work in hand when the command was killed", "starting, choosing, keeping"


@final
class Clock:
    """One writer's time.

    Args:
        store: that it writes.
        began: seconds since 1970 at which the writer's work began.
        now: the clock.
    """

    def __init__(self, store: Store, began: float, now: Callable[[], float] = time.time) -> None:
        self._store, self._began, self._now = store, began, now
        self._before = reconciled(store)
        store.note("session", {"began": began, "spent": self._before})

    @property
    def spent(self) -> float:
        """Seconds that the study has taken in all, this writer's until now included."""
        return self._before + max(0.0, self._now() - self._began)

    def end(self) -> None:
        """Charge what no other charge covers."""
        _charge_rest(self._store, "harness", HARNESS, self.spent)
        self._store.note("session", None)


def reconciled(store: Store) -> float:
    """Charge what a killed writer had in hand; all that the study has spent then."""
    session = store.noted("session")
    if session is not None:
        if store.last_alive is not None:
            lived = max(0.0, store.last_alive - session["began"])
            _charge_rest(store, "failure", KILLED, session["spent"] + lived)
        store.note("session", None)
    return store.spent().seconds


def _charge_rest(store: Store, kind: Kind, what: str, whole: float) -> None:
    rest = whole - store.spent().seconds
    if rest > 0:  # recipes that were prepared side by side were charged more than passed
        store.charge(None, Charge(kind, what, rest))


@contextlib.contextmanager
def running(store: Store, began: float) -> Iterator[Clock]:
    """A clock that beats while the context lasts, and ends with it."""
    clock, over = Clock(store, began), threading.Event()

    def live() -> None:
        while not over.wait(BEAT):
            touch(store.path)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield clock
    finally:
        over.set()
        thread.join()
        clock.end()
