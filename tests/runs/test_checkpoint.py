from __future__ import annotations

import json

import pytest
import torch

from thrifty import testing
from thrifty.posttraining.pruning.prune import Prune
from thrifty.recipes.claim import Claim
from thrifty.recipes.transform import Plan
from thrifty.runs import checkpoint
from thrifty.runs.checkpoint import Checkpoint, CheckpointError, MethodClaim
from thrifty.studies.ledger import Charge


def pruned():
    model = testing.trained()
    method = Prune(ratio=0.5)
    context = testing.make_context(testing.workload, testing.Target(), 0, print)
    plan = method.plan(model, context)
    after = method.build(testing.trained(), plan)
    claims = tuple(MethodClaim("prune", claim) for claim in method.claims(model, after))
    charges = (Charge("calibration", "prune", 1.5, uncounted=("aten.x",)),)
    return Checkpoint(testing.workload.source, "prune(ratio=0.5)", (("prune(ratio=0.5)", plan),), claims, charges,
                      ((2.0, 0.9),)), after


def test_reading_gives_back_what_was_saved(tmp_path):
    kept, model = pruned()
    checkpoint.save(kept, model, tmp_path)
    found = checkpoint.read(tmp_path)
    assert (found.recipe, found.charges, found.curve) == (kept.recipe, kept.charges, kept.curve)
    assert found.claims == kept.claims  # the probe is found again by its name
    assert json.loads(json.dumps(dict(found.plans[0][1].values))) == json.loads(json.dumps(dict(kept.plans[0][1].values)))


def test_loading_rebuilds_the_same_model(tmp_path):
    kept, model = pruned()
    checkpoint.save(kept, model, tmp_path)
    _, again = checkpoint.load(tmp_path, testing.SmallNet())
    assert testing.fingerprint(again) == testing.fingerprint(model)
    torch.testing.assert_close(testing.answers(again), testing.answers(model))


def test_a_half_written_checkpoint_is_refused(tmp_path):
    kept, model = pruned()
    checkpoint.save(kept, model, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="do not fit"):
        checkpoint.load(tmp_path, testing.SmallNet())
    (tmp_path / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="does not hold a complete checkpoint"):
        checkpoint.read(tmp_path)


def test_another_format_is_refused(tmp_path):
    kept, model = pruned()
    checkpoint.save(kept, model, tmp_path)
    document = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(document | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.read(tmp_path)


def test_a_plan_of_something_that_is_no_transform_is_refused():
    with pytest.raises(CheckpointError, match="not a transform"):
        checkpoint.rebuild(testing.SmallNet(), [("train(steps=1)", Plan())])


def test_a_probe_must_be_a_function_of_a_module(tmp_path):
    kept, model = pruned()
    claim = Claim("x", 1.0, 0.0, 0.5, probe=lambda model: 0.0)
    checkpoint.save(Checkpoint(kept.workload, kept.recipe, kept.plans, (MethodClaim("m", claim),)), model, tmp_path)
    with pytest.raises((CheckpointError, AttributeError)):
        checkpoint.read(tmp_path)


def test_a_plan_may_name_one_tensor_twice(tmp_path):
    shared = torch.arange(3.0)
    kept = Checkpoint(testing.workload.source, "x", (("prune(ratio=0.5)", Plan({}, {"a": shared, "b": shared})),))
    checkpoint.save(kept, testing.trained(), tmp_path)
    assert torch.equal(checkpoint.read(tmp_path).plans[0][1].tensors["b"], shared)


def test_the_model_as_it_comes():
    model = checkpoint.load_module(testing.workload.source, None)
    assert not model.training and isinstance(model, testing.SmallNet)
