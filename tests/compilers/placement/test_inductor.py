"""Weights of few bits where Inductor multiplies by them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.compilers.few_bits import ODD, around, in_few_bits, layered, tied, tokens
from tests.compilers.nets import called, error, lowered
from thrifty.compilers.inductor import Inductor
from thrifty.compilers.placement.decomposed import Edge
from thrifty.compilers.placement.inductor import placed
from thrifty.posttraining.quantization.rest import in_bf16
from thrifty.posttraining.quantize import Quantize

pytestmark = pytest.mark.skipif(Inductor.missing() is not None, reason=str(Inductor.missing()))
VARYING = {0: {0: (1, 8), 1: (1, 64)}}
NAMES = list(ODD)


def check(net, name, place, sizes, shapes):
    """Lower for a request of these sizes, and compare on it and, where sizes vary, on others."""
    requests = [tokens(name, *sizes)]
    record, engine, _ = lowered(Inductor(), net, tuple(requests), place, shapes)
    assert record.facts["few_bit_layers"] == 1
    half = record.precision == "bf16"
    for x in requests + ([tokens(name, 1, 1), tokens(name, 5, 63)] if shapes else []):
        assert error(called(engine, x), around(name)(x)) < (0.02 if half else 1e-5)
    return record


@pytest.mark.slow
def test_few_rows_are_one_generated_loop(tmp_path):
    record = check(around(NAMES[0]), NAMES[0], tmp_path, (3, 1), {})
    assert (record.precision, record.facts["float_layers"]) == ("fp32", 1)


@pytest.mark.slow
def test_bfloat16(tmp_path):
    record = check(in_bf16(around(NAMES[1])), NAMES[1], tmp_path, (1, 7), VARYING)
    assert (record.precision, record.facts["float_layers"]) == ("bf16", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("half", [False, True])
def test_odd_sizes(name, half, tmp_path):
    net = in_bf16(around(name)) if half else around(name)
    check(net, name, tmp_path / "one", (1, 1), {})
    check(net, name, tmp_path / "varying", (1, 7), VARYING)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "rows", "most"), [("w4a16", 1, 0.17), ("w4a16", 48, 0.17), ("w8a16", 48, 0.27)])
def test_bytes(scheme, rows, most, tmp_path):
    net, x = layered()
    large = 4 * sum(p.numel() for p in net.parameters())
    integer = in_few_bits(net, scheme, x)
    record, engine, small = lowered(Inductor(), integer, (x[:rows],), tmp_path)
    assert small <= most * large
    assert record.facts["few_bit_layers"] == 3
    assert error(called(engine, x[:rows]), integer(x[:rows])) < 1e-5


@pytest.mark.slow
def test_a_tied_table_is_kept_once(tmp_path):
    net, ids = tied()
    integer = in_few_bits(net, "w4a16", ids, group=32)
    record, engine, _ = lowered(Inductor(), integer, (ids,), tmp_path, {0: {0: (1, 8)}})
    assert record.facts["few_bit_layers"] == 2
    assert error(called(engine, ids[:1]), integer(ids[:1])) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_an_integer_convolution_over_sequences_leaves_as_many_places_as_it_does(channels, tmp_path):
    """A group norm has the length written into its program; torch's own inference of that length is wrong."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(channels, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
                        nn.Conv1d(16, 8, 3, stride=2), nn.GroupNorm(2, 8)).eval().requires_grad_(False)
    x = torch.randn(64, channels, 16)
    integer = Quantize("w8a8")(net, [((x,), None)]).requires_grad_(False)
    record, engine, _ = lowered(Inductor(), integer, (x[:1],), tmp_path, {0: {0: (1, 8)}})
    assert record.precision == "int8" and record.facts["integer_layers"] == 2
    for n in (1, 3, 8):
        assert error(called(engine, x[:n]), integer(x[:n])) < 0.02


@pytest.mark.parametrize(("vnni", "reduced", "one_grid"), [(False, "yes", True), (False, "no", False), (True, "yes", False)])
def test_products_of_tokens_are_what_this_processor_has_a_kernel_for(vnni, reduced, one_grid, monkeypatch):
    """Without VNNI torch._int_mm is a plain loop, and oneDNN's kernel saturates where weights have eight bits."""
    monkeypatch.setattr("thrifty.compilers.placement.inductor.saturates", lambda: not vnni)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(67, 33), nn.GELU(), nn.Linear(33, 9)).eval()
    x = torch.randn(3, 5, 67) * torch.logspace(-3, 3, 5)[:, None]
    integer = Quantize("w8a8", reduce_range=reduced)(net, [((x,), None)]).requires_grad_(False)
    there = placed(integer)
    assert any(isinstance(module, Edge) for module in there.modules()) == one_grid
    assert error(there(x), integer(x)) < 1e-5
