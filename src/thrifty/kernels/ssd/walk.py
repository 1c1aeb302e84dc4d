"""Forward over many tokens in bfloat16: what all chunks need is computed first, then a few parts of a sequence walk side by side.

Running sums of dt A and products of B and C are computed once a chunk, not by every program of a walk: they cost it barriers.
A walk is turned, [p, tokens]: the state goes into its product from registers and is never stored for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, KIND: tl.constexpr, DIGITS: tl.constexpr):
    return tl.dot(a.to(KIND), b.to(KIND), input_precision=DIGITS, out_dtype=tl.float32)


@triton.jit
def tile(base, at, stride, inside, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[tokens, BLOCK] of rows of WIDTH numbers, 0 outside."""
    column = tl.arange(0, BLOCK)
    mask = inside[:, None] if WIDTH == BLOCK else inside[:, None] & (column < WIDTH)[None, :]
    return tl.load(base + at.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def prepare(dt, A, B, C, totals, times, near, chunks, b_row, c_row, HEADS: tl.constexpr, EACH: tl.constexpr,
            N: tl.constexpr, KIND: tl.constexpr, DIGITS: tl.constexpr, Q: tl.constexpr, BLOCK_N: tl.constexpr,
            SOME: tl.constexpr):
    """A chunk's running sums of dt A, and dt, [heads, Q], for SOME heads; or one group's B C^T, 0 where a token would read later
    ones.
    """
    groups: tl.constexpr = HEADS // EACH
    parts: tl.constexpr = (HEADS + SOME - 1) // SOME
    part = tl.program_id(0)
    chunk = tl.program_id(1).to(tl.int64)
    first, last = tl.load(chunks + chunk * 2), tl.load(chunks + chunk * 2 + 1)
    q = tl.arange(0, Q)
    at = first + q
    inside = at < last
    if part < parts:
        head = part * SOME + tl.arange(0, SOME)
        here = tl.load(dt + at.to(tl.int64)[:, None] * HEADS + head[None, :],
                       mask=inside[:, None] & (head < HEADS)[None, :], other=0.0).to(tl.float32)
        decay = tl.load(A + head, mask=head < HEADS, other=0.0).to(tl.float32) * LOG2E
        place = (chunk * HEADS + head)[None, :] * Q + q[:, None]
        tl.store(times + place, here, mask=(head < HEADS)[None, :])
        tl.store(totals + place, tl.cumsum(here * decay[None, :], 0), mask=(head < HEADS)[None, :])
    else:
        group = part - parts
        b = tile(B + group * N, at, b_row, inside, N, BLOCK_N)
        c = tile(C + group * N, at, c_row, inside, N, BLOCK_N)
        made = tl.where(q[None, :] >= q[:, None], dot(b, tl.trans(c), KIND, DIGITS), 0.0)
        tl.store(near + (chunk * groups + group) * Q * Q + q[:, None] * Q + q[None, :], made.to(near.dtype.element_ty))


@triton.jit(do_not_specialize=["span"])
def walk(x, totals, times, B, C, D, near, initial, y, final, spans, falls, sequences, x_row, b_row, c_row, span,
         HEADS: tl.constexpr, EACH: tl.constexpr, P: tl.constexpr, N: tl.constexpr, SPANS: tl.constexpr,
         RATIO: tl.constexpr, SUMMARY: tl.constexpr, KIND: tl.constexpr, DIGITS: tl.constexpr, Q: tl.constexpr,
         BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr):
    """A head's sequence, or one of SPANS parts of it, chunk by chunk with the state [p, n] in registers.

    With SUMMARY it only sums up: the first SPANS - 1 parts, each in RATIO pieces, leave their sums in ``spans`` and what log2
    fell by in ``falls``. Without, each part begins with those before it, and writes ``y`` and, the last one, the last state.
    """
    part_p: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    pieces: tl.constexpr = (SPANS - 1) * RATIO
    parts: tl.constexpr = pieces if SUMMARY else SPANS
    head = tl.program_id(0) // part_p
    p0 = tl.program_id(0) % part_p * BLOCK_P
    sequence = tl.program_id(1) // parts
    part = tl.program_id(1) % parts
    first = tl.load(sequences + sequence * 3)
    last = tl.load(sequences + sequence * 3 + 1)
    chunk = tl.load(sequences + sequence * 3 + 2).to(tl.int64)
    n, p, q = tl.arange(0, BLOCK_N), p0 + tl.arange(0, BLOCK_P), tl.arange(0, Q)
    square = (p < P)[:, None] & (n < N)[None, :]
    inner = p[:, None] * N + n[None, :]
    skip = tl.load(D + head).to(tl.float32) if D is not None and (not SUMMARY) else 0.0
    whole = (sequence.to(tl.int64) * HEADS + head) * P * N
    groups: tl.constexpr = HEADS // EACH

    state = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    if initial is not None and (not SUMMARY):
        state += tl.load(initial + whole + inner, mask=square, other=0.0).to(tl.float32)
    if SPANS > 1 and (not SUMMARY):
        for k in range(part * RATIO):
            row = (sequence * pieces + k).to(tl.int64) * HEADS + head
            state = state * tl.exp2(tl.load(falls + row)) + tl.load(spans + row * P * N + inner, mask=square, other=0.0)
    begin = first + part * span
    end = tl.minimum(begin + span, last) if SPANS > 1 else last
    count = tl.maximum(tl.cdiv(end - begin, Q), 0)
    fallen = 0.0
    group = head // EACH
    for i in tl.range(0, count, num_stages=STAGES):
        at = begin + i * Q + q
        inside = at < end
        now = chunk + part * (span // Q) + i
        place = (now * HEADS + head) * Q
        total = tl.load(totals + place + q)
        fall = tl.load(totals + place + Q - 1)
        values = tl.load(x + at.to(tl.int64)[:, None] * x_row + (head * P + p)[None, :],
                         mask=inside[:, None] & (p < P)[None, :], other=0.0)
        b = tile(B + group * N, at, b_row, inside, N, BLOCK_N)
        if not SUMMARY:
            c = tile(C + group * N, at, c_row, inside, N, BLOCK_N)
            found = dot(state, tl.trans(c), KIND, DIGITS) * tl.exp2(total)[None, :]
            scores = tl.load(near + (now * groups + group) * Q * Q + q[:, None] * Q + q[None, :]).to(tl.float32)
            here = tl.load(times + place + q)
            scores *= tl.exp2(tl.minimum(total[None, :] - total[:, None], 0.0)) * here[:, None]
            scores += tl.where(q[None, :] == q[:, None], skip, 0.0)
            found += dot(tl.trans(values), scores, KIND, DIGITS)
            tl.store(y + (at.to(tl.int64)[None, :] * HEADS + head) * P + p[:, None], found.to(y.dtype.element_ty),
                     mask=inside[None, :] & (p < P)[:, None])
        weight = tl.exp2(fall - total) * tl.load(times + place + q)
        state = state * tl.exp2(fall) + dot(tl.trans(values).to(tl.float32) * weight[None, :], b, KIND, DIGITS)
        fallen += fall
    if SUMMARY:
        row = (sequence * pieces + part).to(tl.int64) * HEADS + head
        tl.store(spans + row * P * N + inner, state, mask=square)
        tl.store(falls + row, fallen)
    elif part == SPANS - 1:
        tl.store(final + whole + inner, state, mask=square)
