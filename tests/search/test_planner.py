"""Trainings predicted before they run."""

from __future__ import annotations

import io

import pytest

from thrifty.errors import ThriftyError
from thrifty.report.plans import print_plans
from thrifty.search import planner
from thrifty.search.planner import plan
from thrifty.testing import SmallNet, workload


def test_every_stage_is_predicted_and_the_first_that_fits_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = plan(workload, "train(zero3, adamw)", 2)
    count = sum(p.numel() for p in SmallNet().parameters())
    assert (found.ranks, found.examples, found.chosen) == (2, 16, "zero3") and found.seconds > 0
    names = [stage.name for stage in found.stages]
    assert names == ["one process", "ddp", "zero1", "zero2", "zero3"] and all(stage.fits for stage in found.stages)
    held = {stage.name: stage.held for stage in found.stages}
    assert held["ddp"].parameters == 4 * count and held["zero3"].parameters == 2 * count
    assert held["ddp"].state == pytest.approx(8 * count, rel=0.01)
    assert all(stage.peak > stage.held.parameters + stage.held.state for stage in found.stages)
    assert found.advice == "ddp fits and communicates least"
    shown = io.StringIO()
    print_plans([found], shown)
    assert "zero3 *" in shown.getvalue() and "temporarily" in shown.getvalue() and found.advice in shown.getvalue()
    room = (found.stages[1].peak + found.stages[3].peak) / 2
    monkeypatch.setattr(planner, "free", lambda device: 2 * room / planner.ROOM)
    (tight,) = plan(workload, "train(ddp, adamw)", 2)
    assert not tight.stages[1].fits and tight.advice.startswith("zero")
    monkeypatch.setattr(planner, "free", lambda device: 1000)
    assert plan(workload, "train(ddp, adamw)", 2)[0].advice.startswith("no stage fits")


def test_a_training_that_is_not_spread_is_planned_for_one_process() -> None:
    first, second = plan(workload, "train(ddp, adamw) | train(adamw, batch_size=8)", 2)
    assert (first.ranks, second.ranks, second.examples) == (2, 1, 8)
    assert [stage.name for stage in second.stages] == ["one process"] and second.advice == "one process is enough"
    assert second.to_json()["stages"][0]["name"] == "one process"


@pytest.mark.parametrize(("recipe", "nproc", "why"), [
    ("prune(ratio=0.5)", 1, "requires trained|trains nothing"),
    ("train(adamw)", 2, "no training in train"),
    ("train(ddp, batch_size=2)", 4, "cannot be divided"),
])
def test_what_cannot_be_planned_says_why(recipe: str, nproc: int, why: str) -> None:
    with pytest.raises(ThriftyError, match=why):
        plan(workload, recipe, nproc)
