"""One step of Sophia over many tensors: the math, and one pass over memory for CPUs and for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from thrifty.kernels.native import NoCompiler
from thrifty.kernels.sophia_step import cpu, naive
from thrifty.kernels.sophia_step.constants import Constants as Constants

Step: TypeAlias = Callable[[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Constants], Tensor]
"""(weights, gradients, m, h, constants) -> how many updates were within the bound."""


def step_for(parameters: list[Tensor]) -> Step:
    """The fastest step that fits these weights: of one device, dense, in a precision that the kernel reads."""
    devices, dtypes = {p.device.type for p in parameters}, {p.dtype for p in parameters}
    if not all(map(_dense, parameters)):
        return naive.step
    if devices == {"cpu"} and dtypes == {torch.float32} and _compiles():
        return cpu.step
    if devices == {"cuda"} and len(dtypes) == 1 and dtypes <= {torch.float32, torch.bfloat16}:
        from thrifty.kernels.sophia_step import triton  # Triton comes with torch for CUDA alone

        return triton.step
    return naive.step


def _dense(x: Tensor) -> bool:
    """Its elements fill one piece of memory, in whatever order: then so do those of m and h, in the same one."""
    return torch.empty_like(x, device="meta").stride() == x.stride()


def _compiles() -> bool:
    try:
        cpu.kernel()
    except NoCompiler:
        return False
    return True
