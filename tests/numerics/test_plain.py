"""What a layer computes as, why it is kept, and parametrizations that become weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from thrifty.numerics.plain import COMPLEX, HOOKED, OWN_FORWARD, bake, computes_as, why_kept


class Named(nn.Conv2d):
    def extra_repr(self) -> str:
        return "named"


class Inner(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight * 2, bias)


class Property(nn.Linear):
    @property
    def weight(self):
        return 2 * self._parameters["weight"]


def with_hook(register: str) -> nn.Module:
    layer = nn.Linear(2, 2)
    getattr(layer, register)(lambda *given: None)
    return layer


def test_a_subclass_counts_as_its_base_where_it_overrides_nothing():
    assert computes_as(Named(1, 1, 1), nn.Conv2d) and not computes_as(Inner(1, 1, 1), nn.Conv2d)
    replaced = nn.Linear(2, 2)
    replaced.forward = lambda x: x
    assert not computes_as(replaced, nn.Linear) and not computes_as(nn.Conv1d(1, 1, 1), nn.Conv2d)


@pytest.mark.parametrize(("layer", "reason"), [
    (nn.Linear(2, 2), None), (Named(1, 1, 1), None), (nn.LayerNorm(2), None), (Inner(1, 1, 1), OWN_FORWARD),
    (nn.Linear(2, 2, dtype=torch.cfloat), COMPLEX), (nn.Bilinear(2, 2, 2), "no low-precision layer replaces Bilinear"),
    *[(with_hook(name), HOOKED) for name in ("register_forward_hook", "register_forward_pre_hook",
                                             "register_full_backward_hook", "register_full_backward_pre_hook")],
])
def test_why_a_layer_is_kept(layer, reason):
    assert why_kept(layer) == reason


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize("training", [True, False])
def test_parametrizations_are_baked_in_and_copies_keep_theirs(name, training):
    torch.manual_seed(0)
    net = nn.Sequential(getattr(parametrizations, name)(nn.Linear(6, 6)), nn.ReLU()).eval()
    twin, x = copy.deepcopy(net).train(training), torch.randn(3, 6)
    want = net(x)
    assert bake(twin) == ["0"] and type(twin[0]) is nn.Linear and twin.training == training
    torch.testing.assert_close(twin.eval()(x), want)
    assert isinstance(twin[0].weight, nn.Parameter) and twin[0].weight.requires_grad
    assert parametrize.is_parametrized(net[0]) and bake(copy.deepcopy(net)) == ["0"]
    torch.testing.assert_close(net(x), want)
