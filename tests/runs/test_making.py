"""The model that every phase starts from: lazy layers have their sizes, what cannot be copied is refused."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import pytest
import torch
from torch import nn

from thrifty import testing
from thrifty.errors import ThriftyError, WorkloadError
from thrifty.posttraining.quantize import Quantize
from thrifty.runs.making import lazy
from thrifty.runs.phase import fresh


class Late(nn.Module):
    """Lazy everywhere; ``extra`` is reached in training alone, where it is asked for."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(4)
        self.extra = nn.LazyLinear(4) if extra else None

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(h) + self.extra(h) if self.training and self.extra is not None else self.head(h)


def workload(model):
    return dataclasses.replace(testing.workload, model=model)


def test_lazy_layers_are_initialised_from_the_example_the_same_for_the_same_seed():
    first, second, other = (fresh(workload(Late), seed) for seed in (0, 0, 1))
    assert not lazy(first) and type(first.head) is nn.Linear and first.training
    assert testing.fingerprint(first) == testing.fingerprint(second) != testing.fingerprint(other)
    assert int(first.norm.num_batches_tracked) == 0  # no statistics are taken of the example


def test_a_lazy_layer_that_the_example_does_not_reach_is_refused():
    with pytest.raises(WorkloadError, match=r"'extra\.\w+' is lazy, and the example does not reach"):
        fresh(workload(lambda: Late(extra=True)), 0)


@pytest.mark.parametrize("old", ["weight_norm", "spectral_norm"])
def test_norms_of_weights_as_hooks_are_refused_with_the_new_form_named(old):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(4, 4), getattr(nn.utils, old)(nn.Linear(4, 4)))
    net(torch.zeros(2, 4))
    for refused in (lambda: fresh(workload(lambda: net), 0), lambda: Quantize()(net, [torch.randn(4, 4)])):
        with pytest.raises(ThriftyError, match=rf"layer '1' uses {old} .* torch\.nn\.utils\.parametrizations\.{old}"):
            refused()
    new = nn.Sequential(getattr(nn.utils.parametrizations, old)(nn.Linear(4, 4)))
    assert isinstance(copy.deepcopy(fresh(workload(lambda: new), 0)), nn.Sequential)
