"""A product with weights of four bits on a GPU: tensor cores at any count of tokens, one pass over the weights.

Each warp takes strips of 16 rows and its share of the inputs, straight from memory into the registers of `mma`; the
warps of a program share the inputs out among them and add up at the end. A number q is read as the bfloat16 128 + q (or
float16 1024 + q), which takes one operation for two: its bits are put under an exponent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import triton
import triton.language as tl
from torch import Tensor

from thrifty.kernels.matmul_w4a16.layout import BLOCK


def _numbers(kind: str, exponent: str) -> str:
    """A word's eight numbers less their zeros, as four registers of two; ``$5`` holds row g's zero, ``$6`` row g + 8's."""
    lines = ["{ .reg .b32 w;"]
    for j in range(4):
        lines.append(f"lop3.b32 ${j}, {'w' if j else '$4'}, 0x000F000F, {exponent}, 0xEA;")  # (w & mask) | exponent
        lines.append(f"sub.rn.{kind}x2 ${j}, ${j}, ${5 + j % 2};")
        if j < 3:
            lines.append(f"shr.u32 w, $4, {4 * (j + 1)};")
    return "\n".join([*lines, "}"])


def _times(kind: str) -> str:
    return "\n".join(["{ .reg .b32 g, h;", f"cvt.rn.{kind}x2.f32 g, $8, $8;", f"cvt.rn.{kind}x2.f32 h, $9, $9;",
                      *[f"mul.rn.{kind}x2 ${j}, ${j + 4}, {'gh'[j % 2]};" for j in range(4)], "}"])


def _mma(kind: str) -> str:
    return (f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};")


EXPONENT = {torch.bfloat16: 0x43004300, torch.float16: 0x64006400}
ASSEMBLY = {dtype: (_numbers(kind, hex(EXPONENT[dtype])), _times(kind), _mma(kind))
            for dtype, kind in ((torch.bfloat16, "bf16"), (torch.float16, "f16"))}


