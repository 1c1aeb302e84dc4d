from __future__ import annotations

import pytest
import torch

from thrifty.numerics.grid import Affine, affine
from thrifty.numerics.observers import CalibrationError, Observer


def error(x: torch.Tensor, grid: Affine) -> float:
    return float((affine(x, torch.tensor(grid.scale), torch.tensor(float(grid.zero))) - x).square().mean())


def test_the_grid_is_no_worse_than_the_extremes():
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    x[0] = 30.0  # one outlier, for which the extremes would waste most values
    observer = Observer("layer", kept=10**6)
    assert observer(x) is x
    assert error(x, observer.affine()) <= error(x, Affine.of(float(x.min()), 30.0))


def test_the_range_grows_over_batches():
    observer = Observer("layer")
    observer(torch.tensor([0.0, 1.0]))
    observer(torch.tensor([-2.0, 0.5]))
    assert (observer.low, observer.high) == (-2.0, 1.0)


@pytest.mark.parametrize(("values", "says"), [
    ([float("nan"), 1.0], "NaN"), ([float("inf"), 1.0], "infinity"), ([2.0, 2.0], "constant 2"), ([], "no calibration"),
])
def test_errors_name_the_layer(values, says):
    observer = Observer("blocks.3.conv")
    with pytest.raises(CalibrationError, match=rf"blocks\.3\.conv.*{says}"):
        if values:
            observer(torch.tensor(values))
        observer.affine()
