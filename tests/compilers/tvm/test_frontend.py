from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from tests.compilers.nets import error

pytest.importorskip("tvm")
from tests.compilers.tvm.helpers import through_tvm


class Call(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *inputs):
        return self.call(*inputs)


def draws(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_attention(options):
    q, k, v = draws((2, 3, 13, 16), (2, 3, 13, 16), (2, 3, 13, 16))
    net = Call(lambda q, k, v: scaled_dot_product_attention(q, k, v, **options))
    assert error(through_tvm(net, q, k, v)[0], net(q, k, v)) < 1e-6


def test_attention_over_fewer_heads_of_keys_and_other_lengths():
    q, k, v = draws((2, 6, 5, 8), (2, 2, 11, 8), (2, 2, 11, 8))
    net = Call(lambda q, k, v: scaled_dot_product_attention(q, k, v, enable_gqa=True))
    assert error(through_tvm(net, q, k, v)[0], net(q, k, v)) < 1e-6


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_where_a_row_sees_nothing(kind):
    """torch's own answer is 0 there; a softmax as it is written would be NaN."""
    q, k, v = draws((2, 3, 4, 8), (2, 3, 21, 8), (2, 3, 21, 8))
    seen = torch.rand(2, 1, 4, 21) > 0.4
    seen[0, 0, 1] = False
    mask = seen if kind == "bool" else torch.where(seen, 0.0, -math.inf)
    net = Call(lambda q, k, v, mask: scaled_dot_product_attention(q, k, v, attn_mask=mask))
    got, = through_tvm(net, q, k, v, mask)
    assert (got[0, :, 1] == 0).all()
    assert error(got, net(q, k, v, mask)) < 1e-6


def test_indices_count_from_the_end():
    """TVM's importer reads before the tensor, where anything may stand."""
    x, = draws((3, 5, 7))
    net = Call(lambda x: (x[:, -1], x[-2], x[..., -7], x.select(1, -5)))
    for got, want in zip(through_tvm(net, x), net(x), strict=True):
        assert torch.equal(got, want)


def test_indices_that_come_as_inputs_wrap_around():
    x, index = torch.randn(6, 4), torch.tensor([0, 5, -1, -6])
    net = Call(lambda x, index: x[index])
    assert torch.equal(through_tvm(net, x, index)[0], net(x, index))
    beyond, = through_tvm(net, x, index, call=(x, torch.tensor([6, 13, -7, 2**31 - 1])))
    assert torch.equal(beyond, x[torch.tensor([0, 1, 5, (2**31 - 1) % 6])])


def test_sums_of_booleans_are_whole_numbers():
    x, = draws((3, 9))
    net = Call(lambda x: torch.cumsum(x > 0, 1))
    got, = through_tvm(net, x)
    assert got.dtype == torch.int64
    assert torch.equal(got, net(x))


def test_clips_keep_channels_last():
    """A clip that layouts could not pass through would turn every image around twice."""
    net = nn.Sequential(nn.Conv2d(4, 16, 3), nn.Hardswish(), nn.Conv2d(16, 8, 3), nn.ReLU6()).requires_grad_(False)
    x, = draws((1, 4, 9, 9))
    assert error(through_tvm(net, 3 * x)[0], net(3 * x)) < 1e-6


def test_what_the_importer_lacks_is_named():
    with pytest.raises(AssertionError, match="Unsupported function types.*airy_ai"):
        through_tvm(Call(torch.special.airy_ai), torch.ones(3))
