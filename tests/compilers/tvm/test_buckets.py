from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from tests.compilers.nets import conv_net, encoder, error, images, lowered, texts
from thrifty.artifacts import artifact
from thrifty.artifacts.verification import verify
from thrifty.compilers.capture import LoweringError
from thrifty.compilers.tvm import Tvm, library
from thrifty.engines.buckets import Buckets
from thrifty.errors import ThriftyError
from thrifty.recipes.recipe import Recipe
from thrifty.serve.batching import largest

pytestmark = pytest.mark.skipif(Tvm.missing() is not None, reason=str(Tvm.missing()))
TEXTS = {i: {0: (1, 5), 1: (3, 20)} for i in range(2)}


class Causal(nn.Module):
    """Attention to what came before: TVM cannot leave its length open."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


def made(net, example, shapes, place, compiler):
    """An artifact as `thrifty run` leaves it."""
    record, engine, _ = lowered(compiler, net, example, place, shapes)
    outputs = net(*example)
    artifact.write(place, record, {"versions": {}}, [x.numpy() for x in example], [outputs.numpy()])
    return record, engine


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    place, net, (ids, mask) = tmp_path_factory.mktemp("masked"), encoder(), texts()
    record, engine = made(net, (ids[:1], mask[:1]), TEXTS, place, Tvm(buckets=(8,)))
    return place, net, record, engine


def test_batch_and_length_at_odd_sizes(masked):
    place, net, record, engine = masked
    assert isinstance(engine, Buckets) and [x.shape for x in record.inputs] == [(-1, -1)] * 2
    assert record.outputs[0].shape == (-1, -1, 48)
    with contextlib.closing(artifact.load(place, trust_native_code=True)) as loaded:
        for rows, length in ((1, 3), (1, 13), (3, 7), (5, 20), (2, 8)):
            ids = torch.randint(0, 300, (rows, length))
            mask = torch.ones_like(ids)
            mask[0, length - 1:] = 0
            assert error(loaded(ids, mask), net(ids, mask)) < 1e-5


def test_what_is_outside_is_refused_with_the_range(masked):
    place, _, _, _ = masked
    with contextlib.closing(artifact.load(place, trust_native_code=True)) as loaded:
        for shape, says in (((6, 5), "dimension 0 of ids must be 1 to 5 but is 6"),
                            ((1, 21), "dimension 1 of ids must be 3 to 20 but is 21"),
                            ((1, 2), "dimension 1 of ids must be 3 to 20 but is 2")):
            ids = torch.zeros(shape, dtype=torch.int64)
            with pytest.raises(artifact.InputError, match=says):
                loaded(ids, torch.ones_like(ids))


@pytest.mark.slow
def test_weights_are_written_once_for_all_buckets(masked, tmp_path):
    place, net, record, _ = masked
    ids, mask = texts()
    lowered(Tvm(), net, (ids[:1], mask[:1]), tmp_path)
    assert record.files[:-2] == tuple(map(library, range(2)))
    once = (tmp_path / "weights.safetensors").stat().st_size
    assert once <= (place / "weights.safetensors").stat().st_size < 1.5 * once  # a layer's panels may differ by size


def test_it_is_verified_and_batched(masked):
    place, _, _, engine = masked
    assert not [check for check in verify(place, trust_native_code=True).checks if check.what in ("files", "engine", "parity")
                and check.status != "ok"]
    ids, mask = (x[:1].numpy() for x in texts())

    def run(inputs):
        return engine.arrays(engine.run(engine.native(inputs)))

    assert largest(run, [ids, mask], 8, lambda a, b: np.allclose(a[0], b[0], atol=1e-5)) == 4


@pytest.mark.slow
def test_what_tvm_cannot_leave_open_becomes_buckets(tmp_path):
    torch.manual_seed(0)
    net = Causal().eval().requires_grad_(False)
    _, engine = made(net, (torch.randn(1, 3, 8),), {0: {1: (3, 6)}}, tmp_path, Tvm())
    assert isinstance(engine, Buckets) and engine.layout.sizes == ((4,), (6,))
    for length in range(3, 7):
        x = torch.randn(1, length, 8)
        got, = engine.arrays(engine.run(engine.native([x.numpy()])))
        assert error(torch.from_numpy(got), net(x)) < 1e-5


@pytest.mark.slow
def test_what_a_model_fixes_becomes_buckets(tmp_path):
    """torch.export cannot leave open a size that the model's code looks at."""

    class Looks(nn.Module):
        def forward(self, x):
            return torch.cat([row * 2 for row in (x[i:i + 1] for i in range(len(x)))])

    _, engine = made(Looks(), (torch.randn(1, 4),), {0: {0: (1, 3)}}, tmp_path, Tvm())
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(engine.arrays(engine.run(engine.native([x])))[0], x * 2)


@pytest.mark.slow
def test_images_in_batches_of_chosen_sizes(tmp_path):
    net, x = conv_net(), images()
    _, engine = made(net, (x[:1],), {0: {0: (1, 8)}}, tmp_path, Tvm(buckets=(1, 4)))
    for n in (1, 3, 7):
        got, = engine.arrays(engine.run(engine.native([x[:n].numpy()])))
        assert error(torch.from_numpy(got), net(x[:n])) < 1e-5


def test_padding_that_changes_answers_is_refused_before_compiling(tmp_path):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1)

    with pytest.raises(LoweringError, match="applies it"):
        lowered(Tvm(buckets=(4, 8)), Mean(), (torch.randn(1, 3, 2) + 1,), tmp_path, {0: {1: (3, 8)}})
    assert not list(tmp_path.iterdir())


def test_the_recipe_says_the_sizes():
    recipe = Recipe.parse("compile(tvm, buckets=(1, 4))")
    assert recipe.compiler == Tvm(buckets=(1, 4)) and Recipe.parse(str(recipe)) == recipe
    for wrong in ("(0, 4)", "3", "(1.5,)"):
        with pytest.raises(ThriftyError, match="sizes, whole numbers"):
            Recipe.parse(f"compile(tvm, buckets={wrong})")
