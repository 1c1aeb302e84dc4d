from __future__ import annotations

import copy

import torch
from torch import nn

from thrifty import testing
from thrifty.numerics.modules import GroupedLinear, QuantConv
from thrifty.posttraining.quantization.mixed import folded
from thrifty.posttraining.quantization.outputs import Outputs, split
from thrifty.posttraining.quantization.sensitivity import (
    alternatives,
    exchanged,
    from_json,
    held,
    sensitivity,
    to_json,
)
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context


def made() -> tuple[nn.Module, dict[str, dict[str, nn.Module]], torch.Tensor]:
    net, x = testing.trained().eval().requires_grad_(False), testing.stripes(64, 0).tensors[0]
    schemes = {}
    for scheme, settings in (("w8a8", {}), ("w4a16", {"group": 32})):
        method = Quantize(scheme, equalize=False, correct=False, **settings)
        schemes[scheme] = alternatives(method.build(copy.deepcopy(net), method.plan(net, Context.of(x.split(32)))))
    return net, schemes, x


def test_a_layer_at_a_time_equals_a_model_with_that_layer_alone():
    net, schemes, x = made()
    exact = folded(net, Context.of([x]))
    with torch.no_grad():
        table = sensitivity(exact, schemes, (x,))
        assert set(table) == {"stem.0", "inner.0", "inner.3", "head.0", "head.2"}
        assert [option.scheme for option in table["stem.0"]] == ["fp32", "w8a8"]
        assert [option.scheme for option in table["head.0"]] == ["fp32", "w8a8", "w4a16"]
        y = net(x)
        for name in ("inner.3", "head.0"):
            alone = folded(net, Context.of([x]))  # by hand
            parent, _, leaf = name.rpartition(".")
            setattr(alone.get_submodule(parent), leaf, schemes["w8a8"][name])
            want = float((alone(x) - y).square().sum() / (y - y.mean(0)).square().sum())
            torch.testing.assert_close(table[name][1].error, want, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(exact(x), y, rtol=1e-4, atol=1e-4)  # all is back in its place
    assert all(options[0].error == 0 and all(option.error > 0 for option in options[1:]) for options in table.values())
    assert table["head.0"][0].bytes == 4 * (32 * 64 + 64)
    assert table["head.0"][2].bytes == 32 * 64 // 2 + 64 * 5 + 4 * 64 + (4 * 32 if schemes["w4a16"]["head.0"].smooth is not None
                                                                          else 0)
    assert from_json(to_json(table)) == table


def test_alternatives_round_their_own_inputs_and_leave_the_model_as_it_is():
    net, schemes, x = made()
    assert all(module.rounds for module in schemes["w8a8"].values() if isinstance(module, QuantConv))
    assert isinstance(schemes["w4a16"]["head.2"], GroupedLinear)
    exact = folded(net, Context.of([x]))
    with torch.no_grad(), exchanged(exact, schemes["w8a8"]) as model:
        assert 0 < Outputs(net, (x,)).error(model) < 0.01
    assert held(exact) == held(folded(net, Context.of([x])))


def test_calibration_is_split_once():
    seen, unseen = split(Context.of([torch.full((8, 2), float(i)) for i in range(4)]))
    assert len(seen[0]) == 24 and len(unseen[0]) == 8
    assert set(unseen[0].flatten().tolist()).isdisjoint(seen[0].flatten().tolist())
    assert torch.equal(*(part[0] for part in split(Context.of([torch.ones(1, 2)]))))  # one example serves both
