from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.artifacts.lowered import TensorSpec
from thrifty.compilers.capture import LoweringError, capture, specs

BATCH_AND_TOKENS = {0: {0: (1, 8), 1: (1, 32)}}


class Viewed(nn.Module):
    """A view of what attention gives, as GPT-2's: decomposed under free dimensions, attention gives other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(12, 12)

    def forward(self, x):
        heads = x.unflatten(-1, (3, 4)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        y = y.transpose(1, 2).reshape(*x.shape).contiguous()
        return self.out(y.view(-1, 12)).view(x.shape)


def test_views_decompose_under_free_dimensions():
    net, x = Viewed().eval(), torch.randn(1, 6, 12)
    program = capture(net, (x,), BATCH_AND_TOKENS).run_decompositions()
    for shape in ((1, 6, 12), (3, 7, 12), (8, 31, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), net(x))


def test_names_and_ranges():
    class Net(nn.Module):
        def forward(self, ids, mask):
            return {"sum": ids + mask, "both": (ids, mask * 2)}

    shapes = {i: {0: (1, 8), 1: (2, 2)} for i in range(2)}
    program = capture(Net(), (torch.ones(1, 2), torch.ones(1, 2)), shapes)
    (ids, mask), outputs = specs(program, 2, shapes)
    assert (ids.name, ids.shape, mask.name) == ("ids", (-1, 2), "mask")
    (dimension, symbol, low, high), = ids.varies
    assert (dimension, low, high) == (0, 1, 8)
    assert mask.varies == ((0, symbol, 1, 8),), "one name: the model adds the two"
    assert [x.name for x in outputs] == ["sum", "both_0", "both_1"]
    assert specs(capture(nn.ReLU(), (torch.ones(2),), {}), 1)[1] == (TensorSpec("output0", "float32", (2,)),)


def test_what_is_no_tensor_is_refused():
    class Net(nn.Module):
        def forward(self, x):
            return {"logits": x + 1, "loss": None}

    with pytest.raises(LoweringError, match="Net gives None as its loss; an engine returns only tensors"):
        capture(Net(), (torch.ones(2),), {})


def test_a_size_that_the_model_looks_at_is_refused():
    """torch.export then keeps a symbol that stands for one number."""

    class Net(nn.Module):
        def forward(self, x):
            return torch.cat([row * 2 for row in x.split(1)])

    with pytest.raises(LoweringError, match="dimension 0 of input 0 is declared to vary, but the model fixes it to 2"):
        capture(Net(), (torch.ones(1, 4),), {0: {0: (1, 3)}})


def test_a_table_whose_rows_are_scaled_when_looked_up_is_captured_with_scaled_rows():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(20, 8, max_norm=1.5), nn.Linear(8, 3)).eval()
    before, ids = net[0].weight, torch.arange(20).reshape(4, 5)
    kept = before.detach().clone()
    program = capture(net, (ids,), {0: {0: (1, 8)}})
    assert not any("renorm" in str(node.target) for node in program.graph.nodes)
    assert net[0].weight is before and net[0].max_norm == 1.5 and torch.equal(before, kept)
    torch.testing.assert_close(program.module()(ids), net(ids))


def test_what_cannot_be_captured_is_told_by_the_error_alone(capfd):
    class Branches(nn.Module):
        def forward(self, x):
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(LoweringError, match="cannot capture Branches") as told:
        capture(Branches(), (torch.ones(2, 2),), {0: {0: (1, 8)}})
    assert "\n" not in str(told.value) and capfd.readouterr() == ("", "")
