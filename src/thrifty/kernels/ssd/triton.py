"""The state-space dual on a GPU: walks with the state in registers; backward, what a chunk's states say of it.

Running sums of dt A are in powers of two: `exp2` is what the hardware has. Sums are float32; products are bfloat16 where x is,
tf32 for float16 (as many digits, and no overflow of states), and float32 where x is.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thrifty.kernels.ssd.cpu import Gradients
from thrifty.kernels.ssd.layout import Layout, of_rows, of_sequences
from thrifty.kernels.ssd.sharing import Gradient, Scan, Walk, forward_for, gradient_for, spans_for
from thrifty.kernels.ssd.walk import LOG2E, dot, prepare, tile, walk


@triton.jit(do_not_specialize=["span"])
def scan(x, dt, A, B, C, D, initial, y, final, states, spans, falls, sequences, x_row, b_row, c_row, span,
         HEADS: tl.constexpr, EACH: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SPANS: tl.constexpr,
         OUTPUT: tl.constexpr, REVERSE: tl.constexpr, SUMMARY: tl.constexpr, KIND: tl.constexpr, DIGITS: tl.constexpr,
         Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr):
    """A head's sequence, or one of SPANS parts of it, chunk by chunk with the state in registers.

    Forward, it adds exp(cs_Q - cs_s) dt_s B_s x_s^T of each chunk; in reverse, exp(cs_l) C_l dy_l^T (x is then dy, B is C).
    It writes y where OUTPUT, the states at the starts of chunks where ``states`` is given (in reverse: at their ends), the last
    state where ``final`` is, and a part's sum and fall of log2 where SUMMARY.
    """
    part_p: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    head = tl.program_id(0) // part_p
    p0 = tl.program_id(0) % part_p * BLOCK_P
    sequence = tl.program_id(1) // SPANS
    part = tl.program_id(1) % SPANS
    first = tl.load(sequences + sequence * 3)
    last = tl.load(sequences + sequence * 3 + 1)
    chunk = tl.load(sequences + sequence * 3 + 2).to(tl.int64)
    n, p, q = tl.arange(0, BLOCK_N), p0 + tl.arange(0, BLOCK_P), tl.arange(0, Q)
    square = (n < N)[:, None] & (p < P)[None, :]
    inner = n[:, None] * P + p[None, :]  # of states that are ours alone
    outer = p[None, :] * N + n[:, None]
    decay = tl.load(A + head).to(tl.float32) * LOG2E
    skip = tl.load(D + head).to(tl.float32) if OUTPUT and D is not None else 0.0
    whole = (sequence.to(tl.int64) * HEADS + head) * P * N

    state = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    if initial is not None and (not SUMMARY):
        state += tl.load(initial + whole + outer, mask=square, other=0.0).to(tl.float32)
    if SPANS > 1 and (not SUMMARY):  # what the parts before this one leave
        for k in range(part):
            row = (sequence * SPANS + k).to(tl.int64) * HEADS + head
            state = state * tl.exp2(tl.load(falls + row)) + tl.load(spans + row * P * N + inner, mask=square, other=0.0)
    slot = SPANS - 1 - part if REVERSE else part
    begin = first + slot * span
    end = tl.minimum(begin + span, last) if SPANS > 1 else last
    count = tl.maximum(tl.cdiv(end - begin, Q), 0)
    fallen = 0.0
    group = head // EACH
    for step in tl.range(0, count, num_stages=STAGES):
        i = count - 1 - step if REVERSE else step
        at = begin + i * Q + q
        inside = at < end
        times = tl.load(dt + at.to(tl.int64) * HEADS + head, mask=inside, other=0.0).to(tl.float32)
        total = tl.cumsum(times * decay, 0)
        fall = tl.sum(times * decay, 0)
        values = tl.load(x + at.to(tl.int64)[:, None] * x_row + (head * P + p)[None, :],
                       mask=inside[:, None] & (p < P)[None, :], other=0.0)
        b = tile(B + group * N, at, b_row, inside, N, BLOCK_N)
        if states is not None:
            place = states + ((chunk + slot * (span // Q) + i) * HEADS + head) * P * N
            tl.store(place + inner, state.to(states.dtype.element_ty), mask=square)
        if OUTPUT:
            c = tile(C + group * N, at, c_row, inside, N, BLOCK_N)
            between = tl.minimum(total[:, None] - total[None, :], 0.0)
            below = (q[:, None] >= q[None, :]) & inside[:, None]
            scores = dot(c, tl.trans(b), KIND, DIGITS) * tl.where(below, tl.exp2(between), 0.0) * times[None, :]
            found = dot(c, state, KIND, DIGITS) * tl.exp2(total)[:, None]
            found += dot(scores, values, KIND, DIGITS) + skip * values.to(tl.float32)
            tl.store(y + (at.to(tl.int64)[:, None] * HEADS + head) * P + p[None, :], found.to(y.dtype.element_ty),
                     mask=inside[:, None] & (p < P)[None, :])
        weight = tl.exp2(total) if REVERSE else tl.exp2(fall - total) * times
        weight = tl.where(inside, weight, 0.0)
        state = state * tl.exp2(fall) + dot(tl.trans(b), values.to(tl.float32) * weight[:, None], KIND, DIGITS)
        fallen += fall
    if SUMMARY:
        row = (sequence * SPANS + part).to(tl.int64) * HEADS + head
        tl.store(spans + row * P * N + inner, state, mask=square)
        tl.store(falls + row, fallen)
    if final is not None:  # noqa: SIM102 - decided when it is compiled
        if part == SPANS - 1:
            tl.store(final + whole + outer, state, mask=square)


@triton.jit
def inputs(dy, x, dt, A, B, C, D, states, dstates, dx, ddt, dA, dD, chunks, dy_row, x_row, b_row, c_row,
           HEADS: tl.constexpr, EACH: tl.constexpr, P: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr,
           DIGITS: tl.constexpr, Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Gradients of one head's x and dt in one chunk, and its parts of those of A and D."""
    head = tl.program_id(0)
    chunk = tl.program_id(1).to(tl.int64)
    first, last = tl.load(chunks + chunk * 2), tl.load(chunks + chunk * 2 + 1)
    n, p, q = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_P), tl.arange(0, Q)
    at = first + q
    inside = at < last
    group = head // EACH
    decay = tl.load(A + head).to(tl.float32)
    times = tl.load(dt + at.to(tl.int64) * HEADS + head, mask=inside, other=0.0).to(tl.float32)
    total = tl.cumsum(times * decay * LOG2E, 0)
    fall = tl.sum(times * decay * LOG2E, 0)
    values = tile(x + head * P, at, x_row, inside, P, BLOCK_P)
    given = tile(dy + head * P, at, dy_row, inside, P, BLOCK_P)
    b = tile(B + group * N, at, b_row, inside, N, BLOCK_N)
    c = tile(C + group * N, at, c_row, inside, N, BLOCK_N)
    place = (chunk * HEADS + head) * P * N + n[:, None] * P + p[None, :]
    square = (n < N)[:, None] & (p < tl.where(first < last, P, 0))[None, :]
    h = tl.load(states + place, mask=square, other=0.0)
    dh = tl.load(dstates + place, mask=square, other=0.0)

    below = (q[:, None] >= q[None, :]) & inside[:, None]
    scores = dot(c, tl.trans(b), KIND, DIGITS)
    scores *= tl.where(below, tl.exp2(tl.minimum(total[:, None] - total[None, :], 0.0)), 0.0)
    wide = values.to(tl.float32)
    reached = dot(b, dh, KIND, DIGITS) * tl.where(inside, tl.exp2(fall - total), 0.0)[:, None]
    du = dot(tl.trans(scores), given, KIND, DIGITS) + reached
    product = dot(given, tl.trans(values), KIND, DIGITS) * scores * times[None, :]
    read = tl.sum(dot(c, h, KIND, DIGITS) * given.to(tl.float32), 1) * tl.exp2(total)
    wrote = tl.sum(wide * reached, 1) * times
    dtotal = tl.sum(product, 1) - tl.sum(product, 0) + read - wrote
    kept = tl.sum(tl.sum(h.to(tl.float32) * dh.to(tl.float32), 1), 0) * tl.exp2(fall)
    # cs_Q holds every token's dt A, so what it is owed goes to each of them.
    da = tl.cumsum(dtotal, 0, reverse=True) + tl.sum(wrote, 0) + kept
    da = tl.where(inside, da, 0.0)
    tl.store(ddt + at.to(tl.int64) * HEADS + head, da * decay + tl.sum(wide * du, 1), mask=inside)
    tl.store(dA + chunk * HEADS + head, tl.sum(da * times, 0))
    tl.store(dD + chunk * HEADS + head, tl.sum(tl.sum(wide * given.to(tl.float32), 1), 0))
    found = du * times[:, None]
    if D is not None:
        found += tl.load(D + head).to(tl.float32) * given.to(tl.float32)
    tl.store(dx + (at.to(tl.int64)[:, None] * HEADS + head) * P + p[None, :], found.to(dx.dtype.element_ty),
             mask=inside[:, None] & (p < P)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def projections(dy, x, dt, A, B, C, states, dstates, dB, dC, chunks, dy_row, x_row, b_row, c_row, tokens,
                HEADS: tl.constexpr, EACH: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr,
                KIND: tl.constexpr, DIGITS: tl.constexpr, Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
                STAGES: tl.constexpr):
    """Gradients of one group's B and C in one chunk: sums over its heads, or over one of SPLITS parts of them."""
    groups: tl.constexpr = HEADS // EACH
    some: tl.constexpr = (EACH + SPLITS - 1) // SPLITS
    group = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    chunk = tl.program_id(1).to(tl.int64)
    first, last = tl.load(chunks + chunk * 2), tl.load(chunks + chunk * 2 + 1)
    if first < last:
        n, p, q = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_P), tl.arange(0, Q)
        at = first + q
        inside = at < last
        below = (q[:, None] >= q[None, :]) & inside[:, None]
        square = (n < N)[:, None] & (p < P)[None, :]
        sums = tl.zeros((Q, Q), tl.float32)
        by_b = tl.zeros((Q, BLOCK_N), tl.float32)
        by_c = tl.zeros((Q, BLOCK_N), tl.float32)
        for k in tl.range(split * some, tl.minimum((split + 1) * some, EACH), num_stages=STAGES):
            head = group * EACH + k
            decay = tl.load(A + head).to(tl.float32) * LOG2E
            times = tl.load(dt + at.to(tl.int64) * HEADS + head, mask=inside, other=0.0).to(tl.float32)
            total = tl.cumsum(times * decay, 0)
            fall = tl.sum(times * decay, 0)
            values = tile(x + head * P, at, x_row, inside, P, BLOCK_P)
            given = tile(dy + head * P, at, dy_row, inside, P, BLOCK_P)
            place = (chunk * HEADS + head) * P * N + n[:, None] * P + p[None, :]
            h = tl.load(states + place, mask=square, other=0.0)
            dh = tl.load(dstates + place, mask=square, other=0.0)
            between = tl.minimum(total[:, None] - total[None, :], 0.0)
            sums += (dot(given, tl.trans(values), KIND, DIGITS) * tl.where(below, tl.exp2(between), 0.0) * times[None, :])
            weight = tl.where(inside, tl.exp2(fall - total) * times, 0.0)
            by_c += dot(given.to(tl.float32) * tl.exp2(total)[:, None], tl.trans(h), KIND, DIGITS)
            by_b += dot(values.to(tl.float32) * weight[:, None], tl.trans(dh), KIND, DIGITS)
        b = tile(B + group * N, at, b_row, inside, N, BLOCK_N)
        c = tile(C + group * N, at, c_row, inside, N, BLOCK_N)
        by_c += dot(sums, b, KIND, DIGITS)
        by_b += dot(tl.trans(sums), c, KIND, DIGITS)
        row = (split * tokens.to(tl.int64) + at.to(tl.int64)) * groups + group
        mask = inside[:, None] & (n < N)[None, :]
        tl.store(dB + row[:, None] * N + n[None, :], by_b.to(dB.dtype.element_ty), mask=mask)
        tl.store(dC + row[:, None] * N + n[None, :], by_c.to(dC.dtype.element_ty), mask=mask)


