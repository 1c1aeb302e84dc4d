from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.compilers.nets import called, conv_net, encoder, error, images, lowered, quantized, texts
from thrifty.compilers import inductor
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.inductor import Inductor, kernels
from thrifty.compilers.requirements import NoCompiler
from thrifty.posttraining.quantize import Quantize

pytestmark = pytest.mark.skipif(Inductor.missing() is not None, reason=str(Inductor.missing()))
BATCH = {0: {0: (1, 16)}}
BOTH = {0: {0: (1, 16)}, 1: {0: (1, 16)}}


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    net, x = conv_net(), images()
    integer = quantized(net, x)
    place = tmp_path_factory.mktemp("conv")
    return net, integer, x, lowered(Inductor(), integer, (x[:1],), place, BATCH)


def test_integer_kernels_run_and_agree_with_the_simulation(conv):
    _, integer, x, (record, engine, _) = conv
    assert (record.precision, record.portable, record.native) == ("int8", False, True)
    assert record.facts == {"integer_layers": 5.0, "float_layers": 0.0, "few_bit_layers": 0.0}
    assert record.instruction_set
    for n in (1, 3, 16):
        assert error(called(engine, x[:n]), integer(x[:n])) < 0.01


@pytest.mark.slow
def test_an_encoder_in_integers(tmp_path):
    (ids, mask), net = texts(), encoder()
    integer = quantized(net, ids, mask)
    record, engine, _ = lowered(Inductor(), integer, (ids[:1], mask[:1]), tmp_path, BOTH)
    assert record.facts == {"integer_layers": 6.0, "float_layers": 0.0, "few_bit_layers": 0.0}
    assert error(called(engine, ids, mask), integer(ids, mask)) < 0.01


@pytest.mark.slow
def test_float_parity_and_bytes(tmp_path):
    """On a net whose weights outweigh its code; the code alone is 0.1 MB compressed."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(513, 2049), torch.nn.ReLU(), torch.nn.Linear(2049, 511)).eval()
    net.requires_grad_(False)
    for layer in (net[0], net[2]):  # distributed as trained weights are; packages are deflated, so it matters
        torch.nn.init.normal_(layer.weight, std=0.03)
    x = torch.randn(32, 513)
    integer = quantized(net, x)
    fp32, engine, large = lowered(Inductor(), net, (x[:1],), tmp_path / "fp32")
    assert fp32.precision == "fp32"
    assert fp32.facts == {"integer_layers": 0.0, "float_layers": 2.0, "few_bit_layers": 0.0}
    assert error(called(engine, x[:1]), net(x[:1])) < 1e-4
    record, engine, small = lowered(Inductor(), integer, (x[:1],), tmp_path / "int8")
    assert record.facts["integer_layers"] == 2
    assert error(called(engine, x[:1]), integer(x[:1])) < 1e-3
    assert small <= 0.27 * large


def test_options_that_this_torch_lacks_are_left_out(monkeypatch):
    """Inductor refuses a setting that it does not know, and torch 2.11 has no line tables."""
    monkeypatch.setitem(inductor.OPTIONS, "aot_inductor.of_another_torch", True)
    found = inductor._options()
    assert "aot_inductor.of_another_torch" not in found and found["freezing"] is True
    assert found["aot_inductor.compile_wrapper_opt_level"] == "Os"


def test_kernels_are_counted_in_the_calls_alone():
    source = """
    // Topologically Sorted: aoti_torch_cpu_mm_out(
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__qlinear_pointwise_tensor(a, b));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__int_mm_out(a, b));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(a, b));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(a, b));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise_binary(a, b));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mkldnn__convolution_pointwise(a, b));
    """
    assert kernels(source) == {"integer_layers": 2.0, "float_layers": 3.0, "few_bit_layers": 0.0}


def test_without_a_compiler_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(inductor.shutil, "which", lambda _: None)
    with pytest.raises(NoCompiler, match="apt-get install g"):
        lowered(Inductor(), conv_net(), (images(1),), tmp_path)


@pytest.mark.slow
def test_a_compiler_that_links_a_runtime_of_its_own_is_refused(monkeypatch, tmp_path):
    """Toolchains beside the system's do; the library crashed in a regular expression when it was opened."""
    wrapper = tmp_path / "g++"
    wrapper.write_text('#!/bin/sh\ncase "$*" in *-shared*) exec g++ "$@" -static-libstdc++;; esac\nexec g++ "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: str(wrapper))
    with pytest.raises(LoweringError, match=r"links a C\+\+ runtime of its own .* name a compiler that does not: CXX="):
        lowered(Inductor(), torch.nn.Linear(7, 5).eval(), (torch.randn(1, 7),), tmp_path / "lowered")


@pytest.mark.slow
def test_bfloat16_and_a_fresh_process(tmp_path):
    (ids, mask), net = texts(), encoder()
    half = Quantize("bf16")(net, [((ids, mask), None)]).requires_grad_(False)
    record, engine, _ = lowered(Inductor(), half, (ids[:1], mask[:1]), tmp_path, BOTH)
    assert record.precision == "bf16"
    assert error(called(engine, ids, mask), net(ids, mask)) < 0.02
    manifest = {"engine": "inductor", "files": {"model.pt2": None}, "native": True}
    code = ("import sys, numpy, thrifty.engines as e\n"
            f"engine = e.open_engine({str(tmp_path)!r}, {manifest!r}, trust_native_code=True)\n"
            "ones = numpy.ones((2, 13), dtype=numpy.int64)\n"
            "print(engine.arrays(engine.run(engine.native([ones, ones])))[0].shape, 'torch._inductor' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": ":".join(x for x in sys.path if x)})
    assert done.stdout.strip() == "(2, 13, 48) False", done.stderr
