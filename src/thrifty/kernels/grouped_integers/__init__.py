"""A linear layer of few bits for each group of rows: experts whose weights are integers."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.kernels.native import NoCompiler, library

FEW = 16
"""Rows an expert, on the mean, up to which our own code multiplies; with more, an expert's weight is dequantized whole."""
NATIVE_BITS = (4, 8)


def grouped_integers(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, ends: Tensor, bits: int,
                     dequantize: Callable[[int], Tensor]) -> Tensor:
    """Multiply each group of rows by integers of its own.

        y_n = s_e (q_e - z_e) x_n    for ends_{e-1} <= n < ends_e

    Args:
        x: [rows, inputs], a group's rows one after another.
        packed: uint8 [experts, outputs, inputs * bits / 8]; of 4 bits the first number is in the lower half of a byte.
        scale, zero: float32 and uint8 [experts, outputs, groups]; numbers of a group stand one after another.
        ends: [experts] int64, where each expert's rows end; the last is the number of rows.
        bits: of a number.
        dequantize: expert -> its weight [outputs, inputs], where more than a few rows go to it.

    Returns:
        [rows, outputs] of x's precision.

    >>> q, ends = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8), torch.tensor([1])
    >>> grouped_integers(torch.ones(1, 2), q, torch.ones(1, 2, 1), torch.ones(1, 2, 1).byte(), ends, 8, lambda e: q[e] - 1.0)
    tensor([[1., 5.]])
    """
    limits = list(itertools.pairwise([0, *ends.tolist()]))
    y = x.new_empty(len(x), packed.shape[1])
    if bits in NATIVE_BITS and not x.is_cuda and len(x) <= FEW * sum(end > start for start, end in limits):
        with contextlib.suppress(NoCompiler):
            return _few(x.float().contiguous(), packed, scale, zero, ends, bits).to(x.dtype)
    for expert, (start, end) in enumerate(limits):
        if end > start:
            torch.mm(x[start:end], dequantize(expert).to(x.dtype).T, out=y[start:end])
    return y


@functools.cache
def _kernel() -> Any:
    found = library(Path(__file__).with_name("few_rows.cpp")).grouped_integers
    found.restype = None
    found.argtypes = [*[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 5, ctypes.c_int, ctypes.c_int]
    return found


def _few(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, ends: Tensor, bits: int) -> Tensor:
    experts, outputs, groups = scale.shape
    y = torch.empty(len(x), outputs)
    given = [x, packed.contiguous(), scale.contiguous(), zero.contiguous(), ends.contiguous(), y]
    _kernel()(*(v.data_ptr() for v in given), len(x), experts, outputs, x.shape[1], groups, bits, torch.get_num_threads())
    return y
