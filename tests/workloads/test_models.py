"""Each call of a workload's model gives another one."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from tests.workloads.test_workload import workload
from thrifty import testing
from thrifty.errors import WorkloadError
from thrifty.recipes.recipe import Recipe
from thrifty.runs.rehearsal import rehearse
from thrifty.target import Machine, Target
from thrifty.workloads.models import apart, check_steady, memory, unsaved

NET = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("make", [lambda: NET, lambda: nn.Sequential(NET, nn.Linear(2, 2)), lambda: nn.Sequential(NET[0])])
def test_one_object_for_every_call_is_copied(make):
    given = apart(workload(model=make))
    before = copy.deepcopy(NET.state_dict())
    one, other = given.model(), given.model()
    assert not memory(one) & memory(other) and not memory(one) & memory(NET)
    with torch.no_grad():
        for p in one.parameters():
            p.zero_()
    assert all(torch.equal(x, NET.state_dict()[name]) for name, x in before.items())
    assert torch.equal(next(other.parameters()), NET[0].weight)  # pretrained weights are kept


def test_fresh_models_are_given_as_they_are():
    made = []

    def make():
        made.append(nn.Linear(2, 2))
        return made[-1]

    given = apart(workload(model=make))
    torch.manual_seed(5)
    one = given.model()
    torch.manual_seed(5)
    assert torch.equal(one.weight, nn.Linear(2, 2).weight)  # looking drew nothing
    assert one is made[1] and given.model() is made[2] and len(made) == 3
    assert apart(given) is given


def test_pruning_twice_prunes_the_same_model():
    shared = testing.SmallNet()
    given = apart(dataclasses.replace(testing.workload, model=lambda: shared))
    sizes = [p.shape for p in shared.parameters()]
    for _ in range(2):
        rehearse(given, Recipe.parse("prune(ratio=0.5)"), Target(), Machine(), lambda event: None)
    assert [p.shape for p in shared.parameters()] == sizes


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.a = nn.Dropout(0.5), nn.Linear(2, 2)

    def train(self, mode=True):
        return self  # never in eval

    def forward(self, x):
        return self.drop(self.a(x))


def test_a_dropout_that_stays_on_is_named():
    with pytest.raises(WorkloadError, match=r"two calls differ; bernoulli_ \(test_models.py, line \d+\) .* dropout left on"):
        check_steady(Dropped(), (torch.ones(8, 2),))
    check_steady(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).train(), (torch.ones(8, 2),))


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.randn(2))
        self.register_buffer("hidden", torch.randn(2), persistent=False)
        self.register_buffer("known", torch.ones(2), persistent=False)
        self.plain, self.number, self.name = {"a": torch.randn(2)}, torch.rand(()).item(), "tables"


def test_what_no_state_dict_holds_is_named():
    assert unsaved(nn.Sequential(Tables()), nn.Sequential(Tables())) == ["0.hidden", "0.plain['a']", "0.number"]
