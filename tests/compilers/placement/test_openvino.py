"""Weights of few bits where OpenVINO multiplies by them."""

from __future__ import annotations

import pytest

from tests.compilers.few_bits import ODD, around, check_bytes, check_tied, tokens
from tests.compilers.nets import called, error, lowered

pytest.importorskip("thrifty.engines.openvino")  # not "openvino" itself, which would start its telemetry
from thrifty.compilers.openvino import OpenVino, executed
from thrifty.engines.instructions import instructions
from thrifty.engines.openvino import openvino
from thrifty.posttraining.quantization.rest import in_bf16

VARYING = {0: {0: (1, 8), 1: (1, 64)}}
has_bf16 = pytest.mark.skipif("BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
                              reason="OpenVINO has no bfloat16 kernels for this processor")


def constants(place):
    """(type, shape) of the whole numbers in the file."""
    found = openvino.Core().read_model(place / "model.xml").get_ordered_ops()
    return [(x.get_element_type().get_type_name(), list(x.shape)) for x in found if x.get_type_name() == "Constant"
            and x.get_element_type() in (openvino.Type.u4, openvino.Type.u8)]


@pytest.mark.parametrize("name", ODD)
def test_odd_sizes_at_one_token_and_at_many(name, tmp_path):
    net = around(name)
    record, engine, _ = lowered(OpenVino(), net, (tokens(name, 1, 7),), tmp_path, VARYING)
    assert record.precision == "fp32"
    assert record.facts == {"integer_layers": 0.0, "float_layers": 2.0, "bf16_layers": 0.0, "few_bit_layers": 1.0}
    for n, length in ((1, 1), (1, 7), (5, 63)):
        x = tokens(name, n, length)
        assert error(called(engine, x), net(x)) < 1e-5
    layer = ODD[name]
    held = "u8" if layer.bits == 8 else "u4"
    assert (held, [layer.out_features, layer.scale.shape[1], layer.group + layer.in_features % 2]) in constants(tmp_path)


def expanded(layer):
    """Whether OpenVINO makes a layer's weights bfloat16 when it opens the file, where the processor has AMX: small matrices
    whose rows do not fill its tiles."""
    return max(layer.in_features, layer.out_features) <= 512 and layer.in_features % 32 != 0


@has_bf16
@pytest.mark.parametrize("name", ODD)
def test_in_bfloat16(name, tmp_path):
    net = in_bf16(around(name))
    record, engine, _ = lowered(OpenVino(), net, (tokens(name, 1, 7),), tmp_path, VARYING)
    assert record.precision == "bf16"
    few = 0.0 if "amx_bf16" in instructions() and expanded(ODD[name]) else 1.0
    assert record.facts == {"integer_layers": 0.0, "float_layers": 2.0, "bf16_layers": 2.0, "few_bit_layers": few}
    for n, length in ((1, 1), (5, 63)):
        x = tokens(name, n, length)
        assert error(called(engine, x), around(name)(x)) < 0.02


@pytest.mark.parametrize(("scheme", "most"), [("w4a16", 0.17), ("w8a16", 0.27), ("w8a8", 0.27)])
def test_bytes(scheme, most, tmp_path):
    check_bytes(OpenVino(), scheme, most, tmp_path)


def test_a_tied_table_lies_in_the_file_once(tmp_path):
    check_tied(OpenVino(), tmp_path)
    assert (tmp_path / "model.bin").stat().st_size < 200 * 64 + 64 * 64 + 8000


def test_the_kernel_reads_what_is_compressed(tmp_path):
    name = next(iter(ODD))
    lowered(OpenVino(), around(name), (tokens(name, 1, 7),), tmp_path, VARYING)
    ran = executed(tmp_path / "model.xml", [tokens(name, 1, 7).numpy()])
    assert [operator for operator, _ in ran].count("FullyConnectedCompressed") == 1
