"""What an exploration does next, by what is left of its budget."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trials import trial
from thrifty.recipes.recipe import Recipe
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import resolve
from thrifty.runs.runner import Runner
from thrifty.search.exploration import FIRST_CLAIM, Exploration
from thrifty.search.space import Space
from thrifty.studies.constraints import Bars
from thrifty.studies.ledger import Charge
from thrifty.studies.trial import Trial
from thrifty.target import Target

BUDGET = 300.0
IN_DOUBT = 0.048
"""A drop whose interval, 0.3 points either way, has the bar of 5 points in it."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose reference is there, and nothing else."""
    place, workload = tmp_path_factory.mktemp("begun") / "study", resolve("thrifty.testing:workload")
    with open_study(place, workload, Target()) as (store, _):
        Runner(workload, store).reference()
    return place


@pytest.fixture
def search(begun: Path, tmp_path: Path) -> Iterator[Exploration]:
    """One trial can be measured again at most, unless it is no answer."""
    place, workload = tmp_path / "study", resolve("thrifty.testing:workload")
    shutil.copytree(begun, place)
    with open_study(place, workload, Target()) as (store, _):
        yield Exploration(Runner(workload, store), Space.of(workload), Bars.read("5pt"), BUDGET, 1, 1, lambda: 0.0)


def screened(search: Exploration, then: str, speed: float, drop: float = 0.0) -> Trial:
    """A trial of the reference and something; a round of timing took 6 s, so that a claim takes about a minute."""
    runner, recipe = search.runner, f"{search.runner.workload.reference} | {then}"
    found = trial(runner.id(Recipe.parse(recipe)), str(Recipe.parse(recipe)), speed, drop, width=0,
                  workload=runner.workload.name, workload_hash=runner.hash)
    search.store.put_trial(found)
    search.store.charge(found.id, Charge("scoring", "validation", 2.0))
    search.store.charge(found.id, Charge("timing", "rounds", 6.0, amount=1))
    return found


def claim(search: Exploration, one: Trial) -> None:
    """As if it had been measured again."""
    assert one.inference is not None
    speedup = dataclasses.replace(one.inference.speedup, low=1.5, high=9.0, verdict="faster", pairs=5)
    search.store.put_trial(dataclasses.replace(one, inference=dataclasses.replace(one.inference, speedup=speedup),
                                               test=one.quality))


def act(search: Exploration, left: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """What it does with so many seconds left: "screen" and a recipe, or the recipe that it measures again."""
    found: list[str] = []
    monkeypatch.setattr(search, "_spent", lambda: BUDGET - left)
    monkeypatch.setattr(search, "claim", lambda one, _: found.append(one.recipe))
    monkeypatch.setattr(search, "screen", lambda recipes: found.append(f"screen {recipes[0]}"))
    following = search.next()
    assert following is not None
    following()
    return found[0]


def test_the_first_claim_comes_before_the_budget_runs_short(search: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    only = screened(search, "compile(onnxruntime)", 4.0)
    high = search.claim_estimate().high
    assert 60 < high < 100, "five rounds, with the compiled baseline beside"
    assert act(search, FIRST_CLAIM * high + 30, monkeypatch).startswith("screen")
    assert act(search, FIRST_CLAIM * high - 5, monkeypatch) == only.recipe, "though a cheap recipe would fit beside it"
    assert act(search, high / 1.15 - 5, monkeypatch).startswith("screen"), "what does not fit waits"


def test_an_answer_is_claimed_before_what_is_in_doubt(search: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, sure = screened(search, "quantize(w8a8)", 9.0, IN_DOUBT), screened(search, "compile(onnxruntime)", 4.0)

    def soon() -> str:
        return act(search, FIRST_CLAIM * search.claim_estimate().high - 5, monkeypatch)

    assert soon() == sure.recipe
    claim(search, quick)
    assert soon() == sure.recipe, "the only claim was spent on what is no answer"
    claim(search, sure)
    assert soon().startswith("screen")
    assert search.unclaimed() is None


def test_what_is_in_doubt_is_claimed_no_more_often_than_asked(search: Exploration) -> None:
    first, other = screened(search, "quantize(w8a8)", 9.0, IN_DOUBT), screened(search, "quantize(bf16)", 4.0, IN_DOUBT - 0.0005)
    best = search.unclaimed()
    assert best is not None and best.recipe == first.recipe
    claim(search, first)
    assert search.unclaimed() is None
    search.promote = 2
    best = search.unclaimed()
    assert best is not None and best.recipe == other.recipe


def test_methods_do_not_wait_for_a_compiler_that_no_longer_fits(search: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    search.space = Space.of(search.runner.workload, ("onnxruntime", "inductor", "quantize"))
    claim(search, screened(search, "compile(onnxruntime)", 4.0))
    assert act(search, 130, monkeypatch).endswith("compile(inductor)"), "18 s and 8 for measuring, while little is known"
    assert act(search, 30, monkeypatch).endswith("quantize(w8a8) | compile(onnxruntime)")
