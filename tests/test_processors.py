"""Processors that are not at hand: int8 where products of u8 and s8 saturate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn

from thrifty import OnnxRuntime, OpenVino, Quantize, load, lower, verify
from thrifty.engines import EngineError, instructions
from thrifty.numerics.ranges import REDUCED_MAX, full_range
from thrifty.recipes.recipe import Recipe
from thrifty.runs.job import Job, checkpoint_key
from thrifty.target import Target

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = shutil.which("qemu-x86_64")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not on PATH (Debian: apt install qemu-user)")
def test_int8_is_right_on_an_emulated_processor_with_avx2_alone():
    """The numbers of the real machine, saturation too: without seven bits the errors here are 0.2 to 0.9."""
    assert EMULATOR is not None
    environment = {**os.environ, "THRIFTY_INSTRUCTIONS": "avx2 fma",
                   "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), sysconfig.get_paths()["purelib"]])}
    command = [EMULATOR, "-cpu", "Haswell", os.path.realpath(sys.executable), str(ROOT / "tests" / "emulated.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 8 and all(error < 0.01 for error in errors.values()), errors


HELD = """
import sys, torch
from pathlib import Path
from thrifty import OpenVino, lower
from thrifty.compilers.openvino import WEIGHTED, executed
from tests.compilers.nets import conv_net, images, quantized

net, x = conv_net(), images(8)
for name, model, precision in (("fp32", net, "fp32"), ("int8", quantized(net, x), "int8")):
    lower(model, OpenVino(), Path(sys.argv[1]) / name, (x[:1],))
    ran = executed(Path(sys.argv[1]) / name / "model.xml", [x[:1].numpy()], precision)
    print(*[kernel for operator, kernel in ran if operator.startswith(WEIGHTED)])
"""


@pytest.mark.slow
@pytest.mark.skipif(OpenVino.missing() is not None, reason=str(OpenVino.missing()))
def test_openvino_follows_onednns_limit(tmp_path):
    """So that its times under the limit mean something: the kernels that ran say which instructions they have."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", instructions.PRETENDED: "avx2 fma",
                   "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", HELD, str(tmp_path)], capture_output=True, text=True, check=False,
                          env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    floats, integers = (line.split() for line in done.stdout.splitlines()[-2:])
    assert sum("avx2" in kernel for kernel in floats) == 4 and sum("avx2" in kernel for kernel in integers) == 4
    assert not any("avx512" in kernel for kernel in floats + integers)


@pytest.fixture
def without_vnni(pretend):
    pretend("avx2 fma")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


X = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))


def test_who_saturates(without_vnni, pretend, monkeypatch):
    assert instructions.saturates()
    pretend("avx2 fma avx_vnni")
    assert not instructions.saturates()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    pretend("asimd")
    assert not instructions.saturates()


def test_weights_have_seven_bits_there_and_eight_elsewhere(without_vnni):
    here, asked, kept = (Quantize("w8a8", reduce_range=word)(net(), [X]) for word in ("auto", "yes", "no"))
    assert not full_range(here) and not full_range(asked) and full_range(kept)
    assert int(here[0].weight.abs().max()) == REDUCED_MAX
    with torch.no_grad():
        error = (here(X) - net()(X)).norm() / net()(X).norm()
    assert error < 0.02  # half a step of 63, and half a step of activations


def test_what_looked_at_the_processor_is_kept_for_it(without_vnni, pretend):
    job = Job("w", "hash", "", 0, Target())
    recipes = [Recipe.parse(text) for text in ("quantize(w8a8)", "quantize(w8a8, reduce_range=yes)", "quantize(w4a16)",
                                               "train(qat(w4a8))", "prune(ratio=0.5)")]
    there = [checkpoint_key(job, recipe) for recipe in recipes]
    pretend("avx2 fma avx512_vnni")
    here = [checkpoint_key(job, recipe) for recipe in recipes]
    assert [a == b for a, b in zip(there, here, strict=True)] == [False, True, True, False, True]


@pytest.mark.parametrize("compiler", [OnnxRuntime(), OpenVino()], ids=lambda compiler: compiler.name)
def test_an_artifact_says_what_it_needs(compiler, tmp_path, pretend):
    """Made where there is VNNI, with eight bits: ONNX Runtime takes other instructions elsewhere, OpenVINO says no."""
    if lacking := compiler.missing():
        pytest.skip(lacking)
    eight, seven = (Quantize("w8a8", reduce_range=word)(net(), [X]) for word in ("no", "yes"))
    assert lower(seven, compiler, tmp_path / "seven", (X[:1],)).needs_vnni is False
    if instructions.saturates():
        pytest.skip("this processor has no VNNI to make it with")
    assert lower(eight, compiler, tmp_path / "eight", (X[:1],)).needs_vnni is True
    pretend("avx2 fma")
    found = {check.what: check for check in verify(tmp_path / "eight").checks}
    if compiler.name == "onnxruntime":
        assert found["processor"].status == "differs" and "other instructions" in found["processor"].detail
        torch.testing.assert_close(torch.as_tensor(load(tmp_path / "eight")(X[:1])), eight(X[:1]), rtol=1e-3, atol=1e-3)
    else:
        assert found["processor"].status == "failed" and "need VNNI" in found["processor"].detail
        with pytest.raises(EngineError, match="would saturate and be wrong"):
            load(tmp_path / "eight")
    assert verify(tmp_path / "seven").sound
