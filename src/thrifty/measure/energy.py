"""Joules, where the machine has a counter that may be read; None elsewhere, never zero."""

from __future__ import annotations

import abc
import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

_POWERCAP = Path("/sys/class/powercap")


class Meter(abc.ABC):
    """A running counter of energy. It counts the whole package or card, other programs included."""

    @abc.abstractmethod
    def read(self) -> tuple[float, ...]:
        """Joules of each counter since some moment in the past."""

    @abc.abstractmethod
    def between(self, before: tuple[float, ...], after: tuple[float, ...]) -> float | None:
        """Joules spent between two reads; None where they cannot be compared."""


@final
@dataclass(frozen=True)
class NoMeter(Meter):
    """No counter is readable: every energy reads None, "not measured"."""

    def read(self) -> tuple[float, ...]:
        return ()

    def between(self, before: tuple[float, ...], after: tuple[float, ...]) -> float | None:
        return None


@final
@dataclass(frozen=True)
class Rapl(Meter):
    """Processor packages through the kernel's power capping interface.

    Args:
        zones: a folder for each package, with ``energy_uj`` and ``max_energy_range_uj`` (where it wraps
            around).

    Source: Linux, Documentation/power/powercap.
    """

    zones: tuple[Path, ...]

    def read(self) -> tuple[float, ...]:
        return tuple(int((zone / "energy_uj").read_text()) * 1e-6 for zone in self.zones)

    def between(self, before: tuple[float, ...], after: tuple[float, ...]) -> float | None:
        total = 0.0
        for zone, start, end in zip(self.zones, before, after, strict=True):
            wraps = int((zone / "max_energy_range_uj").read_text()) * 1e-6
            total += end - start if end >= start else end - start + wraps
        return total


@final
@dataclass(frozen=True)
class Nvml(Meter):
    """One NVIDIA card's total since its driver was loaded."""

    nvml: Any
    handle: Any

    def read(self) -> tuple[float, ...]:
        return (float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) * 1e-3,)

    def between(self, before: tuple[float, ...], after: tuple[float, ...]) -> float | None:
        return after[0] - before[0] if after[0] >= before[0] else None


@final
@dataclass(frozen=True)
class Together(Meter):
    """Several counters of devices that are no parts of one another."""

    meters: tuple[Meter, ...]

    def read(self) -> tuple[float, ...]:
        return tuple(value for meter in self.meters for value in meter.read())

    def between(self, before: tuple[float, ...], after: tuple[float, ...]) -> float | None:
        total, at = 0.0, 0
        for meter in self.meters:
            end = at + len(meter.read())
            spent = meter.between(before[at:end], after[at:end])
            if spent is None:
                return None
            total, at = total + spent, end
        return total


def meters(device: str = "cpu") -> Meter:
    """The counters of all devices that work: the processor's packages and, on "cuda", every card. Those that may be read."""
    found = [_rapl(_POWERCAP), *(_cards() if device.startswith("cuda") else [])]
    readable = tuple(meter for meter in found if not isinstance(meter, NoMeter))
    return Together(readable) if readable else NoMeter()


def meter(device: str = "cpu", powercap: Path = _POWERCAP) -> Meter:
    """The best counter that this process may read for ``device``.

    >>> meter("cpu", powercap=Path("/nowhere")).between((), ()) is None
    True
    """
    return _nvml() if device.startswith("cuda") else _rapl(powercap)


def _rapl(powercap: Path) -> Meter:
    # "intel-rapl:0" is a package (AMD's carry the same name); "intel-rapl:0:0" a part of it, counted already.
    zones = tuple(sorted(zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1))
    rapl = Rapl(zones)
    try:
        rapl.between(rapl.read(), rapl.read())
    except (OSError, ValueError):  # the counters are there but only root may read them
        return NoMeter()
    return rapl if zones else NoMeter()


def _nvml() -> Meter:
    return next(iter(_cards()), NoMeter())


def _cards() -> list[Nvml]:
    """The cards whose counters may be read."""
    with contextlib.suppress(
        Exception
    ):  # no package, no driver, or a card without the counter: all mean "none"
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        found = [Nvml(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
        for card in found:
            card.read()
        return found
    return []
