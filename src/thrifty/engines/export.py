"""Opens a ``torch.export`` program; needs torch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from thrifty.engines import pt2
from thrifty.engines.engine import Engine
from thrifty.engines.tensors import to_arrays, to_tensors


@final
class ExportEngine(Engine):
    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        pt2.refuse_code(path)
        program = torch.export.load(str(path))
        self.module = program.module()
        if device != "cpu":
            self.module = self.module.to(device)

    def native(self, arrays: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
        return tuple(to_tensors(arrays, self.device))

    def run(self, native: tuple[torch.Tensor, ...]) -> Any:
        with torch.inference_mode():
            outputs = self.module(*native)
            if self.device != "cpu":
                torch.cuda.synchronize()
            return outputs

    def arrays(self, outputs: Any) -> list[np.ndarray]:
        return to_arrays(outputs)


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    torch.set_num_threads(threads)
    return ExportEngine(directory / next(iter(manifest["files"])), device)
