from __future__ import annotations

import torch
from torch import nn

from thrifty import testing
from thrifty.runs.context import calibration, eager_seconds, recall, score
from thrifty.target import Target


def test_scores_are_higher_the_better_and_leave_the_mode():
    model = testing.trained().train()
    assert 0.7 < score(testing.workload, model) <= 1.0
    assert model.training


def test_calibration_repeats_with_its_seed_and_differs_with_another():
    first, again, other = (torch.cat([x for (x,) in calibration(testing.workload, seed, 40)]) for seed in (1, 1, 2))
    assert len(first) == 40 and torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_recalled_is_computed_once_and_what_it_cost_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    asked: list[str] = []
    seconds: list[float] = []

    def compute():
        asked.append("once")
        return {"layer": [["w8a8", 3, 0.25]]}

    first, again = (recall(seconds, "a key of any length, with spaces", compute) for _ in range(2))
    assert first == again == {"layer": [["w8a8", 3, 0.25]]}
    assert asked == ["once"] and len(seconds) == 1 and seconds[0] >= 0
    recall(seconds, "another", compute)
    assert len(asked) == 2


def test_eager_seconds_are_those_of_the_module():
    class Slow(nn.Module):
        def forward(self, x):
            import time

            time.sleep(0.02)
            return x

    assert 0.02 <= eager_seconds(Slow(), (torch.zeros(1),), Target()) < 0.2
