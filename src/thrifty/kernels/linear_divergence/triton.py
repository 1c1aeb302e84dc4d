"""Divergences of rows of logits and their gradients on a GPU: a program takes a row at a time, and reads it again from the
L2 cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thrifty.kernels.linear_divergence.naive import Kind
from thrifty.kernels.linear_loss.triton import multiprocessors

BLOCK, WARPS, EACH = 16384, 32, 1
"""Columns at a time, warps of a program, programs a multiprocessor: few rows at once stay in the L2 cache until they are read
again."""


@triton.jit
def _level(start, columns, cooled, BLOCK: tl.constexpr):
    """log sum exp of a row times 1 / T. Lanes keep running sums of their own, and are joined once: no barrier in the loop."""
    offsets = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + offsets
        x = tl.load(start + at, mask=at < columns, other=-float("inf")).to(tl.float32) * cooled
        higher = tl.maximum(peak, x)
        total = total * tl.exp(peak - higher) + tl.exp(x - higher)
        peak = higher
    top = tl.max(peak, 0)
    return top + tl.log(tl.sum(total * tl.exp(peak - top), 0))


@triton.jit
def _rows(student, teacher, valid, lost, rows, student_stride, teacher_stride, columns, cooled, beta,
          KIND: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        _divergence(student, teacher, valid, lost, row, student_stride, teacher_stride, columns, cooled, beta, KIND,
                    GRADIENT, BLOCK)


@triton.jit
def _divergence(student, teacher, valid, lost, row, student_stride, teacher_stride, columns, cooled, beta,
                KIND: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    mine = student + row * student_stride
    theirs = teacher + row * teacher_stride
    offsets = tl.arange(0, BLOCK)
    counts = tl.load(valid + row).to(tl.float32)
    level_q = _level(mine, columns, cooled, BLOCK)
    level_p = _level(theirs, columns, cooled, BLOCK)
    apart_p = tl.zeros((BLOCK,), tl.float32)
    apart_q = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        at = first + offsets
        there = at < columns
        log_q = tl.load(mine + at, mask=there, other=0.0).to(tl.float32) * cooled - level_q
        log_p = tl.load(theirs + at, mask=there, other=0.0).to(tl.float32) * cooled - level_p
        q = tl.where(there, tl.exp(log_q), 0.0)
        p = tl.where(there, tl.exp(log_p), 0.0)
        if KIND == "forward_kl":
            apart_p += tl.where(p > 0, p * (log_p - log_q), 0.0)
            if GRADIENT:
                tl.store(mine + at, ((q - p) * cooled * counts).to(student.dtype.element_ty), mask=there)
        elif KIND == "reverse_kl":
            apart_q += tl.where(q > 0, q * (log_q - log_p), 0.0)
        else:
            log_m = tl.log(beta * p + (1 - beta) * q)
            apart_p += tl.where(p > 0, p * (log_p - log_m), 0.0)
            apart_q += tl.where(q > 0, q * (log_q - log_m), 0.0)
    whole_p = tl.sum(apart_p, 0)
    whole_q = tl.sum(apart_q, 0)
    if KIND == "jsd":
        found = beta * whole_p + (1 - beta) * whole_q
    else:
        found = whole_p + whole_q
    tl.store(lost + row, tl.where(counts > 0, found, 0.0))
    if GRADIENT and KIND != "forward_kl":
        for first in range(0, columns, BLOCK):
            at = first + offsets
            there = at < columns
            log_q = tl.load(mine + at, mask=there, other=0.0).to(tl.float32) * cooled - level_q
            log_p = tl.load(theirs + at, mask=there, other=0.0).to(tl.float32) * cooled - level_p
            q = tl.where(there, tl.exp(log_q), 0.0)
            if KIND == "reverse_kl":
                slope = q * (log_q - log_p - whole_q)
            else:
                p = tl.where(there, tl.exp(log_p), 0.0)
                slope = (1 - beta) * q * (log_q - tl.log(beta * p + (1 - beta) * q) - whole_q)
            slope = tl.where(q > 0, slope * cooled, 0.0) * counts
            tl.store(mine + at, slope.to(student.dtype.element_ty), mask=there)


def divergences(student: Tensor, teacher: Tensor, valid: Tensor, kind: Kind, temperature: float, beta: float,
                gradient: bool) -> Tensor:
    """As `naive.divergences`; rows of logits are contiguous."""
    rows, columns = student.shape
    lost = torch.empty(rows, dtype=torch.float32, device=student.device)
    if rows:
        programs = min(rows, EACH * multiprocessors(student.device))
        _rows[(programs,)](student, teacher, valid.to(torch.int8), lost, rows, student.stride(0), teacher.stride(0), columns,
                           1 / temperature, beta, KIND=kind, GRADIENT=gradient, BLOCK=BLOCK, num_warps=WARPS)
    return lost
