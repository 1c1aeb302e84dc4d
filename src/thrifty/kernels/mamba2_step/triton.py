"""One token through a Mamba-2 layer on a GPU: the state is read and written once, in the first of two launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import triton
import triton.language as tl
from torch import Tensor

from thrifty.kernels.ssd import Limits

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _mixed(raw, conv, weight, bias, channel, inside, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """silu(convolution) of some channels: the last TAPS - 1 inputs from ``conv``, the newest from ``raw``."""
    total = tl.load(raw + channel, mask=inside, other=0.0).to(tl.float32)
    total *= tl.load(weight + channel * TAPS + TAPS - 1, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(TAPS - 1):
        before = tl.load(conv + k * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
        total += before * tl.load(weight + channel * TAPS + k, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    return total * tl.sigmoid(total)


@triton.jit
def advance(zxbcdt, conv, state, weight, bias, dt_bias, A, D, gated, row, low, high, HEADS: tl.constexpr, GROUPS: tl.constexpr,
            P: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Some channels of one head: convolution, state, y silu(z)."""
    parts: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    inner: tl.constexpr = HEADS * P
    channels: tl.constexpr = inner + 2 * GROUPS * N
    head = tl.program_id(0) // parts
    batch = tl.program_id(1).to(tl.int64)
    p, n = tl.program_id(0) % parts * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    square = (p < P)[:, None] & (n < N)[None, :]
    place = state + (batch * HEADS + head) * P * N + p[:, None] * N + n[None, :]
    h = tl.load(place, mask=square, other=0.0).to(tl.float32)
    start, before = zxbcdt + batch * row, conv + batch * (TAPS - 1) * channels
    column = inner + head // (HEADS // GROUPS) * N + n
    x = _mixed(start + inner, before, weight, bias, head * P + p, p < P, channels, TAPS)
    b = _mixed(start + inner, before, weight, bias, column, n < N, channels, TAPS)
    c = _mixed(start + inner, before, weight, bias, column + GROUPS * N, n < N, channels, TAPS)
    dt = tl.load(start + inner + channels + head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
    dt = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(tl.minimum(dt, 20.0))))
    dt = tl.minimum(tl.maximum(dt, low), high)
    h = h * tl.exp2(dt * tl.load(A + head).to(tl.float32) * LOG2E) + (dt * x)[:, None] * b[None, :]
    tl.store(place, h.to(state.dtype.element_ty), mask=square)
    y = tl.sum(h * c[None, :], 1) + tl.load(D + head).to(tl.float32) * x
    z = tl.load(start + head * P + p, mask=p < P, other=0.0).to(tl.float32)
    tl.store(gated + batch * inner + head * P + p, y * z * tl.sigmoid(z), mask=p < P)


@triton.jit
def finish(gated, norm, y, zxbcdt, conv, row, eps, GROUPS: tl.constexpr, INNER: tl.constexpr, CHANNELS: tl.constexpr,
           TAPS: tl.constexpr, BLOCK: tl.constexpr, MOVED: tl.constexpr):
    """The norm of one group, or MOVED channels of the convolution's inputs moved on by a token."""
    batch = tl.program_id(0).to(tl.int64)
    size: tl.constexpr = INNER // GROUPS
    if tl.program_id(1) < GROUPS:
        group = tl.program_id(1)
        at = tl.arange(0, BLOCK)
        found = tl.load(gated + batch * INNER + group * size + at, mask=at < size, other=0.0)
        scale = tl.rsqrt(tl.sum(found * found, 0) / size + eps)
        weight = tl.load(norm + group * size + at, mask=at < size, other=0.0).to(tl.float32)
        tl.store(y + batch * INNER + group * size + at, (found * scale * weight).to(y.dtype.element_ty), mask=at < size)
    else:
        channel = (tl.program_id(1) - GROUPS) * MOVED + tl.arange(0, MOVED)
        inside = channel < CHANNELS
        place = conv + batch * (TAPS - 1) * CHANNELS + channel
        for k in tl.static_range(TAPS - 2):
            tl.store(place + k * CHANNELS, tl.load(place + (k + 1) * CHANNELS, mask=inside), mask=inside)
        newest = tl.load(zxbcdt + batch * row + INNER + channel, mask=inside)
        tl.store(place + (TAPS - 2) * CHANNELS, newest.to(conv.dtype.element_ty), mask=inside)


@final
@dataclass(frozen=True)
class Step:
    """How the work is split: channels of a head and warps of a program, and warps of the norm's."""

    block_p: int = 64
    warps: int = 2
    norm_warps: int = 8


MOVED = 1024


def step(zxbcdt: Tensor, conv: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, dt_bias: Tensor, A: Tensor,
         D: Tensor, norm: Tensor, groups: int, limits: Limits, eps: float, how: Step | None = None) -> Tensor:
    """y; ``conv`` and ``state``, contiguous, are changed in place."""
    how = how or Step()
    batch, heads, width, size = state.shape
    inner, taps = heads * width, weight.shape[1]
    channels = inner + 2 * groups * size
    zxbcdt = zxbcdt if zxbcdt.stride(1) == 1 else zxbcdt.contiguous()
    gated = torch.empty(batch, inner, dtype=torch.float32, device=state.device)
    y = torch.empty(batch, inner, dtype=zxbcdt.dtype, device=state.device)
    block_p = min(how.block_p, triton.next_power_of_2(width))
    advance[(heads * triton.cdiv(width, block_p), batch)](
        zxbcdt, conv, state, weight, bias, dt_bias, A, D, gated, zxbcdt.stride(0), *limits, HEADS=heads, GROUPS=groups, P=width,
        N=size, TAPS=taps, BLOCK_P=block_p, BLOCK_N=triton.next_power_of_2(size), num_warps=how.warps)
    finish[(batch, groups + triton.cdiv(channels, MOVED))](
        gated, norm, y, zxbcdt, conv, zxbcdt.stride(0), eps, GROUPS=groups, INNER=inner, CHANNELS=channels, TAPS=taps,
        BLOCK=triton.next_power_of_2(inner // groups), MOVED=MOVED, num_warps=how.norm_warps)
    return y
