"""Divergences of rows of logits and their gradients on a GPU: one program a row, which reads it again from the L2 cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thrifty.kernels.linear_divergence.naive import Kind

BLOCK, WARPS = 4096, 8


@triton.jit
def _level(start, columns, cooled, BLOCK: tl.constexpr):
    """log sum exp of a row times 1 / T."""
    offsets = tl.arange(0, BLOCK)
    peak = -float("inf")
    total = 0.0
    for first in range(0, columns, BLOCK):
        at = first + offsets
        x = tl.load(start + at, mask=at < columns, other=-float("inf")).to(tl.float32) * cooled
        higher = tl.maximum(peak, tl.max(x, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(x - higher), 0)
        peak = higher
    return peak + tl.log(total)


@triton.jit
def _divergences(student, teacher, valid, lost, student_stride, teacher_stride, columns, cooled, beta,
                 KIND: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    mine = student + row * student_stride
    theirs = teacher + row * teacher_stride
    offsets = tl.arange(0, BLOCK)
    counts = tl.load(valid + row).to(tl.float32)
    level_q = _level(mine, columns, cooled, BLOCK)
    level_p = _level(theirs, columns, cooled, BLOCK)
    apart_p = 0.0
    apart_q = 0.0
    for first in range(0, columns, BLOCK):
        at = first + offsets
        there = at < columns
        log_q = tl.load(mine + at, mask=there, other=0.0).to(tl.float32) * cooled - level_q
        log_p = tl.load(theirs + at, mask=there, other=0.0).to(tl.float32) * cooled - level_p
        q = tl.where(there, tl.exp(log_q), 0.0)
        p = tl.where(there, tl.exp(log_p), 0.0)
        if KIND == "forward_kl":
            apart_p += tl.sum(tl.where(p > 0, p * (log_p - log_q), 0.0), 0)
            if GRADIENT:
                tl.store(mine + at, ((q - p) * cooled * counts).to(student.dtype.element_ty), mask=there)
        elif KIND == "reverse_kl":
            apart_q += tl.sum(tl.where(q > 0, q * (log_q - log_p), 0.0), 0)
        else:
            log_m = tl.log(beta * p + (1 - beta) * q)
            apart_p += tl.sum(tl.where(p > 0, p * (log_p - log_m), 0.0), 0)
            apart_q += tl.sum(tl.where(q > 0, q * (log_q - log_m), 0.0), 0)
    if KIND == "jsd":
        found = beta * apart_p + (1 - beta) * apart_q
    else:
        found = apart_p + apart_q
    tl.store(lost + row, tl.where(counts > 0, found, 0.0))
    if GRADIENT and KIND != "forward_kl":
        for first in range(0, columns, BLOCK):
            at = first + offsets
            there = at < columns
            log_q = tl.load(mine + at, mask=there, other=0.0).to(tl.float32) * cooled - level_q
            log_p = tl.load(theirs + at, mask=there, other=0.0).to(tl.float32) * cooled - level_p
            q = tl.where(there, tl.exp(log_q), 0.0)
            if KIND == "reverse_kl":
                slope = q * (log_q - log_p - apart_q)
            else:
                p = tl.where(there, tl.exp(log_p), 0.0)
                slope = (1 - beta) * q * (log_q - tl.log(beta * p + (1 - beta) * q) - apart_q)
            slope = tl.where(q > 0, slope * cooled, 0.0) * counts
            tl.store(mine + at, slope.to(student.dtype.element_ty), mask=there)


def divergences(student: Tensor, teacher: Tensor, valid: Tensor, kind: Kind, temperature: float, beta: float,
                gradient: bool) -> Tensor:
    """As `naive.divergences`; rows of logits are contiguous."""
    rows, columns = student.shape
    lost = torch.empty(rows, dtype=torch.float32, device=student.device)
    if rows:
        _divergences[(rows,)](student, teacher, valid.to(torch.int8), lost, student.stride(0), teacher.stride(0), columns,
                              1 / temperature, beta, KIND=kind, GRADIENT=gradient, BLOCK=BLOCK, num_warps=WARPS)
    return lost
