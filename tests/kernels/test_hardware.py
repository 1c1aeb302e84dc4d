"""Which kernels a device runs is decided in a form that torch.compile can trace."""

from __future__ import annotations

import pytest
import torch

from thrifty.kernels import hardware


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_the_decision_is_traced(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(hardware, "TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    torch._dynamo.reset()  # it does not look again at what torch's own functions return
    device = torch.device("cuda", 0)

    def step(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if hardware.runs_triton(device) else x - 1

    traced = torch.compile(step, fullgraph=True, backend="eager")
    assert traced(torch.zeros(1)).item() == (1 if capability >= (8, 0) else -1)


def test_a_processor_runs_none() -> None:
    assert not hardware.runs_triton(torch.device("cpu"))
