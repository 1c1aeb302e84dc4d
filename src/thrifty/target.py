"""What a model will run on, and what trains it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, final

from thrifty.errors import ThriftyError


class TargetError(ThriftyError):
    """A target that this machine does not have."""


def _require(device: str, option: str) -> None:
    """Refuse a device that is unknown, or that torch does not see."""
    if device not in ("cpu", "cuda"):
        raise TargetError(f"device must be 'cpu' or 'cuda' but is {device!r}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise TargetError(f"device 'cuda' was requested, but torch sees no CUDA device; use {option} cpu")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@final
@dataclass(frozen=True)
class Target:
    """The device and the resources that serve the model; part of every run and every hash.

    Args:
        device: "cpu" or "cuda".
        threads: threads for inference; 1 by default, since timings on one thread are the steadiest.
        memory: bytes that serving may use, None for what the machine has.

    Raises:
        TargetError: the device is unknown or absent, or threads exceed the processors at hand.

    >>> Target(threads=1).device
    'cpu'
    """

    device: str = "cpu"
    threads: int = 1
    memory: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.threads, int) or not 1 <= self.threads <= cores():
            raise TargetError(f"threads must be 1 to {cores()} on this machine but is {self.threads}")
        if self.memory is not None and not (isinstance(self.memory, int) and self.memory > 0):
            raise TargetError(f"memory must be a whole number of bytes above 0 but is {self.memory!r}")
        _require(self.device, "--device")

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "threads": self.threads, "memory": self.memory}


@final
@dataclass(frozen=True)
class Machine:
    """The device and the processes that train the model.

    Args:
        device: "cpu" or "cuda".
        ranks: processes that train together.
        threads: of training on a CPU; None for one a processor.

    Raises:
        TargetError: the device is unknown, there are no ranks, or threads exceed the processors at hand.

    >>> Machine().ranks
    1
    """

    device: str = "cpu"
    ranks: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise TargetError(f"device must be 'cpu' or 'cuda' but is {self.device!r}")
        if not isinstance(self.ranks, int) or self.ranks < 1:
            raise TargetError(f"ranks must be a whole number, 1 or more, but is {self.ranks!r}")
        if self.threads is not None and not (isinstance(self.threads, int) and 1 <= self.threads <= cores()):
            raise TargetError(f"training threads must be 1 to {cores()} on this machine but are {self.threads}")


def training_machine(target: Target, device: str | None = None, ranks: int = 1, threads: int | None = None) -> Machine:
    """What trains a model for a target: the target's own device unless another is named.

    Args:
        target: that serves.
        device: "cpu" or "cuda"; the target's where None.
        ranks: processes that train together.
        threads: of training on a CPU; None for one a processor.

    Raises:
        TargetError: the device is unknown or absent, or the numbers are out of range.

    >>> training_machine(Target(), threads=1)
    Machine(device='cpu', ranks=1, threads=1)
    """
    chosen = target.device if device is None else device
    _require(chosen, "--training-device")
    return Machine(chosen, ranks, threads)
