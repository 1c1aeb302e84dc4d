"""Experts on a GPU: tokens are gathered where products read them, the gate is applied where they are added up.

Rows are choices, sorted by expert, and no tile of them holds two experts': a table on the device says which rows each tile
takes, so that nothing waits for the host. Results are stored where their choice stands, so that a token's are neighbors, and
are then added in the order of choice: the same sum each time. Sums are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit(do_not_specialize=["limit"])
def _plan(ends, table, limit, experts, M: tl.constexpr, BLOCK: tl.constexpr):
    """An expert's tiles, after those of the experts before it: whose they are, their first row, the end of its rows."""
    own, every = tl.program_id(0), tl.arange(0, BLOCK)
    end = tl.load(ends + every, mask=every < experts, other=0)
    start = tl.load(ends + every - 1, mask=(every > 0) & (every < experts), other=0)
    tiles = (end - start + M - 1) // M
    before = tl.sum(tl.where(every < own, tiles, 0), 0)
    if own == experts:  # tiles that there are none for
        for i in range(before, limit, BLOCK):
            tl.store(table + i + every, -1, mask=i + every < limit)
    else:
        low = tl.sum(tl.where(every == own, start, 0), 0)
        high = tl.sum(tl.where(every == own, end, 0), 0)
        for i in range((high - low + M - 1) // M):
            tl.store(table + before + i, own)
            tl.store(table + limit + before + i, (low + i * M).to(tl.int32))
            tl.store(table + 2 * limit + before + i, high.to(tl.int32))


@triton.jit
def _place(program, across, down, BAND: tl.constexpr):
    """A program's tile and block of columns: those that run at the same time share rows and weights."""
    band = program // (BAND * down)
    high = tl.minimum(across - band * BAND, BAND)
    within = program % (BAND * down)
    return band * BAND + within % high, within // high


@triton.jit
def _inputs(place, k, inputs, EVEN: tl.constexpr):
    return tl.load(place) if EVEN else tl.load(place, mask=k < inputs, other=0.0)


@triton.jit
def _block(weight, expert, k, n, TURNED: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """[K, N] of an expert's matrix by the copy engine, from [columns, inputs] where TURNED, else from [inputs, columns]."""
    if TURNED:
        return weight.load([expert.to(tl.int32), n, k]).reshape(N, K).T
    return weight.load([expert.to(tl.int32), k, n]).reshape(K, N)


@triton.jit
def _matrix(place, k, inputs, column, columns, EVEN: tl.constexpr, WHOLE: tl.constexpr):
    """[K, N] of a matrix, 0 outside; EVEN: the blocks end where the inputs do, WHOLE: where the columns do."""
    if EVEN and WHOLE:
        return tl.load(place)
    if EVEN:
        return tl.load(place, mask=column < columns, other=0.0)
    return tl.load(place, mask=(k < inputs) & (column < columns), other=0.0)


@triton.jit(do_not_specialize=["limit"])
def _enter(x, weight, order, table, gates, activated, limit, width, hidden, x_row, w_expert, w_row, w_column,
           TOP: tl.constexpr, KEEP: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
           K: tl.constexpr, BAND: tl.constexpr, STAGES: tl.constexpr,
           BULK: tl.constexpr, TURNED: tl.constexpr):
    """silu(gate) * up of rows of tokens, and what enters the gates where KEEP."""
    tile, block = _place(tl.program_id(0), limit, tl.cdiv(hidden, N), BAND)
    expert = tl.load(table + tile).to(tl.int64)
    if expert < 0:
        return
    end = tl.load(table + 2 * limit + tile)
    row = tl.load(table + limit + tile) + tl.arange(0, M)
    token = tl.load(order + tl.minimum(row, end - 1)) // TOP
    k = tl.arange(0, K)
    column = block * N + tl.arange(0, N)
    rows = x + token.to(tl.int64)[:, None] * x_row + k[None, :]
    up_at = tl.cast(hidden, tl.int64) * w_row
    if not BULK:
        matrix = weight + expert * w_expert + column.to(tl.int64)[None, :] * w_row + k.to(tl.int64)[:, None] * w_column
    gate = tl.zeros((M, N), tl.float32)
    up = tl.zeros((M, N), tl.float32)
    for i in tl.range(0, width, K, num_stages=STAGES):
        a = _inputs(rows, i + k[None, :], width, EVEN)
        if BULK:
            gate = tl.dot(a, _block(weight, expert, i, block * N, TURNED, N, K), gate)
            up = tl.dot(a, _block(weight, expert, i, hidden + block * N, TURNED, N, K), up)
        else:
            gate = tl.dot(a, _matrix(matrix, i + k[:, None], width, column[None, :], hidden, EVEN, WHOLE), gate,
                          input_precision="ieee")
            up = tl.dot(a, _matrix(matrix + up_at, i + k[:, None], width, column[None, :], hidden, EVEN, WHOLE), up,
                        input_precision="ieee")
            matrix += K * w_column
        rows += K
    there = (row < end)[:, None] & (column < hidden)[None, :]
    at = row.to(tl.int64)[:, None] * hidden + column[None, :]
    tl.store(activated + at, (gate * tl.sigmoid(gate) * up).to(activated.dtype.element_ty), mask=there)
    if KEEP:
        place = gates + row.to(tl.int64)[:, None] * (2 * hidden) + column[None, :]
        tl.store(place, gate.to(gates.dtype.element_ty), mask=there)
        tl.store(place + hidden, up.to(gates.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["limit"])
def _leave(rows, weight, order, table, weights, y, limit, inputs, columns, w_expert, w_input, w_column,
           EVEN: tl.constexpr, WHOLE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BAND: tl.constexpr,
           STAGES: tl.constexpr, BULK: tl.constexpr, TURNED: tl.constexpr):
    """Rows by their experts' matrices, times their weights where given, each stored where its choice stands."""
    tile, block = _place(tl.program_id(0), limit, tl.cdiv(columns, N), BAND)
    expert = tl.load(table + tile).to(tl.int64)
    if expert < 0:
        return
    end = tl.load(table + 2 * limit + tile)
    row = tl.load(table + limit + tile) + tl.arange(0, M)
    choice = tl.load(order + tl.minimum(row, end - 1)).to(tl.int64)
    k = tl.arange(0, K)
    column = block * N + tl.arange(0, N)
    first = tl.load(table + limit + tile)
    if not BULK:
        place = rows + tl.minimum(row, end - 1).to(tl.int64)[:, None] * inputs + k[None, :]
        matrix = weight + expert * w_expert + column.to(tl.int64)[None, :] * w_column + k.to(tl.int64)[:, None] * w_input
    total = tl.zeros((M, N), tl.float32)
    for i in tl.range(0, inputs, K, num_stages=STAGES):
        if BULK:  # rows past the expert's are another's, and are not stored
            total = tl.dot(rows.load([first, i]), _block(weight, expert, i, block * N, TURNED, N, K), total)
        else:
            total = tl.dot(_inputs(place, i + k[None, :], inputs, EVEN),
                           _matrix(matrix, i + k[:, None], inputs, column[None, :], columns, EVEN, WHOLE), total,
                           input_precision="ieee")
            place += K
            matrix += K * w_input
    if weights is not None:
        total *= tl.load(weights + choice).to(tl.float32)[:, None]
    tl.store(y + choice[:, None] * columns + column[None, :], total.to(y.dtype.element_ty),
             mask=(row < end)[:, None] & (column < columns)[None, :])


@triton.jit
def _gather(parts, y, width, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """A token's rows, added in the order of choice."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TOP):
        total += tl.load(parts + (token * TOP + i) * width + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(y + token * width + column, total.to(y.dtype.element_ty), mask=column < width)


@triton.jit(do_not_specialize=["limit"])
def _reenter(dy, weight, order, table, by_hidden, limit, width, hidden, dy_row, w_expert, w_row, w_column, TOP: tl.constexpr,
            EVEN: tl.constexpr, WHOLE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BAND: tl.constexpr,
            STAGES: tl.constexpr, BULK: tl.constexpr, TURNED: tl.constexpr):
    """From dy to the gradient of hidden units, but for the weights of choices."""
    tile, block = _place(tl.program_id(0), limit, tl.cdiv(hidden, N), BAND)
    expert = tl.load(table + tile).to(tl.int64)
    if expert < 0:
        return
    end = tl.load(table + 2 * limit + tile)
    first = tl.load(table + limit + tile)
    row = first + tl.arange(0, M)
    token = tl.load(order + tl.minimum(row, end - 1)).to(tl.int64) // TOP
    k = tl.arange(0, K)
    column = block * N + tl.arange(0, N)
    place = dy + token[:, None] * dy_row + k[None, :]
    if not BULK:
        matrix = weight + expert * w_expert + column.to(tl.int64)[None, :] * w_column + k.to(tl.int64)[:, None] * w_row
    total = tl.zeros((M, N), tl.float32)
    for i in tl.range(0, width, K, num_stages=STAGES):
        a = _inputs(place, i + k[None, :], width, EVEN)
        if BULK:
            total = tl.dot(a, _block(weight, expert, i, block * N, TURNED, N, K), total)
        else:
            total = tl.dot(a, _matrix(matrix, i + k[:, None], width, column[None, :], hidden, EVEN, WHOLE), total,
                           input_precision="ieee")
            matrix += K * w_row
        place += K
    at = first.to(tl.int64) * hidden
    tl.store(by_hidden + at + tl.arange(0, M)[:, None] * hidden + column[None, :], total.to(by_hidden.dtype.element_ty),
             mask=(row < end)[:, None] & (column < hidden)[None, :])


@triton.jit
def _ungate(by_hidden, order, weights, gates, by_gates, weighted, by_weights, choices, hidden, ROWS: tl.constexpr,
            BLOCK: tl.constexpr):
    """Gradients of what enters the gates and of the weights of choices; hidden units times their weights."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    there = (row < choices)[:, None] & (column < hidden)[None, :]
    choice = tl.load(order + row, mask=row < choices, other=0)
    own = tl.load(weights + choice).to(tl.float32)[:, None]
    at = row[:, None] * hidden + column[None, :]
    pair = row[:, None] * (2 * hidden) + column[None, :]
    by = tl.load(by_hidden + at, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(gates + pair, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gates + pair + hidden, mask=there, other=0.0).to(tl.float32)
    open = tl.sigmoid(gate)
    passed = gate * open
    tl.store(by_weights + choice, tl.sum(by * passed * up, 1), mask=row < choices)
    tl.store(weighted + at, (passed * up * own).to(weighted.dtype.element_ty), mask=there)
    by *= own
    tl.store(by_gates + pair, (by * up * (open + passed * (1 - open))).to(by_gates.dtype.element_ty), mask=there)
    tl.store(by_gates + pair + hidden, (by * passed).to(by_gates.dtype.element_ty), mask=there)


@triton.jit
def _outer(a, b, order, ends, made, down, across, a_row, b_row, TOP: tl.constexpr, SENT: tl.constexpr, WHOLE: tl.constexpr,
           M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BAND: tl.constexpr, STAGES: tl.constexpr,
           BULK: tl.constexpr):
    """The sum over an expert's rows of a_n b_n^T; 0 where it has none. Rows of a (SENT 0) or of b (SENT 1) are tokens'."""
    high, wide = tl.cdiv(down, M), tl.cdiv(across, N)
    expert = (tl.program_id(0) // (high * wide)).to(tl.int64)
    block_i, block_j = _place(tl.program_id(0) % (high * wide), high, wide, BAND)
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0).to(tl.int32)
    end = tl.load(ends + expert).to(tl.int32)
    i = block_i * M + tl.arange(0, M)
    j = block_j * N + tl.arange(0, N)
    k = tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for first in tl.range(start, end, K, num_stages=STAGES):
        row = first + k
        inside = row < end
        token = tl.load(order + row, mask=inside, other=0) // TOP
        a_at = token if SENT == 0 else row
        b_at = token if SENT == 1 else row
        a_mask = inside[:, None] if WHOLE else inside[:, None] & (i < down)[None, :]
        b_mask = inside[:, None] if WHOLE else inside[:, None] & (j < across)[None, :]
        # What the copy engine brings past the expert's rows is another's: the other side is 0 there.
        if BULK and SENT == 1:
            some = a.load([first, block_i * M])
        else:
            some = tl.load(a + a_at.to(tl.int64)[:, None] * a_row + i[None, :], mask=a_mask, other=0.0)
        if BULK and SENT == 0:
            other = b.load([first, block_j * N])
        else:
            other = tl.load(b + b_at.to(tl.int64)[:, None] * b_row + j[None, :], mask=b_mask, other=0.0)
        total = tl.dot(tl.trans(some), other, total, input_precision="ieee")
    place = made + (expert * down + i.to(tl.int64)[:, None]) * across + j[None, :]
    tl.store(place, total.to(made.dtype.element_ty), mask=(i < down)[:, None] & (j < across)[None, :])


# -- how they are launched --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Tile:
    """How a product is shared out.

    Args:
        n, k: columns and inputs of a block.
        warps: of a program.
        stages: blocks whose reads are under way.
        band: tiles whose programs are neighbors.
        bulk: matrices come by the copy engine, where they can.
    """

    n: int
    k: int
    warps: int
    stages: int
    band: int = 8
    bulk: bool = False


@final
@dataclass(frozen=True)
class How:
    """Tiles of each product: ``rows`` of all that go expert by expert.

    Args:
        rows: choices of a tile.
        enter, leave: of the forward pass.
        reenter, back: of gradients of hidden units and of tokens.
        outer_up, outer_down: of gradients of weights, and ``outer_rows`` of theirs.
    """

    rows: int
    enter: Tile
    leave: Tile
    reenter: Tile
    back: Tile
    outer_up: Tile
    outer_down: Tile
    outer_rows: int = 128


MANY = How(128, Tile(128, 64, 8, 4, bulk=True), Tile(128, 64, 8, 3, bulk=True), Tile(256, 64, 8, 4, bulk=True),
           Tile(256, 64, 8, 4, bulk=True), Tile(128, 32, 4, 6, bulk=True), Tile(256, 64, 8, 6, bulk=True))
SOME = How(64, Tile(128, 64, 4, 4, bulk=True), Tile(256, 64, 4, 3, bulk=True), Tile(128, 64, 4, 3, bulk=True),
           Tile(256, 64, 4, 3, bulk=True), Tile(128, 32, 4, 6, bulk=True), Tile(128, 32, 4, 6, bulk=True))
FEW = How(16, Tile(32, 128, 4, 4), Tile(128, 128, 4, 4), Tile(128, 128, 4, 4), Tile(128, 128, 4, 4), Tile(128, 16, 4, 3),
          Tile(128, 16, 4, 3), outer_rows=64)
"""As fast as any of those tried on an H200, at 512 and at 1,536 rows an expert (MANY), and at 8 (FEW); SOME was not timed."""


def chosen(choices: int, experts: int) -> How:
    """By how many rows an expert has on average, which the host knows."""
    each = choices / experts
    return MANY if each > 96 else SOME if each > 24 else FEW


def plan(ends: Tensor, choices: int, rows: int) -> Tensor:
    """[3, tiles] int32: a tile's expert, its first row, where the expert's rows end; expert -1 for tiles left over.

    Experts have at most choices / rows tiles that are full, and one each that is not.
    """
    limit = choices // rows + min(len(ends), choices)
    table = torch.empty(3, limit, dtype=torch.int32, device=ends.device)
    _plan[(len(ends) + 1,)](ends, table, limit, len(ends), M=rows, BLOCK=triton.next_power_of_2(len(ends)), num_warps=4)
    return table


def described(weight: Tensor, tile: Tile) -> tuple[Tensor | TensorDescriptor, bool, bool]:
    """(what a kernel takes of weight [experts, columns, inputs], whether that is a description, whether inputs are adjacent)."""
    turned = weight.stride(2) == 1
    plain, block = (weight, [1, tile.n, tile.k]) if turned else (weight.transpose(1, 2), [1, tile.k, tile.n])
    if not (tile.bulk and copies(plain)):
        return weight, False, turned
    return TensorDescriptor(plain, list(plain.shape), list(plain.stride()), block), True, turned


def copies(x: Tensor) -> bool:
    """Whether the copy engine reads it: numbers of a row are adjacent, and 16 bytes are the unit of its address and strides."""
    return (x.stride(-1) == 1 and x.data_ptr() % 16 == 0
            and all(s > 0 and s * x.element_size() % 16 == 0 for s in x.stride()[:-1]))


def _settings(how: How, tile: Tile, inputs: int, columns: int) -> dict[str, int | bool]:
    return {"M": how.rows, "N": tile.n, "K": tile.k, "BAND": tile.band, "STAGES": tile.stages, "EVEN": inputs % tile.k == 0,
            "WHOLE": columns % tile.n == 0, "num_warps": tile.warps}


def enter(x: Tensor, gate_up: Tensor, order: Tensor, table: Tensor, top: int, keep: bool, how: How) -> tuple[Tensor, Tensor]:
    """(silu(gate) * up, what enters the gates)."""
    hidden, limit, tile = gate_up.shape[1] // 2, table.shape[1], how.enter
    gates = x.new_empty((len(order), 2 * hidden) if keep else (0,))
    activated = x.new_empty(len(order), hidden)
    weight, bulk, turned = described(gate_up, tile)
    _enter[(limit * triton.cdiv(hidden, tile.n),)](
        x, weight, order, table, gates, activated, limit, x.shape[1], hidden, x.stride(0), *gate_up.stride(), TOP=top,
        KEEP=keep, BULK=bulk, TURNED=turned, **_settings(how, tile, x.shape[1], hidden))
    return activated, gates


def leave(rows: Tensor, weight: Tensor, order: Tensor, table: Tensor, weights: Tensor | None, how: How, tile: Tile) -> Tensor:
    """[choices, columns] of rows [choices, inputs] by weight [experts, columns, inputs], where choices stand."""
    columns, limit = weight.shape[1], table.shape[1]
    made = rows.new_empty(len(rows), columns)
    expert, column, inputs = weight.stride()
    matrix, bulk, turned = described(weight, tile) if copies(rows) else (weight, False, False)
    if bulk:
        rows = TensorDescriptor(rows, list(rows.shape), list(rows.stride()), [how.rows, tile.k])
    _leave[(limit * triton.cdiv(columns, tile.n),)](
        rows, matrix, order, table, weights, made, limit, rows.shape[1], columns, expert, inputs, column, BULK=bulk,
        TURNED=turned, **_settings(how, tile, rows.shape[1], columns))
    return made


def gather(parts: Tensor, top: int) -> Tensor:
    """[tokens, width], sums of [tokens * top, width]."""
    choices, width = parts.shape
    made = parts.new_empty(choices // top, width)
    block = min(1024, triton.next_power_of_2(width))
    _gather[(len(made), triton.cdiv(width, block))](parts, made, width, TOP=top, BLOCK=block, num_warps=4)
    return made


def reenter(dy: Tensor, down: Tensor, order: Tensor, table: Tensor, weights: Tensor, gates: Tensor,
            how: How) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of what enters the gates, hidden units times weights, gradient of weights)."""
    hidden, limit, tile, choices = down.shape[2], table.shape[1], how.reenter, len(order)
    by_hidden, weighted, by_gates = dy.new_empty(choices, hidden), dy.new_empty(choices, hidden), torch.empty_like(gates)
    by_weights = torch.empty(weights.shape, dtype=torch.float32, device=dy.device)
    weight, bulk, turned = described(down.transpose(1, 2), tile)
    _reenter[(limit * triton.cdiv(hidden, tile.n),)](
        dy, weight, order, table, by_hidden, limit, dy.shape[1], hidden, dy.stride(0), *down.stride(), TOP=weights.shape[1],
        BULK=bulk, TURNED=turned, **_settings(how, tile, dy.shape[1], hidden))
    block = triton.next_power_of_2(hidden)
    rows = max(1, 2048 // block)
    _ungate[(triton.cdiv(choices, rows),)](by_hidden, order, weights, gates, by_gates, weighted, by_weights, choices, hidden,
                                           ROWS=rows, BLOCK=block, num_warps=4)
    return by_gates, weighted, by_weights.to(weights.dtype)


def outer(a: Tensor, b: Tensor, order: Tensor, ends: Tensor, top: int, sent: int, rows: int, tile: Tile) -> Tensor:
    """[experts, columns of a, columns of b]: sums over each expert's rows; ``sent``: which of the two are tokens."""
    down, across = a.shape[1], b.shape[1]
    made = a.new_empty(len(ends), down, across)
    a_row, b_row, bulk = a.stride(0), b.stride(0), tile.bulk and copies((b, a)[sent])
    if bulk and sent == 1:
        a = TensorDescriptor(a, list(a.shape), list(a.stride()), [tile.k, rows])
    elif bulk:
        b = TensorDescriptor(b, list(b.shape), list(b.stride()), [tile.k, tile.n])
    _outer[(len(ends) * triton.cdiv(down, rows) * triton.cdiv(across, tile.n),)](
        a, b, order, ends, made, down, across, a_row, b_row, TOP=top, SENT=sent, BULK=bulk,
        WHOLE=down % rows == 0 and across % tile.n == 0, M=rows, N=tile.n, K=tile.k, BAND=tile.band, STAGES=tile.stages,
        num_warps=tile.warps)
    return made


def forward(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor, keep: bool,
            how: How | None = None) -> tuple[Tensor, Tensor]:
    """As `cpu.forward`."""
    if not len(order):
        return torch.empty_like(x), x.new_empty((0, gate_up.shape[1]) if keep else (0,))
    x, weights, top = _rows(x), weights.contiguous(), weights.shape[1]
    how = how or chosen(len(order), len(ends))
    table = plan(ends, len(order), how.rows)
    activated, gates = enter(x, gate_up, order, table, top, keep, how)
    return gather(leave(activated, down, order, table, weights, how, how.leave), top), gates


def backward(dy: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, order: Tensor, ends: Tensor, gates: Tensor,
             needs: list[bool], how: How | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `cpu.backward`."""
    if not len(order):
        by_x, by_gate_up, by_down = (v.new_zeros(v.shape if need else 0)
                                     for v, need in zip((x, gate_up, down), needs, strict=True))
        return by_x, by_gate_up, by_down, weights.new_empty(weights.shape)
    dy, x, weights, top = _rows(dy), _rows(x), weights.contiguous(), weights.shape[1]
    how = how or chosen(len(order), len(ends))
    table = plan(ends, len(order), how.rows)
    by_gates, weighted, by_weights = reenter(dy, down, order, table, weights, gates, how)
    by_x, by_gate_up, by_down = (x.new_empty(0) for _ in range(3))  # an operator's results are no two of them the same
    if needs[0]:
        by_x = gather(leave(by_gates, gate_up.transpose(1, 2), order, table, None, how, how.back), top)
    if needs[1]:
        by_gate_up = outer(by_gates, x, order, ends, top, 1, how.outer_rows, how.outer_up)
    if needs[2]:
        by_down = outer(dy, weighted, order, ends, top, 0, how.outer_rows, how.outer_down)
    return by_x, by_gate_up, by_down, by_weights


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
