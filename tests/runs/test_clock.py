"""What a call takes, alone and in turns with a reference."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from thrifty import OnnxRuntime, testing
from thrifty.errors import ThriftyError
from thrifty.runs.clock import opened, ratio, seconds_a_call
from thrifty.target import Target


class Slow(nn.Module):
    """Takes as many seconds as `Slow.seconds` says, times its own factor."""

    seconds = 0.002

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        until = time.perf_counter() + self.factor * Slow.seconds
        while time.perf_counter() < until:
            pass
        return x


def test_seconds_are_those_of_the_module_on_the_inputs_that_are_given():
    with opened(Slow(), (torch.zeros(1),), Target()) as call:
        assert 0.002 <= seconds_a_call(call, Target()) < 0.02


def test_an_open_call_keeps_no_gradients_and_leaves_those_of_others():
    with opened(nn.Linear(3, 2), (torch.ones(1, 3),), Target()) as call:
        assert not call().requires_grad and torch.is_grad_enabled()


@pytest.mark.skipif(OnnxRuntime.missing() is not None, reason=str(OnnxRuntime.missing()))
def test_an_engine_is_opened_by_its_compilers_name():
    x = testing.workload.example(1)
    with opened(testing.trained(), x, Target(), "onnxruntime") as call:
        assert 0 < seconds_a_call(call, Target()) < 1
        torch.testing.assert_close(torch.from_numpy(call()[0]), testing.trained()(*x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("engine", "says"), [("onnxrutime", "did you mean 'onnxruntime'"), ("prune", "is not a compiler")])
def test_an_engine_that_is_none_is_refused(engine, says):
    with pytest.raises(ThriftyError, match=says), opened(testing.trained(), testing.workload.example(1), Target(), engine):
        pass


def test_a_ratio_does_not_drift_with_the_processor(monkeypatch):
    def drifting(start: float):
        monkeypatch.setattr(Slow, "seconds", start)

        class Drifting(Slow):
            def forward(self, x: Tensor) -> Tensor:
                Slow.seconds *= 1.005  # each call is slower than the one before, four times at the end
                return super().forward(x)

        return Drifting

    x, slow = (torch.zeros(1),), drifting(0.0005)
    with opened(slow(), x, Target()) as reference, opened(Slow(0.5), x, Target()) as half:
        assert ratio(half, reference, Target()) == pytest.approx(0.5, rel=0.2)
