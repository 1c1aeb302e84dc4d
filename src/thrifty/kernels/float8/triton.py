"""A matrix in 8 bits in both layouts, tile by tile, in one pass over it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thrifty.kernels.float8.formats import LARGEST

TILE_ROWS, TILE_COLUMNS, TILE_WARPS = 128, 64, 8


@triton.jit
def _both(x, scale, straight, turned, rows, columns, LARGEST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.load(scale)
    _store8(x, factor, straight, i[:, None], j[None, :], rows, columns, columns, 1, LARGEST)
    # Read again, out of the cache, where the tile could be turned: Triton 3.6 turns tiles of 8 bits made from 32 wrongly.
    _store8(x, factor, turned, i[None, :], j[:, None], rows, columns, 1, rows, LARGEST)


@triton.jit
def _store8(x, factor, place, i, j, rows, columns, by_row, by_column, LARGEST: tl.constexpr):
    there = (i < rows) & (j < columns)
    value = tl.load(x + i * columns + j, mask=there, other=0.0).to(tl.float32)
    value = tl.math.div_rn(value, factor)  # as torch divides: a number halfway goes the same way
    value = tl.where(value < -LARGEST, -LARGEST, tl.where(value > LARGEST, LARGEST, value))  # a NaN stays
    tl.store(place + i * by_row + j * by_column, value.to(place.dtype.element_ty), mask=there)


def both(x: Tensor, scale: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `thrifty.kernels.float8.both`, on contiguous x."""
    straight, turned = pair(x, kind)
    _both[tiles(*x.shape)](x, scale, straight, turned, *x.shape, LARGEST=LARGEST[kind], ROWS=TILE_ROWS,
                           COLUMNS=TILE_COLUMNS, num_warps=TILE_WARPS)
    return straight, turned


def pair(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Room for both layouts."""
    rows, columns = x.shape
    return x.new_empty(rows, columns, dtype=kind), x.new_empty(columns, rows, dtype=kind)


def tiles(rows: int, columns: int) -> tuple[int, int]:
    """Programs that cover a matrix."""
    return triton.cdiv(rows, TILE_ROWS), triton.cdiv(columns, TILE_COLUMNS)
