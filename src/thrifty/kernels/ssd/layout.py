"""Where sequences and their chunks lie in the tokens of a batch, for kernels that take one chunk each."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Layout:
    """Tokens of all rows, end to end.

    Args:
        sequences: [n, 3] int32 on the device: first token, the one behind the last, first chunk.
        chunks: [m, 2] int32: first token, the one behind the last; empty where there are fewer chunks than m.
        longest: tokens of the longest sequence, or a bound of it.
    """

    sequences: Tensor
    chunks: Tensor
    longest: int


@functools.lru_cache(maxsize=64)
def of_rows(batch: int, length: int, chunk: int, device: torch.device) -> Layout:
    """Rows of one length each."""
    offsets = torch.arange(batch + 1, device=device) * length
    return of_sequences(offsets, batch * length, chunk, longest=length)


def of_sequences(offsets: Tensor, tokens: int, chunk: int, longest: int | None = None) -> Layout:
    """Sequences of any lengths in one row; nothing waits for the device, so the chunks are bounded, not counted.

    >>> of_sequences(torch.tensor([0, 5, 5, 8]), 8, 4).chunks.tolist()
    [[0, 4], [4, 5], [5, 8], [8, 8], [8, 8]]
    """
    first, last = offsets[:-1], offsets[1:]
    counts = (last - first + chunk - 1) // chunk
    ends = counts.cumsum(0)
    index = torch.arange(-(-tokens // chunk) + len(first), device=offsets.device)
    owner = torch.searchsorted(ends, index, right=True).clamp(max=len(first) - 1)
    starts = torch.minimum(first[owner] + (index - (ends - counts)[owner]) * chunk, last[owner])
    stops = torch.minimum(starts + chunk, last[owner])
    return Layout(torch.stack([first, last, ends - counts], 1).int(), torch.stack([starts, stops], 1).int(),
                  tokens if longest is None else longest)
