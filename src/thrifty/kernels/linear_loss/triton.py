"""Losses of rows of logits and their gradients on a GPU: as few passes over the logits as there can be.

The gradient in 16 bits takes the logits' own place: a program takes a row at a time and reads it twice, the second time from
the L2 cache. The gradient in 8 bits leaves in both of the layouts that products of 8 bits want, tile by tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thrifty.kernels.float8 import E5M2
from thrifty.kernels.float8.triton import TILE_COLUMNS, TILE_ROWS, TILE_WARPS, pair, tiles
from thrifty.kernels.linear_loss.naive import GRADIENT_SCALE

BLOCK, WARPS, EACH = 8192, 32, 1
"""Columns at a time, warps of a program, programs a multiprocessor: few rows at once stay in the L2 cache until they are read
again."""


@triton.jit
def _rows(logits, target, lost, norm, rows, stride, columns, ignored, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        _losses(logits, target, lost, norm, row, stride, columns, ignored, GRADIENT, BLOCK)


@triton.jit
def _losses(logits, target, lost, norm, row, stride, columns, ignored, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    start = logits + row * stride
    offsets = tl.arange(0, BLOCK)
    label = tl.load(target + row)
    valid = label != ignored
    # Lanes keep running sums of their own, and are joined once: no barrier in the loop.
    peak = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    chosen = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + offsets
        x = tl.load(start + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peak, x)
        total = total * tl.exp(peak - higher) + tl.exp(x - higher)
        chosen += tl.where(at == label, x, 0.0)
        peak = higher
    top = tl.max(peak, 0)
    level = top + tl.log(tl.sum(total * tl.exp(peak - top), 0))
    tl.store(norm + row, level)
    tl.store(lost + row, tl.where(valid, level - tl.sum(chosen, 0), 0.0))
    if GRADIENT:
        for first in range(0, columns, BLOCK):
            at = first + offsets
            x = tl.load(start + at, mask=at < columns, other=-float("inf")).to(tl.float32)
            g = tl.where(valid, tl.exp(x - level) - tl.where(at == label, 1.0, 0.0), 0.0)
            tl.store(start + at, g.to(logits.dtype.element_ty), mask=at < columns)


@triton.jit
def _gradient8(logits, norm, target, straight, turned, rows, columns, ignored, SCALE: tl.constexpr,
               ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    # Twice, as in kernels/float8: a tile of 8 bits is not turned.
    _store8(logits, norm, target, straight, i[:, None], j[None, :], rows, columns, columns, 1, ignored, SCALE)
    _store8(logits, norm, target, turned, i[None, :], j[:, None], rows, columns, 1, rows, ignored, SCALE)


@triton.jit
def _store8(logits, norm, target, place, i, j, rows, columns, by_row, by_column, ignored, SCALE: tl.constexpr):
    there = (i < rows) & (j < columns)
    x = tl.load(logits + i * columns + j, mask=there, other=-float("inf")).to(tl.float32)
    level = tl.load(norm + i, mask=i < rows, other=0.0)
    label = tl.load(target + i, mask=i < rows, other=0)
    g = tl.exp(x - level) - tl.where(j == label, 1.0, 0.0)
    small = (tl.where(label != ignored, g, 0.0) * SCALE).to(tl.float8e5)
    tl.store(place + i * by_row + j * by_column, small, mask=there)


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def losses(logits: Tensor, target: Tensor, ignore_index: int, gradient: bool) -> tuple[Tensor, Tensor]:
    """As `naive.losses`; rows of logits are contiguous."""
    rows, columns = logits.shape
    lost, norm = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    if rows:
        programs = min(rows, EACH * multiprocessors(logits.device))
        _rows[(programs,)](logits, target, lost, norm, rows, logits.stride(0), columns, ignore_index, GRADIENT=gradient,
                           BLOCK=BLOCK, num_warps=WARPS)
    return lost, norm


def gradient8(logits: Tensor, norm: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """As `naive.gradient8`, on contiguous logits."""
    straight, turned = pair(logits, E5M2)
    _gradient8[tiles(*logits.shape)](logits, norm, target, straight, turned, *logits.shape, ignore_index,
                                      SCALE=GRADIENT_SCALE, ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS, num_warps=TILE_WARPS)
    return straight, turned
