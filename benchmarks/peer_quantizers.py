"""What other tools make of a model, in an environment of theirs: run by `peer_engines.py`.

    PYTHON benchmarks/peer_quantizers.py KIND MODEL STORE OUT

OUT gets the files of one engine and ``peer.json``, which says which engine and in which precision. Each kind does what its own
documentation tells a user to do; all start from the same float module and calibrate on the same examples as we do.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from peer_engines import floating

from thrifty.numerics.graph import is_convolution
from thrifty.workloads.workload import Workload

Rows = list[tuple[Tensor, ...]]
"""Requests of one example each."""
OPSET = 20
NNCF_ACCURACY = "nncf-accuracy"
MAX_DROP = 0.003
"""Of quality on validation, that NNCF's search may lose."""


def convolutional(net: nn.Module) -> bool:
    """Whether it is a net of convolutions; transformers want other settings of every tool."""
    return any(map(is_convolution, net.modules()))


# -- ONNX Runtime ------------------------------------------------------------------------------------------------


def _onnx(net: nn.Module, rows: Rows, place: Path) -> Path:
    """Exported, then prepared as ONNX Runtime's documentation asks: shapes inferred, graph optimized."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exported = torch.onnx.export(net, rows[0], dynamo=True, verbose=False, opset_version=OPSET)
    exported.save(place / "float.onnx", external_data=False)
    quant_pre_process(str(place / "float.onnx"), str(place / "prepared.onnx"), skip_symbolic_shape=True)
    return place / "prepared.onnx"


def onnxruntime_static(net: nn.Module, rows: Rows, out: Path) -> dict[str, Any]:
    """Static, unsigned activations, signed weights with a scale for each channel, quantize and dequantize nodes."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, names: list[str]) -> None:
            self.rows: Iterator[tuple[Tensor, ...]] = iter(rows)
            self.names = names

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {name: x.numpy() for name, x in zip(self.names, row, strict=True)}

    with tempfile.TemporaryDirectory() as scratch:
        prepared = _onnx(net, rows, Path(scratch))
        session = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"])
        quantize_static(str(prepared), str(out / "model.onnx"), Reader([x.name for x in session.get_inputs()]),
                        quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    return {"engine": "onnxruntime", "files": ["model.onnx"], "precision": "int8"}


def onnxruntime_dynamic(net: nn.Module, rows: Rows, out: Path) -> dict[str, Any]:
    """Dynamic: the range of every activation tensor is found as it comes; recommended for transformers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch:
        quantize_dynamic(str(_onnx(net, rows, Path(scratch))), str(out / "model.onnx"), per_channel=True,
                         weight_type=QuantType.QInt8)
    return {"engine": "onnxruntime", "files": ["model.onnx"], "precision": "int8"}


# -- NNCF --------------------------------------------------------------------------------------------------------


def nncf(net: nn.Module, rows: Rows, out: Path) -> dict[str, Any]:
    """NNCF on the OpenVINO model; of transformers it is told that they are."""
    import nncf

    return _by_nncf(net, rows, out, nncf.quantize)


def nncf_accuracy(workload: Workload, net: nn.Module, rows: Rows, out: Path) -> dict[str, Any]:
    """NNCF's own search: layers go back to floating point until validation loses no more than is allowed."""
    import nncf

    def judged(model: Any, _: Any) -> tuple[float, list[float]]:
        def answers(inputs: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([torch.from_numpy(model([x[i : i + 1].numpy() for x in inputs])[0]) for i in range(len(inputs[0]))])

        found, sign = workload.quality(answers, workload.validation), 1.0 if workload.quality.higher_is_better else -1.0
        return sign * found.value, [sign * float(x) for x in found.numerator / found.denominator]

    return _by_nncf(net, rows, out, functools.partial(
        nncf.quantize_with_accuracy_control, validation_dataset=nncf.Dataset(range(len(workload.validation))),
        validation_fn=judged, max_drop=MAX_DROP))


def _by_nncf(net: nn.Module, rows: Rows, out: Path, quantize: Callable[..., Any]) -> dict[str, Any]:
    import nncf
    import openvino

    model = openvino.convert_model(torch.export.export(net, rows[0]))
    dataset = nncf.Dataset(rows, lambda row: {i: x.numpy() for i, x in enumerate(row)})
    model_type = None if convolutional(net) else nncf.ModelType.TRANSFORMER
    quantized = quantize(model, calibration_dataset=dataset, subset_size=len(rows), model_type=model_type)
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)
    return {"engine": "openvino", "files": ["model.xml", "model.bin"], "precision": "int8"}


# -- Neural Compressor -------------------------------------------------------------------------------------------


def neural_compressor(net: nn.Module, rows: Rows, out: Path) -> dict[str, Any]:
    """Neural Compressor's static quantization of an exported program, compiled by Inductor with frozen weights."""
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, get_default_static_config, prepare
    from torch._inductor import aoti_compile_and_package

    prepared = prepare(export(net, rows[0]), quant_config=get_default_static_config())
    for row in rows:
        prepared(*row)
    program = torch.export.export(convert(prepared), rows[0])
    aoti_compile_and_package(program, package_path=str(out / "model.pt2"), inductor_configs={"freezing": True})
    return {"engine": "inductor", "files": ["model.pt2"], "precision": "int8"}


KINDS: dict[str, Callable[[nn.Module, Rows, Path], dict[str, Any]]] = {
    "onnxruntime-static": onnxruntime_static,
    "onnxruntime-dynamic": onnxruntime_dynamic,
    "nncf": nncf,
    "neural-compressor": neural_compressor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=(*KINDS, NNCF_ACCURACY))
    parser.add_argument("model")
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    workload, net, context = floating(given.model, given.store)
    kinds = {**KINDS, NNCF_ACCURACY: functools.partial(nncf_accuracy, workload)}
    rows = [tuple(x[i : i + 1] for x in batch) for batch in context.calibration() for i in range(len(batch[0]))]
    with torch.no_grad():
        made = kinds[given.kind](net, rows, given.out)
    (given.out / "peer.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()
