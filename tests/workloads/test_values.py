from __future__ import annotations

import pytest
import torch

from thrifty.errors import WorkloadError
from thrifty.workloads.values import compared


@pytest.mark.parametrize(("outputs", "target", "both"), [
    ((5,), (5,), (5,)), ((5, 1), (5,), (5,)), ((5,), (5, 1), (5,)), ((5, 1, 3), (5, 3), (5, 3)), ((5, 3, 1), (5, 3), (5, 3)),
    ((1, 1), (1,), (1,)), ((5, 3), (5, 1, 3), (5, 3)),
])
def test_they_are_brought_to_one_shape(outputs: tuple[int, ...], target: tuple[int, ...], both: tuple[int, ...]) -> None:
    z, y = compared("MSE", torch.randn(outputs), torch.randn(target))
    assert z.shape == y.shape == both


@pytest.mark.parametrize(("outputs", "target"), [
    ((5, 2), (5,)), ((5, 2), (2, 5)), ((4,), (2, 2)), ((6, 1), (3, 2)), ((), (1, 1)),
])
def test_others_are_refused(outputs: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(WorkloadError, match="do not fit"):
        compared("MSE", torch.zeros(outputs), torch.zeros(target))
