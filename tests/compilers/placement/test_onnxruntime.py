"""Weights of few bits where ONNX Runtime multiplies by them."""

from __future__ import annotations

import pytest
import torch

from tests.compilers.few_bits import ODD, around, check_bytes, check_tied, tokens
from tests.compilers.nets import called, error, lowered
from thrifty.compilers.capture import LoweringError
from thrifty.posttraining.quantization.rest import in_bf16
from thrifty.posttraining.quantize import Quantize

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
import onnx

from thrifty.compilers.onnxruntime import OnnxRuntime, executed

VARYING = {0: {0: (1, 8), 1: (1, 64)}}


@pytest.mark.parametrize("name", ODD)
def test_odd_sizes_at_one_token_and_at_many(name, tmp_path):
    net = around(name)
    record, engine, _ = lowered(OnnxRuntime(), net, (tokens(name, 1, 7),), tmp_path, VARYING)
    assert record.precision == "fp32"
    assert record.facts == {"integer_layers": 0.0, "float_layers": 2.0, "few_bit_layers": 1.0}
    for n, length in ((1, 1), (1, 7), (5, 63)):
        x = tokens(name, n, length)
        assert error(called(engine, x), net(x)) < 1e-5, "activations are not rounded"
    ran = executed(tmp_path / "model.onnx", [tokens(name, 1, 7).numpy()])
    assert ran["MatMulNBits"] == (ODD[name].bits < 8)


def test_bfloat16_is_refused(tmp_path):
    name = next(iter(ODD))
    with pytest.raises(LoweringError, match="no bfloat16 kernels"):
        lowered(OnnxRuntime(), in_bf16(around(name)), (tokens(name, 1, 7),), tmp_path)


@pytest.mark.parametrize(("scheme", "most"), [("w4a16", 0.17), ("w8a16", 0.27), ("w8a8", 0.27)])
def test_bytes(scheme, most, tmp_path):
    check_bytes(OnnxRuntime(), scheme, most, tmp_path)


def test_bytes_become_floats_when_their_layer_is_due(tmp_path):
    """Else those of all layers would stand in memory at once, since dequantizing waits for no input."""
    layers = torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 4)
    net = Quantize("w8a16", algorithm="rtn")(torch.nn.Sequential(*layers))
    _, engine, _ = lowered(OnnxRuntime(), net, (torch.randn(3, 128),), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants, steps = {x.name for x in graph.initializer}, [x for x in graph.node if x.op_type == "DequantizeLinear"]
    assert len(steps) == 2
    assert all(step.input[0] in constants and step.input[1] not in constants for step in steps)
    x = torch.randn(3, 128)
    x[0, 0] = torch.nan  # stays in its row
    assert bool(called(engine, x)[0].isnan().all()) and error(called(engine, x)[1:], net(x)[1:]) < 1e-5


def test_a_tied_table_lies_in_the_file_once(tmp_path):
    size = check_tied(OnnxRuntime(), tmp_path)
    tables = [x for x in onnx.load(tmp_path / "model.onnx").graph.initializer if 200 * 64 in (len(x.raw_data), *x.dims)]
    assert len(tables) == 1
    assert size < 2 * 200 * 64
