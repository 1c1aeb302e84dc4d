"""Opens OpenVINO IR; imports neither torch nor what the IR was made with."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

# Unless the user's own code did, `import openvino` would start its telemetry: an identifier written to the home
# directory, events sent for the import and for each conversion. Without that package it does neither.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as openvino  # noqa: E402  # by this name for the compiler too

from thrifty.engines.engine import Engine, EngineError  # noqa: E402
from thrifty.engines.instructions import saturates  # noqa: E402
from thrifty.errors import in_one_line  # noqa: E402

_CORES: weakref.WeakValueDictionary[int, openvino.Core] = weakref.WeakValueDictionary()
"""{process: its core, while an engine holds it}."""


def _core() -> openvino.Core:
    """The core that all engines of this process share while there are any.

    A core gives the thread that makes it a stack for signals, and frees it with itself. Where two overlap and the first is freed
    first, the second leaves that freed stack in place, and the next signal ends the process. One that nobody needs is freed: a
    process that is forked beside it would wait for its threads, which are not forked.
    """
    if (core := _CORES.get(os.getpid())) is None:
        core = _CORES[os.getpid()] = openvino.Core()
    return core


@final
class OpenVinoEngine(Engine):
    """Args:
        path: of the ``.xml``; its ``.bin`` lies beside it.
        threads: of inference.
        precision: as `Lowered` has it; floats are computed in bf16 where "bf16" is a part of it, in fp32 otherwise. The
            choice is asked for and read back: left alone, OpenVINO runs fp32 models in bf16 where the processor can.
        profile: whether `executed` will be asked.
    """

    def __init__(self, path: Path, threads: int, precision: str, profile: bool = False) -> None:
        half = "bf16" in precision.split("+")
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # what is rounded says the model, never the runtime
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # two pinned processes may share a core while others idle
            "PERF_COUNT": profile,
        }
        try:
            self.core = _core()
            self.compiled = self.core.compile_model(str(path), "CPU", options)
        except Exception as error:  # the runtime raises its own kinds, all of them below Exception
            raise EngineError(f"openvino {openvino.__version__} cannot open {path}: {in_one_line(error)}") from error
        floats = openvino.Type.bf16 if half else openvino.Type.f32
        for option, wanted in (("INFERENCE_PRECISION_HINT", floats), ("INFERENCE_NUM_THREADS", threads)):
            if (got := self.compiled.get_property(option)) != wanted:
                raise EngineError(
                    f"openvino set {option} to {got} where {options[option]} was requested: this CPU, or "
                    "the cores this process may use, do not allow it"
                )
        self.request = self.compiled.create_infer_request()
        self.shapes = [x.get_partial_shape() for x in self.compiled.inputs]

    def native(self, arrays: Sequence[np.ndarray]) -> list[openvino.Tensor]:
        for i, (array, shape) in enumerate(zip(arrays, self.shapes, strict=True)):
            if not shape.compatible(openvino.PartialShape(list(array.shape))):
                raise EngineError(f"input {i} must be of shape {shape} but is of {list(array.shape)}")
        return [openvino.Tensor(np.ascontiguousarray(x), shared_memory=True) for x in arrays]

    def run(self, native: list[openvino.Tensor]) -> tuple[np.ndarray, ...]:
        for i, tensor in enumerate(native):
            self.request.set_input_tensor(i, tensor)
        # Not shared: the request writes its next outputs to the same memory.
        outputs: tuple[np.ndarray, ...] = self.request.infer(share_outputs=False, decode_strings=False).to_tuple()
        return outputs

    def arrays(self, outputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        return list(outputs)

    def executed(self) -> list[tuple[str, str]]:
        """(operator, kernel) of all that ran in the last call, such as ("Convolution", "brgconv_avx512_I8").

        The kernel's last part is the type of what it reads.
        """
        return [(node.node_type, node.exec_type) for node in self.request.profiling_info
                if node.status == node.Status.EXECUTED]


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    if device != "cpu":
        raise EngineError(f"{directory} runs on cpu but was opened on {device}: compile(openvino) supports CPUs only")
    if manifest.get("needs_vnni") and saturates():
        raise EngineError(f"{directory} has 8-bit weights, but this processor has no VNNI: OpenVINO's integer matrix "
                          "multiplications would saturate and be wrong; run its recipe on this machine, where quantize uses "
                          "7-bit weights, or use compile(onnxruntime), which is correct on both")
    model = next(name for name in manifest["files"] if name.endswith(".xml"))
    if f"{model.removesuffix('.xml')}.bin" not in manifest["files"]:  # OpenVINO reads it wherever there is one
        raise EngineError(f"{directory} lists no weights of {model} among its files: copy the artifact again")
    return OpenVinoEngine(directory / model, threads, manifest["precision"])
