"""Attention into state-space layers: where it begins, what alignment brings, what stays, and what recovers it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.architectures.attention import Attention
from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import Sizes
from thrifty.architectures.mamba2 import Mamba2
from thrifty.errors import NoEffect, ThriftyError
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan
from thrifty.training.conversion.alignment import align, attentions, converted
from thrifty.training.conversion.ssm import Ssm


def model(layers: int = 4, kv_heads: int = 0) -> Backbone:
    torch.manual_seed(0)
    made = Backbone(50, " ".join(layers * ["attention mlp"]), Sizes(32, heads=4, kv_heads=kv_heads, hidden=48)).eval()
    for weight in made.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.15)
    return made


def texts(rows: int) -> Tensor:
    return torch.randint(50, (rows, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_queries_keys_and_values_become_c_b_and_x(kv_heads: int) -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, kv_heads)
    layer, x = converted(attention), torch.randn(1, 5, 32)
    inner, shared = layer.inner, kv_heads * 8
    _, value, key, query, _ = layer.in_proj(x).split([inner, inner, shared, shared, 4], -1)
    repeat = 4 // kv_heads
    torch.testing.assert_close(value.unflatten(-1, (kv_heads, repeat, 8))[..., 0, :].flatten(2), attention.value(x))
    torch.testing.assert_close(key, attention.key(x))
    wanted = attention.query(x).unflatten(-1, (kv_heads, repeat, 8)).mean(3).flatten(2) * 8**-0.5
    torch.testing.assert_close(query, wanted)
    assert torch.equal(layer.out_proj.weight, attention.out.weight)


def test_alignment_brings_the_layers_near_and_leaves_the_model() -> None:
    given = model(2)
    before = copy.deepcopy(given.state_dict())
    layers = attentions(given)
    made = {name: converted(layer) for name, layer in layers.items()}
    first = align(given, layers, made, lambda: iter([(texts(16),)]), 1, 2e-3)
    last = align(given, layers, made, lambda: iter([(texts(16),)]), 120, 5e-3)
    assert all(last[name] < 0.7 * first[name] for name in layers)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_attention_stays_where_the_two_differ_most() -> None:
    given = model(4)
    method = Ssm(keep_attention=0.25, steps=8)
    plan = method.plan(given, Context.of([(texts(16),)]))
    errors = plan.values["errors"]
    assert plan.values["kept"] == [max(errors, key=errors.get)] and len(plan.values["layers"]) == 3
    after = method.build(copy.deepcopy(given), plan)
    assert [type(b.mixer).__name__ for b in after.blocks].count("Mamba2") == 3
    rows = method.list_layers(after, plan)
    assert [row["now"] for row in rows].count("attention") == 1 and all(row["relative error"] > 0 for row in rows)
    whole = after(texts(2))
    cache = after.cache(2, 24)
    with torch.no_grad():
        parts = torch.cat([after(texts(2)[:, :10], cache), *(after(texts(2)[:, t : t + 1], cache) for t in range(10, 24))], 1)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_distillation_recovers_what_was_lost() -> None:
    torch.manual_seed(0)
    ids = (torch.arange(25)[None] * torch.arange(1, 9)[:, None]) % 50
    data = torch.utils.data.TensorDataset(ids[:, :-1], ids[:, 1:])
    given = thrifty.fit(model(2), [thrifty.AdamW(lr=3e-3)], data, thrifty.CrossEntropy(),
                        settings=thrifty.Train(steps=60), batch_size=8).model
    after = Ssm(keep_attention=0.5, steps=10)(given, [ids[:, :-1]])

    def loss(net: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))

    start = loss(after)
    done = thrifty.fit(after, [thrifty.AdamW(lr=3e-3), thrifty.Distill()], data, thrifty.CrossEntropy(),
                       settings=thrifty.Train(steps=40), batch_size=8, teachers=lambda text: given).model
    assert loss(done) < start and loss(done) < loss(given) + 0.3


def test_what_cannot_be_replaced_is_told() -> None:
    with pytest.raises(NoEffect, match="ssm finds no attention in Sequential"):
        Ssm()(nn.Sequential(nn.Linear(2, 2)), [torch.ones(1, 2)])
    with pytest.raises(NoEffect, match=r"ssm\(keep_attention=0.9\) keeps all 2 layers"):
        Ssm(keep_attention=0.9)(model(2), [texts(2)])
    with pytest.raises(ThriftyError, match="it was made for another"):
        Ssm().build(model(1), Plan({"layers": ["blocks.6.mixer"]}, {}))


def test_python_lms_attention_is_found() -> None:
    from thrifty.workloads.embedded.python_lm import LanguageModel

    net = LanguageModel(vocabulary=50, width=32, layers=2, heads=4, hidden=32)
    after = Ssm(keep_attention=0.5, steps=1)(net, [texts(4)])
    assert sum(isinstance(m, Mamba2) for m in after.modules()) == 1