@triton.jit
def _four(x, LANES: tl.constexpr):
    """[lanes, 4] -> four [lanes]: registers change their names, nothing moves."""
    even, odd = tl.split(tl.reshape(x, (LANES, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _fragment(word, upper_zero, lower_zero, upper_scale, lower_scale,
              BEFORE: tl.constexpr, NUMBERS: tl.constexpr, TIMES: tl.constexpr):
    """16 rows by 16 inputs: four registers of two numbers, q - z or, BEFORE, s (q - z)."""
    a0, a1, a2, a3 = tl.inline_asm_elementwise(
        NUMBERS, "=&r,=&r,=&r,=&r,r,r,r", [word, upper_zero, lower_zero],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1)
    if BEFORE:
        a0, a1, a2, a3 = tl.inline_asm_elementwise(
            TIMES, "=&r,=&r,=&r,=&r,r,r,r,r,f,f", [a0, a1, a2, a3, upper_scale, lower_scale],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1)
    return a0, a1, a2, a3


@triton.jit
def _read(x, words, grid, block, lane, first_token, first_strip, tokens, inputs, blocks, strips, LANES: tl.constexpr,
          HALVES: tl.constexpr, TILES: tl.constexpr, STRIPS: tl.constexpr, WHOLE: tl.constexpr):
    """What 128 inputs need: a strip's eight words and its grids, strip by strip; then a tile's sixteen, tile by tile."""
    g, t, four = lane % 32 // 4, lane % 4, tl.arange(0, 4)[None, :]
    held = block if WHOLE else tl.minimum(block, blocks - 1)
    found: tl.tuple = ()
    for i in tl.static_range(STRIPS):
        strip = tl.minimum(first_strip + i, strips - 1)  # past the last is the last again, and stores what it stores
        at = words + strip.to(tl.int64) * blocks * 256 + (held * 256 + lane % 32 * 4)[:, None] + four
        found += _four(tl.load(at, eviction_policy="evict_first"), LANES)
        found += _four(tl.load(at + 128, eviction_policy="evict_first"), LANES)
    for i in tl.static_range(STRIPS):
        strip = tl.minimum(first_strip + i, strips - 1)
        for half in tl.static_range(0, 4, min(4, HALVES)):
            at = grid + (held * 4 + half) // HALVES * (strips * 16) + strip * 16 + g
            found += (tl.load(at), tl.load(at + 8))
    for tile in tl.static_range(TILES):
        token = first_token + tile * 8 + g
        for half in tl.static_range(4):
            near = token < tokens if WHOLE else (token < tokens) & (block * 128 + half * 32 + t * 8 < inputs)
            at = x + (token * (inputs // 2) + block * 64 + half * 16 + t * 4)[:, None] + four
            found += _four(tl.load(at, mask=near[:, None], other=0, eviction_policy="evict_last"), LANES)
    return found


@triton.jit
def _strip(y, read, STRIP: tl.constexpr, EXPONENT: tl.constexpr, LANES: tl.constexpr, HALVES: tl.constexpr,
           TILES: tl.constexpr, STRIPS: tl.constexpr, BEFORE: tl.constexpr,
           NUMBERS: tl.constexpr, TIMES: tl.constexpr, MMA: tl.constexpr):
    """Add 16 rows times 128 inputs times 8 tokens a tile to y, four registers a tile."""
    GROUPS: tl.constexpr = 4 // min(4, HALVES)
    B: tl.constexpr = (8 + 2 * GROUPS) * STRIPS
    nought = tl.zeros((LANES,), tl.float32)
    c = y if BEFORE else (nought,) * (4 * TILES)
    for half in tl.static_range(4):
        if half % HALVES == 0:
            at: tl.constexpr = 8 * STRIPS + 2 * (STRIP * GROUPS + half // HALVES)
            upper, lower = read[at], read[at + 1]
            upper_zero, lower_zero = (upper & 255) * 0x10001 + EXPONENT, (lower & 255) * 0x10001 + EXPONENT
            upper_scale, lower_scale = upper.to(tl.float32, bitcast=True), lower.to(tl.float32, bitcast=True)
        for s in tl.static_range(2):
            a0, a1, a2, a3 = _fragment(read[8 * STRIP + half * 2 + s], upper_zero, lower_zero, upper_scale, lower_scale,
                                       BEFORE, NUMBERS, TIMES)
            summed: tl.tuple = ()
            for tile in tl.static_range(TILES):
                low, high = read[B + tile * 16 + half * 4 + 2 * s], read[B + tile * 16 + half * 4 + 2 * s + 1]
                summed += tl.inline_asm_elementwise(
                    MMA, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
                    [a0, a1, a2, a3, low, high, c[4 * tile], c[4 * tile + 1], c[4 * tile + 2], c[4 * tile + 3]],
                    dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1)
            c = summed
        if not BEFORE and ((half + 1) % HALVES == 0 or half == 3):
            scaled: tl.tuple = ()
            for tile in tl.static_range(TILES):
                scaled += (y[4 * tile] + c[4 * tile] * upper_scale, y[4 * tile + 1] + c[4 * tile + 1] * upper_scale,
                           y[4 * tile + 2] + c[4 * tile + 2] * lower_scale, y[4 * tile + 3] + c[4 * tile + 3] * lower_scale)
            y = scaled
            c = (nought,) * (4 * TILES)
    return c if BEFORE else y


@triton.jit
def _add(total, read, EXPONENT: tl.constexpr, LANES: tl.constexpr, HALVES: tl.constexpr, TILES: tl.constexpr,
         STRIPS: tl.constexpr, BEFORE: tl.constexpr, NUMBERS: tl.constexpr, TIMES: tl.constexpr, MMA: tl.constexpr):
    added: tl.tuple = ()
    for i in tl.static_range(STRIPS):
        mine: tl.tuple = ()
        for j in tl.static_range(4 * TILES):
            mine += (total[i * 4 * TILES + j],)
        added += _strip(mine, read, i, EXPONENT, LANES, HALVES, TILES, STRIPS, BEFORE, NUMBERS, TIMES, MMA)
    return added


@triton.jit(do_not_specialize=["tokens"])
def _product(x, words, grid, bias, y, tokens, rows, inputs, blocks, strips,
             GROUP: tl.constexpr, TILES: tl.constexpr, STRIPS: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
             BEFORE: tl.constexpr, WHOLE: tl.constexpr, BIAS: tl.constexpr, EXPONENT: tl.constexpr,
             NUMBERS: tl.constexpr, TIMES: tl.constexpr, MMA: tl.constexpr, DEPTH: tl.constexpr):
    LANES: tl.constexpr = 32 * WARPS
    HALVES: tl.constexpr = GROUP // 32  # of 32 inputs, that share a scale
    columns = tl.cdiv(tokens, 8 * TILES)  # neighbors read the same weights, of which all but the first find them in L2
    first_token = tl.program_id(0) % columns * (8 * TILES)
    first_strip = tl.program_id(0) // columns * STRIPS
    lane = tl.arange(0, LANES)  # one element a thread: the assembly goes by it
    warp = lane // 32
    steps = tl.cdiv(blocks, WARPS)

    total = (tl.zeros((LANES,), tl.float32),) * (4 * TILES * STRIPS)
    if STAGES > 0:
        for step in tl.range(0, steps, num_stages=STAGES):
            read = _read(x, words, grid, step * WARPS + warp, lane, first_token, first_strip, tokens, inputs, blocks, strips,
                         LANES, HALVES, TILES, STRIPS, WHOLE)
            total = _add(total, read, EXPONENT, LANES, HALVES, TILES, STRIPS, BEFORE, NUMBERS, TIMES, MMA)
    else:
        read = _read(x, words, grid, warp, lane, first_token, first_strip, tokens, inputs, blocks, strips,
                     LANES, HALVES, TILES, STRIPS, WHOLE)
        for step in tl.range(1, steps, num_stages=1):
            after = _read(x, words, grid, step * WARPS + warp, lane, first_token, first_strip, tokens, inputs, blocks, strips,
                          LANES, HALVES, TILES, STRIPS, WHOLE)
            total = _add(total, read, EXPONENT, LANES, HALVES, TILES, STRIPS, BEFORE, NUMBERS, TIMES, MMA)
            read = after
        total = _add(total, read, EXPONENT, LANES, HALVES, TILES, STRIPS, BEFORE, NUMBERS, TIMES, MMA)

    # One exchange between the warps for all registers: [warps, 32, registers], summed over the warps.
    for level in tl.static_range(DEPTH):
        joined: tl.tuple = ()
        for i in tl.static_range(2 ** (DEPTH - level - 1)):
            joined += (tl.join(total[i], total[i + 2 ** (DEPTH - level - 1)]),)
        total = joined
    value = tl.sum(tl.reshape(total[0], (WARPS, 32, 4 * TILES * STRIPS)), axis=0)
    one, register = tl.arange(0, 32)[:, None], tl.arange(0, 4 * TILES * STRIPS)[None, :]
    j, tile, i = register % 4, register // 4 % TILES, register // (4 * TILES)
    row = tl.minimum(first_strip + i, strips - 1) * 16 + one // 4 + j // 2 * 8
    token = first_token + tile * 8 + one % 4 * 2 + j % 2
    if BIAS:
        value += tl.load(bias + row, mask=row < rows, other=0.0)
    tl.store(y + token.to(tl.int64) * rows + row, value.to(y.dtype.element_ty), mask=(token < tokens) & (row < rows))


@final
@dataclass(frozen=True)
class Config:
    """How the work is split.

    Args:
        tiles: of 8 tokens, that a program multiplies with.
        strips: of 16 rows, that a warp holds.
        warps: of a program, that share the inputs.
        stages: steps whose reads are under way, in shared memory; 0: the next step's, in registers; 1: none.
        before: weights are scaled in bfloat16 before the product; else its sums over a group are, in float32.
    """

    tiles: int
    strips: int
    warps: int
    stages: int
    before: bool = False


MANY = 1024
"""Strips of rows from which on there are enough of them for every multiprocessor without splitting the inputs far."""


def config(tokens: int, strips: int) -> Config:
    """What was fastest (H100, `benchmarks/matmul.py sweep w4a16`, 28672 x 8192 and 8192 x 28672)."""
    many = strips >= MANY
    if tokens <= 8:
        return Config(tiles=1, strips=1, warps=2, stages=0) if many else Config(tiles=1, strips=2, warps=8, stages=0)
    if tokens <= 16:
        return Config(tiles=2, strips=4, warps=1, stages=4) if many else Config(tiles=2, strips=4, warps=8, stages=0)
    return Config(tiles=4, strips=4, warps=1 if many else 4, stages=0, before=True)


def product(x: Tensor, words: Tensor, grid: Tensor, bias: Tensor | None, rows: int, group: int,
            how: Config | None = None) -> Tensor:
    """As `naive.product`, of what `layout` made.

    Args:
        x: [tokens, inputs], bfloat16 or float16, contiguous.
        words, grid: of `layout.words` and `layout.grids`.
        bias: float32 [rows], or None.
        rows: outputs.
        group: inputs that share a scale: 32, 64 or a multiple of 128.
        how: to share the work out; None takes what was fastest.

    Returns:
        [tokens, rows] in x's precision.
    """
    tokens, inputs = x.shape
    y = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    strips, blocks = words.shape[0], words.shape[1] // 2
    how = how or config(tokens, strips)
    numbers, times, mma = ASSEMBLY[x.dtype]
    programs = triton.cdiv(strips, how.strips) * triton.cdiv(tokens, 8 * how.tiles)
    _product[(programs,)](
        x.view(torch.int32), words, grid, y if bias is None else bias, y, tokens, rows, inputs, blocks, strips,
        GROUP=group, TILES=how.tiles, STRIPS=how.strips, WARPS=how.warps, STAGES=how.stages, BEFORE=how.before,
        WHOLE=inputs % BLOCK == 0 and blocks % how.warps == 0, BIAS=bias is not None, EXPONENT=EXPONENT[x.dtype],
        NUMBERS=numbers, TIMES=times, MMA=mma,
        DEPTH=(4 * how.tiles * how.strips).bit_length() - 1, num_warps=how.warps)
    return y
