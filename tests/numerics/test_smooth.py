from __future__ import annotations

import torch
from torch import nn

from thrifty.numerics.modules import QuantLinear
from thrifty.numerics.smooth import Tokens, smoothing


def seen(model: nn.Module, x: torch.Tensor) -> Tokens:
    tokens = Tokens()
    handles = [m.register_forward_pre_hook(tokens.hook(n)) for n, m in model.named_modules() if type(m) is nn.Linear]
    with torch.no_grad():
        model(x)
    tokens.forget_groups()
    for handle in handles:
        handle.remove()
    return tokens


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        return self.c(self.a(x) + self.b(x))


def test_outlier_channels_cost_less():
    torch.manual_seed(0)
    x = torch.randn(200, 64)
    x[:, 5] *= 60
    linear = nn.Linear(64, 48)
    vector = smoothing(seen(nn.Sequential(linear), x), {"0": linear})["0"]
    with torch.no_grad():
        exact = linear(x)
        plain = (QuantLinear(linear, torch.ones(64))(x) - exact).norm()
        smooth = (QuantLinear(linear, vector)(x) - exact).norm()
    assert smooth < 0.5 * plain


def test_who_reads_one_tensor_is_smoothed_alike():
    torch.manual_seed(0)
    net = Three()
    vectors = smoothing(seen(net, torch.randn(50, 32)), {"a": net.a, "b": net.b, "c": net.c})
    assert torch.equal(vectors["a"], vectors["b"])
    assert all(bool((v > 0).all()) for v in vectors.values())
