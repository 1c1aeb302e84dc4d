"""What an exploration does next, by what is left of its budget."""

from __future__ import annotations

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
from thrifty.target import Target

BUDGET = 300.0


def test_the_first_claim_comes_before_the_budget_runs_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial is screened; a round of timing took 6 s, so that a claim takes about a minute."""
    workload = resolve("thrifty.testing:workload")
    recipe = str(Recipe.parse(f"{workload.reference} | compile(onnxruntime)"))
    spent = [0.0]
    with open_study(tmp_path / "study", workload, Target()) as (store, _):
        runner = Runner(workload, store)
        runner.reference()
        screened = trial(runner.id(Recipe.parse(recipe)), recipe, 4.0, width=0, workload=workload.name, workload_hash=runner.hash)
        store.put_trial(screened)
        store.charge(screened.id, Charge("scoring", "validation", 2.0))
        store.charge(screened.id, Charge("timing", "rounds", 6.0, amount=1))
        search = Exploration(runner, Space.of(workload), Bars.read("5pt"), BUDGET, 4, 1, lambda: spent[0])
        acts: list[str] = []
        monkeypatch.setattr(search, "claim", lambda *_: acts.append("claim"))
        monkeypatch.setattr(search, "screen", lambda *_: acts.append("screen"))

        def next_with(left: float) -> str:
            spent[0] = BUDGET - left
            act = search.next()
            assert act is not None
            act()
            return acts[-1]

        high = search.claim_estimate().high
        assert 60 < high < 100, "five rounds, with the compiled baseline beside"
        assert next_with(FIRST_CLAIM * high + 30) == "screen"
        assert next_with(FIRST_CLAIM * high - 5) == "claim", "though a cheap recipe would fit beside it"
        assert next_with(high / 1.15 - 5) == "screen", "what does not fit waits"
