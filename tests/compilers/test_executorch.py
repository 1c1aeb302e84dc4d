from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from tests.compilers.nets import called, check_outputs_stay, conv_net, encoder, error, images, lowered, texts
from thrifty.artifacts import artifact
from thrifty.artifacts.verification import verify
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.executorch import PROGRAM, ExecuTorch
from thrifty.engines import EngineError, open_engine
from thrifty.engines.buckets import FILE, Buckets
from thrifty.errors import RecipeError
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe

pytestmark = pytest.mark.skipif(ExecuTorch.missing() is not None, reason=str(ExecuTorch.missing()))


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    place, net = tmp_path_factory.mktemp("conv"), conv_net()
    return net, images(), place, lowered(ExecuTorch(buckets=(4,)), net, (images()[:1],), place, {0: {0: (1, 16)}})


def test_parity_at_every_batch(conv):
    net, x, _, (record, engine, _) = conv
    assert (record.precision, record.portable, record.native) == ("fp32", True, False)
    assert record.files == (PROGRAM, FILE) and record.inputs[0].shape == (-1, 1, 29, 23)
    assert isinstance(engine, Buckets) and engine.layout.sizes == ((4,), (16,))
    for n in (1, 3, 4, 13, 16):
        assert error(called(engine, x[:n]), net(x[:n])) < 1e-5


def test_outputs_outlive_the_next_call(conv):
    _, x, _, (_, engine, _) = conv
    check_outputs_stay(engine, x)


def test_products_are_xnnpacks(conv):
    _, _, place, _ = conv
    held = (place / PROGRAM).read_bytes()
    assert held.count(b"XnnpackBackend") >= 1 and b"aten::convolution" not in held and b"aten::addmm" not in held


@pytest.mark.slow
def test_weights_are_held_once_for_all_buckets(tmp_path):
    net = nn.Linear(256, 256).eval().requires_grad_(False)
    _, _, size = lowered(ExecuTorch(), net, (torch.randn(1, 256),), tmp_path, {0: {0: (1, 64)}})
    assert 256 * 256 * 4 < size < 1.5 * 256 * 256 * 4


def test_masked_texts_of_any_batch_and_length(tmp_path):
    net, (ids, mask) = encoder(), texts()
    shapes = {i: {0: (1, 5), 1: (3, 20)} for i in range(2)}
    record, _, _ = lowered(ExecuTorch(buckets=(8,)), net, (ids[:1], mask[:1]), tmp_path, shapes)
    artifact.write(tmp_path, record, {"versions": {}}, [ids[:1].numpy(), mask[:1].numpy()], [net(ids[:1], mask[:1]).numpy()])
    assert {check.what: check.status for check in verify(tmp_path).checks}["parity"] == "ok"
    with contextlib.closing(artifact.load(tmp_path)) as loaded:
        for rows, length in ((1, 3), (2, 13), (5, 20), (3, 7)):
            ids = torch.randint(0, 300, (rows, length))
            mask = torch.ones_like(ids)
            mask[0, length - 1:] = 0
            assert error(loaded(ids, mask), net(ids, mask)) < 1e-5
        with pytest.raises(artifact.InputError, match="dimension 1 of ids must be 3 to 20 but is 21"):
            loaded(torch.zeros(1, 21, dtype=torch.int64), torch.ones(1, 21, dtype=torch.int64))


def test_fixed_sizes_and_several_outputs(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return {"double": x * 2, "best": x.argmax(-1), "above": x > 0}

    x = torch.randn(3, 5)
    record, engine, _ = lowered(ExecuTorch(), Net(), (x,), tmp_path)
    assert record.files == (PROGRAM,) and [y.name for y in record.outputs] == ["double", "best", "above"]
    double, best, above = engine.arrays(engine.run(engine.native([x.numpy()])))
    np.testing.assert_array_equal(double, x.numpy() * 2)
    assert best.dtype == np.int64 and above.dtype == np.bool_
    np.testing.assert_array_equal(best, x.argmax(-1).numpy())


def test_a_damaged_program_is_told(conv, tmp_path):
    _, _, place, _ = conv
    (tmp_path / PROGRAM).write_bytes((place / PROGRAM).read_bytes()[:500])
    with pytest.raises(EngineError, match="executorch cannot open"):
        open_engine(tmp_path, {"engine": "executorch", "files": {PROGRAM: None}})
    with pytest.raises(EngineError, match="supports CPUs only"):
        open_engine(place, {"engine": "executorch", "files": {PROGRAM: None}}, device="cuda")


def test_an_operator_that_it_lacks_is_named(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    with pytest.raises(LoweringError, match="ExecuTorch cannot express this model: .*try compile"):
        lowered(ExecuTorch(), Net(), (torch.randn(4, 4),), tmp_path)


def test_integers_are_refused_by_the_recipe():
    with pytest.raises(RecipeError, match="executorch"):
        carry(Recipe.parse("quantize(w8a8) | compile(executorch)"), frozenset({"module", "float-weights", "trained"}))
