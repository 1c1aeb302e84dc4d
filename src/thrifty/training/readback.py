"""Numbers read from a device while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from thrifty.workloads.workload import Batch


@final
class Readback:
    """Numbers on their way to the host. Reading them waits for the work that makes them, not for what was asked of the device
    since; on a CPU they are there at once.

    Args:
        x: a tensor on any device.

    >>> Readback(torch.tensor([1.0, 2.0])).read().tolist()
    [1.0, 2.0]
    """

    def __init__(self, x: Tensor) -> None:
        self._numbers, self._made = x.detach(), None
        if x.is_cuda:
            self._numbers = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._numbers.copy_(x.detach(), non_blocking=True)
            self._made = torch.cuda.Event()
            self._made.record()

    def read(self) -> Tensor:
        """The numbers, on the host."""
        if self._made is not None:
            self._made.synchronize()
        return self._numbers


@final
@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers the host has not read yet.

    Args:
        step: its number.
        batch: this rank's part.
        means: of its micro-batches.
        numbers: losses, weights and how many parts are not finite: over all ranks, then this rank's.
    """

    step: int
    batch: Batch
    means: list[Tensor]
    numbers: Readback
