"""A recipe that cannot work is answered before anything runs."""

import dataclasses

import pytest
import torch

from thrifty import testing
from thrifty.errors import RecipeError, ThriftyError, WorkloadError
from thrifty.recipes.recipe import Recipe
from thrifty.runs.preflight import check, check_recipe, resolve

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


def test_inputs_alone_need_a_teacher():
    alone = dataclasses.replace(testing.workload, train=None, loss=None, reference="", unlabelled=testing.stripes(8, 0))
    with pytest.raises(WorkloadError, match="unlabelled inputs alone.*put distill"):
        check_recipe(alone, Recipe.parse("train(adamw, epochs=1)"))
    assert "trained" in check_recipe(alone, Recipe.parse("train(adamw, distill, epochs=1)"))


def test_a_teacher_of_another_workload_is_looked_for_before_anything_runs():
    with pytest.raises(WorkloadError, match="there is no file"):
        check_recipe(testing.workload, Recipe.parse('train(distill(teacher_workload="nowhere.py"))'))


def test_checking_rehearses():
    assert "pruned" in check(WORKLOAD, "prune(ratio=0.5) | train(adamw)")


def test_a_workload_without_a_place_is_refused():
    with pytest.raises(WorkloadError, match="write it in a file"):
        resolve(dataclasses.replace(testing.workload, source=""))


@pytest.mark.parametrize("quantize", ["quantize(fp8)", "quantize(w8a8, layers={'.*': fp8})"])
@pytest.mark.parametrize("compiler", ["inductor", "auto", "export"])
def test_float8_is_not_compiled_for_processors(quantize, compiler):
    assert "float8-products" in check_recipe(testing.workload, Recipe.parse(f"train | {quantize}"))
    with pytest.raises(ThriftyError, match=r"emulates them, slower than fp32; use quantize\(w8a8\), or --device cuda"):
        check_recipe(testing.workload, Recipe.parse(f"train | {quantize} | compile({compiler})"))


def test_float8_is_not_compiled_for_older_gpus(monkeypatch):
    recipe = Recipe.parse("train | quantize(fp8) | compile(inductor)")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(ThriftyError, match=r"A100 has compute capability 8.0, and float8 products need 8.9 or more"):
        check_recipe(testing.workload, recipe, "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    assert "compiled" in check_recipe(testing.workload, recipe, "cuda")


def test_a_compiler_without_float8_says_so():
    pytest.importorskip("onnxruntime")
    with pytest.raises(RecipeError, match="onnxruntime requires a model without float8-products"):
        check_recipe(testing.workload, Recipe.parse("train | quantize(fp8) | compile(onnxruntime)"), "cuda")
