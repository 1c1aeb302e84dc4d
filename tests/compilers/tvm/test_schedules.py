from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.compilers.nets import error

pytest.importorskip("tvm")
from tests.compilers.tvm.helpers import through_tvm


class Call(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *inputs):
        return self.call(*inputs)


@pytest.mark.parametrize("call", [
    lambda x: torch.sort(x, -1).values,
    lambda x: torch.cumsum(x, 1),
    lambda x: x.argmax(-1),
    lambda x: torch.cat([x[:, :3], x.flip(1)], 1),
    lambda x: nn.functional.pad(x, (1, 2), value=3.0),
    lambda x: torch.where(x > 0, x, x.mean()),
    lambda x: x.reshape(2, 3, 5, 7).permute(3, 1, 0, 2).sum(1),
], ids=["sort", "cumsum", "argmax", "cat", "pad", "where", "permute"])
def test_loops_of_other_kinds_stay_right(call):
    torch.manual_seed(0)
    x = torch.randn(2, 15, 7)
    torch.testing.assert_close(through_tvm(Call(call), x)[0], call(x))


@pytest.mark.slow
def test_loops_that_nothing_here_orders():
    """A grouped, a transposed and a one-dimensional convolution run as TVM has them."""
    torch.manual_seed(0)
    for net, shape in ((nn.Conv2d(4, 6, 3, groups=2), (1, 4, 9, 8)), (nn.ConvTranspose2d(4, 3, 3, 2), (1, 4, 5, 6)),
                       (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 11))):
        net, x = net.requires_grad_(False), torch.randn(shape)
        assert error(through_tvm(net, x)[0], net(x)) < 1e-6
