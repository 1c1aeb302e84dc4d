"""What others make of a float model, in an environment of theirs that needs none of ours.

    PYTHON benchmarks/peer_quantizers.py KIND FLOAT OUT

FLOAT holds ``program.pt2``, the float model as torch.export captured it at batch 1, and ``calibration.npz``, requests of
one example each. OUT gets the files of one engine and ``peer.json``, which says which engine and in which precision.
Each kind does what its own documentation tells a user to do; all calibrate on the same examples.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Batches = list[list[np.ndarray]]
OPSET = 20


def requests(place: Path) -> Batches:
    """The calibration examples, one request each."""
    with np.load(place / "calibration.npz") as kept:
        columns = [kept[f"input{i}"] for i in range(len(kept.files))]
    return [[column[n : n + 1] for column in columns] for n in range(len(columns[0]))]


def convolutional(program: Any) -> bool:
    """Whether it is a net of convolutions; transformers want other settings of every tool."""
    return any("conv" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


# -- ONNX Runtime ------------------------------------------------------------------------------------------------


def _onnx(program: Any, place: Path) -> Path:
    """Exported, then prepared as ONNX Runtime's documentation asks: shapes inferred, graph optimised."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    exported = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET,
                                 input_names=inputs[len(inputs) - _arity(program):])
    exported.save(place / "float.onnx", external_data=False)
    quant_pre_process(str(place / "float.onnx"), str(place / "prepared.onnx"), skip_symbolic_shape=True)
    return place / "prepared.onnx"


def _arity(program: Any) -> int:
    return len(program.graph_signature.user_inputs)


def onnxruntime_static(program: Any, batches: Batches, out: Path) -> dict[str, Any]:
    """Static, unsigned activations, signed weights with a scale for each channel, quantize and dequantize nodes."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, names: list[str]) -> None:
            self.rows: Iterator[list[np.ndarray]] = iter(batches)
            self.names = names

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else dict(zip(self.names, row, strict=True))

    with tempfile.TemporaryDirectory() as scratch:
        prepared = _onnx(program, Path(scratch))
        session = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"])
        quantize_static(str(prepared), str(out / "model.onnx"), Reader([x.name for x in session.get_inputs()]),
                        quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    return {"engine": "onnxruntime", "files": ["model.onnx"], "precision": "int8"}


def onnxruntime_dynamic(program: Any, batches: Batches, out: Path) -> dict[str, Any]:
    """Dynamic: the range of every activation tensor is found as it comes; recommended for transformers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch:
        quantize_dynamic(str(_onnx(program, Path(scratch))), str(out / "model.onnx"), per_channel=True,
                         weight_type=QuantType.QInt8)
    return {"engine": "onnxruntime", "files": ["model.onnx"], "precision": "int8"}


# -- NNCF --------------------------------------------------------------------------------------------------------


def nncf(program: Any, batches: Batches, out: Path) -> dict[str, Any]:
    """NNCF on the OpenVINO model; of transformers it is told that they are."""
    import nncf
    import openvino

    model = openvino.convert_model(program)
    model.reshape({i: list(x.shape) for i, x in enumerate(batches[0])})
    dataset = nncf.Dataset(batches, lambda row: dict(enumerate(row)))
    model_type = None if convolutional(program) else nncf.ModelType.TRANSFORMER
    quantized = nncf.quantize(model, dataset, subset_size=len(batches), model_type=model_type)
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)
    return {"engine": "openvino", "files": ["model.xml", "model.bin"], "precision": "int8"}


# -- Neural Compressor -------------------------------------------------------------------------------------------


def neural_compressor(program: Any, batches: Batches, out: Path) -> dict[str, Any]:
    """Neural Compressor's static quantization of an exported program, compiled by Inductor with frozen weights."""
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, get_default_static_config, prepare
    from torch._inductor import aoti_compile_and_package

    rows = [tuple(map(torch.from_numpy, row)) for row in batches]
    prepared = prepare(export(program.module(), rows[0]), quant_config=get_default_static_config())
    with torch.no_grad():
        for row in rows:
            prepared(*row)
        quantized = convert(prepared)
        again = torch.export.export(quantized, rows[0])
        aoti_compile_and_package(again, package_path=str(out / "model.pt2"), inductor_configs={"freezing": True})
    return {"engine": "inductor", "files": ["model.pt2"], "precision": "int8"}


KINDS: dict[str, Callable[[Any, Batches, Path], dict[str, Any]]] = {
    "onnxruntime-static": onnxruntime_static,
    "onnxruntime-dynamic": onnxruntime_dynamic,
    "nncf": nncf,
    "neural-compressor": neural_compressor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("float", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("DO_NOT_TRACK", "1")
    given.out.mkdir(parents=True, exist_ok=True)
    program = torch.export.load(given.float / "program.pt2")
    made = KINDS[given.kind](program, requests(given.float), given.out)
    (given.out / "peer.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()
