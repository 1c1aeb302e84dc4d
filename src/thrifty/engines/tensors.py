"""Arrays to tensors and back, for the engines that torch runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def to_tensors(arrays: Sequence[np.ndarray], device: str = "cpu") -> list[torch.Tensor]:
    """Tensors on the device; on the CPU they share memory with arrays that are contiguous."""
    return [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in arrays]


def to_arrays(outputs: Any) -> list[np.ndarray]:
    """Arrays of the tensors in whatever structure; bfloat16, which NumPy lacks, as float32.

    >>> [x.dtype.name for x in to_arrays({"a": torch.ones(2, dtype=torch.bfloat16), "b": (torch.ones(1),)})]
    ['float32', 'float32']
    """
    return [x.float().cpu().numpy() if x.dtype == torch.bfloat16 else x.cpu().numpy()
            for x in torch.utils._pytree.tree_leaves(outputs)]
