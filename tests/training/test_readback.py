"""Numbers that the host reads while the device goes on."""

from __future__ import annotations

import pytest
import torch

from thrifty.training.readback import Readback


def test_on_a_cpu_they_are_there_at_once() -> None:
    x = torch.tensor([1.5, -2.0], dtype=torch.float64, requires_grad=True)
    found = Readback(x).read()
    assert found.tolist() == [1.5, -2.0] and not found.requires_grad


@pytest.mark.gpu
def test_on_a_gpu_they_are_those_of_the_moment_however_long_it_goes_on() -> None:
    x, big = torch.zeros(3, device="cuda"), torch.randn(4096, 4096, device="cuda")
    read = []
    for step in range(20):
        x += 1
        for _ in range(5):
            big = torch.nn.functional.normalize(big @ big)
        read.append(Readback(x))
        assert step < 1 or read[-2].read().tolist() == [float(step)] * 3
    assert [one.read()[0].item() for one in read] == list(range(1, 21))
