from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from thrifty import testing
from thrifty.numerics import graph as graphs
from thrifty.numerics.equalize import rescale
from thrifty.posttraining.quantization import refine
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    monkeypatch.setattr(refine, "STEPS", 150)


def context(x: torch.Tensor, notes: list[str]) -> Context:
    return dataclasses.replace(Context.of(x.split(32)), progress=notes.append)


def error(method: Quantize, net: nn.Module, x: torch.Tensor, fresh: torch.Tensor, notes: list[str]) -> float:
    with torch.no_grad():
        rounded = method.build(copy.deepcopy(net), method.plan(net, context(x, notes)))
        return float((rounded(fresh) - net(fresh)).square().sum() / net(fresh).square().sum())


def test_each_step_brings_a_trained_net_closer_on_fresh_inputs(monkeypatch):
    monkeypatch.setattr(refine, "STEPS", 300)  # after 150 its error depends on how this processor trained the net
    net = testing.trained().eval()
    x, fresh = testing.stripes(256, 0).tensors[0], testing.stripes(256, 9).tensors[0]
    notes: list[str] = []
    plain = error(Quantize("w4a8", equalize=False, correct=False), net, x, fresh, notes)
    corrected = error(Quantize("w4a8"), net, x, fresh, notes)
    learned = error(Quantize("w4a8", algorithm="adaround"), net, x, fresh, notes)
    assert corrected < 0.6 * plain and learned < 0.5 * corrected
    assert any(note.startswith("adaround: error of the outputs") for note in notes)


def depthwise() -> nn.Module:
    """A chain of depthwise and pointwise layers whose channels differ by orders of magnitude, the function undisturbed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
                        nn.Conv2d(16, 8, 1))
    with torch.no_grad():
        for i, j in ((0, 2), (2, 4)):
            scale = torch.exp(1.5 * torch.randn(16, generator=torch.Generator().manual_seed(i)))
            rescale(net[i], net[j], scale)
    return net.eval()


def test_equalisation_is_kept_where_channels_are_uneven_and_left_out_where_it_does_not_help(vnni):
    net, notes = depthwise(), []
    x, fresh = torch.randn(96, 3, 8, 8), torch.randn(96, 3, 8, 8)
    plain = error(Quantize(equalize=False, correct=False), net, x, fresh, notes)
    even = error(Quantize(correct=False), net, x, fresh, notes)
    assert even < 0.3 * plain
    assert not any("left out" in note for note in notes)
    notes.clear()
    error(Quantize(correct=False), testing.trained().eval(), testing.stripes(128, 0).tensors[0], fresh[:1, :1], notes)
    assert any(note.startswith("equalization") and note.endswith("left out") for note in notes)


def test_a_plan_builds_the_same_again_from_its_json():
    net, x = depthwise(), torch.randn(64, 3, 8, 8)
    method = Quantize("w4a8", algorithm="adaround")
    with torch.no_grad():
        plan = method.plan(net, context(x, []))
        assert plan.values["equalized"] == [["0", "2"], ["2", "4"]]
        first = method.build(copy.deepcopy(net), plan)
        again = method.build(copy.deepcopy(net), Plan(json.loads(json.dumps(dict(plan.values))), plan.tensors))
        assert torch.equal(first(x), again(x))
        torch.testing.assert_close(graphs.trace(net)(x), net(x))  # and the model that was given is as it was
