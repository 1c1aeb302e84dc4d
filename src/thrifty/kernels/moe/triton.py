"""Experts on a GPU: tokens are gathered where products read them, the gate is applied where they are added up.

Rows are choices, sorted by expert, and no tile of them holds two experts': a table on the device says which rows each tile
takes, so that nothing waits for the host. Results are stored where their choice stands, so that a token's are neighbors, and
are then added in the order of choice: the same sum each time. Sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["limit"])
def plan(ends, table, limit, experts, M: tl.constexpr, BLOCK: tl.constexpr):
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
def enter(x, weight, order, table, gates, activated, limit, width, hidden, x_row, w_expert, w_row, w_column,
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
def leave(rows, weight, order, table, weights, y, limit, inputs, columns, w_expert, w_input, w_column,
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
def gather(parts, y, width, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """A token's rows, added in the order of choice."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TOP):
        total += tl.load(parts + (token * TOP + i) * width + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(y + token * width + column, total.to(y.dtype.element_ty), mask=column < width)


@triton.jit(do_not_specialize=["limit"])
def reenter(dy, weight, order, table, by_hidden, limit, width, hidden, dy_row, w_expert, w_row, w_column, TOP: tl.constexpr,
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
def ungate(by_hidden, order, weights, gates, by_gates, weighted, by_weights, choices, hidden, ROWS: tl.constexpr,
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
def outer(a, b, order, ends, made, down, across, a_row, b_row, TOP: tl.constexpr, SENT: tl.constexpr, WHOLE: tl.constexpr,
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
