from __future__ import annotations

import math

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
from tests.compilers.tvm.helpers import through_tvm
from thrifty.compilers.tvm.elementary import FUNCTIONS


class Everything(nn.Module):
    def forward(self, x):
        return (torch.exp(x), torch.sigmoid(x), torch.tanh(x), torch.erf(x), nn.functional.silu(x), nn.functional.gelu(x),
                nn.functional.gelu(x, approximate="tanh"))


def spread() -> torch.Tensor:
    """From tiny to beyond what exp can give, both signs."""
    sizes = torch.logspace(-8, math.log10(120), 4001)
    return torch.cat([-sizes.flip(0), torch.zeros(1), sizes])


def test_they_are_as_exact_as_float32_allows():
    x = spread()
    for name, got, want in zip(FUNCTIONS, through_tvm(Everything(), x), Everything()(x.double()), strict=True):
        scale = want.abs().clamp_min(1e-6 if "gelu" in name or "silu" in name else 1e-37)
        wrong = ((got.double() - want).abs() / scale)[want.abs() < 3.4e38]
        if name == "relax.exp":  # below the least normal number it is 0
            wrong = wrong[x[want.abs() < 3.4e38] > -87]
        if name in ("relax.sigmoid",):
            wrong = wrong[x[want.abs() < 3.4e38] > -87]
        assert wrong.max() < 2e-6 or name.startswith("relax.nn"), (name, wrong.max())
        assert (got.double() - want).abs()[want.abs() < 1e3].max() < 1e-4


def test_their_limits():
    x = torch.tensor([-math.inf, math.inf, math.nan, -1e4, 1e4, 0.0])
    got = dict(zip(FUNCTIONS, through_tvm(Everything(), x), strict=True))
    want = dict(zip(FUNCTIONS, Everything()(x), strict=True))
    for name in ("relax.exp", "relax.sigmoid", "relax.tanh", "relax.erf"):
        torch.testing.assert_close(got[name], want[name], equal_nan=True, msg=name)
