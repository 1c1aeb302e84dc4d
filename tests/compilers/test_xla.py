from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.compilers.nets import called, conv_net, encoder, error, images, lowered, texts
from thrifty.artifacts import artifact
from thrifty.compilers.capture import LoweringError
from thrifty.engines import EngineError, open_engine
from thrifty.errors import RecipeError
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe

pytest.importorskip("jax")
from thrifty.compilers.xla import Xla

pytestmark = pytest.mark.skipif(Xla.missing() is not None, reason=str(Xla.missing()))
BATCH = {0: {0: (1, 16)}}
BOTH = {0: {0: (1, 16)}, 1: {0: (1, 16)}}


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    place, net = tmp_path_factory.mktemp("conv"), conv_net()
    return net, images(), place, lowered(Xla(), net, (images()[:1],), place, BATCH)


def test_parity_at_every_batch(conv):
    net, x, _, (record, engine, _) = conv
    assert (record.precision, record.portable, record.native) == ("fp32", True, False)
    assert record.inputs[0].shape == (-1, 1, 29, 23)
    for n in (1, 5, 16):
        assert error(called(engine, x[:n]), net(x[:n])) < 1e-5


def test_inputs_outside_of_the_shapes_are_refused(conv):
    _, _, _, (_, engine, _) = conv
    for x in (torch.zeros(17, 1, 29, 23), torch.zeros(2, 1, 28, 23), torch.zeros(29, 23)):
        with pytest.raises(EngineError, match=r"inputs must be float32\[\w+,1,29,23\]"):
            called(engine, x)


@pytest.mark.slow
def test_attention_and_whole_numbers(tmp_path):
    (ids, mask), net = texts(), encoder()
    record, engine, _ = lowered(Xla(), net, (ids[:1], mask[:1]), tmp_path, BOTH)
    assert [x.dtype for x in record.inputs] == ["int64", "int64"]
    assert error(called(engine, ids, mask), net(ids, mask)) < 1e-5
    with pytest.raises(EngineError, match="integers in int32, which cannot hold"):
        called(engine, ids + 2**32, mask)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_counting_up_to_a_free_dimension(dtype, tmp_path):
    class Positions(nn.Module):
        def forward(self, x):
            return x + torch.arange(x.shape[1], dtype=dtype)

    _, engine, _ = lowered(Xla(), Positions(), (torch.zeros(1, 5),), tmp_path, {0: {0: (1, 8), 1: (1, 64)}})
    for shape in ((1, 5), (3, 7), (8, 63)):
        x = torch.randn(shape)
        assert error(called(engine, x), Positions()(x)) < 1e-6


def test_threads_are_as_many_as_asked_for_in_one_process(conv):
    """An engine that was opened before goes on, on what it had."""
    net, x, place, (record, engine, _) = conv
    manifest = {"engine": "xla", "files": dict.fromkeys(record.files), "outputs": [{"dtype": "float32"}]}
    other = open_engine(place, manifest, threads=2)
    assert os.environ["PJRT_NPROC"] == "2"
    for opened in (engine, other):
        assert error(called(opened, x[:3]), net(x[:3])) < 1e-5
    open_engine(place, manifest, threads=1)
    assert os.environ["PJRT_NPROC"] == "1"


@pytest.mark.slow
def test_one_thread_is_one_thread(conv, tmp_path):
    """By the processor time that the system counts for each thread of a process of its own."""
    net = nn.Sequential(*(nn.Linear(700, 700) for _ in range(4))).eval().requires_grad_(False)
    record, _, _ = lowered(Xla(), net, (torch.randn(700, 700),), tmp_path)
    manifest = {"engine": "xla", "files": dict.fromkeys(record.files), "outputs": [{"dtype": "float32"}]}
    code = ("import os, numpy, thrifty.engines as e\n"
            "def ticks():\n"
            "    stats = {t: open(f'/proc/self/task/{t}/stat').read().rsplit(')', 1)[1].split()\n"
            "             for t in os.listdir('/proc/self/task')}\n"
            "    return {t: int(s[11]) for t, s in stats.items()}\n"
            f"engine = e.open_engine({str(tmp_path)!r}, {manifest!r})\n"
            "x = engine.native([numpy.zeros((700, 700), dtype=numpy.float32)])\n"
            "before = ticks()\n"
            "for _ in range(60): engine.run(x)\n"
            "after = ticks()\n"
            "spent = {t: after[t] - before.get(t, 0) for t in after}\n"
            "print(spent[str(os.getpid())], sum(spent.values()))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": ":".join(x for x in sys.path if x)})
    main, everything = map(int, done.stdout.split())
    assert main > 10
    assert main >= 0.9 * everything


@pytest.mark.slow
def test_tied_weights_are_written_once_and_outputs_keep_their_types(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            scores = self.head(self.table(ids))
            return scores, scores.argmax(-1), scores > 0

    net, ids = Tied().eval().requires_grad_(False), torch.arange(12).reshape(3, 4)
    _, engine, _ = lowered(Xla(), net, (ids,), tmp_path)
    assert (tmp_path / "weights.safetensors").stat().st_size < 50 * 16 * 4 + 500
    got = engine.arrays(engine.run(engine.native([ids.numpy()])))
    for a, b in zip(got, net(ids), strict=True):
        assert torch.from_numpy(a).dtype == b.dtype
        torch.testing.assert_close(torch.from_numpy(a), b)


@pytest.mark.parametrize(("scheme", "has"), [
    ("w8a8", "integer-products"), ("bf16", "bfloat16"), ("w4a16, rest=bf16", "bfloat16"),
])
def test_it_is_for_products_of_float32(scheme, has):
    known = frozenset({"module", "float-weights", "trained"})
    with pytest.raises(RecipeError, match=f"xla requires a model without {has}, which quantize gives it"):
        carry(Recipe.parse(f"quantize({scheme}) | compile(xla)"), known)
    carry(Recipe.parse("quantize(w4a16) | compile(xla)"), known)


@pytest.mark.slow
def test_float64_and_unknown_operators_are_refused(tmp_path):
    with pytest.raises(LoweringError, match=r"float64 model in float32.*\.float\(\)"):
        lowered(Xla(), nn.Linear(3, 3).double(), (torch.ones(1, 3).double(),), tmp_path)

    class Special(nn.Module):
        def forward(self, x):
            return torch.special.airy_ai(x)

    with pytest.raises(LoweringError, match="XLA cannot express this model.*airy_ai"):
        lowered(Xla(), Special(), (torch.ones(1, 3),), tmp_path)


def test_a_loaded_artifact_needs_no_torch(conv):
    net, x, place, (record, _, _) = conv
    artifact.write(place, record, {}, [x[:1].numpy()], [net(x[:1]).numpy()])
    code = ("import sys\n"
            "for name in ('torch', 'torchax'): sys.modules[name] = None\n"
            "import numpy, thrifty\n"
            f"model = thrifty.load({str(place)!r})\n"
            "inputs, outputs = thrifty.artifacts.artifact.example(" + repr(str(place)) + ")\n"
            "print(numpy.abs(model(*inputs) - outputs[0]).max() < 1e-5)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": ":".join(x for x in sys.path if x)})
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.slow
def test_lowering_leaves_torch_compile_as_it_was(tmp_path):
    lowered(Xla(), nn.Linear(4, 4).eval(), (torch.randn(1, 4),), tmp_path / "xla")
    assert "torchax" not in sys.modules