# -- launching --------------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """The tensor, copied where its tokens do not lie at equal distances, and that distance."""
    batch, length, count, width = x.shape
    even = x.stride(3) == 1 and (count == 1 or x.stride(2) == width) and (batch == 1 or x.stride(0) == length * x.stride(1))
    x = x if even else x.contiguous()
    return x, x.stride(1)


def _kinds(x: Tensor) -> dict[str, Any]:
    if x.dtype == torch.bfloat16:
        return {"KIND": tl.bfloat16, "DIGITS": "tf32"}
    return {"KIND": tl.float32, "DIGITS": "tf32" if x.dtype == torch.float16 else "ieee"}


def _layout(x: Tensor, offsets: Tensor | None, chunk: int) -> Layout:
    batch, length = x.shape[:2]
    return of_rows(batch, length, chunk, x.device) if offsets is None else of_sequences(offsets, length, chunk)


def _blocks(x: Tensor, B: Tensor) -> dict[str, int]:
    """Sizes that both directions compile for."""
    return {"HEADS": x.shape[2], "EACH": x.shape[2] // B.shape[2], "P": x.shape[3], "N": B.shape[3],
            "BLOCK_N": max(16, triton.next_power_of_2(B.shape[3]))}


def _scan(how: Scan, layout: Layout, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
          initial: Tensor | None, y: Tensor | None, final: Tensor | None, states: Tensor | None, reverse: bool) -> None:
    """`scan`, after one that sums up each part where there are several."""
    heads, width, size, count = x.shape[2], x.shape[3], B.shape[3], len(layout.sequences)
    span = triton.cdiv(triton.cdiv(layout.longest, how.chunk), how.spans) * how.chunk
    sums = falls = None
    if how.spans > 1:
        sums = torch.empty(count, how.spans, heads, size, width, dtype=torch.float32, device=x.device)
        falls = torch.empty(count, how.spans, heads, dtype=torch.float32, device=x.device)
    (x, x_row), (B, b_row), (C, c_row) = _rows(x), _rows(B), _rows(C)
    grid = (heads * triton.cdiv(width, how.block_p), count * how.spans)
    fixed = {**_blocks(x, B), **_kinds(x), "SPANS": how.spans, "REVERSE": reverse, "Q": how.chunk, "BLOCK_P": how.block_p,
             "STAGES": how.stages, "num_warps": how.warps}
    if how.spans > 1:
        scan[grid](x, dt, A, B, C, D, None, None, None, None, sums, falls, layout.sequences, x_row, b_row, c_row, span,
                   OUTPUT=False, SUMMARY=True, **fixed)
    scan[grid](x, dt, A, B, C, D, initial, y, final, states, sums, falls, layout.sequences, x_row, b_row, c_row, span,
               OUTPUT=y is not None, SUMMARY=False, **fixed)


