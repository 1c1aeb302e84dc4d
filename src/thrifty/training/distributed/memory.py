"""Bytes that a rank holds, and those that its device has left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from thrifty.recipes.session import Session

STATE = 8
"""Bytes of AdamW's state a parameter."""


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
    held = sum(p.nbytes for p in session.model.parameters())
    share = free(session.device) / (session.ranks.count if session.device == "cpu" else 1)
    return share - (held + STATE * count) / session.ranks.count
