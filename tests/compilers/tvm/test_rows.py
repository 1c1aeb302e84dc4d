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

    def forward(self, x):
        return self.call(x)


WIDTHS = [1, 5, 16, 37, 128, 197]


@pytest.mark.parametrize("width", WIDTHS)
def test_softmax_norm_and_sums_of_any_width(width):
    """Whole vectors, parts of one, and both; large numbers that only centring keeps."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(width)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return (torch.softmax(x, -1), self.norm(x), x.mean(-1), x.sum(-1, keepdim=True), x.amax(-1),
                    x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))

    x = 30 + 5 * torch.randn(3, 4, width)
    with torch.no_grad():
        wanted = Rows().double()(x.double())
        for got, want in zip(through_tvm(Rows().float(), x), wanted, strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [(1,), (0, 2), (2, 3), (-1, -2), (0, 1, 2, 3)], ids=str)
def test_sums_over_other_dimensions(dims):
    x = torch.randn(3, 5, 7, 20)
    assert error(through_tvm(Call(lambda x: x.sum(dims)), x)[0], x.sum(dims)) < 1e-5


def test_softmax_over_another_dimension():
    x = torch.randn(3, 9, 20)
    assert error(through_tvm(Call(lambda x: torch.softmax(x, 1)), x)[0], torch.softmax(x, 1)) < 1e-6


def test_softmax_of_a_masked_row_is_torchs():
    x = torch.randn(2, 40)
    x[0, 5:] = -torch.inf
    got, = through_tvm(Call(lambda x: torch.softmax(x, -1)), x)
    assert (got[0, 5:] == 0).all()
    torch.testing.assert_close(got, torch.softmax(x, -1))


def test_whole_numbers_keep_to_tvms_own_loops():
    x = torch.arange(12).reshape(3, 4)
    got, = through_tvm(Call(lambda x: x.sum(-1)), x)
    assert got.dtype == torch.int64
    assert torch.equal(got, x.sum(-1))


def test_pools():
    x = torch.randn(2, 20, 15, 11)
    for net in (nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)):
        assert error(through_tvm(net, x)[0], net(x)) < 1e-6
