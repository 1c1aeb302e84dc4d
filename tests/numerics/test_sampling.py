from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.numerics.observers import Observer
from thrifty.numerics.sampling import scattered


@given(n=st.integers(0, 10**7), most=st.integers(1, 3000))
def test_one_in_each_part(n, most):
    got = scattered(n, most)
    assert got.dtype == torch.int64
    assert len(got) == min(n, most)
    if n > most:
        parts = torch.arange(most, dtype=torch.float64) * n / most
        assert bool((got >= parts.floor()).all())
        assert bool((got <= (parts + n / most).ceil() - 1).all())
    else:
        assert got.tolist() == list(range(n))


@pytest.mark.parametrize("shape", [(32, 64, 32, 32), (32, 64, 16, 16), (32, 128, 8, 8), (32, 128, 384), (32, 3, 224, 224)])
def test_no_column_is_left_out(shape):
    """Of these shapes, a constant step sees one column alone, or one token of two."""
    n, width = torch.Size(shape).numel(), shape[-1]
    seen = torch.bincount(scattered(n, 16384) % width, minlength=width) / (16384 / width)
    assert 0.5 < float(seen.min()) <= float(seen.max()) < 1.5


def test_a_border_does_not_decide_the_grid():
    """Images whose first column is dark: the grid must reach what stands beside it."""
    image = torch.rand(32, 64, 32, 32, generator=torch.Generator().manual_seed(0)) * 10
    image[..., 0] *= 0.01
    observer = Observer("layer")
    observer(image)
    assert observer.affine().scale * 255 > 9
