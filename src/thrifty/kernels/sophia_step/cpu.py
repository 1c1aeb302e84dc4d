"""A step of Sophia on a CPU: one call for all tensors, one pass over memory, gradients read where autograd left them."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.kernels.native import library
from thrifty.kernels.sophia_step.constants import Constants


@functools.cache
def kernel() -> Any:
    """The compiled function.

    Raises:
        NoCompiler: it cannot be compiled here.
    """
    found = library(Path(__file__).with_name("step.cpp")).sophia_step
    found.restype = ctypes.c_int64
    found.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, *[ctypes.c_float] * 5]
    return found


def step(weights: list[Tensor], gradients: list[Tensor], m: list[Tensor], h: list[Tensor], constants: Constants) -> Tensor:
    """As `naive.step`, on dense float32 tensors; a gradient of another layout or precision is copied first."""
    gradients = [g if g.stride() == p.stride() and g.dtype == p.dtype else torch.empty_like(p).copy_(g)
                 for p, g in zip(weights, gradients, strict=True)]
    count = len(weights)
    addresses = [x.data_ptr() for row in zip(weights, gradients, m, h, strict=True) for x in row]
    pointers = (ctypes.c_void_p * (4 * count))(*addresses)
    sizes = (ctypes.c_int64 * count)(*[p.numel() for p in weights])
    within = kernel()(count, pointers, sizes, torch.get_num_threads(), constants.beta1, constants.gamma, constants.eps,
                      1 - constants.lr * constants.weight_decay, constants.lr)
    return torch.tensor(within)