def _walk(how: Walk, layout: Layout, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
          initial: Tensor | None, y: Tensor, final: Tensor) -> None:
    """`prepare`, then `walk`, after one that sums up parts where there are several."""
    heads, width, groups, size = *x.shape[2:], *B.shape[2:]
    chunks, count = len(layout.chunks), len(layout.sequences)
    (x, x_row), (B, b_row), (C, c_row) = _rows(x), _rows(B), _rows(C)
    totals, times = (torch.empty(chunks, heads, how.chunk, dtype=torch.float32, device=x.device) for _ in range(2))
    kept = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    near = torch.empty(chunks, groups, how.chunk, how.chunk, dtype=kept, device=x.device)
    blocks, kinds = _blocks(x, B), _kinds(x)
    some = 32
    if chunks:
        prepare[(triton.cdiv(heads, some) + groups, chunks)](
            dt, A, B, C, totals, times, near, layout.chunks, b_row, c_row, **{k: v for k, v in blocks.items() if k != "P"},
            **kinds, Q=how.chunk, SOME=some, num_warps=4)
    pieces = (how.spans - 1) * how.ratio
    span = triton.cdiv(triton.cdiv(layout.longest, how.chunk), how.spans * how.ratio) * how.chunk
    fixed = {**blocks, **kinds, "SPANS": how.spans, "RATIO": how.ratio, "Q": how.chunk, "BLOCK_P": how.block_p,
             "STAGES": how.stages, "num_warps": how.warps}
    columns = heads * triton.cdiv(width, how.block_p)
    sums = falls = None
    if pieces:
        sums = torch.empty(count, pieces, heads, width, size, dtype=torch.float32, device=x.device)
        falls = torch.empty(count, pieces, heads, dtype=torch.float32, device=x.device)
        walk[(columns, count * pieces)](x, totals, times, B, None, None, None, None, None, None, sums, falls, layout.sequences,
                                        x_row, b_row, c_row, span, SUMMARY=True, **fixed)
    walk[(columns, count * how.spans)](x, totals, times, B, C, D, near, initial, y, final, sums, falls, layout.sequences, x_row,
                                       b_row, c_row, span * how.ratio, SUMMARY=False, **fixed)


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None,
            offsets: Tensor | None, how: Scan | Walk | None = None) -> tuple[Tensor, Tensor]:
    """As `naive.ssd`, of any precision but float64."""
    count = x.shape[0] if offsets is None else len(offsets) - 1
    how = how or forward_for(x, B, count)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = torch.empty(count, *x.shape[2:], B.shape[3], dtype=dt.dtype, device=x.device)
    layout, dt, initial = _layout(x, offsets, how.chunk), dt.contiguous(), _whole(initial)
    if isinstance(how, Walk):
        _walk(how, layout, x, dt, A, B, C, D, initial, y, final)
    else:
        _scan(how, layout, x, dt, A, B, C, D, initial, y, final, None, False)
    return y, final


