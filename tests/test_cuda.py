"""The spine on a GPU: training, engines, a whole run."""

from __future__ import annotations

import pytest
import torch

import thrifty
from thrifty import AdamW, Bf16, Distill, Train, testing
from thrifty.context import score
from thrifty.target import Target

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("methods", [(AdamW(lr=3e-3),), (AdamW(lr=3e-3), Bf16()), (AdamW(lr=3e-3), Distill(), Bf16())],
                         ids=str)
def test_training_learns(methods):
    torch.manual_seed(0)
    done = testing.run_training(testing.workload, Train(*methods, epochs=4), testing.SmallNet(), 0,
                                Target(device="cuda"), testing.teacher, lambda event: None)
    assert next(done.model.parameters()).device.type == "cpu"
    assert score(testing.workload, done.model) > 0.7
    assert all(claim.checked(name) for name, claim in done.claims)


def test_a_run_is_measured(tmp_path):
    trial = thrifty.run("thrifty.testing:workload", testing.workload.reference, store=tmp_path / "study",
                        target=Target(device="cuda"), pairs=1)
    assert trial.status == "done", trial.error
    assert trial.quality.drop.value < 0.1
    assert trial.inference.latency_p50 > 0 and trial.inference.peak_memory_bytes > 0
