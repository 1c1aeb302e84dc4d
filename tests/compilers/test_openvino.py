from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.compilers.nets import called, conv_net, encoder, error, images, lowered, quantized, texts
from thrifty.artifacts import artifact
from thrifty.compilers.capture import LoweringError
from thrifty.engines import EngineError
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context

pytest.importorskip("thrifty.engines.openvino")  # not "openvino" itself, which would start its telemetry
from thrifty.compilers.openvino import OpenVino, executed
from thrifty.engines.openvino import OpenVinoEngine, openvino

BATCH = {0: {0: (1, 16)}}
BOTH = {0: {0: (1, 16)}, 1: {0: (1, 16)}}
has_bf16 = pytest.mark.skipif("BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
                              reason="OpenVINO has no bfloat16 kernels for this processor")


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    place, net, x = tmp_path_factory.mktemp("conv"), conv_net(width=96), images()
    integer = quantized(net, x)
    return {"net": net, "integer": integer, "x": x, "place": place,
            "fp32": lowered(OpenVino(), net, (x[:1],), place / "fp32", BATCH),
            "int8": lowered(OpenVino(), integer, (x[:1],), place / "int8", BATCH)}


def test_float_parity(conv):
    record, engine, _ = conv["fp32"]
    assert (record.precision, record.portable, record.native, record.needs) == ("fp32", True, False, ("openvino",))
    assert record.facts == {"integer_layers": 0.0, "float_layers": 5.0, "bf16_layers": 0.0, "few_bit_layers": 0.0}
    assert record.inputs[0].shape == (-1, 1, 29, 23)
    for n in (1, 3, 16):
        assert error(called(engine, conv["x"][:n]), conv["net"](conv["x"][:n])) < 1e-5


def test_fp32_is_held_to_fp32_on_the_threads_asked_for(conv):
    engine = conv["fp32"][1]
    assert engine.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert engine.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert engine.compiled.get_property("NUM_STREAMS") == 1
    ran = executed(conv["place"] / "fp32" / "model.xml", [conv["x"][:1].numpy()])
    assert not [kernel for _, kernel in ran if kernel.endswith(("bf16", "f16"))]


def test_integer_kernels_run_and_agree_with_the_simulation(conv):
    record, engine, small = conv["int8"]
    assert record.precision == "int8"
    assert record.facts == {"integer_layers": 5.0, "float_layers": 0.0, "bf16_layers": 0.0, "few_bit_layers": 0.0}
    ran = executed(conv["place"] / "int8" / "model.xml", [conv["x"][:1].numpy()])
    operators = [operator for operator, _ in ran]
    assert operators.count("Convolution") == 3
    assert operators.count("GroupConvolution") == 1
    assert operators.count("FakeQuantize") == 1, "only the image is rounded on its own"
    assert not {"Add", "Eltwise", "Relu"} & set(operators), "the residual sum is fused into the convolution"
    for n in (1, 3, 16):
        assert error(called(engine, conv["x"][:n]), conv["integer"](conv["x"][:n])) < 0.01
    weights = [(conv["place"] / kind / "model.bin").stat().st_size for kind in ("int8", "fp32")]
    assert weights[0] <= 0.27 * weights[1]
    assert small <= 0.33 * conv["fp32"][2]  # the graph's text weighs on so small a net


def test_a_value_that_is_two_outputs(tmp_path):
    class Twice(nn.Module):
        def forward(self, x):
            y = torch.relu(x)
            return y, x * 2, y

    x = torch.randn(2, 3)
    record, engine, _ = lowered(OpenVino(), Twice(), (x,), tmp_path)
    assert len(record.outputs) == 3
    for got, right in zip(engine.arrays(engine.run(engine.native([x.numpy()]))), Twice()(x), strict=True):
        np.testing.assert_array_equal(got, right)


