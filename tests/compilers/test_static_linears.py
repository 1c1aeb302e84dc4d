"""Linear layers on one grid for all tokens, in every engine that has a place of its own for them."""

from __future__ import annotations

import pytest

from tests.compilers.nets import called, encoder, error, lowered, texts
from thrifty.numerics.modules import QuantLinear
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.registry import method_class

BOTH = {0: {0: (1, 16)}, 1: {0: (1, 16)}}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "inductor"])
def test_integer_kernels_run_and_agree_with_the_simulation(backend, tmp_path):
    compiler = method_class(backend)()
    if missing := compiler.missing():
        pytest.skip(missing)
    (ids, mask), net = texts(), encoder()
    integer = Quantize("w8a8", activations="static")(net, [((ids, mask), None)]).requires_grad_(False)
    assert all(m.x_scale is not None for m in integer.modules() if isinstance(m, QuantLinear))
    record, engine, _ = lowered(compiler, integer, (ids[:1], mask[:1]), tmp_path, BOTH)
    assert record.precision == "int8" and record.facts["integer_layers"] == 6
    for n in (1, 3, 6):
        assert error(called(engine, ids[:n], mask[:n]), integer(ids[:n], mask[:n])) < 0.02
    assert error(integer(ids, mask), net(ids, mask)) < 0.1
