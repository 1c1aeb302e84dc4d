"""Opens a `.pte` program in ExecuTorch's runtime, whose Python side needs torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Program, Runtime

from thrifty.engines.buckets import FILE, Buckets, Layout
from thrifty.engines.engine import Engine, EngineError
from thrifty.engines.tensors import to_arrays, to_tensors


@final
class ExecuTorchEngine(Engine):
    """Args:
        program: that was loaded.
        name: of one of its methods.
    """

    def __init__(self, program: Program, name: str) -> None:
        self.method = program.load_method(name)
        if self.method is None:
            raise EngineError(f"the program has no method {name}: copy the artifact again")

    def native(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        return to_tensors(arrays)

    def run(self, native: list[torch.Tensor]) -> Any:
        with torch.inference_mode():
            return self.method.execute(native)

    def arrays(self, outputs: Any) -> list[np.ndarray]:
        return to_arrays(outputs)


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    if device != "cpu":
        raise EngineError(f"{directory} runs on cpu but was opened on {device}: compile(executorch) supports CPUs only")
    # One pool for the process, which is read when a method is loaded.
    portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(directory / next(name for name in manifest["files"] if name.endswith(".pte")))
    if FILE not in manifest["files"]:
        return ExecuTorchEngine(program, "bucket0")
    layout = Layout.read(directory / FILE)
    return Buckets(layout, [ExecuTorchEngine(program, f"bucket{i}") for i in range(len(layout.sizes))])
