"""Compilers that dequantize in the graph: weights stay packed in what they write."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.compilers.few_bits import ODD, around, in_few_bits, layered, tied, tokens
from tests.compilers.nets import called, error, lowered
from thrifty.artifacts import artifact
from thrifty.artifacts.verification import verify
from thrifty.compilers.export import Export
from thrifty.compilers.tvm import Tvm
from thrifty.compilers.xla import Xla
from thrifty.measure.environment import runtime_versions
from thrifty.posttraining.quantization.rest import in_bf16
from thrifty.recipes.registry import method_class

VARYING = {0: {0: (1, 8), 1: (1, 64)}}
COMPILERS = [pytest.param(cls, id=cls.name, marks=pytest.mark.skipif(cls.missing() is not None, reason=str(cls.missing())))
             for cls in (Export, Xla, Tvm)]
QUICK = [COMPILERS[0], *(pytest.param(*each.values, id=each.id, marks=[*each.marks, pytest.mark.slow]) for each in COMPILERS[1:])]
"""Those that take a second; `make test-all` runs all."""
NAMES = list(ODD)
CLEAN = """
import sys, numpy, thrifty, thrifty.artifacts.artifact
place, kept = sys.argv[1:]
inputs, _ = thrifty.artifacts.artifact.example(place)
with numpy.load(kept) as expected:
    print(numpy.array_equal(thrifty.load(place, trust_native_code=True)(*inputs), expected["y"]), "torch" in sys.modules)
"""


@pytest.mark.parametrize("compiler", QUICK)
@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_odd_sizes_at_one_token_and_at_many(compiler, name, tmp_path):
    net = around(name)
    record, engine, _ = lowered(compiler(), net, (tokens(name, 1, 7),), tmp_path, VARYING)
    assert record.precision == "fp32"
    for n, length in ((1, 1), (5, 63)):
        x = tokens(name, n, length)
        assert error(called(engine, x), net(x)) < 1e-5


def test_bfloat16(tmp_path):
    name = NAMES[1]
    record, engine, _ = lowered(Export(), in_bf16(around(name)), (tokens(name, 1, 7),), tmp_path, VARYING)
    assert record.precision == "bf16"
    assert error(called(engine, tokens(name, 5, 63)), around(name)(tokens(name, 5, 63))) < 0.02


@pytest.mark.parametrize("compiler", QUICK)
@pytest.mark.parametrize(("scheme", "most"), [
    ("w4a16", 0.17), pytest.param("w3a16", 0.13, marks=pytest.mark.slow), pytest.param("w8a16", 0.27, marks=pytest.mark.slow),
])
def test_bytes(compiler, scheme, most, tmp_path):
    net, x = layered()
    integer = in_few_bits(net, scheme, x)
    _, engine, small = lowered(compiler(), integer, (x[:3],), tmp_path)
    assert small <= most * 4 * sum(p.numel() for p in net.parameters())
    assert error(called(engine, x[:3]), integer(x[:3])) < 1e-5


@pytest.mark.parametrize("compiler", [
    "export", "openvino", "onnxruntime", *(pytest.param(name, marks=pytest.mark.slow) for name in ("xla", "tvm", "inductor")),
])
def test_saved_verified_and_loaded_in_a_clean_process(compiler, tmp_path):
    method = method_class(compiler)
    if lacks := method.missing():
        pytest.skip(lacks)
    net, x = around(NAMES[1]), tokens(NAMES[1], 2, 3)
    record, engine, _ = lowered(method(), net, (x,), tmp_path / "served")
    artifact.write(tmp_path / "served", record, {"recipe": f"compile({compiler})", "versions": runtime_versions()},
                   [x.numpy()], [net(x).numpy()])
    assert verify(tmp_path / "served", trust_native_code=True).sound
    np.savez(tmp_path / "kept.npz", y=called(engine, x).numpy())
    done = subprocess.run([sys.executable, "-c", CLEAN, str(tmp_path / "served"), str(tmp_path / "kept.npz")],
                          capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": ":".join(x for x in sys.path if x)})
    needs_torch = compiler in ("export", "inductor")
    assert done.stdout.strip() == f"True {needs_torch}", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_tied_table(compiler, tmp_path):
    net, ids = tied()
    integer = in_few_bits(net, "w4a16", ids, group=32)
    _, engine, _ = lowered(compiler(), integer, (ids,), tmp_path, {0: {0: (1, 8)}})
    assert error(called(engine, ids[:1]), integer(ids[:1])) < 1e-5
