"""A precision that this processor emulates is told, and refused unless it is forced."""

from __future__ import annotations

import dataclasses

import pytest

from thrifty import AdamW, Bf16, Quantize, Train, testing
from thrifty.recipes.recipe import Recipe
from thrifty.runs import precision
from thrifty.runs.execution import Execution
from thrifty.runs.job import Job
from thrifty.runs.precision import FailsHere, SlowerHere, require_precision_pays, slower
from thrifty.search.space import Space
from thrifty.studies.events import Noted
from thrifty.target import Machine, Target
from thrifty.training.session import TrainingSession

HALF = "train(adamw, bf16, steps=2)"


def test_ratios_are_measured_where_there_is_a_precision():
    target = Target()
    for phase in (Train(AdamW(), Bf16(), steps=2), Quantize("bf16")):
        assert 0.05 < slower(testing.workload, phase, target, Machine()) < 100
    for phase in (Train(AdamW(), steps=2), Quantize("w8a8")):
        assert slower(testing.workload, phase, target, Machine()) == 1.0


@pytest.mark.parametrize(("ratio", "told"), [(0.5, 0), (1.0, 0), (1.3, 1)])
def test_one_that_is_slower_is_told(monkeypatch, ratio, told):
    monkeypatch.setattr(precision, "slower", lambda *_: ratio)
    heard = []
    require_precision_pays(testing.workload, Recipe.parse(HALF), Target(), Machine(), heard.append)
    assert len(heard) == told and all(isinstance(event, Noted) and "1.30 times" in event.text for event in heard)


def test_one_that_is_emulated_is_refused_before_it_is_trained_unless_it_is_forced(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "slower", lambda *_: 12.2)
    job = Job(testing.workload.source, "hash", HALF, 0, Target(), lower=False)
    with pytest.raises(SlowerHere, match=r"takes 12\.2 times as long as in fp32.*--force"):
        Execution(job, lambda event: None).outcome()
    assert Execution(dataclasses.replace(job, force=True), lambda event: None).outcome().checkpoint


def test_one_in_which_a_step_fails_is_refused_with_what_failed(monkeypatch):
    def step(session, batch):
        if any(method.name == "bf16" for method in session.methods):
            raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(TrainingSession, "step", step)
    with pytest.raises(FailsHere, match=r"^train\(adamw, bf16, steps=2\) fails .*\(RuntimeError: could not create a primitive"):
        require_precision_pays(testing.workload, Recipe.parse(HALF), Target(), Machine(), lambda event: None)


def test_a_space_keeps_the_first_options_and_those_that_pay():
    space = Space.of(testing.workload, ["bf16", "quantize", "inductor"])
    lean = space.only(lambda slot, part: "bf16" not in str(part))
    assert lean.plain == space.plain
    assert not any("bf16" in option for slot in lean.slots for option in slot.options)
    assert any("bf16" in option for slot in space.slots for option in slot.options)
