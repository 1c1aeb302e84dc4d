from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.numerics.grid import Affine
from thrifty.numerics.modules import QuantLinear
from thrifty.numerics.smooth import CLIPPED, STRENGTHS, Tokens, entries


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
    vector = entries(seen(nn.Sequential(linear), x), {"0": linear})["0"].smooth
    with torch.no_grad():
        exact = linear(x)
        plain = (QuantLinear(linear, torch.ones(64))(x) - exact).norm()
        smooth = (QuantLinear(linear, vector)(x) - exact).norm()
    assert smooth < 0.5 * plain


def test_who_reads_one_tensor_is_smoothed_alike():
    torch.manual_seed(0)
    net = Three()
    found = entries(seen(net, torch.randn(50, 32)), {"a": net.a, "b": net.b, "c": net.c})
    vectors = {name: entry.smooth for name, entry in found.items()}
    assert torch.equal(vectors["a"], vectors["b"])
    assert all(bool((v > 0).all()) for v in vectors.values())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_grid_for_all_tokens_is_the_best_of_those_tried(bits):
    torch.manual_seed(bits)
    x, linear = torch.randn(64, 24).exp(), nn.Linear(24, 6)  # skewed: a few numbers are far off
    x[:, 3] *= 20
    with torch.no_grad():
        tokens = seen(nn.Sequential(linear), x)
        found = entries(tokens, {"0": linear}, {"0": bits}, static=True)["0"]
        assert found.grid is not None and found.grid.zero == 0, "nothing is below zero"

        def error(smooth: torch.Tensor, ratio: float) -> float:
            grid = Affine.of(float(ratio * (x / smooth).min()), float(ratio * (x / smooth).max()))
            return float((QuantLinear(linear, smooth, bits, grid)(x) - linear(x)).square().mean())

        vectors = [entries(tokens, {"0": linear}, {"0": bits}, [strength], static=True)["0"].smooth for strength in STRENGTHS]
        least = min(error(vector, ratio) for vector in vectors for ratio in CLIPPED)
        got = float((QuantLinear(linear, found.smooth, bits, found.grid)(x) - linear(x)).square().mean())
        assert got == pytest.approx(least, rel=1e-3)
        assert got < error(torch.ones(24), 1.0), "neither smoothed nor clipped"


def test_a_layer_that_must_stay_plain_keeps_others_of_its_tensor_plain():
    torch.manual_seed(0)
    net, x = Three(), torch.randn(50, 32) * torch.linspace(0.1, 30, 32)
    layers = {"a": net.a, "b": net.b, "c": net.c}
    assert not torch.equal(entries(seen(net, x), layers)["a"].smooth, torch.ones(32))
    found = entries(seen(net, x), layers, plain=["b"])
    assert torch.equal(found["a"].smooth, torch.ones(32)) and torch.equal(found["b"].smooth, torch.ones(32))


def naive(weight: torch.Tensor, x: torch.Tensor, bits: int) -> torch.Tensor:
    """The migration of the paper, its strength found by trying each: s_j = max|x_j|^a / max|w_j|^(1 - a)."""
    most, best, found = 2 ** (bits - 1) - 1, float("inf"), torch.ones(x.shape[1])
    for strength in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7):
        s = torch.ones(x.shape[1])
        for j in range(len(s)) if strength else ():
            s[j] = float(x[:, j].abs().max()) ** strength / float(weight[:, j].abs().max()) ** (1 - strength)
        s = s / s.median() if strength else s
        tokens, scaled = x / s, weight * s
        token, row = tokens.abs().amax(1, keepdim=True) / 127, scaled.abs().amax(1, keepdim=True) / most
        product = (torch.round(tokens / token) * token) @ (torch.round(scaled / row) * row).T
        error = float((product - x @ weight.T).square().mean())
        if error < best:
            best, found = error, s
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "inputs", "out"), [(60, 17, 9), (64, 32, 5)])
def test_it_is_the_migration_of_the_paper(rows, inputs, out, bits):
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(rows, inputs, generator=generator)
    x[:, 3] *= 40
    linear = nn.Linear(inputs, out)
    linear.weight.data = torch.randn(out, inputs, generator=generator)
    vector = entries(seen(nn.Sequential(linear), x), {"0": linear}, {"0": bits})["0"].smooth
    torch.testing.assert_close(vector, naive(linear.weight.detach(), x, bits))
    assert not torch.equal(vector, torch.ones(inputs))
