from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.compilers.nets import conv_net, encoder, images, quantized, texts
from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.divergence import first_divergence
from thrifty.compilers.export import Export
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.registry import method_class


@dataclass(frozen=True)
class Wrong(Compiler):
    """Export, or another compiler, that gets every module of one kind wrong, and one operator between modules."""

    name: ClassVar[str] = "wrong"
    card: ClassVar[Card] = Export.card
    kind: str = "Linear"
    by: str = "export"

    def lower(self, model: nn.Module, example: tuple[torch.Tensor, ...], directory: Path, context: Context) -> Lowered:
        model = copy.deepcopy(model)
        for module in model.modules():
            if type(module).__name__ == self.kind:
                module.register_forward_hook(lambda module, inputs, output: output * 1.5)
        compiler = method_class(self.by)()
        assert isinstance(compiler, Compiler)
        return compiler.lower(model, example, directory, context)

    @classmethod
    def missing(cls):
        return None


def context(*example: torch.Tensor) -> Context:
    return Context(tuple(x[:1] for x in example), lambda: iter(()), shapes={i: {0: (1, 8)} for i in range(len(example))})


@pytest.mark.parametrize("by", ["export", "onnxruntime", "openvino"])
def test_the_first_layer_that_differs_is_named(by):
    if says := method_class(by).missing():
        pytest.skip(says)
    x = images(3)
    says = first_divergence(Wrong(kind="Linear", by=by), conv_net(), (x,), context(x))
    assert says == "the first output that differs is that of head (Linear), by 0.5"
    says = first_divergence(Wrong(kind="MaxPool2d", by=by), conv_net(), (x,), context(x))
    assert says == "the first output that differs is that of stem.3 (MaxPool2d), by 0.5"


@pytest.mark.slow
def test_among_inputs_and_integer_layers():
    ids, mask = texts(3)
    net = quantized(encoder(), ids, mask)
    says = first_divergence(Wrong(kind="LayerNorm"), net, (ids, mask), context(ids, mask))
    assert says == "the first output that differs is that of norm1 (LayerNorm), by 0.5"


def test_a_right_compiler_and_one_that_cannot():
    x = images(2)
    assert "no submodule's output differs" in first_divergence(Export(), conv_net(), (x,), context(x))

    class Broken(Wrong):
        def lower(self, model, example, directory, context):
            raise RuntimeError("out of luck\nand more")

    told = first_divergence(Broken(), conv_net(), (x,), context(x))
    assert "cannot be lowered with all intermediate outputs (out of luck)" in told


def test_a_model_without_submodules():
    class Bare(nn.Module):
        def forward(self, x):
            return x + 1

    x = torch.ones(1, 2)
    assert "no submodule's output differs" in first_divergence(Export(), Bare(), (x,), Context((x,), lambda: iter(())))
