"""Mixtures out of dense models: equal at the start, trained after, and what is left dense is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thrifty import AdamW, CrossEntropy, Train, fit
from thrifty.architectures.moe import ExpertDown, ExpertUp
from thrifty.errors import NoEffect, ThriftyError
from thrifty.recipes.context import Context
from thrifty.training.conversion.moe import Moe
from thrifty.training.conversion.networks import Network, networks
from thrifty.workloads.embedded.python_lm import LanguageModel


class Gated(nn.Module):
    """A gated feed-forward network inside a residual sum, its gate called second, and a layer that counts on its width."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 8)
        self.wide, self.narrow = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        up = self.up(x)
        x = x + self.down(F.silu(self.gate(x)) * up)
        return x + self.narrow(F.layer_norm(self.wide(x), (12,)))


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(50, 16, 2, 2, 32, 12).eval()


def ids(rows=3):
    return torch.randint(50, (rows, 12), generator=torch.Generator().manual_seed(1))


def test_networks_are_found_whatever_module_holds_them():
    assert networks(language_model(), (ids(),)) == [Network((f"blocks.{i}.up",), f"blocks.{i}.down") for i in (0, 1)]
    assert networks(Gated().eval(), (torch.randn(2, 8),)) == [Network(("up", "gate"), "down")]


def test_a_layer_is_of_one_network_alone():
    row = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    assert networks(row, (torch.zeros(1, 4),)) == [Network(("0",), "2")]
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    tied[2].weight = tied[0].weight
    assert networks(tied, (torch.zeros(1, 8),)) == []


@pytest.mark.parametrize("given", [
    {"experts": 4, "top_k": 2}, {"experts": 2, "top_k": 1}, {"experts": 4, "top_k": 4, "experts_from": "parts"},
], ids=str)
@pytest.mark.parametrize("make", [language_model, lambda: Gated().eval()], ids=["lm", "gated"])
def test_the_outputs_are_the_dense_ones_at_the_start(make, given):
    model = make()
    x = ids() if isinstance(model, LanguageModel) else torch.randn(5, 8)
    with torch.no_grad():
        want = model(x)
        mixture = Moe(**given)(model, [x])
        torch.testing.assert_close(mixture(x), want, rtol=1e-5, atol=1e-5)
        exported = torch.export.export(mixture, (x,), strict=False).module()
        torch.testing.assert_close(exported(x), want, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(m, ExpertDown) for m in mixture.modules()) >= 1
    assert not any(isinstance(m, ExpertUp) for m in model.modules())


def test_parts_take_their_share_of_the_arithmetic():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(model):
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(64, 16))
        return counter.get_total_flops()

    dense = nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 16)).eval()
    mixture = Moe(experts=8, top_k=2, experts_from="parts")(dense, [torch.randn(4, 16)])
    router = 2 * 64 * 16 * 8
    assert flops(mixture) == flops(dense) / 4 + router
    assert sum(p.numel() for p in mixture[0].parameters()) == 16 * 256 + 256 + 16 * 8


def test_dropped_units_set_experts_apart():
    model = language_model()
    same, apart = (Moe(experts=4, drop=drop)(model, [ids()]).get_submodule("blocks.0.up").weight for drop in (0.0, 0.5))
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], model.blocks[0].up.weight)
    assert ((apart == same).all(2).sum(1) == 16).all()  # half of 32 units of each
    assert not torch.equal(apart[0], apart[1])


def test_a_mixture_is_built_again_from_its_plan_and_trains():
    model, x = language_model(), ids(64)
    method = Moe(experts=4, top_k=2, drop=0.25)
    plan = method.plan(copy.deepcopy(model), Context.of([x[:2]]))
    one, two = (method.build(copy.deepcopy(model), plan) for _ in range(2))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    data = torch.utils.data.TensorDataset(x, x.roll(-1, 1))
    done = fit(one, [AdamW(lr=1e-2)], data, CrossEntropy(), settings=Train(steps=60), batch_size=16)
    assert done.history[-1][1] < 0.8 * done.history[0][1]
    rows = method.list_layers(done.model, plan)
    assert [row["layer"] for row in rows] == ["blocks.0.down", "blocks.1.down"]
    assert all(row["dead"] == 0 and 0 < row["idlest"] <= 0.25 <= row["busiest"] for row in rows)
    with torch.no_grad():
        assert torch.allclose(done.model(x[:1]), done.model(x[:2])[:1], atol=1e-5)  # others' tokens change nothing


def test_what_stays_dense_is_named():
    told = []
    context = Context((torch.randn(2, 8),), lambda: iter([(torch.randn(2, 8),)]), progress=told.append)
    with pytest.raises(NoEffect, match="do not divide into 7"):
        Moe(experts=7, experts_from="parts").plan(Gated(), context)
    assert "down" in told[0]
    with pytest.raises(NoEffect, match="no feed-forward network"):
        Moe()(nn.Sequential(nn.Linear(4, 4)), [torch.randn(2, 4)])
    plan = Moe(experts=3, experts_from="parts", top_k=1).plan(Gated(), context)
    assert plan.values["networks"] == [[["up", "gate"], "down"]]


@pytest.mark.parametrize(("given", "says"), [
    ({"experts": 2, "top_k": 3}, "at most all 2"), ({"experts": 1}, "experts must be"), ({"top_k": 0}, "top_k must be"),
    ({"experts_from": "parts", "drop": 0.5}, "omit drop"),
], ids=str)
def test_bad_hyperparameters_are_refused(given, says):
    with pytest.raises(ThriftyError, match=says):
        Moe(**given)
