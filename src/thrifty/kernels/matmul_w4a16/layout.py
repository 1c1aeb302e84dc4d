"""How weights of four bits lie in memory for tensor cores: each lane of a warp finds its own in sixteen bytes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

STRIP = 16
"""Rows that a warp multiplies at once."""
BLOCK = 128
"""Inputs of a step: two units of 64, of which each lane reads four words."""


def words(q: Tensor) -> Tensor:
    """Numbers in the order of the fragments of ``mma.m16n8k16``.

    Row 16 a + 8 r + g and input 64 u + 32 h + 8 t + 4 s + 2 p + e are in strip a, unit u, lane 4 g + t, word 2 h + s,
    at bit 4 (r + 2 p + 4 e). So four shifts and masks of a word give the four registers of one fragment, two numbers
    each, and the activations that a lane multiplies with are eight that stand together.

    Args:
        q: uint8 [rows, inputs], numbers in 0..15.

    Returns:
        int32 [strips, units, 32, 4]; rows are filled up to a multiple of 16, inputs of 128, with 0.
    """
    rows, inputs = q.shape
    full = torch.nn.functional.pad(q, (0, -inputs % BLOCK, 0, -rows % STRIP))
    parts = full.reshape(-1, 2, 8, full.shape[1] // 64, 2, 4, 2, 2, 2).permute(1, 7, 8, 0, 3, 2, 5, 4, 6)  # r p e, a u g t h s
    found = torch.zeros(parts.shape[3:], dtype=torch.int32, device=q.device)
    for r, p, e in itertools.product(range(2), repeat=3):
        found |= parts[r, p, e].to(torch.int32) << 4 * (r + 2 * p + 4 * e)
    return found.reshape(found.shape[0], found.shape[1], 32, 4)


def grids(scale: Tensor, zero: Tensor, group: int) -> Tensor:
    """Scale and zero in one word: the float32 nearest to the scale whose lowest eight bits are the zero.

    It is off by at most 2^-16 of the scale, and needs no work to be read.

    Args:
        scale: float32 [rows, groups], above 0.
        zero: uint8 [rows, groups].
        group: inputs that share them.

    Returns:
        int32 [groups, rows], filled up as `words` are, with 0.

    >>> found = grids(torch.tensor([[0.1]]), torch.tensor([[7]], dtype=torch.uint8), 128)[0, 0]
    >>> int(found & 255), round(float(found.view(torch.float32)), 6)
    (7, 0.1)
    """
    rows, groups = scale.shape
    low = zero.to(torch.int32)
    word = ((scale.float().view(torch.int32) - low + 128) & -256) | low
    wanted = -(-(-(-groups * group // BLOCK) * BLOCK) // group)
    return torch.nn.functional.pad(word.T, (0, -rows % STRIP, 0, wanted - groups)).contiguous()
