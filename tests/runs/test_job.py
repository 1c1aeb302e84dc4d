"""What determines a result is in its key, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import pytest
from torch import nn

from thrifty import testing
from thrifty.posttraining.pruning.prune import Prune
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.runs import cache
from thrifty.runs.job import Job, Outcome, Task, Taught, Teacher, checkpoint_key, engine_key, place, teachers_of
from thrifty.studies.ledger import Charge
from thrifty.studies.serialization import plain, typed
from thrifty.studies.trial import Effect
from thrifty.target import Machine, Target

JOB = Job(testing.workload.source, "hash", "", 0, Target())


@dataclasses.dataclass(frozen=True)
class Timed(Transform):
    """Decides by timings."""

    name: ClassVar[str] = "prune"
    card = Prune.card

    @property
    def timed(self) -> bool:
        return True

    def plan(self, model, context):
        raise NotImplementedError

    def build(self, model, plan):
        return model

    def claims(self, before: nn.Module, after: nn.Module):
        return ()


def test_a_model_is_known_by_all_that_determines_its_weights_and_nothing_else():
    prefix = Recipe.parse("train(steps=2)")
    same = checkpoint_key(JOB, prefix)
    for alike in (dataclasses.replace(JOB, recipe="anything", lower=False), dataclasses.replace(JOB, target=Target(memory=1))):
        assert checkpoint_key(alike, prefix) == same
    for other in (dataclasses.replace(JOB, seed=1), dataclasses.replace(JOB, workload_hash="other"),
                  dataclasses.replace(JOB, machine=Machine("cuda"))):
        assert checkpoint_key(other, prefix) != same
    assert checkpoint_key(JOB, Recipe.parse("train(steps=3)")) != same
    assert checkpoint_key(dataclasses.replace(JOB, machine=Machine(ranks=2)), prefix) == same  # which spreads nothing
    spread = Recipe.parse("train(ddp, steps=2)")
    assert checkpoint_key(dataclasses.replace(JOB, machine=Machine(ranks=2)), spread) != checkpoint_key(JOB, spread)


def test_what_serves_is_part_of_the_key_where_a_plan_was_timed_and_of_every_engines(monkeypatch):
    other = dataclasses.replace(JOB, target=Target(memory=1))
    recipe = Recipe.parse("train(steps=2)") | Timed()
    assert checkpoint_key(JOB, recipe) != checkpoint_key(other, recipe)
    assert engine_key(JOB, Recipe(), Recipe().compiler) != engine_key(other, Recipe(), Recipe().compiler)
    kept = checkpoint_key(JOB, recipe)
    monkeypatch.setattr("thrifty.runs.job.processor", lambda: "another")
    assert checkpoint_key(JOB, recipe) != kept
    assert checkpoint_key(JOB, Recipe.parse("train(steps=2)")) == checkpoint_key(other, Recipe.parse("train(steps=2)"))


def test_jobs_tasks_and_outcomes_go_through_json():
    charge = Charge("training", "train()", 1.0, 2.0, device_seconds=1.0)
    job = dataclasses.replace(JOB, recipe="train(steps=2) | prune(ratio=0.5)")
    task = Task(job, 1, "before", "after", (Taught(Teacher(""), "teacher"),), (charge,))
    outcome = Outcome("key", None, (charge,), (Effect("prune", "x", 1.0, 0.5),), ((1.0, 0.5),))
    for value in (job, task, outcome):
        assert typed(type(value), json.loads(json.dumps(plain(value)))) == value
    assert str(task.phase) == "prune(ratio=0.5)" and task.seed("plan") != task.seed("train")


def test_teachers_are_found_by_the_kind_of_their_field():
    (phase,) = Recipe.parse("train(adamw, distill(teacher=\"train(steps=3)\"))")
    assert teachers_of(phase) == (Teacher("train(steps=3)"),)
    assert teachers_of(Recipe.parse("train(distill)").phases[0]) == (Teacher(""),)
    assert teachers_of(Recipe.parse("prune(ratio=0.5)").phases[0]) == ()


def test_what_the_cache_dropped_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    with pytest.raises(cache.CacheError, match="no longer holds abc of checkpoints"):
        place("checkpoints", "abc")