def _whole(states: Tensor | None) -> Tensor | None:
    return None if states is None else states.contiguous()


def backward(by_y: Tensor, by_final: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
             initial: Tensor | None, offsets: Tensor | None, how: Gradient | None = None) -> Gradients:
    """As `cpu.backward`."""
    heads, width, groups, size = *x.shape[2:], *B.shape[2:]
    how, dt = how or gradient_for(x, groups), dt.contiguous()
    layout = _layout(x, offsets, how.chunk)
    sequences, chunks, tokens = len(layout.sequences), len(layout.chunks), x.shape[0] * x.shape[1]
    kept = torch.float32 if x.dtype == torch.float16 else x.dtype  # a state is larger than what made it
    states, dstates = (torch.empty(chunks, heads, size, width, dtype=kept, device=x.device) for _ in range(2))
    dinitial = torch.empty(by_final.shape, dtype=torch.float32, device=x.device)
    block_p = max(16, triton.next_power_of_2(width))
    over = Scan(how.chunk, min(block_p, 64), *how.states, spans_for(x, sequences) if offsets is None else 1)
    _scan(over, layout, x, dt, A, B, C, D, _whole(initial), None, None, states, False)
    _scan(over, layout, by_y, dt, A, C, B, D, by_final.contiguous(), None, dinitial, dstates, True)
    dx, ddt = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(dt.shape, dtype=dt.dtype, device=x.device)
    dA, dD = (torch.empty(chunks, heads, dtype=torch.float32, device=x.device) for _ in range(2))
    (dy, dy_row), (x, x_row), (B, b_row), (C, c_row) = _rows(by_y), _rows(x), _rows(B), _rows(C)
    fixed = {**_blocks(x, B), **_kinds(x), "Q": how.chunk, "BLOCK_P": block_p}
    if chunks:
        inputs[(heads, chunks)](dy, x, dt, A, B, C, D, states, dstates, dx, ddt, dA, dD, layout.chunks, dy_row, x_row, b_row,
                                c_row, num_warps=how.warps, **fixed)
    partial = B.dtype if how.splits == 1 else torch.float32
    dB, dC = (torch.empty(how.splits, *B.shape, dtype=partial, device=x.device) for _ in range(2))
    if chunks:
        warps, stages = how.projection
        projections[(groups * how.splits, chunks)](dy, x, dt, A, B, C, states, dstates, dB, dC, layout.chunks, dy_row, x_row,
                                                   b_row, c_row, tokens, SPLITS=how.splits, STAGES=stages, num_warps=warps,
                                                   **fixed)
    dB, dC = (v[0] if how.splits == 1 else v.sum(0).to(B.dtype) for v in (dB, dC))
    return dx, ddt, dA.sum(0), dB, dC, dD.sum(0), dinitial
