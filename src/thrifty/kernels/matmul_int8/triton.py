"""A product of eight-bit tokens and rows on a GPU, whole numbers or float8: scaled where it is added up, stored once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit(do_not_specialize=["tokens"])
def _product(x, weight, token, row, bias, y, tokens, rows, inputs, WHOLE_NUMBERS: tl.constexpr, BLOCK_M: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BAND: tl.constexpr, SWAP: tl.constexpr, STAGES: tl.constexpr):
    across, down = tl.cdiv(tokens, BLOCK_M), tl.cdiv(rows, BLOCK_N)
    # Programs that run at the same time share rows and tokens: bands of them, BAND blocks of tokens high.
    band = tl.program_id(0) // (BAND * down)
    high = min(across - band * BAND, BAND)
    m = (band * BAND + tl.program_id(0) % (BAND * down) % high) * BLOCK_M
    n = tl.program_id(0) % (BAND * down) // high * BLOCK_N
    kind: tl.constexpr = tl.int32 if WHOLE_NUMBERS else tl.float32
    total = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), kind)
    for k in tl.range(0, inputs, BLOCK_K, num_stages=STAGES):
        some, numbers = x.load([m, k]), weight.load([n, k])
        if SWAP:
            total = tl.dot(numbers, some.T, total, out_dtype=kind)
        else:
            total = tl.dot(some, numbers.T, total, out_dtype=kind)
    m_at, n_at = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
    if SWAP:
        m_at, n_at = m_at[None, :], n_at[:, None]
    else:
        m_at, n_at = m_at[:, None], n_at[None, :]
    scaled = (total.to(tl.float32) * tl.load(token + m_at, mask=m_at < tokens, other=0.0)
              * tl.load(row + n_at, mask=n_at < rows, other=0.0))
    if bias is not None:
        scaled += tl.load(bias + n_at, mask=n_at < rows, other=0.0)
    tl.store(y + m_at.to(tl.int64) * rows + n_at, scaled.to(y.dtype.element_ty), mask=(m_at < tokens) & (n_at < rows))


@final
@dataclass(frozen=True)
class Config:
    """How the work is split.

    Args:
        m, n, k: tokens, rows and inputs of a block.
        warps: of a program.
        stages: blocks whose reads are under way.
        swap: rows stand where the tensor cores want many, tokens where they want few.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    swap: bool = False


def config(tokens: int) -> Config:
    """What was fastest (H100, `benchmarks/matmul.py sweep int8`, 8192 x 8192); 17 to 64 tokens were not swept."""
    if tokens <= 16:
        return Config(m=16, n=64, k=512, warps=4, stages=4, swap=True)
    if tokens <= 64:
        return Config(m=64, n=64, k=256, warps=4, stages=4, swap=True)
    return Config(m=128, n=256, k=128, warps=8, stages=4)


def product(x: Tensor, weight: Tensor, token: Tensor, row: Tensor, dtype: torch.dtype, bias: Tensor | None = None,
            how: Config | None = None) -> Tensor:
    """As `naive.product`, of contiguous tensors with 16 n inputs; the sums are int32, or float32 of float8."""
    tokens, inputs = x.shape
    rows = len(weight)
    how = how or config(tokens)
    y = torch.empty(tokens, rows, dtype=dtype, device=x.device)
    _product[(triton.cdiv(tokens, how.m) * triton.cdiv(rows, how.n),)](
        TensorDescriptor.from_tensor(x, [how.m, how.k]), TensorDescriptor.from_tensor(weight, [how.n, how.k]), token, row, bias,
        y, tokens, rows, inputs, WHOLE_NUMBERS=x.dtype == torch.int8, BLOCK_M=how.m, BLOCK_N=how.n, BLOCK_K=how.k, BAND=8,
        SWAP=how.swap, STAGES=how.stages, num_warps=how.warps)
    return y
