"""Depth: which blocks leave, and that the model without them is the one that skips them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.posttraining.pruning import shapes
from tests.posttraining.pruning.test_structures import context, mean_loss
from torch import Tensor, nn

from thrifty import Prune
from thrifty.errors import NoEffect, ThriftyError
from thrifty.posttraining.elements import parameters
from thrifty.posttraining.pruning.depth import blocks, choose, influences, skipped
from thrifty.workloads.embedded.python_lm import LanguageModel


class Layer(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.up, self.down, self.size = nn.Linear(8, 32), nn.Linear(32, 8), size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self, sizes: tuple[float, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList(Layer(size) for size in sizes), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "count"), [("llama", 2), ("bert", 2), ("gpt2", 2), ("deit", 2), ("vit", 2), ("convnext", 3),
                                             ("resnet50", 1), ("mobilenetv3", 2), ("unet", 0)])
def test_blocks_are_found_where_they_are(name: str, count: int) -> None:
    if name in ("llama", "bert", "gpt2", "vit"):
        pytest.importorskip("transformers")
    assert len(blocks(shapes.make(name), shapes.example(name))) == count


def test_influence_is_one_minus_the_cosine() -> None:
    model, x = Stack((0.1, 2.0)).eval(), torch.randn(5, 7, 8)
    found = influences(model, blocks(model, (x,)), [(x,)], [])
    with torch.no_grad():
        middle = model.layers[0](x)
        cosines = [(a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
                   for a, b in ((x, middle), (middle, model.layers[1](middle)))]
    for value, cosine in zip(found.values(), cosines, strict=True):
        assert value == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_the_blocks_that_do_least_leave_and_the_rest_is_what_skips_them() -> None:
    model, x = Stack((1.0, 0.01, 2.0, 0.02)).eval(), torch.randn(6, 8)
    method = Prune(ratio=0.5, structure="blocks")
    plan = method.plan(model, context((x,)))
    assert plan.values["blocks"] == {"layers": [0, 2]} and set(plan.values["measures"]) == {"layers.1", "layers.3"}
    smaller = method.build(copy.deepcopy(model), plan)
    with torch.no_grad(), skipped(model, ["layers.1", "layers.3"]):
        torch.testing.assert_close(smaller(x), model(x), rtol=1e-6, atol=1e-6)
    assert parameters(smaller) < 0.6 * parameters(model)


def test_a_block_that_one_measure_takes_for_idle_is_kept_by_the_others() -> None:
    model, x = Stack((0.3, 0.3, 0.3)).eval(), torch.randn(64, 8)
    with torch.no_grad():  # the second block moves hardly anything, but what it moves is all that the head reads
        model.layers[1].down.weight[1:], model.layers[1].down.bias[1:] = 0, 0
        model.layers[1].down.weight[0] *= 3
        model.head.weight[:, 1:] = 0
        model.head.weight[:, 0] = torch.tensor([5.0, -5.0, 2.0])
    batch = ((x,), model(x).argmax(-1))
    told: Any = context((x,), labelled=lambda: iter([batch]), loss=mean_loss)
    gone, found, measures = choose(model, told, 0.3)
    alone = influences(model, found, [(x,)], [])
    assert min(alone, key=lambda name: alone[name]) == "layers.1"
    assert [block.name for block in gone] != ["layers.1"]
    assert all(len(row) == 3 for row in measures.values())


def test_python_lm_loses_blocks_and_numbers_follow() -> None:
    model = LanguageModel(vocabulary=50, width=32, layers=4, heads=2, hidden=128, context=16)
    smaller = Prune(ratio=0.4, structure="blocks")(model, [torch.arange(16)[None]])
    assert len(smaller.blocks) == 2 and [name for name, _ in smaller.blocks.named_children()] == ["0", "1"]


def test_llama_keeps_its_cache_and_its_configuration() -> None:
    pytest.importorskip("transformers")
    model = shapes.make("llama")
    smaller: Any = Prune(ratio=0.4, structure="blocks")(model, [shapes.example("llama")[0]])
    inner = smaller.model
    assert inner.config.num_hidden_layers == 1 and inner.model.layers[0].self_attn.layer_idx == 0
    assert model.model.config.num_hidden_layers == 2  # type: ignore[union-attr]
    again = type(inner)(inner.config).eval()
    again.load_state_dict(inner.state_dict())
    ids = shapes.example("llama")[0]
    torch.testing.assert_close(again(ids).logits, inner(ids).logits)
    assert again.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 15)


def test_code_that_counts_on_its_blocks_says_so() -> None:
    class Named(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers[3](self.layers[2](self.layers[1](self.layers[0](x)))))  # type: ignore[no-any-return]

    with pytest.raises(ThriftyError, match="depends on all of its blocks"):
        Prune(ratio=0.3, structure="blocks")(Named((1.0, 0.1, 1.0, 0.1)), [torch.randn(3, 8)])
    with pytest.raises(NoEffect, match="the smallest block holds"):
        Prune(ratio=0.01, structure="blocks")(Stack((1.0, 1.0)), [torch.randn(3, 8)])
    with pytest.raises(NoEffect, match="no ModuleList"):
        Prune(ratio=0.5, structure="blocks")(nn.Sequential(nn.Linear(4, 4)), [torch.randn(3, 4)])
