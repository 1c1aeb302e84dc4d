from __future__ import annotations

import torch
from torch import nn

from thrifty import testing
from thrifty.context import calibration, eager_seconds, score
from thrifty.target import Target


def test_scores_are_higher_the_better_and_leave_the_mode():
    model = testing.trained().train()
    assert 0.7 < score(testing.workload, model) <= 1.0
    assert model.training


def test_calibration_repeats_with_its_seed_and_differs_with_another():
    first, again, other = (torch.cat([x for (x,) in calibration(testing.workload, seed, 40)]) for seed in (1, 1, 2))
    assert len(first) == 40 and torch.equal(first, again) and not torch.equal(first, other)


def test_eager_seconds_are_those_of_the_module():
    class Slow(nn.Module):
        def forward(self, x):
            import time

            time.sleep(0.02)
            return x

    assert 0.02 <= eager_seconds(Slow(), (torch.zeros(1),), Target()) < 0.2
