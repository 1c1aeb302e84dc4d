"""Structured pruning: the plan, the smaller model, its parameters, and what it refuses."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from thrifty import Prune, Quantize, testing
from thrifty.errors import NoEffect, ThriftyError
from thrifty.posttraining.elements import parameters, weight_elements
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan
from thrifty.workloads.embedded.digits import DigitsNet
from thrifty.workloads.embedded.python_lm import LanguageModel


def net(hidden: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 4))


def lm() -> LanguageModel:
    return LanguageModel(vocabulary=50, width=32, layers=2, heads=2, hidden=128, context=16)


@pytest.mark.parametrize(("model", "example", "ratio", "within"), [
    (DigitsNet(), torch.rand(1, 1, 28, 28), 0.2, 0.02),
    (DigitsNet(), torch.rand(1, 1, 28, 28), 0.5, 0.02),
    (DigitsNet(), torch.rand(1, 1, 28, 28), 0.9, 0.02),
    (lm(), torch.arange(16)[None], 0.3, 0.02),
    (net(), torch.rand(1, 8), 0.5, 0.08),
])
def test_the_share_of_parameters_removed_is_near_the_ratio(model: nn.Module, example: Tensor, ratio: float,
                                                          within: float) -> None:
    smaller = Prune(ratio=ratio)(model, [example])
    assert abs(1 - parameters(smaller) / parameters(model) - ratio) <= within
    assert smaller(example).shape == model(example).shape
    for module in smaller.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels % 8 == 0
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)


@settings(max_examples=15)
@given(st.integers(2, 70), st.integers(1, 16), st.floats(0.05, 0.95), st.sampled_from(["l1", "l2"]))
def test_widths_are_multiples_and_the_plan_survives_json(hidden: int, round_to: int, ratio: float, norm: str) -> None:
    model = net(hidden).eval()
    before = copy.deepcopy(model.state_dict())
    method = Prune(ratio=ratio, importance=norm, round_to=round_to)
    try:
        plan = method.plan(model, Context.of([torch.rand(2, 8)]))
    except ThriftyError:  # nothing to remove, or not so much
        return
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = Plan(json.loads(json.dumps(plan.values)))
    first, second = method.build(copy.deepcopy(model), plan), method.build(copy.deepcopy(model), again)
    assert torch.equal(first(torch.ones(1, 8)), second(torch.ones(1, 8)))
    for width in (first[0].out_features, first[2].out_features):
        assert width == hidden or (width % round_to == 0 and width >= round_to)
    blank = method.build(net(hidden), plan)  # the structure is the plan's, whatever the weights
    blank.load_state_dict(first.state_dict())
    assert torch.equal(blank(torch.ones(1, 8)), first(torch.ones(1, 8)))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_least_important_units_leave(norm: str) -> None:
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        model[0].weight[1::2] *= 0.01
        model[2].weight[:, 1::2] *= 0.01
    smaller = Prune(ratio=0.5, importance=norm)(model, [torch.rand(1, 4)])
    assert torch.equal(smaller[0].weight, model[0].weight[::2])
    assert torch.equal(smaller[2].weight, model[2].weight[:, ::2])


def test_it_can_be_repeated_and_trained_after() -> None:
    model = DigitsNet()
    for _ in range(3):
        model = Prune(ratio=0.3)(model, [torch.rand(2, 1, 28, 28)])
    assert parameters(model) == pytest.approx(0.7**3 * parameters(DigitsNet()), rel=0.05)
    model.train()(torch.rand(4, 1, 28, 28)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_code_that_takes_a_width_for_granted_keeps_it() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).view(-1, 64)).relu())  # type: ignore[no-any-return]

    smaller = Prune(ratio=0.3)(Fixed(), [torch.rand(1, 8)])
    assert smaller.a.out_features == 64
    assert smaller.b.out_features < 64


def test_bert_loses_hidden_units() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
                                     vocab_size=64, max_position_embeddings=32)
    model = transformers.BertModel(config)
    smaller = Prune(ratio=0.2)(model, [torch.arange(8)[None]])
    assert {layer.intermediate.dense.out_features for layer in smaller.encoder.layer} != {128}
    assert parameters(smaller) < 0.83 * parameters(model)


@pytest.mark.parametrize(("model", "ratio", "error", "says"), [
    (nn.Linear(8, 4), 0.5, NoEffect, "nothing to remove"),
    (net(8), 0.5, NoEffect, "nothing to remove"),
    (net(64), 0.001, NoEffect, "smallest cut"),
    (net(64), 0.99, ThriftyError, "choose a ratio up to 0.9"),
])
def test_what_cannot_be_pruned_so_says_why(model: nn.Module, ratio: float, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Prune(ratio=ratio)(model, [torch.rand(1, 8)])


def test_a_plan_of_another_model_is_refused() -> None:
    plan = Prune(ratio=0.5).plan(net(), Context.of([torch.rand(1, 8)]))
    with pytest.raises(ThriftyError, match="another model"):
        Prune(ratio=0.5).build(net(16), plan)
    with pytest.raises(ThriftyError, match="another model"):
        Prune(ratio=0.5).build(nn.Linear(8, 4), plan)


def test_what_was_pruned_is_still_counted_once_it_is_quantized() -> None:
    model, data = testing.trained(), [testing.stripes(8, 3).tensors[0]]
    smaller = Prune(ratio=0.5)(model, data)
    integer = Quantize("w8a8")(smaller, data)
    assert weight_elements(integer) == pytest.approx(weight_elements(smaller), rel=0.02)  # scales may be [n, 1]
    (claim,) = Prune(ratio=0.5).claims(model, smaller)
    assert claim.probe is not None and claim.holds(claim.probe(integer))
    assert not claim.holds(claim.probe(Quantize("w8a8")(model, data)))
