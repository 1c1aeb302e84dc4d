"""The pieces of a run."""

from __future__ import annotations

import dataclasses

import pytest

from thrifty import testing
from thrifty.checkpoint import MethodClaim
from thrifty.errors import EffectLost
from thrifty.execute import Job, _Run, prefix_key, reprobe
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
