"""The pieces of a run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from thrifty import testing
from thrifty.checkpoint import MethodClaim
from thrifty.errors import EffectLost, ThriftyError
from thrifty.execute import Job, _Run, calibration, eager_seconds, prefix_key, rehearse, reprobe, score
from thrifty.method import Claim
from thrifty.recipe import Recipe
from thrifty.target import Target

JOB = Job(testing.workload.source, "hash", "", 0, Target())


def test_a_prefix_is_known_by_all_that_determines_its_weights():
    prefix = Recipe.parse("train(steps=2)")
    same = prefix_key(JOB, prefix)
    assert prefix_key(dataclasses.replace(JOB, recipe="anything", lower=False, spawned=1.0), prefix) == same
    for other in (dataclasses.replace(JOB, seed=1), dataclasses.replace(JOB, workload_hash="other"),
                  dataclasses.replace(JOB, target=Target(memory=1))):
        assert prefix_key(other, prefix) != same
    assert prefix_key(JOB, Recipe.parse("train(steps=3)")) != same


def test_a_claim_that_training_undid_is_an_error():
    claim = MethodClaim("mask", Claim("share of zeros", 0.0, 0.5, 0.45, probe=zeros))
    with pytest.raises(EffectLost, match="undid"):
        reprobe((claim,), testing.trained())


def zeros(model):
    return 0.0


def test_a_claim_that_the_engine_lost_is_an_error():
    claim = Claim("layers in integers", 0.0, 10.0, 1.0, fact="integer_layers")
    with pytest.raises(EffectLost, match="in the engine it is 0"):
        _Run.final_effect(MethodClaim("quantize", claim), {"integer_layers": 0.0})
    assert _Run.final_effect(MethodClaim("quantize", claim), {"integer_layers": 9.0}).read_from == "engine"
    assert _Run.final_effect(MethodClaim("quantize", claim), {}).read_from == "model"


def test_scores_are_higher_the_better_and_leave_the_mode():
    model = testing.trained().train()
    assert 0.7 < score(testing.workload, model) <= 1.0
    assert model.training


def test_calibration_repeats_with_its_seed_and_differs_with_another():
    first, again, other = (torch.cat([x for (x,) in calibration(testing.workload, seed, 40)]) for seed in (1, 1, 2))
    assert len(first) == 40 and torch.equal(first, again) and not torch.equal(first, other)


def test_a_rehearsal_finds_what_would_fail_later():
    class Branches(testing.SmallNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    branching = dataclasses.replace(testing.workload, model=Branches)
    with pytest.raises(ThriftyError, match=r"torch\.where"):
        rehearse(branching, Recipe.parse("train(epochs=1) | compile(onnxruntime)"), Target(), lambda event: None)


def test_eager_seconds_are_those_of_the_module():
    class Slow(nn.Module):
        def forward(self, x):
            import time

            time.sleep(0.02)
            return x

    assert 0.02 <= eager_seconds(Slow(), (torch.zeros(1),), Target()) < 0.2
