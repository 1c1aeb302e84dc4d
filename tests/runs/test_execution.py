"""The pieces of a run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from thrifty import testing
from thrifty.errors import EffectLost, ThriftyError
from thrifty.recipes.claim import Claim
from thrifty.recipes.recipe import Recipe
from thrifty.report.shown import show_layers
from thrifty.runs import checkpoint
from thrifty.runs.checkpoint import MethodClaim
from thrifty.runs.execution import Execution, final_effect
from thrifty.runs.job import Job, _hash_of, checkpoint_key, place
from thrifty.studies.events import Charged
from thrifty.target import Target
from thrifty.workloads.loading import load_workload

JOB = Job(testing.workload.source, "hash", "", 0, Target())


def test_a_claim_that_the_engine_lost_is_an_error():
    claim = Claim("layers in integers", 0.0, 10.0, 1.0, fact="integer_layers")
    with pytest.raises(EffectLost, match="in the engine it is 0"):
        final_effect(MethodClaim("quantize", claim), {"integer_layers": 0.0})
    assert final_effect(MethodClaim("quantize", claim), {"integer_layers": 9.0}).read_from == "engine"
    assert final_effect(MethodClaim("quantize", claim), {}).read_from == "model"


BESIDE = """
import dataclasses
import torch
from torch import nn
from thrifty import testing

class Inputs(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return testing.workload.train[index][0]

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 4))

def trained():
    torch.manual_seed(5)
    return wide()

teacher = dataclasses.replace(testing.workload, name="wide", model=wide, reference="train(steps=5)")
student = dataclasses.replace(teacher, name="alone", train=None, loss=None, reference="", unlabelled=Inputs(), model=trained)
"""


@pytest.mark.slow
def test_another_workloads_model_teaches_a_student_on_inputs_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    (file := tmp_path / "beside.py").write_text(BESIDE)
    recipe, events = f"train(distill(teacher_workload={str(file) + ':teacher'!r}), steps=6, batch_size=16)", []
    job = Job(f"{file}:student", "hash", recipe, 0, Target(), lower=False)
    done = Execution(job, events.append).outcome()
    kinds = {charge.kind for charge in done.charges}
    assert "teacher" in kinds and "training" in kinds
    assert next(effect.after for effect in done.effects if effect.method == "distill") == 6
    # another file, another key: what the teacher is decides the student
    before = checkpoint_key(job, Recipe.parse(recipe))
    file.write_text(BESIDE.replace("steps=5", "steps=6"))
    _hash_of.cache_clear()
    assert checkpoint_key(job, Recipe.parse(recipe)) != before


def test_a_model_that_comes_trained_is_its_own_teacher(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    (file := tmp_path / "alone.py").write_text(BESIDE)
    recipe = "prune(ratio=0.5) | train(adamw(lr=0.01), distill(weight=1), steps=30, batch_size=16)"
    done = Execution(Job(f"{file}:student", "hash", recipe, 0, Target(), lower=False), print).outcome()
    module = checkpoint.load(place("checkpoints", done.checkpoint), load_workload(f"{file}:student").model())[1]
    assert sum(p.numel() for p in module.parameters()) < 144 * 64
    assert any(charge.kind == "training" for charge in done.charges)


@pytest.mark.slow
def test_layers_of_a_mixture_are_told_and_its_table_is_computed_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    text, events = "train(steps=24) | quantize(mixed, group=32, max_drop={})", []
    outcomes = [Execution(dataclasses.replace(JOB, recipe=text.format(drop), lower=drop == 1), events.append).outcome()
                for drop in (1, 0.5)]
    first, second = ({charge.kind: charge.what for charge in done.charges} for done in outcomes)
    assert {"training", "calibration", "search"} <= set(first) & set(second)
    told = [event.charge.what for event in events if isinstance(event, Charged)]
    assert "recalled" not in first["calibration"] and second["calibration"].endswith(": recalled")
    assert not any("recalled" in what for what in told)  # a trial's cost as if alone, and not of what ran now
    show_layers(place("engines", outcomes[0].engine), as_json=True)
    (shown,) = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in shown["layers"]] and all(row["bytes"] > 0 for row in shown["layers"])
    assert all(row["error"] is not None for row in shown["layers"])
    show_layers(place("engines", outcomes[0].engine), as_json=False)
    printed = capsys.readouterr().out
    assert "stem.0" in printed and "output error, alone" in printed
    with pytest.raises(ThriftyError, match="no artifact of a quantized, pruned or factored model"):
        show_layers(tmp_path, as_json=True)
