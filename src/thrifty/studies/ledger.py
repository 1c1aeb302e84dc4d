"""What was spent, on what: every second, FLOP and byte of a trial, failures included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

Kind = Literal["teacher", "search", "calibration", "training", "evaluation", "compilation", "failure",
               "start", "rehearsal", "scoring", "timing", "harness"]
"""What for. The last five are spent on measuring, or on none of it: part of a study's *spent*, not of a trial's *cost*."""


@final
@dataclass(frozen=True)
class Charge:
    """One thing that was paid for.

    Args:
        kind: what for.
        what: the phase's text, or what was measured.
        seconds: wall-clock.
        flops: counted floating-point operations; None where they were not counted.
        peak_memory_bytes: resident memory of the process at its highest while this went on; None where it was not read.
        joules: of all devices, read off their counters; None where there is none.
        uncounted: operators that ran and have no FLOP formula.
        device_seconds: of all devices that worked on it; None where it was not counted.
        amount: how many of what it was (rounds of processes); None where that says nothing.
        device_memory_bytes: allocated on the GPU that held most, at its highest; None without one.
    """

    kind: Kind
    what: str
    seconds: float
    flops: float | None = None
    peak_memory_bytes: int | None = None
    joules: float | None = None
    uncounted: tuple[str, ...] = ()
    device_seconds: float | None = None
    device_memory_bytes: int | None = None
    amount: int | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Charge:
        return Charge(**{**values, "uncounted": tuple(values.get("uncounted", ()))})


@final
@dataclass(frozen=True)
class Ledger:
    """The charges of a trial (its *cost*, as if it were alone) or of a study (its *spent*, what really ran).

    >>> ledger = Ledger((Charge("training", "train()", 3.0, 1e9), Charge("compilation", "export", 1.0)))
    >>> ledger.seconds, ledger.flops
    (4.0, 1000000000.0)
    """

    charges: tuple[Charge, ...] = ()
    price: float | None = field(default=None)
    """Dollars an hour of this machine, where the user stated it."""

    def __add__(self, more: Iterable[Charge]) -> Ledger:
        return Ledger(self.charges + tuple(more), self.price)

    @property
    def seconds(self) -> float:
        return sum(charge.seconds for charge in self.charges)

    @property
    def flops(self) -> float | None:
        return _sum(charge.flops for charge in self.charges)

    @property
    def joules(self) -> float | None:
        return _sum(charge.joules for charge in self.charges)

    @property
    def peak_memory_bytes(self) -> int | None:
        return max((c.peak_memory_bytes for c in self.charges if c.peak_memory_bytes is not None), default=None)

    @property
    def dollars(self) -> float | None:
        return None if self.price is None else self.seconds / 3600 * self.price

    @property
    def uncounted(self) -> tuple[str, ...]:
        return tuple(sorted({name for charge in self.charges for name in charge.uncounted}))

    def only(self, *kinds: Kind) -> Ledger:
        """The charges of some kinds."""
        return Ledger(tuple(charge for charge in self.charges if charge.kind in kinds), self.price)

    def to_json(self) -> list[dict[str, Any]]:
        return [charge.to_json() for charge in self.charges]

    @staticmethod
    def from_json(values: Iterable[Mapping[str, Any]], price: float | None = None) -> Ledger:
        return Ledger(tuple(Charge.from_json(value) for value in values), price)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
