from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.numerics.bias import corrected
from thrifty.numerics.grid import per_row, rows


@given(st.integers(0, 999), st.sampled_from([3, 4, 8]), st.integers(1, 9), st.integers(1, 20))
def test_means_are_what_they_were_and_errors_fall(seed, bits, outputs, inputs):
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(outputs, inputs, generator=generator), torch.rand(200, inputs, generator=generator) + 0.5
    bias = torch.randn(outputs, generator=generator)
    exact, rounded = x @ weight.T + bias, (x + 0.05) @ rows(*per_row(weight, bits)).T + bias
    found = corrected(bias, exact.mean(0), rounded.mean(0))
    after = rounded - bias + found
    torch.testing.assert_close(after.mean(0), exact.mean(0), rtol=1e-4, atol=1e-4)
    before = (rounded - exact).square().mean(0)
    assert bool(((after - exact).square().mean(0) <= before + 1e-6).all())
