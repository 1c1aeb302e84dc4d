"""Whether a device runs kernels written in Triton."""

from __future__ import annotations

import importlib.util

import torch

TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None
"""Decided at import: Dynamo cannot trace the search for a package, nor does it respect `functools.cache`."""


def runs_triton(device: torch.device, capability: tuple[int, int] = (8, 0)) -> bool:
    """Whether Triton is installed and the device is a GPU with at least that compute capability.

    >>> runs_triton(torch.device("cpu"))
    False
    """
    return TRITON and device.type == "cuda" and torch.cuda.get_device_capability(device) >= capability
