"""Routing on a GPU: a counting sort whose counts are made where experts are chosen.

A block of tokens has each expert at most once a token, so a choice's place among its block's of one expert is the number of
tokens before it that chose it too. Blocks before it, and experts before its own, are added to that.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WEIGHTINGS = ("shares", "scores", "ones")
LEAST = tl.constexpr(1e-20)


@triton.jit
def _scores(logits, row, tokens, experts, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr):
    """[rows, BLOCK], 0 where there is no expert."""
    expert = tl.arange(0, BLOCK)[None, :]
    x = tl.load(logits + row.to(tl.int64)[:, None] * experts + expert, mask=(row < tokens)[:, None] & (expert < experts),
                other=-float("inf"))
    if SOFTMAX:
        x = tl.exp(x - tl.max(tl.where(expert < experts, x, -float("inf")), 1)[:, None])
        return tl.where(expert < experts, x / tl.sum(tl.where(expert < experts, x, 0.0), 1)[:, None], 0.0)
    return tl.where(expert < experts, 1 / (1 + tl.exp(-x)), 0.0)


@triton.jit(do_not_specialize=["tokens"])
def _choose(logits, bias, chosen, weights, rank, tally, tokens, experts, scale, TOP: tl.constexpr, SOFTMAX: tl.constexpr,
            WEIGHTING: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Experts of a block of tokens, their weights, how many chose each, and how many of the block before each choice."""
    row, expert = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside, there = (row < tokens)[:, None], (expert < experts)[None, :]
    scores = _scores(logits, row, tokens, experts, SOFTMAX, BLOCK)
    key = scores + tl.load(bias + expert, mask=expert < experts, other=0.0)[None, :]
    key = tl.where(key == key, key, -3e38)  # a score that is no number is chosen last, but is an expert
    key = tl.where(there, key, -float("inf"))
    place = tl.full((ROWS, BLOCK), -1, tl.int32)
    total = tl.zeros((ROWS,), tl.float32)
    for i in range(TOP):
        best = tl.argmax(key, 1)
        hit = expert[None, :] == best[:, None]
        tl.store(chosen + row.to(tl.int64) * TOP + i, best.to(tl.int64), mask=row < tokens)
        total += tl.sum(tl.where(hit, scores, 0.0), 1)
        place = tl.where(hit, i, place)
        key = tl.where(hit, -float("inf"), key)
    if WEIGHTING == 0:
        scores = scale * scores / tl.maximum(total, LEAST)[:, None]
    elif WEIGHTING == 1:
        scores = scale * scores
    else:
        scores = tl.full((ROWS, BLOCK), 1.0, tl.float32)
    taken = (place >= 0) & inside
    one = taken.to(tl.int32)
    at = row.to(tl.int64)[:, None] * TOP + place
    tl.store(weights + at, scores, mask=taken)
    tl.store(rank + at, tl.cumsum(one, 0) - one, mask=taken)
    tl.store(tally + tl.program_id(0) * experts + expert, tl.sum(one, 0), mask=expert < experts)


@triton.jit(do_not_specialize=["blocks"])
def _count(tally, before, counts, blocks, experts, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """How many chose an expert in the blocks before each, and in all of them."""
    expert = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, blocks, ROWS):
        row = first + tl.arange(0, ROWS)
        there = (row < blocks)[:, None] & (expert < experts)[None, :]
        at = row[:, None] * experts + expert[None, :]
        found = tl.load(tally + at, mask=there, other=0)
        tl.store(before + at, total[None, :] + tl.cumsum(found, 0) - found, mask=there)
        total += tl.sum(found, 0)
    tl.store(counts + expert, total.to(tl.int64), mask=expert < experts)


