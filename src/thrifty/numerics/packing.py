"""Whole numbers of three, four or eight bits in bytes."""

from __future__ import annotations

import torch
from torch import Tensor

PER_BYTES = {8: (1, 1), 4: (2, 1), 3: (8, 3)}
"""{bits: (numbers, bytes)} of the smallest piece that ends with a byte."""


def pack(q: Tensor, bits: int) -> Tensor:
    """Numbers along the last dimension, the first in the lowest bits, little-endian: number i takes bits i*b to i*b+b-1.

    Args:
        q: [..., n], whole numbers in 0..2^bits - 1, of any integer dtype; n a multiple of 2 for 4 bits, of 8 for 3.
        bits: 3, 4 or 8.

    Returns:
        uint8 [..., n * bits / 8].

    >>> pack(torch.tensor([1, 2, 15, 0]), 4).tolist()
    [33, 15]
    """
    numbers, wide = PER_BYTES[bits]
    if q.shape[-1] % numbers:
        raise ValueError(f"{q.shape[-1]} values of {bits} bits do not fill whole bytes: pad to a multiple of {numbers}")
    pieces = q.to(torch.int32).reshape(*q.shape[:-1], -1, numbers)
    word = (pieces << (torch.arange(numbers, dtype=torch.int32, device=q.device) * bits)).sum(-1, dtype=torch.int32)
    shifts = torch.arange(wide, dtype=torch.int32, device=q.device) * 8
    return ((word.unsqueeze(-1) >> shifts) & 255).to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """What `pack` packed: uint8 [..., n] of numbers in 0..2^bits - 1.

    >>> unpack(torch.tensor([33, 15], dtype=torch.uint8), 4).tolist()
    [1, 2, 15, 0]
    """
    if bits == 8:
        return packed
    if bits == 4:  # in bytes alone, which takes a tenth of the time
        return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    numbers, wide = PER_BYTES[bits]
    shifts = torch.arange(wide, dtype=torch.int32, device=packed.device) * 8
    word = (packed.reshape(*packed.shape[:-1], -1, wide).to(torch.int32) << shifts).sum(-1, dtype=torch.int32)
    places = torch.arange(numbers, dtype=torch.int32, device=packed.device) * bits
    return ((word.unsqueeze(-1) >> places) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)
