"""Opens an AOTInductor package: machine code, only where the user trusts it; needs torch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from thrifty.engines.engine import Engine, EngineError
from thrifty.engines.tensors import to_arrays, to_tensors


@final
class InductorEngine(Engine):
    def __init__(self, path: Path) -> None:
        # The loader itself, not torch._inductor.aoti_load_package: that one imports the compiler, seconds of it.
        self.loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def native(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        return to_tensors(arrays)

    def run(self, native: list[torch.Tensor]) -> list[torch.Tensor]:
        # boxed_run empties the list that it is given
        outputs: list[torch.Tensor] = self.loader.boxed_run(list(native))
        return outputs

    def arrays(self, outputs: list[torch.Tensor]) -> list[np.ndarray]:
        return to_arrays(outputs)

    def close(self) -> None:
        del self.loader  # which then removes the folder that it unpacked the package into


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    if device != "cpu":
        raise EngineError(f"{directory} is machine code for a CPU but was opened on {device}; run its recipe for {device}")
    torch.set_num_threads(threads)
    return InductorEngine(directory / next(iter(manifest["files"])))