def test_an_input_outside_of_the_shapes_is_refused(conv):
    engine = conv["int8"][1]
    for x in (torch.zeros(17, 1, 29, 23), torch.zeros(1, 1, 28, 23), torch.zeros(1, 29, 23)):
        with pytest.raises(EngineError, match=r"input 0 must be of shape \[1\.\.16,1,29,23\] but is of"):
            called(engine, x)


def test_outputs_outlive_the_next_call(conv):
    """The request writes all its outputs to the same memory."""
    engine, x = conv["fp32"][1], conv["x"].numpy()
    first = engine.run(engine.native([x[:1]]))
    kept = first[0].copy()
    engine.run(engine.native([x[1:2]]))
    np.testing.assert_array_equal(engine.arrays(first)[0], kept)


def test_attention_float_and_integer(tmp_path):
    (ids, mask), net = texts(), encoder()
    integer = quantized(net, ids, mask)
    one = (ids[:1], mask[:1])
    record, engine, _ = lowered(OpenVino(), net, one, tmp_path / "fp32", BOTH)
    assert [x.dtype for x in record.inputs] == ["int64", "int64"]
    assert record.facts == {"integer_layers": 0.0, "float_layers": 6.0, "bf16_layers": 0.0, "few_bit_layers": 0.0}
    assert error(called(engine, ids, mask), net(ids, mask)) < 1e-5
    record, engine, _ = lowered(OpenVino(), integer, one, tmp_path / "int8", BOTH)
    assert record.facts == {"integer_layers": 6.0, "float_layers": 0.0, "bf16_layers": 0.0, "few_bit_layers": 0.0}
    assert error(called(engine, ids, mask), integer(ids, mask)) < 0.01
    assert error(called(engine, ids, mask), net(ids, mask)) < 0.05
    kinds = [x.get_rt_info()["layerType"].value for x in engine.compiled.get_runtime_model().get_ordered_ops()]
    assert kinds.count("Reduce") == 4, "q, k and v read one tensor: its tokens' peaks are found once"


@pytest.mark.parametrize("features", [3, 7, 513])
def test_tokens_are_rounded_as_the_plan_says(tmp_path, features):
    """Against the math, written out: t = max|x| / 127, q = round(x / t), t s_w q q_w^T + b."""
    torch.manual_seed(features)
    linear, x = nn.Linear(features, 5), torch.randn(3, 4, features) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None]
    integer = Quantize()(nn.Sequential(linear), [x]).requires_grad_(False)
    record, engine, _ = lowered(OpenVino(), integer, (x,), tmp_path)
    assert record.facts["integer_layers"] == 1
    held = integer[0]
    smooth, weight = held.smooth.double(), held.weight.double()
    step = (x.double() / smooth).abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    q = torch.round(x.double() / smooth / step).clamp(-127, 127)
    want = step * held.scale.double() * (q @ weight.T) + held.bias.double()
    assert error(called(engine, x).double(), want) < 5e-3


