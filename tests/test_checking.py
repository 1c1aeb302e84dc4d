"""A recipe that cannot work is answered before anything runs."""

import dataclasses

import pytest

from thrifty import testing
from thrifty.checking import check, check_recipe, resolve
from thrifty.errors import WorkloadError
from thrifty.recipe import Recipe, RecipeError

WORKLOAD = "thrifty.testing:workload"


@pytest.mark.parametrize("recipe", ["compile(onnxruntime) | prune", "train | quantize(w8a8) | prune",
                                    "train | quantize(w8a8) | quantize(w8a8)"])
def test_an_order_that_cannot_work_is_refused(recipe):
    with pytest.raises(RecipeError, match="requires"):
        check_recipe(testing.workload, Recipe.parse(recipe))


def test_a_teacher_is_no_engine():
    with pytest.raises(WorkloadError, match="leave the compiler out"):
        check_recipe(testing.workload, Recipe.parse('train(distill(teacher="train() | compile(onnxruntime)"))'))


def test_a_workload_that_cannot_be_trained_says_so():
    untrained = dataclasses.replace(testing.workload, train=None, reference="")
    with pytest.raises(WorkloadError, match="no training set"):
        check_recipe(untrained, Recipe.parse("train(epochs=1)"))


def test_checking_rehearses():
    assert "pruned" in check(WORKLOAD, "prune(ratio=0.5) | train(adamw)")


def test_a_workload_without_a_place_is_refused():
    with pytest.raises(WorkloadError, match="write it in a file"):
        resolve(dataclasses.replace(testing.workload, source=""))
