from __future__ import annotations

import pytest

from thrifty import testing
from thrifty.errors import RecipeError
from thrifty.search.sweep import promoted, sweep
from thrifty.studies.store import Store
from thrifty.workloads.embedded import EMBEDDED, suggested

WORKLOAD, REFERENCE = "thrifty.testing:workload", testing.workload.reference


def test_all_recipes_are_checked_before_the_first_runs(tmp_path):
    with pytest.raises(RecipeError, match="requires"):
        sweep(WORKLOAD, [REFERENCE, "quantize(w8a8) | prune"], study=tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_the_front_is_measured_again_and_scored_on_test(tmp_path):
    heard = []
    recipes = [f"{REFERENCE} | compile(onnxruntime)", f"{REFERENCE} | quantize(w8a8) | compile(onnxruntime)",
               "train(adamw(lr=1e30), clip=None, epochs=1)"]
    found = sweep(WORKLOAD, recipes, study=tmp_path / "study", promote=1, listener=heard.append)
    assert [trial.status for trial in found.trials] == ["done", "done", "failed"]
    claimed = [trial for trial in found.trials if trial.inference and trial.inference.speedup.low is not None]
    assert len(claimed) == 1
    assert claimed[0].inference.speedup.pairs == 5 and claimed[0].test is not None
    assert all(trial.test is None for trial in found.trials if trial is not claimed[0])
    assert [standing.trial.id for standing in found.frontier.standings]
    with Store.open(tmp_path / "study") as store:
        assert set(store.rounds(claimed[0].id, "claim")) == {0, 1, 2, 3, 4}
        assert set(store.rounds(claimed[0].id, "screen")) == {0}


def test_nothing_is_promoted_of_nothing():
    assert promoted([], 4) == []


def test_every_embedded_workload_suggests_recipes_that_parse():
    from thrifty.recipes.recipe import Recipe

    for name in EMBEDDED:
        assert all(Recipe.parse(text) for text in suggested(name))
    assert len(suggested("digits")) == 13
