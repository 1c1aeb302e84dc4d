"""Experts: those that the router sends the least to leave, and the rest is what a router that is closed to them gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.posttraining.pruning import shapes
from tests.posttraining.pruning.test_structures import context
from torch import nn

from thrifty import Backbone, Prune, Sizes
from thrifty.errors import NoEffect
from thrifty.posttraining.elements import parameters
from thrifty.posttraining.pruning.experts import Closed, mixtures, shares


def mixtral() -> nn.Module:
    pytest.importorskip("transformers")
    return shapes.make("mixtral")


def test_mixtures_are_found_with_their_routers() -> None:
    found = mixtures(mixtral())
    assert [(one.name, one.experts, one.least) for one in found] == [
        (f"model.model.layers.{i}.mlp", 4, 2) for i in range(2)]
    assert all(one.router.endswith("mlp.gate.weight") and len(one.tensors) == 3 for one in found)
    assert mixtures(nn.Sequential(nn.Linear(4, 4))) == []


def test_those_that_get_the_least_leave_and_the_configuration_follows() -> None:
    model, example = mixtral(), shapes.example("mixtral")
    method = Prune(ratio=0.35, structure="experts")
    plan = method.plan(model, context(example))
    smaller: Any = method.build(copy.deepcopy(model), plan)
    found = mixtures(model)
    kept = [sorted(total.topk(len(plan.values["slices"][0][2])).indices.tolist())
            for total in shares(model, found, context(example))]
    assert [stays for _, _, stays in plan.values["slices"][::3]] == kept
    with torch.no_grad():
        torch.testing.assert_close(smaller(*example), Closed(model, found, kept)(*example), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(smaller(*example), model(*example), atol=1e-3)
    assert 1 - parameters(smaller) / parameters(model) == pytest.approx(0.38, abs=0.06)
    again = type(smaller.model)(smaller.model.config).eval()
    again.load_state_dict(smaller.model.state_dict())
    assert smaller.model.config.num_local_experts == len(kept[0]) < 4
    with torch.no_grad():
        torch.testing.assert_close(again(*example).logits, smaller(*example))


def test_layers_of_our_own_lose_experts_and_their_counters() -> None:
    torch.manual_seed(0)
    model = Backbone(50, "attention moe mamba2 moe", Sizes(32, heads=4, hidden=48, experts=6, head=16, state=8)).eval()
    example = (torch.randint(50, (2, 16)),)
    method = Prune(ratio=0.25, structure="experts")
    plan = method.plan(model, context(example))
    smaller: Any = method.build(copy.deepcopy(model), plan)
    kept = {name: stays for name, _, stays in plan.values["slices"] if name.endswith("router.weight")}
    for name, stays in kept.items():
        router = smaller.get_submodule(name.rpartition(".")[0])
        assert router.experts == len(stays) == len(router.bias) == len(router.seen) < 6
    with torch.no_grad():
        closed = Closed(model, mixtures(model), list(kept.values()))
        torch.testing.assert_close(smaller(*example), closed(*example), rtol=1e-5, atol=1e-5)
    smaller.train()(*example)  # its counters fit


def test_shares_are_those_of_the_routers_softmax() -> None:
    model, example = mixtral(), shapes.example("mixtral")
    seen: list[torch.Tensor] = []
    gate = model.get_submodule("model.model.layers.0.mlp.gate")
    gate.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].reshape(-1, 32)))
    found = shares(model, mixtures(model), context(example))
    want = torch.nn.functional.linear(seen[0], gate.weight).softmax(-1).mean(0)  # type: ignore[arg-type]
    torch.testing.assert_close(found[0].float(), want.detach(), rtol=1e-4, atol=1e-6)


def test_where_there_are_none_or_too_few_it_says_so() -> None:
    with pytest.raises(NoEffect, match="no module holds experts"):
        Prune(structure="experts")(nn.Sequential(nn.Linear(4, 4)), [torch.randn(2, 4)])
    with pytest.raises(NoEffect, match="a token is sent to 2"):
        Prune(ratio=0.01, structure="experts").plan(mixtral(), context(shapes.example("mixtral")))
