from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.compilers.nets import conv_net, encoder, error, images, texts

pytest.importorskip("tvm")
from tvm import tirx

from tests.compilers.tvm.helpers import through_tvm
from thrifty.compilers.capture import capture
from thrifty.compilers.tvm.frontend import translated
from thrifty.compilers.tvm.lowering import host, optimized


def kernels(net, *inputs):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = optimized(translated(capture(net.eval(), inputs, {})), *host())
    return {name.name_hint: function for name, function in module.functions_items() if isinstance(function, tirx.PrimFunc)}


def test_what_follows_a_product_is_part_of_its_kernel():
    net = nn.Sequential(nn.Linear(20, 32), nn.GELU(), nn.Linear(32, 16), nn.ReLU())
    assert sorted(kernels(net, torch.randn(4, 20))) == ["fused_dense1_add1_relu", "fused_dense_add_gelu"]


def test_a_batch_norm_leaves_no_trace_and_images_turn_once():
    found = kernels(conv_net(), images()[:1])
    assert not [name for name in found if "sqrt" in name or "divide" in name or "multiply" in name]
    assert len([name for name in found if "transpose" in name]) <= 1


def test_the_sums_of_a_tile_are_registers():
    """Unrolled over rows, in vectors over columns, in a buffer of a tile's size."""
    function = kernels(nn.Linear(64, 64), torch.randn(48, 64))["fused_dense_add"]
    text = function.script()
    assert 'scope="local"' in text
    assert "T.unroll" in text and "T.vectorized" in text


def test_a_recurrent_net():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(9, 20, batch_first=True), nn.Linear(20, 3)

        def forward(self, x):
            return self.head(self.gru(x)[0][:, -1])

    torch.manual_seed(0)
    net, x = Net().eval().requires_grad_(False), torch.randn(3, 6, 9)
    assert error(through_tvm(net, x)[0], net(x)) < 1e-6


@pytest.mark.parametrize("n", [1, 3, 7])
def test_sizes_that_vary(n):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 5), nn.Softmax(-1)).requires_grad_(False)
    x = torch.randn(n, 20)
    got, = through_tvm(net, torch.randn(2, 20), shapes={0: {0: (1, 8)}}, call=(x,))
    assert error(got, net(x)) < 1e-6


def test_attention_at_batches_that_vary():
    (ids, mask), net, both = texts(), encoder(), {0: {0: (1, 16)}, 1: {0: (1, 16)}}
    got, = through_tvm(net, ids[:1], mask[:1], shapes=both, call=(ids, mask))
    assert error(got, net(ids, mask)) < 1e-5