@pytest.mark.parametrize("rest", ["fp32", pytest.param("bf16", marks=has_bf16)])
@pytest.mark.parametrize("shapes", [{}, {0: {0: (1, 16)}}], ids=["fixed", "free"])
def test_weights_of_one_sign(tmp_path, shapes, rest):
    """What unsigned tokens add is then far larger than the output: taken off after a rounding to bfloat16, it would drown it."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(513, 65), nn.GELU(), nn.Linear(65, 7)), torch.randn(5, 6, 513)
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.zero_()
    integer = Quantize("w8a8", rest=rest)(net, [x]).requires_grad_(False)
    record, engine, _ = lowered(OpenVino(), integer, (x,), tmp_path, shapes)
    assert record.facts["integer_layers"] == 2
    assert error(called(engine, x), integer(x)) < (0.005 if rest == "fp32" else 0.03)


def test_a_convolution_that_rounds_its_own_input(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 9, 3, padding=1), nn.SiLU(), nn.Conv1d(9, 5, 3)).eval()
    x = torch.randn(20, 3, 31)
    integer = quantized(net, x)
    record, engine, _ = lowered(OpenVino(), integer, (x[:2],), tmp_path)
    assert record.facts["integer_layers"] == 2
    assert error(called(engine, x[:2]), integer(x[:2])) < 0.01


@has_bf16
def test_bfloat16_alone_and_beside_integers(tmp_path):
    (ids, mask), net = texts(), encoder()
    one = (ids[:1], mask[:1])
    half = Quantize("bf16")(net, [((ids, mask), None)]).requires_grad_(False)
    record, engine, _ = lowered(OpenVino(), half, one, tmp_path / "bf16", BOTH)
    assert record.precision == "bf16"
    assert record.facts == {"integer_layers": 0.0, "float_layers": 6.0, "bf16_layers": 6.0, "few_bit_layers": 0.0}
    assert engine.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
    assert error(called(engine, ids, mask), net(ids, mask)) < 0.02
    mixed = Quantize("w8a8", rest="bf16")(net, [((ids, mask), None)]).requires_grad_(False)
    record, engine, _ = lowered(OpenVino(), mixed, one, tmp_path / "mixed", BOTH)
    assert record.precision == "int8+bf16"
    assert record.facts["integer_layers"] == 6
    kinds = [x.get_type_name() for x in openvino.Core().read_model(tmp_path / "mixed" / "model.xml").get_ordered_ops()
             if x.get_type_name() == "Convert" and x.input_value(0).get_node().get_type_name() != "Constant"
             and x.input_value(0).get_element_type() in (openvino.Type.f32, openvino.Type.bf16)]
    assert not kinds, "conversions between the two would each be executed"
    assert error(called(engine, ids, mask), mixed(ids, mask)) < 0.03


def test_what_was_asked_for_is_read_back(conv, monkeypatch):
    """On a processor without it, or whose default is lower; here the runtime's answer is exchanged."""
    monkeypatch.setattr(openvino.CompiledModel, "get_property", lambda self, name: openvino.Type.bf16)
    with pytest.raises(EngineError, match="INFERENCE_PRECISION_HINT to .*bfloat16.* where f32 was requested"):
        OpenVinoEngine(conv["place"] / "fp32" / "model.xml", 1, "fp32")


def test_it_serves_processors_only(tmp_path):
    context = Context(example=(images(1),), calibration=lambda: iter(()), target=SimpleNamespace(device="cuda"))
    with pytest.raises(LoweringError, match=r"supports CPUs only, not cuda"):
        OpenVino().lower(conv_net(), (images(1),), tmp_path, context)


def test_an_operator_that_openvino_lacks(tmp_path):
    class Special(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(LoweringError, match=r"(?s)OpenVINO cannot express this model.*bessel_j0"):
        lowered(OpenVino(), Special(), (torch.ones(1, 3),), tmp_path)


def test_the_graph_tells_nothing_of_this_machine(conv):
    content = (conv["place"] / "int8" / "model.xml").read_bytes()
    assert b"site-packages" not in content
    assert b"nets.py" not in content


def test_a_loaded_artifact_needs_no_torch_and_writes_nothing_home(conv, tmp_path):
    directory, x = conv["place"] / "int8", conv["x"][:1]
    artifact.write(directory, conv["int8"][0], {}, [x.numpy()], [conv["integer"](x).numpy()])
    code = ("import sys; sys.modules['torch'] = None\n"
            "import numpy, thrifty\n"
            f"model = thrifty.load({str(directory)!r})\n"
            "print(model(numpy.zeros((2, 1, 29, 23), dtype=numpy.float32)).shape)\n"
            "print([m for m in ('torch', 'openvino_telemetry') if sys.modules.get(m)])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": ":".join(x for x in sys.path if x)})
    assert done.stdout.split("\n")[:2] == ["(2, 7)", "[]"], done.stderr
    assert not list(tmp_path.iterdir())
