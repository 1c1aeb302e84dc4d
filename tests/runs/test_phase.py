"""A phase is what a process can be given: apart or together, it leaves the same."""

from __future__ import annotations

import dataclasses
import sys
from typing import ClassVar, final

import pytest
from torch import nn

from thrifty import Card, Claim, Plan, Transform, testing
from thrifty.errors import EffectLost
from thrifty.recipes import registry
from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache, checkpoint
from thrifty.runs.checkpoint import MethodClaim
from thrifty.runs.execution import Execution
from thrifty.runs.job import Job, Task, Taught, Teacher, checkpoint_key, place
from thrifty.runs.launcher import LocalLauncher
from thrifty.runs.phase import reprobe
from thrifty.studies.events import Charged
from thrifty.target import Target
from thrifty.workloads.loading import load_workload

TAUGHT = "train(steps=4) | prune(ratio=0.5) | train(distill(teacher='train(steps=6)'), steps=4)"
JOB = Job(testing.workload.source, "hash", TAUGHT, 0, Target(), lower=False)


def test_phases_in_processes_of_their_own_leave_what_one_process_leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "together"))
    launcher = LocalLauncher()
    together = launcher.run(JOB)
    whole = checkpoint.load(place("checkpoints", together.checkpoint), testing.SmallNet())[1]
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "apart"))
    taught = launcher.run(dataclasses.replace(JOB, recipe="train(steps=6)"))
    phases = Recipe.parse(TAUGHT).phases
    keys = [checkpoint_key(JOB, Recipe(phases[:i])) for i in range(len(phases) + 1)]
    for i in range(len(phases)):
        teachers = (Taught(Teacher("train(steps=6)"), taught.checkpoint),) if i == 2 else ()
        launcher.take(Task(JOB, i, keys[i] if i else None, keys[i + 1], teachers))
    apart = checkpoint.load(place("checkpoints", keys[-1]), testing.SmallNet())[1]
    assert keys[-1] == together.checkpoint
    assert testing.fingerprint(apart) == testing.fingerprint(whole)


def test_a_claim_that_training_undid_is_an_error():
    claim = MethodClaim("mask", Claim("share of zeros", 0.0, 0.5, 0.45, probe=zeros))
    with pytest.raises(EffectLost, match="undid"):
        reprobe((claim,), testing.trained())


def zeros(model):
    return 0.0


# -- the memory of a phase is its own ---------------------------------------------------------------------------


LARGE = """
import dataclasses
import torch
from thrifty.testing import SmallNet, workload as base

class Large(SmallNet):
    def forward(self, x):
        if self.training and torch.initial_seed() == {seed}:  # the teacher's phase alone
            torch.ones(120_000_000).sum()
        return super().forward(x)

workload = dataclasses.replace(base, model=Large)
"""


def test_the_memory_of_a_phase_is_not_that_of_a_large_teacher(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    teaching = "train(steps=6)"
    seed = Task(dataclasses.replace(JOB, recipe=teaching), 0, None, "").seed("train")
    (tmp_path / "large.py").write_text(LARGE.format(seed=seed))
    source = load_workload(str(tmp_path / "large.py")).source
    heard = []
    job = dataclasses.replace(JOB, workload=source, recipe=f"train(steps=1) | train(distill(teacher='{teaching}'), steps=4)")
    LocalLauncher().run(job, heard.append)
    charges = [event.charge for event in heard if isinstance(event, Charged)]
    by_text = {charge.what: charge.peak_memory_bytes for charge in charges if charge.kind == "training"}
    student = next(size for text, size in by_text.items() if "distill" in text)
    assert by_text[teaching] > 450_000_000 + student  # what the teacher needed and gave back
    assert all(charge.device_seconds is not None for charge in charges if charge.kind == "training")


# -- plans that were timed --------------------------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Quickest(Transform):
    """Keeps the quicker of two activations: a search by timings, the smallest there is."""

    name: ClassVar[str] = "quickest"
    card: ClassVar[Card] = Card(family="nas", benefit="inference time", trade_off="two timings", paper="none",
                                requires=frozenset({"module", "float-weights", "trained"}))
    asked: ClassVar[list[bool]] = []

    @property
    def timed(self) -> bool:
        return True

    def plan(self, model, context):
        self.asked.append(context.rehearsal)
        seconds = [context.time(kind()) for kind in (nn.ReLU, nn.Hardtanh)]
        context.score(model)
        return Plan({"seconds": seconds, "first": seconds[0] < seconds[1]})

    def build(self, model, plan):
        model.head[1] = nn.ReLU() if plan.values["first"] else nn.Hardtanh(0, 1e9)
        model.head.quickest = True
        return model

    def claims(self, before, after):
        return (Claim("activations chosen", 0.0, 1.0, 1.0),)


@pytest.fixture
def quickest(monkeypatch):
    monkeypatch.setitem(registry.BUILT_IN, "quickest", f"{__name__}:Quickest")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    registry.places.cache_clear()
    registry.method_class.cache_clear()
    Quickest.asked.clear()
    yield
    monkeypatch.undo()
    registry.places.cache_clear()
    registry.method_class.cache_clear()


def test_a_timed_plan_records_its_timings_and_replays_from_them(tmp_path, monkeypatch, quickest):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    heard = []
    job = dataclasses.replace(JOB, recipe="train(steps=4) | quickest")
    done = Execution(job, heard.append).outcome()
    (_, plan), = checkpoint.read(place("checkpoints", done.checkpoint)).plans
    assert list(plan.timings) == plan.values["seconds"] and len(plan.timings) == 2
    charges = {event.charge.kind: event.charge for event in heard if isinstance(event, Charged)}
    assert charges["search"].flops > 0 and charges["search"].seconds > 0.4  # two timings and a score
    assert charges["calibration"].seconds < charges["search"].seconds
    assert Quickest.asked == [True, False]  # rehearsed once, planned once
    testing.replays_from_its_timings(Quickest())


@pytest.mark.slow
def test_a_killed_search_goes_on_from_what_it_measured(tmp_path, monkeypatch, quickest):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    job = dataclasses.replace(JOB, recipe="train(steps=4, evaluations=0) | quickest")
    monkeypatch.setattr("thrifty.runs.context.scored", killed)
    with pytest.raises(KeyboardInterrupt):
        Execution(job, lambda event: None).outcome()
    monkeypatch.undo()
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    monkeypatch.setitem(registry.BUILT_IN, "quickest", f"{__name__}:Quickest")
    journals = [path.read_text() for path in cache.directory().glob("searches/*/journal.jsonl")]
    done = Execution(job, lambda event: None).outcome()
    (_, plan), = checkpoint.read(place("checkpoints", done.checkpoint)).plans
    assert len(journals) == 1 and all(f'"value": {seconds!r}' in journals[0] for seconds in plan.timings)
    assert any(charge.what.endswith("recalled") for charge in done.charges if charge.kind == "search")


def killed(workload, model):
    raise KeyboardInterrupt
