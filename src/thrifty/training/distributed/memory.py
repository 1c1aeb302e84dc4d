"""Bytes that a rank holds, by stage, and those that its device has left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch

if TYPE_CHECKING:
    from thrifty.recipes.session import Session

STATE = 8
"""Bytes of AdamW's state a parameter."""


@final
@dataclass(frozen=True)
class Held:
    """Bytes of one rank.

    Args:
        parameters, gradients, state: between two steps and at the end of a backward pass: its own part of each.
        passing: whole parameters and whole gradients that it holds beside them while a step lasts.
        host: what lasts in the host's memory instead, where it is offloaded.
    """

    parameters: float
    gradients: float
    state: float
    passing: float
    host: float = 0.0

    @property
    def lasting(self) -> float:
        """Without what passes."""
        return self.parameters + self.gradients + self.state


def held(stage: str, trained: int, ranks: int, *, frozen: int = 0, state: float = STATE, gathered: int = 4,
         group: int | None = None, offload: bool = False) -> Held:
    """What a rank holds of weights in float32.

        ddp    (4 + 4 + K) P
        zero1  (4 + 4 + K) P / N, and g P + 4 P while a step lasts
        zero2  (4 + 4 + K) P / N, and g P + 4 B
        zero3  (4 + 4 + K) P / N, and g B + 4 B

    What lasts is the host's where it is offloaded.

    Args:
        stage: "ddp", "zero1", "zero2" or "zero3"; "" is one process.
        trained: P, parameters with a gradient.
        ranks: N.
        frozen: parameters without one.
        state: K, bytes of the optimizer's state a parameter.
        gathered: g, bytes of a gathered parameter.
        group: B, parameters of the largest group that is gathered together; all where None.
        offload: whether it is offloaded.

    >>> held("zero3", 7_500_000_000, 64, group=0).lasting / 1e9
    1.875
    """
    everything = trained + frozen
    share = 1.0 if stage in ("", "ddp") or ranks == 1 else 1 / ranks
    largest = everything if group is None else group
    passing: Mapping[str, Callable[[], float]] = {
        "zero1": lambda: gathered * everything + 4 * trained,
        "zero2": lambda: gathered * everything + 4 * min(largest, trained),
        "zero3": lambda: gathered * largest + 4 * min(largest, trained),
    }
    lasting = (4 * everything * share, 4 * trained * share, state * trained * share)
    passes = passing[stage]() if share < 1 else 0.0
    return Held(0.0, 0.0, 0.0, passes, sum(lasting)) if offload and share < 1 else Held(*lasting, passes)


def free(device: str) -> int:
    """Bytes of the device's memory that are not taken."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def spare(session: Session) -> float:
    """Bytes that a rank has left beside its part of parameters (they are held already), gradients and state."""
    count = sum(p.numel() for p in session.model.parameters())
    share = free(session.device) / (session.ranks.count if session.device == "cpu" else 1)
    return share - held("zero3", count, session.ranks.count, group=0).lasting
