from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.compilers.nets import called, conv_net, encoder, error, images, lowered, quantized, texts
from thrifty.compilers.capture import LoweringError
from thrifty.posttraining.quantize import Quantize

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
import onnx

from thrifty.compilers.onnxruntime import OnnxRuntime, _parse_once, executed

BATCH = {0: {0: (1, 16)}}
BOTH = {0: {0: (1, 16)}, 1: {0: (1, 16)}}


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    place, net, x = tmp_path_factory.mktemp("conv"), conv_net(width=96), images()
    integer = quantized(net, x)
    return {"net": net, "integer": integer, "x": x, "place": place,
            "fp32": lowered(OnnxRuntime(), net, (x[:1],), place / "fp32", BATCH),
            "int8": lowered(OnnxRuntime(), integer, (x[:1],), place / "int8", BATCH)}


def test_float_parity(conv):
    record, engine, _ = conv["fp32"]
    assert (record.precision, record.portable, record.native) == ("fp32", True, False)
    assert record.facts["integer_layers"] == 0
    for n in (1, 3, 16):
        assert error(called(engine, conv["x"][:n]), conv["net"](conv["x"][:n])) < 1e-4


def test_integer_kernels_run_and_agree_with_the_simulation(conv):
    record, engine, small = conv["int8"]
    assert record.precision == "int8"
    assert record.facts == {"integer_layers": 5.0, "float_layers": 0.0, "few_bit_layers": 0.0}
    ran = executed(conv["place"] / "int8" / "model.onnx", [conv["x"][:1].numpy()])
    assert ran["QLinearConv"] == 4
    assert ran["QLinearAdd"] == 1
    assert not {"Conv", "Relu", "MatMul"} & ran.keys()
    for n in (1, 3, 16):  # one step of 256 now and then, where a value lies between two
        assert error(called(engine, conv["x"][:n]), conv["integer"](conv["x"][:n])) < 0.01
    assert small <= 0.27 * conv["fp32"][2]


def test_every_int8_weight_has_zeros_of_its_own(conv):
    graph = onnx.load(conv["place"] / "int8" / "model.onnx").graph
    weights = {x.name for x in graph.initializer if x.data_type == onnx.TensorProto.INT8}
    zeros = [x.input[2] for x in graph.node if x.op_type == "DequantizeLinear" and x.input[0] in weights]
    assert len(zeros) == len(set(zeros)) == 4


def test_attention_float_and_integer(tmp_path):
    (ids, mask), net = texts(), encoder()
    integer = quantized(net, ids, mask)
    one = (ids[:1], mask[:1])
    record, engine, _ = lowered(OnnxRuntime(), net, one, tmp_path / "fp32", BOTH)
    assert [x.dtype for x in record.inputs] == ["int64", "int64"]
    assert record.facts == {"integer_layers": 0.0, "float_layers": 6.0, "few_bit_layers": 0.0}
    assert error(called(engine, ids, mask), net(ids, mask)) < 1e-4
    ran = executed(tmp_path / "fp32" / "model.onnx", [x.numpy() for x in one])
    assert ran["MultiHeadAttention"] == 1
    record, engine, _ = lowered(OnnxRuntime(), integer, one, tmp_path / "int8", BOTH)
    assert record.facts["integer_layers"] == 6
    assert error(called(engine, ids, mask), integer(ids, mask)) < 0.01
    assert error(called(engine, ids, mask), net(ids, mask)) < 0.05


def test_a_convolution_that_rounds_its_own_input(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 9, 3, padding=1), nn.SiLU(), nn.Conv1d(9, 5, 3)).eval()
    x = torch.randn(20, 3, 31)
    integer = quantized(net, x)
    record, engine, _ = lowered(OnnxRuntime(), integer, (x[:2],), tmp_path)
    assert record.facts["integer_layers"] == 2
    assert error(called(engine, x[:2]), integer(x[:2])) < 0.01


def test_the_file_tells_nothing_of_this_machine(conv):
    content = (conv["place"] / "fp32" / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"nets.py" not in content


def test_bfloat16_is_refused(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(LoweringError, match=r"no bfloat16 kernels.*compile\(inductor\)"):
        lowered(OnnxRuntime(), Quantize("bf16")(net, [torch.randn(4, 4)]), (torch.randn(1, 4),), tmp_path)


class Checked(nn.Module):
    """Checks its input, as much code does: no graph can be traced, and torch.export still captures it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("three channels, please")
        return self.two(torch.relu(self.one(x)))


def test_convolutions_of_a_net_that_cannot_be_traced(tmp_path):
    torch.manual_seed(0)
    net, x = Checked().eval(), torch.randn(20, 3, 15, 11)
    integer = quantized(net, x)
    record, engine, _ = lowered(OnnxRuntime(), integer, (x[:1],), tmp_path, BATCH)
    assert record.facts == {"integer_layers": 2.0, "float_layers": 0.0, "few_bit_layers": 0.0}
    assert error(called(engine, x[:5]), integer(x[:5])) < 0.01
    assert error(called(engine, x[:5]), net(x[:5])) < 0.05


def test_recurrent_layers_with_projections_are_refused_before_anything_runs(tmp_path):
    net = nn.LSTM(4, 8, proj_size=4, batch_first=True)
    for refused in (lambda: OnnxRuntime().admit(net, "cpu"),
                    lambda: lowered(OnnxRuntime(), net, (torch.zeros(1, 3, 4),), tmp_path)):
        with pytest.raises(LoweringError, match="cannot express this model: '' is a recurrent layer with proj_size=4"):
            refused()
    OnnxRuntime().admit(nn.LSTM(4, 8), "cpu")


def test_the_exporters_translations_are_parsed_once():
    from torch.onnx._internal.exporter import _registration

    _parse_once()
    kept = _registration.onnxscript_apis.get_torchlib_ops
    assert kept() is kept()
    _parse_once()
    assert _registration.onnxscript_apis.get_torchlib_ops is kept