@triton.jit(do_not_specialize=["choices"])
def _sort(chosen, rank, before, counts, ends, order, choices, experts, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """Each choice to its place; EACH: choices of a block of tokens."""
    choice = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = choice < choices
    expert = tl.load(chosen + choice, mask=inside, other=0)
    start = tl.load(ends + expert, mask=inside, other=0) - tl.load(counts + expert, mask=inside, other=0)
    earlier = tl.load(before + choice // EACH * experts + expert, mask=inside, other=0)
    tl.store(order + start + earlier + tl.load(rank + choice, mask=inside, other=0), choice, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _by_logits(logits, chosen, by_weights, made, tokens, experts, scale, TOP: tl.constexpr, SOFTMAX: tl.constexpr,
               WEIGHTING: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Gradients of logits from those of weights."""
    row, expert = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)[None, :]
    scores = _scores(logits, row, tokens, experts, SOFTMAX, BLOCK)
    by = tl.zeros((ROWS, BLOCK), tl.float32)
    taken = tl.zeros((ROWS, BLOCK), tl.int32)
    for i in range(TOP):
        at = row.to(tl.int64) * TOP + i
        hit = expert == tl.load(chosen + at, mask=row < tokens, other=-1)[:, None]
        by += tl.where(hit, tl.load(by_weights + at, mask=row < tokens, other=0.0)[:, None], 0.0)
        taken += hit.to(tl.int32)
    if WEIGHTING == 0:
        total = tl.sum(tl.where(taken > 0, scores, 0.0), 1)[:, None]
        above = tl.maximum(total, LEAST)
        shared = tl.where(total >= LEAST, tl.sum(by * scores, 1)[:, None] / above, 0.0)
        by = tl.where(taken > 0, scale * (by - shared) / above, 0.0)
    elif WEIGHTING == 1:
        by *= scale
    by = scores * (by - tl.sum(by * scores, 1)[:, None]) if SOFTMAX else by * scores * (1 - scores)
    tl.store(made + row.to(tl.int64)[:, None] * experts + expert, by, mask=(row < tokens)[:, None] & (expert < experts))


def _rows(tokens: int, experts: int) -> tuple[int, int]:
    """(tokens of a block, experts of it: all of them)."""
    block = triton.next_power_of_2(experts)
    return max(1, min(4096 // block, 32 if tokens > 4096 else 8)), block


def route(logits: Tensor, bias: Tensor, top_k: int, score: str, weighting: str,
          scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(chosen, weights, order, counts, ends)."""
    tokens, experts = logits.shape
    rows, block = _rows(tokens, experts)
    blocks, device = triton.cdiv(tokens, rows), logits.device
    chosen, order, counts = (torch.empty(shape, dtype=torch.int64, device=device) for shape in (
        (tokens, top_k), (tokens * top_k,), (experts,)))
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=device)
    rank = torch.empty(tokens, top_k, dtype=torch.int32, device=device)
    tally, before = torch.empty(2, blocks, experts, dtype=torch.int32, device=device)
    if tokens:
        _choose[(blocks,)](logits, bias, chosen, weights, rank, tally, tokens, experts, scale, TOP=top_k,
                           SOFTMAX=score == "softmax", WEIGHTING=WEIGHTINGS.index(weighting), ROWS=rows, BLOCK=block, num_warps=4)
    _count[(triton.cdiv(experts, 8),)](tally, before, counts, blocks, experts, ROWS=256, BLOCK=8, num_warps=4)
    ends = counts.cumsum(0)
    if tokens:
        _sort[(triton.cdiv(tokens * top_k, 512),)](chosen, rank, before, counts, ends, order, tokens * top_k, experts,
                                                   EACH=rows * top_k, BLOCK=512, num_warps=4)
    return chosen, weights, order, counts, ends


def by_logits(logits: Tensor, chosen: Tensor, by_weights: Tensor, score: str, weighting: str, scale: float) -> Tensor:
    """[tokens, experts], from the gradients of weights."""
    made = torch.empty_like(logits)
    rows, block = _rows(*logits.shape)
    if len(logits):
        _by_logits[(triton.cdiv(len(logits), rows),)](
            logits, chosen, by_weights, made, *logits.shape, scale, TOP=chosen.shape[1], SOFTMAX=score == "softmax",
            WEIGHTING=WEIGHTINGS.index(weighting), ROWS=rows, BLOCK=block, num_warps=4)
    return made
