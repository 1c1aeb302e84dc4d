"""Whose weights other code reads, and which layers a forward reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thrifty.numerics.surroundings import FUSED, READ, kept, look, slow


class Reading(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(4, 4), nn.Linear(4, 4)
        self.also = self.a.weight if how == "another name" else None

    def forward(self, x):
        h = self.b(self.a(x))
        return {"function": lambda: F.linear(h, self.a.weight), "method": lambda: h @ self.a.weight.t(),
                "another name": lambda: h @ self.also, "type": lambda: h.to(self.a.weight.dtype),
                "bias": lambda: h + self.a.bias, "parameters": lambda: h.to(next(self.parameters()).device)}[self.how]()


@pytest.mark.parametrize(("how", "read"), [("function", True), ("method", True), ("another name", True), ("type", True),
                                           ("bias", False), ("parameters", False)])
def test_code_that_reads_a_weight_by_itself_is_noticed(how, read):
    model = Reading(how).eval()
    found = {name: reason for name, reason in kept(model, (torch.zeros(2, 4),)).items() if name}
    assert found == ({"a": READ} if read else {})
    assert type(model.a) is nn.Linear and not model.a._forward_hooks  # it was looked at on a copy


def test_attention_reads_its_output_projection():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = kept(model, (torch.zeros(1, 3, 8),))
    assert found["self_attn.out_proj"] == FUSED and not found.keys() & {"linear1", "linear2"}


def test_layers_are_looked_for_batch_after_batch():
    class Sometimes(Reading):
        def forward(self, x):
            return self.b(x) if float(x.sum()) > 0 else self.a(x)

    model, zeros, ones = Sometimes("bias").eval(), torch.zeros(1, 4), torch.ones(1, 4)
    assert look(model, [(zeros,)], {"a", "b"}).reached == {"a"}
    assert look(model, [(zeros,), (ones,)], {"a", "b"}).reached == {"a", "b"}


def test_a_fused_stack_that_zeroes_padding_keeps_its_layers():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        def forward(self, x, mask):
            return self.stack(x, src_key_padding_mask=mask)

    mask = torch.tensor([[False, False, True]])
    found = kept(Padded().eval(), (torch.zeros(1, 3, 8), mask))
    assert {f"stack.layers.{i}.linear{k}" for i in (0, 1) for k in (1, 2)} <= found.keys()


def test_a_layer_whose_linears_are_exchanged_leaves_the_fused_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    slow(layer)
    assert layer.activation_relu_or_gelu == 1
    layer.linear1 = nn.Sequential(layer.linear1)
    slow(layer)
    with torch.no_grad():
        assert layer.activation_relu_or_gelu == 0 and layer(torch.zeros(1, 3, 8)).shape == (1, 3, 8)
