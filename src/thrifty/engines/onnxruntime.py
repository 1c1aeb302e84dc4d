"""Opens an ONNX file in ONNX Runtime; imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnxruntime

from thrifty.engines.engine import Engine, EngineError
from thrifty.engines.instructions import saturates
from thrifty.engines.onnx_data import external_files
from thrifty.errors import in_one_line

# The fused SkipLayerNormalization is scalar code on CPU: 240 us for [128, 384] against 35 us for what it replaces
# (onnxruntime 1.32, one thread).
SLOW_FUSIONS = ["SkipLayerNormFusion"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@final
class OnnxRuntimeEngine(Engine):
    def __init__(self, path: Path, threads: int, device: str, profile: str = "", needs_vnni: bool = False) -> None:
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise EngineError(f"the installed onnxruntime has no {provider}: pip install onnxruntime-gpu, or use cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning workers would slow down whatever else is measured beside this process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
        if needs_vnni and saturates():  # multiplies u8 by u8 then: exact, and slower
            options.add_session_config_entry("session.x64quantprecision", "1")
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=[provider], disabled_optimizers=SLOW_FUSIONS
            )
        except Exception as error:  # the runtime raises its own kinds, all of them below Exception
            raise EngineError(f"onnxruntime {onnxruntime.__version__} cannot open {path}: {in_one_line(error)}") from error
        self.names = [x.name for x in self.session.get_inputs()]

    def native(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(x) for name, x in zip(self.names, arrays, strict=True)}

    def run(self, native: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(None, native)
        return outputs

    def arrays(self, outputs: list[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(x) for x in outputs]


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    model = next(name for name in manifest["files"] if name.endswith(".onnx"))
    if unknown := external_files(directory / model) - {name for name in manifest["files"] if "/" not in name}:
        raise EngineError(f"{directory / model} reads its weights from {sorted(unknown)[0][:200]!r}, which is not one of the "
                          "artifact's files: it was not opened")
    return OnnxRuntimeEngine(directory / model, threads, device,
                             needs_vnni=bool(manifest.get("needs_vnni")))
