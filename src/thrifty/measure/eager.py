"""An eager module behind a runner's three calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class ModuleRunner:
    """Calls ``forward(module, (inputs, None))`` in inference mode.

    Args:
        module: in evaluation mode, on ``device``.
        forward: (module, batch) -> outputs.
        device: where the inputs go.
    """

    module: nn.Module
    forward: Callable[[nn.Module, Any], Any]
    device: str

    def native(self, arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array).to(self.device) for array in arrays)

    def run(self, native: tuple[Tensor, ...]) -> Any:
        with torch.inference_mode():
            return self.forward(self.module, (native, None))

    def arrays(self, outputs: Any) -> list[np.ndarray]:
        return [array(tensor) for tensor in flatten(outputs)]

    def close(self) -> None:
        """Nothing is held."""


def flatten(outputs: Any) -> list[Tensor]:
    """The tensors of nested sequences and mappings, in order; what is not a tensor is left out."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, Sequence) or isinstance(outputs, str):
        return []
    return [tensor for output in outputs for tensor in flatten(output)]


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
