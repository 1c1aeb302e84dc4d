from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.compilers.nets import called, check_outputs_stay, conv_net, error, images, lowered
from thrifty.artifacts import artifact
from thrifty.compilers import tvm as module
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.requirements import NoCompiler
from thrifty.compilers.tvm import Tvm
from thrifty.engines import EngineError, open_engine
from thrifty.errors import RecipeError
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe

pytestmark = pytest.mark.skipif(Tvm.missing() is not None, reason=str(Tvm.missing()))
BATCH = {0: {0: (1, 16)}}


def child(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": ":".join(x for x in sys.path if x)})


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    place, net = tmp_path_factory.mktemp("conv"), conv_net()
    return net, images(), place, lowered(Tvm(), net, (images()[:1],), place, BATCH)


def test_parity_at_every_batch(conv):
    net, x, _, (record, engine, _) = conv
    assert (record.precision, record.portable, record.native) == ("fp32", False, True)
    assert record.inputs[0].shape == (-1, 1, 29, 23)
    for n in (1, 5, 16):
        assert error(called(engine, x[:n]), net(x[:n])) < 1e-5


def test_outputs_outlive_the_next_call(conv):
    _, x, _, (_, engine, _) = conv
    check_outputs_stay(engine, x)


def test_inputs_outside_of_the_shapes_are_refused(conv):
    _, _, _, (_, engine, _) = conv
    for x in (torch.zeros(17, 1, 29, 23), torch.zeros(2, 1, 28, 23), torch.zeros(29, 23), torch.zeros(1, 1, 29, 23).double()):
        with pytest.raises(EngineError, match=r"inputs must be float32\[1 to 16, 1, 29, 23\] but are float"):
            called(engine, x)
    with pytest.raises(EngineError, match="but are none"):
        engine.native([])


def test_machine_code_is_only_opened_where_it_is_trusted(conv):
    """Whatever the manifest says of itself."""
    _, _, place, (record, _, _) = conv
    for native in (True, False):
        with pytest.raises(EngineError, match="holds machine code"):
            open_engine(place, {"engine": "tvm", "files": dict.fromkeys(record.files), "native": native})


def test_a_broken_library_and_broken_weights_are_told(conv, tmp_path):
    _, _, place, (record, _, _) = conv
    manifest = {"engine": "tvm", "files": dict.fromkeys(record.files)}
    for broken in record.files:
        for name in record.files:
            content = (place / name).read_bytes()
            (tmp_path / name).write_bytes(content[:100] if name == broken else content)
        with pytest.raises(EngineError, match="TVM cannot open"):
            open_engine(tmp_path, manifest, trust_native_code=True)
    with pytest.raises(EngineError, match="supports CPUs only"):
        open_engine(place, manifest, device="cuda", trust_native_code=True)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    place = tmp_path_factory.mktemp("wide")
    net = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))).eval().requires_grad_(False)
    return place, lowered(Tvm(), net, (torch.randn(512, 512),), place)[0]


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_threads_are_as_many_as_asked_for(threads, wide):
    """By the processor time that the system counts for each thread of a process of its own."""
    place, record = wide
    manifest = {"engine": "tvm", "files": dict.fromkeys(record.files)}
    done = child("import os, numpy, thrifty.engines as e\n"
                 "def ticks():\n"
                 "    stats = {t: open(f'/proc/self/task/{t}/stat').read().rsplit(')', 1)[1].split()\n"
                 "             for t in os.listdir('/proc/self/task')}\n"
                 "    return {t: int(s[11]) for t, s in stats.items()}\n"
                 f"engine = e.open_engine({str(place)!r}, {manifest!r}, threads={threads}, trust_native_code=True)\n"
                 "x = engine.native([numpy.zeros((512, 512), dtype=numpy.float32)])\n"
                 "before = ticks()\n"
                 "for _ in range(60): engine.run(x)\n"
                 "after = ticks()\n"
                 "spent = {t: after[t] - before.get(t, 0) for t in after}\n"
                 "print(spent[str(os.getpid())], sum(spent.values()))")
    main, everything = map(int, done.stdout.split())
    assert everything > 10
    assert (main >= 0.9 * everything) == (threads == 1)


@pytest.mark.slow
def test_tied_weights_are_written_once_and_outputs_keep_their_types(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            y = self.b(torch.relu(self.a(x)))
            return y, y.argmax(-1), y > 0

    net, x = Twice().eval().requires_grad_(False), torch.randn(3, 64)
    _, engine, _ = lowered(Tvm(), net, (x,), tmp_path)
    assert (tmp_path / "weights.safetensors").stat().st_size < 64 * 64 * 4 + 500
    for a, b in zip(engine.arrays(engine.run(engine.native([x.numpy()]))), net(x), strict=True):
        assert torch.from_numpy(a).dtype == b.dtype
        torch.testing.assert_close(torch.from_numpy(a), b)


def test_it_is_for_float32_weights(tmp_path):
    with pytest.raises(RecipeError, match="tvm requires a model without integer-products, which quantize"):
        carry(Recipe.parse("quantize(w8a8) | compile(tvm)"), frozenset({"module", "float-weights", "trained"}))
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(LoweringError, match=rf"float32 but the model holds {dtype}: .*\.float\(\)"):
            lowered(Tvm(), nn.Linear(3, 3).to(dtype), (torch.ones(1, 3, dtype=dtype),), tmp_path)


@pytest.mark.slow
def test_an_operator_that_it_lacks_is_named_with_where_to_go(tmp_path):
    class Special(nn.Module):
        def forward(self, x):
            return torch.special.airy_ai(x)

    with pytest.raises(LoweringError, match=r"TVM cannot express this model.*airy_ai.*compile\(inductor\)"):
        lowered(Tvm(), Special(), (torch.ones(1, 3),), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_of_tvm_is_an_error_and_no_more(tmp_path, monkeypatch):
    """TVM's passes can end in a segmentation fault: here the interpreter that should run them kills itself."""
    interpreter = tmp_path / "interpreter"
    interpreter.write_text("#!/bin/sh\nkill -SEGV $$\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(interpreter))
    (tmp_path / "out").mkdir()
    with pytest.raises(LoweringError, match=rf"ended with {signal.SIGSEGV.name}; try compile\(inductor\)"):
        lowered(Tvm(), nn.Linear(3, 3), (torch.ones(1, 3),), tmp_path / "out")


def test_without_a_linker_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "apt-get install g++" in str(Tvm.missing())
    with pytest.raises(NoCompiler, match="to link"):
        lowered(Tvm(), nn.Linear(3, 3), (torch.ones(1, 3),), tmp_path)


def test_a_loaded_artifact_needs_neither_torch_nor_the_compiler(conv):
    net, x, place, (record, _, _) = conv
    artifact.write(place, record, {}, [x[:1].numpy()], [net(x[:1]).numpy()])
    done = child("import sys\n"
                 "sys.modules['tvm'] = sys.modules['torch'] = None\n"
                 "import numpy, thrifty\n"
                 "sys.modules.pop('tvm'), sys.modules.pop('torch')\n"
                 f"model = thrifty.load({str(place)!r}, trust_native_code=True)\n"
                 "inputs, outputs = thrifty.artifacts.artifact.example(" + repr(str(place)) + ")\n"
                 "print(numpy.abs(model(*inputs) - outputs[0]).max() < 1e-5,\n"
                 "      [x for x in ('torch', 'tvm') if x in sys.modules],\n"
                 "      'tvm_compiler' in open('/proc/self/maps').read())")
    assert done.stdout.strip() == "True [] False", done.stderr
