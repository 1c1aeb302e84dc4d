"""How the state-space dual's kernels are split over a GPU, and which way is used where none is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Scan:
    """How `scan` is split.

    Args:
        chunk: tokens at once.
        block_p: of a head's width, a program's share.
        warps, stages: of a program, and chunks whose reads are under way.
        spans: parts of a sequence that run side by side, at the price of a second pass over it.
    """

    chunk: int
    block_p: int
    warps: int
    stages: int
    spans: int = 1


@final
@dataclass(frozen=True)
class Walk:
    """How `walk` is split.

    Args:
        chunk: tokens at once.
        block_p: of a head's width, a program's share.
        warps, stages: of a program, and chunks whose reads are under way.
        spans: parts of a sequence that run side by side.
        ratio: pieces in which each part but the last is summed up before; 1 or more.
    """

    chunk: int
    block_p: int
    warps: int
    stages: int
    spans: int
    ratio: int


@final
@dataclass(frozen=True)
class Gradient:
    """How the backward pass is split: chunk, and (warps, stages) of its states, `inputs`' warps, and `projections`'.

    Args:
        splits: parts of a group's heads, whose sums are added up afterwards.
    """

    chunk: int
    states: tuple[int, int]
    warps: int
    projection: tuple[int, int]
    splits: int


def forward_for(x: Tensor, B: Tensor, sequences: int) -> Scan | Walk:
    """The one to use where none is named.

    `walk` is three launches, which take the host of an H200 about 0.15 ms, so it is for the many tokens whose work takes
    longer. It was run there in bfloat16, with heads of 64 and states of 128.
    """
    batch, length, heads, width = x.shape
    many = batch * length * heads >= 2**19 and batch * length < 2**20  # a grid has 65,535 chunks at most
    if x.dtype != torch.bfloat16 or (width, B.shape[3]) != (64, 128) or not many:
        return scan_for(x, sequences)
    # Two programs fit on a multiprocessor; a large GPU has 132.
    spans = max(1, min(256 // max(1, sequences * heads), length // 1024, 8))
    return Walk(32, 64, 4, 3, spans, 3)


def scan_for(x: Tensor, sequences: int) -> Scan:
    """The one to use where none is named: for bfloat16 the fastest of 27 on an H200. With one stage and 32 of a head's width,
    what Triton 3.6 made there was wrong.
    """
    block_p = max(16, 1 << (x.shape[3] - 1).bit_length())
    if x.dtype != torch.bfloat16:
        return Scan(32, min(block_p, 64), 4, 1, spans_for(x, sequences))
    return Scan(64, min(block_p, 32), 4, 3, spans_for(x, sequences))


def gradient_for(x: Tensor, groups: int) -> Gradient:
    """In bfloat16 what was fastest of 37 ways on an H200 (B1 H128 P64 N128, 8192 tokens: 1.33 ms, the first guess 2.27); in other
    precisions, which were not timed, what was found right there.
    """
    if x.dtype == torch.bfloat16:
        return Gradient(64, (4, 3), 4, (8, 2), 1)
    each = x.shape[2] // groups
    programs = max(1, x.shape[0] * x.shape[1] // 32 * groups)
    return Gradient(32, (4, 2), 8, (8, 1), max(1, min(each, 264 // programs)))


def spans_for(x: Tensor, sequences: int) -> int:
    """Enough parts to keep the multiprocessors of a large GPU busy, of 1024 tokens or more each."""
    programs = max(1, sequences * x.shape[2])
    return max(1, min(66 // programs, x.shape[1] // 1024, 8))
