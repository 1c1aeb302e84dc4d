"""What the method says of itself, refuses and lists."""

from __future__ import annotations

import pytest
import torch
from tests.posttraining.nas.laboratory import Laboratory
from torch import nn

from thrifty import testing
from thrifty.errors import ThriftyError
from thrifty.posttraining.nas.subnets import Subnets
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.recipe import Recipe


@pytest.mark.parametrize(("changes", "says"), [
    ({"width": "1", "depth": False, "kernel": False}, "a search space of one"),
    ({"width": "0.5,2"}, "at most 1"), ({"width": "half"}, "write 0.5,0.75,1"),
    ({"limits": "latency>=60%"}, "the wrong direction"), ({"trials": 1}, "trials")])
def test_hyperparameters_that_make_no_space_are_refused(changes, says):
    with pytest.raises(HyperparameterError, match=says):
        Subnets(**changes)


def test_the_least_latency_wants_a_limit_on_the_drop():
    with pytest.raises(HyperparameterError, match="add drop<=1pt"):
        Laboratory().plan(Subnets(minimize="latency", engine="eager"))


def test_a_drop_wants_a_workload():
    with pytest.raises(ThriftyError, match="run it as a phase of a recipe"):
        Subnets("drop<=1pt", engine="eager")(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 2)), [torch.randn(8, 4)])


def test_its_text_reads_back():
    method = Subnets("latency<=2ms, bytes<=40%", width="0.25,1", kernel=False, sampler="nsga2")
    assert Recipe.parse(str(Recipe.of(method))) == Recipe.of(method)


def test_alone_it_makes_a_smaller_model():
    model = testing.trained()
    small = Subnets("bytes<=60%", engine="eager", trials=4, steps=0)(model, [testing.stripes(32, 4).tensors[0]])
    held = [sum(p.numel() for p in net.parameters()) for net in (model, small)]
    assert held[1] <= 0.6 * held[0]


def test_layers_are_listed_with_what_became_of_them():
    method = Subnets("bytes<=1%", engine="eager", trials=4, steps=0)
    context = Context.of([testing.stripes(16, 4).tensors[0]])
    model = testing.trained()
    with pytest.raises(ThriftyError, match="nearest"):
        method.plan(model, context)
    method = Subnets("bytes<=50%", engine="eager", trials=4, steps=0, depth=False)
    plan = method.plan(model, context)
    rows = {row["layer"]: row["scheme"] for row in method.list_layers(method.build(testing.trained(), plan), plan)}
    assert rows and all("along" in scheme or "kernel" in scheme for scheme in rows.values())


def test_a_plan_of_another_model_is_refused():
    method = Subnets("bytes<=50%", engine="eager", trials=4, steps=0)
    plan = method.plan(testing.trained(), Context.of([testing.stripes(16, 4).tensors[0]]))
    with pytest.raises(ThriftyError, match="made for another model"):
        method.build(nn.Sequential(nn.Linear(2, 2)), plan)
